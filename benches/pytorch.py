"""The best PyTorch we can write for the same work. It keeps images as bytes, resizes and normalises whole batches on
the device, and uses channels-last, bf16 where the hardware has it, `torch.compile` and a fused Adam. Sums stay on the
device, and features are computed once.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from side import serve


def has_bf16(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Fast:
    def __init__(self, task):
        self.task = task
        self.images = task.images.to(task.device)
        self.labels = task.labels.to(task.device)
        self.mean = torch.tensor(task.mean, device=task.device).view(1, 3, 1, 1)
        self.std = torch.tensor(task.std, device=task.device).view(1, 3, 1, 1)
        self.bf16 = has_bf16(task.device) and not task.f32
        if task.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = True

    def precision(self):
        if self.bf16:
            return torch.autocast(self.task.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def batch(self, indices):
        x = self.images[indices].float().div_(255)
        size = self.task.size
        if size < self.task.height:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        elif size > self.task.height:
            x = F.interpolate(x, size, mode="bilinear")
        x = x.sub_(self.mean).div_(self.std)
        return x.contiguous(memory_format=torch.channels_last)

    def network(self, net):
        net = net.to(memory_format=torch.channels_last)
        # On a GPU as CUDA graphs, because launching its kernels one by one takes longer than running them.
        mode = "reduce-overhead" if self.task.device.type == "cuda" else "default"
        return torch.compile(net, mode=mode) if self.task.compile else net

    def adam(self, net):
        return torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)


def loss_kd(outputs, labels, teacher, temperature, alpha):
    soft = F.kl_div(
        F.log_softmax(outputs / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return soft * (alpha * temperature**2) + F.cross_entropy(outputs, labels) * (1.0 - alpha)


def student(task):
    fast, logits = Fast(task), task.logits().to(task.device)
    net = fast.network(task.student(pool_first=True))
    adam, validation = fast.adam(net), task.held_out().split(task.batch)

    def epoch(number):
        net.train()
        sum_ = torch.zeros((), device=task.device, dtype=torch.float64)
        for indices in task.batches(number):
            with fast.precision():
                outputs = net(fast.batch(indices)).float()
            loss = loss_kd(outputs, fast.labels[indices], logits[indices], task.temperature, task.alpha)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            sum_ += loss.detach() * len(indices)
        net.eval()
        with torch.no_grad(), fast.precision():
            for indices in validation:
                F.cross_entropy(net(fast.batch(indices)).float(), fast.labels[indices])
        return {"loss": sum_.item() / task.train}

    return epoch


def rows(fast, net, order):
    with torch.inference_mode(), fast.precision():
        # Copies, because a CUDA graph overwrites its earlier outputs.
        return torch.cat([net(fast.batch(indices)).float().clone() for indices in order.split(fast.task.batch)])


def teacher(task):
    """Runs the whole stage: features once, then the head's epochs on them."""
    fast = Fast(task)
    net = fast.network(task.backbone().eval().requires_grad_(False))
    start = task.tensors("head")

    def stage(_):
        found = rows(fast, net, torch.arange(len(fast.labels))).clone()
        head = nn.Linear(found.shape[1], 10).to(task.device)
        head.load_state_dict({name.removeprefix("fc."): t for name, t in start.items()})
        adam = fast.adam(head)
        for epoch in range(task.epochs):
            sum_ = torch.zeros((), device=task.device, dtype=torch.float64)
            for indices in task.batches(epoch):
                loss = F.cross_entropy(head(found[indices]), fast.labels[indices])
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
                sum_ += loss.detach() * len(indices)
            with torch.no_grad():
                F.cross_entropy(head(found[task.train :]), fast.labels[task.train :])
        return {"loss": sum_.item() / task.train, "epochs": task.epochs}

    return stage


def features(task):
    fast = Fast(task)
    net = fast.network(task.backbone().eval().requires_grad_(False))
    return lambda number: {"loss": rows(fast, net, task.order[number]).abs().mean().item()}


if __name__ == "__main__":
    serve({"student": student, "teacher": teacher, "features": features})
