"""What PyTorch says: `oracle.py CASE FOLDER` reads in.safetensors and settings.json there and writes out.safetensors.

Everything here is PyTorch's own, or a published package's: nothing is computed as the crate computes it.
"""
import json
import os
import sys

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """The article's student."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(128, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.max_pool2d(F.relu(self.conv4(F.relu(self.conv3(x)))), 2)
        return self.fc2(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def kd_loss(s, y, t, temperature, alpha, reduction="batchmean", log_target=False):
    target = (F.log_softmax if log_target else F.softmax)(t / temperature, 1)
    kl = F.kl_div(F.log_softmax(s / temperature, 1), target, reduction=reduction, log_target=log_target)
    return alpha * temperature**2 * kl + (1 - alpha) * F.cross_entropy(s, y)


def kd(x, settings, folder):
    out = {}
    for temperature in settings["temperatures"]:
        for alpha in settings["alphas"]:
            for reduction in ("batchmean", "mean"):
                s = x["student"].clone().requires_grad_()
                loss = kd_loss(s, x["labels"], x["teacher"], temperature, alpha, reduction)
                loss.backward()
                out[f"loss {reduction} {temperature} {alpha}"] = loss.detach()
                out[f"grad {reduction} {temperature} {alpha}"] = s.grad
    return out


def dkd(s, y, t, T, target=1, non_target=8):
    one_hot = F.one_hot(y, s.shape[1]).bool()

    def binary(z):
        p = F.softmax(z / T, 1)[one_hot]
        return torch.stack([p, 1 - p], 1)

    def others(z):
        return F.log_softmax(z[~one_hot].view(len(z), -1) / T, 1)

    tckd = F.kl_div(binary(s).log(), binary(t), reduction="batchmean")
    nckd = F.kl_div(others(s), others(t), reduction="batchmean", log_target=True)
    return T**2 * (target * tckd + non_target * nckd)


def standardised(s, y, t, T):
    def z(x):
        return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1e-7)

    return T**2 * F.kl_div(F.log_softmax(z(s) / T, 1), F.softmax(z(t) / T, 1), reduction="batchmean")


SOFT_TERMS = {
    "kd": lambda s, y, t, T: kd_loss(s, y, t, T, 1),
    "dkd": dkd,
    "standardised-kd": standardised,
    "argmax": lambda s, y, t, T: F.cross_entropy(s, t.argmax(1)),
}
# Temperature, weights of cross-entropy and of the soft term, epochs of warm-up: as the authors' programs have them.
PUBLISHED = {
    "kd": (4, 0.1, 0.9, 0),
    "dkd": (4, 1, 1, 20),
    "standardised-kd": (2, 0.1, 9, 0),
    "argmax": (4, 0.1, 0.9, 0),
}


def attention_map(f):
    return F.normalize(f.pow(2).mean(1).flatten(1))


def relations(e):
    """Distances of pairs and cosines of triples, as the program of Park et al. has them."""
    square, product = e.pow(2).sum(1), e @ e.t()
    distance = (square.unsqueeze(1) + square.unsqueeze(0) - 2 * product).clamp(min=1e-12).sqrt()
    distance = distance.clone()
    distance[range(len(e)), range(len(e))] = 0
    direction = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
    return distance / distance[distance > 0].mean(), torch.bmm(direction, direction.transpose(1, 2)).view(-1)


def feature_loss(name, weights, s, t, projection=None):
    if name == "relational":
        pairs = zip(weights, relations(s.flatten(1)), relations(t.flatten(1)))
        return sum(weight * F.smooth_l1_loss(a, b) for weight, a, b in pairs)
    if s.ndim == 4:
        side = min(s.shape[2], t.shape[2])
        s, t = F.adaptive_avg_pool2d(s, side), F.adaptive_avg_pool2d(t, side)
    if name == "attention":
        return weights[0] * (attention_map(s) - attention_map(t)).pow(2).mean()
    return weights[0] * F.mse_loss(s if projection is None else F.linear(s, *projection), t)


def features(x, settings, folder):
    out = {}
    for name, weights in settings["methods"]:
        s = x["student"].clone().requires_grad_()
        loss = feature_loss(name, weights, s, x["teacher"])
        loss.backward()
        out[f"loss {name}"], out[f"grad {name}"] = loss.detach(), s.grad
    return out


def methods(x, settings, folder):
    """DKD (equation 7 and its T**2) and logit standardisation, each as its paper writes it, with PyTorch's pieces."""
    out = {}
    for T in settings["temperatures"]:
        for name in ("dkd", "standardised-kd", "argmax"):
            s = x["student"].clone().requires_grad_()
            value = 0.7 * SOFT_TERMS[name](s, x["labels"], x["teacher"], T) + 0.3 * F.cross_entropy(s, x["labels"])
            value.backward()
            out[f"loss {name} {T}"], out[f"grad {name} {T}"] = value.detach(), s.grad
    return out


def resnets(x, settings, folder):
    import torchvision

    out = {}
    for arch in ("resnet18", "resnet50"):
        torch.manual_seed(1)
        net = getattr(torchvision.models, arch)(weights=None, num_classes=10)
        with torch.no_grad():
            for _ in range(3):
                net.train()(x["images"])  # running statistics that are neither 0 nor 1
        net.eval()
        states = {"": net.state_dict(), "module-": nn.DataParallel(net).state_dict()}
        assert all(name.startswith("module.") for name in states["module-"])
        for prefix, state in states.items():
            torch.save(state, f"{folder}/{prefix}{arch}-zip.pth")
            torch.save(state, f"{folder}/{prefix}{arch}-legacy.pth", _use_new_zipfile_serialization=False)
            save_file(state, f"{folder}/{prefix}{arch}.safetensors")
        with torch.no_grad():
            out[f"{arch} logits"] = net(x["images"])
            net.fc = nn.Identity()
            out[f"{arch} features"] = net(x["images"])
    return out


def hostile(x, settings, folder):
    witness = f"{folder}/witness"

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    ran = []
    for name, zipped in (("zip", True), ("legacy", False)):
        path = f"{folder}/{name}.pth"
        torch.save({"fc.weight": torch.ones(2, 2), "extra": Code()}, path, _use_new_zipfile_serialization=zipped)
        torch.load(path, weights_only=False)  # what it does to those who trust it
        ran.append(os.path.exists(witness))
        os.remove(witness)
    return {"ran": torch.tensor(ran)}


def lite0(x, settings, folder):
    from efficientnet_lite_pytorch import EfficientNet

    out = {}
    for name, images in x.items():
        net = EfficientNet.from_name("efficientnet-lite0", image_size=images.shape[-1])
        net.load_state_dict(torch.load(settings["weights"], weights_only=True))
        with torch.no_grad():
            out[name] = F.adaptive_avg_pool2d(net.eval().extract_features(images), 1).flatten(1)
            out[f"{name} logits"] = net(images)
    return out


def student(x, settings, folder):
    nets = []
    for seed in range(settings["draws"]):
        torch.manual_seed(seed)
        nets.append(Net())
    out = {
        name: torch.cat([dict(net.named_parameters())[name].flatten() for net in nets]).detach()
        for name, _ in nets[0].named_parameters()
    }
    return out | {"parameters": torch.tensor(sum(p.numel() for p in nets[0].parameters()))}


class Sized(Net):
    """A student with other numbers of channels, and convolutions of stride 2 in front."""

    def __init__(self, width, stems, classes):
        super().__init__()
        self.stems, channels = [], 3
        for i, outputs in enumerate(stems, 1):
            self.add_module(f"stem{i}", nn.Conv2d(channels, outputs, 3, stride=2, padding=1))
            channels = outputs
            self.stems.append(f"stem{i}")
        self.conv1, self.conv2 = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(2 * width, width // 2), nn.Linear(width // 2, classes)

    def forward(self, x):
        for stem in self.stems:
            x = F.relu(getattr(self, stem)(x))
        return super().forward(x)


def students(x, settings, folder):
    """Parameters, multiply-adds and logits of students with the crate's weights."""
    out, macs = {}, []

    def count(module, inputs, output):
        macs.append(module.weight.numel() * output.shape[2:].numel())

    for name, (width, stems) in settings["students"].items():
        net = Sized(width, stems, 7)
        net.load_state_dict(load_file(f"{folder}/{name}.safetensors"))
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        macs.clear()
        with torch.no_grad():
            out[f"{name} logits"] = net(x[name])
        out[f"{name} macs"] = torch.tensor(sum(macs))
        out[f"{name} parameters"] = torch.tensor(sum(p.numel() for p in net.parameters()))
    return out


def transforms(x, settings, folder):
    import torchvision.transforms.v2 as v2
    from torchvision import transforms as v1
    from torchvision.transforms.functional import to_pil_image

    out, normalize = {}, v1.Normalize(settings["mean"], settings["std"])
    for size in settings["sizes"]:
        article = v1.Compose([v1.Resize((size, size)), v1.ToTensor(), normalize])
        out[f"pil {size}"] = torch.stack([article(to_pil_image(image)) for image in x["images"]])
        unrounded = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Resize((size, size), antialias=True), normalize]
        )
        out[f"tensor {size}"] = unrounded(x["images"])
    return out


def crops(x, settings, folder):
    from PIL import Image
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    out = {}
    for file in range(settings["files"]):
        image = Image.open(f"{folder}/{file}.png")
        for size in settings["sizes"]:
            out[f"{file} {size} pil"] = v1.Compose([v1.Resize(size), v1.CenterCrop(size), v1.PILToTensor()])(image)
            unrounded = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
            out[f"{file} {size} tensor"] = unrounded(v1.functional.pil_to_tensor(image).float())
    return out


def views(x, settings, folder):
    """Images in views with the boxes, shifts and factors that settings give, in f64 and not rounded."""
    from torchvision.transforms.v2 import functional as T

    out = []
    for image, view in zip(x["images"].double(), settings["views"]):
        y, (height, width) = image[None], image.shape[1:]
        if view["crop"]:
            left, top, right, bottom = view["crop"]
            y = F.interpolate(y[:, :, top:bottom, left:right], (height, width), mode="bilinear", align_corners=False)
        (right, down), p = view["shift"], 64
        y = F.pad(y, (p, p, p, p), mode="replicate")[:, :, p - down : p - down + height, p - right : p - right + width]
        y = y.flip(3) if view["mirrored"] else y
        if view["colour"]:
            brightness, contrast, saturation = view["colour"]
            y = T.adjust_contrast(T.adjust_brightness(y / 255, brightness), contrast)
            y = T.adjust_saturation(y, saturation) * 255
        y = T.adjust_hue(y / 255, view["hue"]) * 255 if view["hue"] else y
        if view["cutout"]:
            left, top, right, bottom = view["cutout"]
            y = y.clone()
            y[0, :, top:bottom, left:right] = torch.tensor([124.0, 116.0, 104.0], dtype=y.dtype).view(3, 1, 1)
        out.append(y[0])
    return {"views": torch.stack(out)}


def resized_crops(x, settings, folder):
    from PIL import Image
    from torchvision.transforms.v2 import functional as T

    crops = []
    for file in settings["files"]:
        image, (left, top, right, bottom) = T.pil_to_tensor(Image.open(file["path"])).double(), file["crop"]
        size = [settings["size"]] * 2
        crops.append(T.resized_crop(image, top, left, bottom - top, right - left, size, antialias=True))
    return {"crops": torch.stack(crops)}


def crop_boxes(x, settings, folder):
    """Left, top, width and height of random crops."""
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    out = {}
    for case, (width, height, least) in enumerate(settings["cases"]):
        image = torch.zeros(3, height, width)
        drawn = [RandomResizedCrop.get_params(image, (least, 1), (3 / 4, 4 / 3)) for _ in range(settings["count"])]
        out[str(case)] = torch.tensor([(left, top, w, h) for top, left, h, w in drawn])
    return out


def mixup(x, settings, folder):
    """Steps of SGD on mixed images with a teacher that judges them: `mixup_criterion` of Zhang et al., and KD."""
    out, T = {}, settings["temperature"]
    recipe = {"weight": x["weights"], "label_smoothing": settings["label_smoothing"]}
    parts = [x[name].split(settings["sizes"]) for name in ("inputs", "labels", "partners")]
    for alpha in settings["alphas"]:
        student = nn.Linear(48, 10).double()
        student.load_state_dict({name: x[name] for name in ("weight", "bias")})
        optimizer = torch.optim.SGD(student.parameters(), lr=settings["learning_rate"])
        for share, inputs, y_a, y_b in zip(x["shares"].tolist(), *parts):
            s, t = student(inputs), F.linear(inputs, x["teacher.weight"], x["teacher.bias"])
            loss = share * F.cross_entropy(s, y_a, **recipe) + (1 - share) * F.cross_entropy(s, y_b, **recipe)
            if alpha is not None:
                soft = F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")
                loss = alpha * T**2 * soft + (1 - alpha) * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        out |= {f"{alpha} {name}": p for name, p in student.named_parameters()}
    return out


def scripts(x, settings, folder):
    """TorchScript files, good and bad ones, and what a good one says of images prepared by torchvision."""
    import torchvision
    from torchvision.transforms.v2 import functional as T

    class Wrapped(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.net, self.change = small, change

        def forward(self, x):
            return self.change(self.net(x))

    class OnGpu(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) + torch.ones(3, device="cuda:0")

    torch.manual_seed(3)
    net = torchvision.models.resnet18(num_classes=10).eval()
    small = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ).eval()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 10))
    zeros = torch.zeros(2, 3, 64, 64)
    torch.jit.script(small).save(f"{folder}/scripted.pt")
    torch.jit.script(OnGpu()).save(f"{folder}/gpu.pt")
    torch.jit.script(nn.Identity()).save(f"{folder}/images.pt")
    traced = {
        "traced": net,
        "probabilities": Wrapped(lambda y: y.softmax(1)),
        "several": Wrapped(lambda y: (y, y)),
        "fixed": Wrapped(lambda y: y[:1]),
        "few": Wrapped(lambda y: y[:, :9]),
        "nan": Wrapped(lambda y: y / 0 * 0),
        "flat": flat,
    }
    for name, module in traced.items():
        torch.jit.trace(module.eval(), zeros, check_trace=False).save(f"{folder}/{name}.pt")
    torch.save(small.state_dict(), f"{folder}/weights.pt")
    images = T.center_crop(T.resize(x["images"].float() / 255, [72, 72], antialias=True), [64, 64])
    with torch.no_grad():
        imagenet = T.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        caffe = (images.flip(1) * 255 - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)) / 64
        return {"imagenet": net(imagenet), "caffe": net(caffe), "small": small(imagenet)}


def train(x, settings, folder):
    """The article's loop with its mistakes mended, or with the one that settings name."""
    mistake = settings["mistake"]
    state = load_file(f"{folder}/first.safetensors")
    if settings["net"] == "student":
        net = Net()
    elif settings["net"] == "head":
        net = nn.Sequential()
        net.fc = nn.Linear(x["inputs"].shape[1], 10)
    else:
        import torchvision

        net = torchvision.models.resnet18(weights=None, num_classes=10)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith("fc."))
    net.to(x["inputs"].dtype)
    missing = net.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(name.endswith("num_batches_tracked") for name in missing.missing_keys)

    def logits_of(t):
        images = t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t  # the crate's layout
        if settings["precision"] == "f32":
            return net(images)
        with torch.autocast("cpu", torch.bfloat16):
            return net(images).float()

    def new_optimizer():
        rule, constants = settings["optimizer"], {}
        if isinstance(rule, dict):
            [(rule, constants)] = rule.items()
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "Sgd": torch.optim.SGD}[rule]
        # In f32 roundings grow, so there both sides run the fused kernels. In f64 PyTorch runs its plain operations.
        fused = x["inputs"].dtype == torch.float32
        parameters = [p for p in net.parameters() if p.requires_grad]
        return kind(parameters, lr=settings["learning_rate"], fused=fused, **constants)

    def loss_of(logits, rows, teacher_rows):
        if settings["temperature"] is None:
            return F.cross_entropy(logits, x["labels"][rows])
        reduction = "mean" if mistake == "KlOverClasses" else "batchmean"
        values = settings["temperature"], settings["alpha"], reduction, settings["log_target"]
        return kd_loss(logits, x["labels"][rows], x["teacher"][teacher_rows], *values)

    optimizer, losses, accuracies = new_optimizer(), [], []
    batch = settings["batch_size"]
    for order in x["order"]:
        if mistake == "AdamRebuilt":
            optimizer = new_optimizer()
        net.train()
        if settings["net"] == "resnet18" and mistake != "BatchNormDrift":
            net.eval()
        others = x["first_order"] if mistake == "MismatchedTeacher" else order
        for rows, teacher_rows in zip(order.split(batch), others.split(batch)):
            optimizer.zero_grad()
            loss = loss_of(logits_of(x["inputs"][rows]), rows, teacher_rows)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        net.eval()
        with torch.no_grad():
            predicted = logits_of(x["validation_inputs"]).argmax(1)
        accuracies.append((predicted == x["validation_labels"]).double().mean().item())
    names = {parameter: name for name, parameter in net.named_parameters()}
    moments = {names[p]: s for p, s in optimizer.state.items()}
    out = {f"weights/{name}": t for name, t in net.state_dict().items()}
    for ours, theirs in [("mean", "exp_avg"), ("square", "exp_avg_sq"), ("momentum", "momentum_buffer")]:
        out |= {f"{ours}/{name}": s[theirs] for name, s in moments.items() if theirs in s}
    out["steps"] = next(iter(moments.values())).get("step", torch.tensor(len(losses)))
    return out | {
        "losses": torch.tensor(losses, dtype=torch.double),
        "accuracies": torch.tensor(accuracies, dtype=torch.double),
    }


def recipes(x, settings, folder):
    """Trains a network with BatchNorm by each recipe, with PyTorch's optimizers, schedulers, clipping and averages."""
    from torch.optim import lr_scheduler
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.set_num_threads(1)  # the network is tiny
    state, batch, rate = load_file(f"{folder}/first.safetensors"), settings["batch_size"], settings["learning_rate"]
    per_epoch, total = -(-len(x["inputs"]) // batch), len(x["order"]) * -(-len(x["inputs"]) // batch)

    def named(value):
        return next(iter(value.items())) if isinstance(value, dict) else (value, {})

    def new_optimizer(net, recipe, projection):
        rule, constants = named(recipe["optimizer"])
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "Sgd": torch.optim.SGD}[rule]
        if not recipe["decay_weights_only"]:
            return kind([*net.parameters(), *projection], lr=rate, **constants)
        spared = {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0}
        return kind([{"params": [p for p in net.parameters() if p.ndim >= 2]}, spared], lr=rate, **constants)

    def new_scheduler(optimizer, recipe):
        warmup = round(recipe["warmup"] * per_epoch)
        name, constants = named(recipe["schedule"])
        main = {
            "Constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0),
            "Cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, total - warmup),
            "Step": lambda: lr_scheduler.StepLR(optimizer, constants["epochs"] * per_epoch, constants["factor"]),
            "OneCycle": lambda: lr_scheduler.OneCycleLR(optimizer, rate, total - warmup, cycle_momentum=False),
        }[name]()
        if not warmup:
            return main
        return lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup), main], [warmup]
        )

    def loss_of(logits, labels, teacher, recipe, kd, epoch=10**9):
        weight = recipe["class_weights"] and torch.tensor(recipe["class_weights"], dtype=torch.double)
        hard = F.cross_entropy(logits, labels, weight, label_smoothing=recipe["label_smoothing"])
        if kd is None or isinstance(kd, dict):
            return hard
        if isinstance(kd, str):
            T, of_hard, of_soft, warmup = PUBLISHED[kd]
            share = min(epoch / warmup, 1) if warmup else 1
            return of_hard * hard + share * of_soft * SOFT_TERMS[kd](logits, labels, teacher, T)
        T, alpha = kd
        soft = F.kl_div(F.log_softmax(logits / T, 1), F.softmax(teacher / T, 1), reduction="batchmean")
        return alpha * T**2 * soft + (1 - alpha) * hard

    out = {}
    for i, (recipe, kd, labels) in enumerate(settings["runs"]):
        net = nn.Sequential()
        net.fc1, net.bn, net.relu, net.fc2 = (
            nn.Linear(12, 16, bias=False),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )
        net.double().load_state_dict(state, strict=False)
        projection, tapped = [], []
        if isinstance(kd, dict):
            name, weights = kd["features"]
            net.relu.register_forward_hook(lambda module, inputs, output: tapped.append(output))
        if isinstance(kd, dict) and name == "hint":
            torch.manual_seed(settings["seed"])
            sizes = [(x["features"].shape[1], 16), (x["features"].shape[1],)]
            projection = [
                torch.empty(size, dtype=torch.double).uniform_(-0.25, 0.25).requires_grad_() for size in sizes
            ]
        optimizer = new_optimizer(net, recipe, projection)
        scheduler, rates, losses, validation = new_scheduler(optimizer, recipe), [], [], []
        average = recipe["average"] and AveragedModel(
            net, multi_avg_fn=get_ema_multi_avg_fn(recipe["average"]), use_buffers=True
        )
        for epoch, order in enumerate(x["order"], 1):
            for rows in order.split(batch):
                optimizer.zero_grad()
                loss = loss_of(net.train()(x["inputs"][rows]), x[labels][rows], x["teacher"][rows], recipe, kd, epoch)
                if tapped:
                    loss = loss + feature_loss(name, weights, tapped.pop(), x["features"][rows], projection or None)
                loss.backward()
                if recipe["clip_norm"]:
                    nn.utils.clip_grad_norm_(net.parameters(), recipe["clip_norm"])
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
                if average:
                    average.update_parameters(net)
                losses.append(loss.item() * len(rows))
            judged, n = (average.module if average else net).eval(), len(x["validation_inputs"])
            with torch.no_grad():
                parts = torch.arange(n).split(batch)
                inputs, targets, teacher = (x[f"validation_{kind}"] for kind in ("inputs", "labels", "teacher"))
                each = [len(r) * loss_of(judged(inputs[r]), targets[r], teacher[r], recipe, kd) for r in parts]
            validation.append(sum(each) / n)
        names = {parameter: name for name, parameter in net.named_parameters()}
        names |= dict(zip(projection, ("projection/weight", "projection/bias")))
        out |= {f"{i}/{names[p]}": p for p in projection}
        out |= {f"{i}/weights/{name}": t for name, t in net.state_dict().items()}
        out |= {f"{i}/average/{name}": t for name, t in average.module.state_dict().items()} if average else {}
        for ours, theirs in [("mean", "exp_avg"), ("square", "exp_avg_sq"), ("momentum", "momentum_buffer")]:
            out |= {f"{i}/{ours}/{names[p]}": s[theirs] for p, s in optimizer.state.items() if theirs in s}
        out[f"{i}/rates"] = torch.tensor(rates, dtype=torch.double)
        losses = torch.tensor(losses, dtype=torch.double).view(len(x["order"]), -1).sum(1)
        out[f"{i}/losses"] = losses / len(x["inputs"])
        out[f"{i}/validation"] = torch.stack(validation)
    return out


def metrics(x, settings, folder):
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_confusion_matrix,
    )

    logits, labels, classes = x["logits"], x["labels"], x["logits"].shape[1]
    return {
        "accuracy": multiclass_accuracy(logits, labels, classes, average="micro"),
        "nll": F.nll_loss(F.log_softmax(logits.double(), 1), labels),
        "ece": multiclass_calibration_error(logits.double().softmax(1), labels, classes, n_bins=15, norm="l1"),
        "agreement": multiclass_accuracy(logits, x["teacher"].argmax(1), classes, average="micro"),
        "confusion": multiclass_confusion_matrix(logits, labels, classes),
    }


def exported(x, settings, folder):
    """What onnxruntime and libtorch's TorchScript say of images, from files that the crate wrote."""
    import onnx
    import onnxruntime

    out, cards = {}, {}
    for name, images in x.items():
        network = name.split("/")[0]
        file = f"{folder}/{network}.onnx"
        onnx.checker.check_model(file, full_check=True)
        graph = onnx.load(file).graph
        used = {name for node in graph.node for name in node.input}
        assert {constant.name for constant in graph.initializer} <= used, "runtimes warn of constants without a use"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for output, values in zip(
            ("logits", "probabilities"), session.run(["logits", "probabilities"], {"images": images.numpy()})
        ):
            out[f"{name} {output}"] = torch.from_numpy(values)
        extra = {"card.json": ""}
        script = torch.jit.load(f"{folder}/{network}.pt", _extra_files=extra)
        with torch.no_grad():
            out[f"{name} script"] = script(images)
        onnx_card = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
        cards[network] = {"onnx": onnx_card, "torchscript": json.loads(extra["card.json"])}
    with open(f"{folder}/cards.json", "w") as file:
        json.dump(cards, file)
    return out


def tensorboard(x, settings, folder):
    """Every curve of an event file as rows of wall time, step and value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder).Reload()

    def points(tag):
        return [[point.wall_time, point.step, point.value] for point in events.Scalars(tag)]

    return {tag: torch.tensor(points(tag), dtype=torch.double) for tag in events.Tags()["scalars"]}


def quantised(x, settings, folder):
    """The logits of networks in f32 and in integers. onnxruntime has to compute the latter with its integer layers."""
    import onnx
    import onnxruntime

    out = {}
    for name, images in x.items():
        for precision in ("f32", "int8"):
            file = f"{folder}/{name}-{precision}.onnx"
            onnx.checker.check_model(file, full_check=True)
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.optimized_model_filepath = f"{folder}/optimised.onnx"
            options.log_severity_level = 3  # it warns that the optimised file is for this machine
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
            print(name, precision, sorted((kinds.count(kind), kind) for kind in set(kinds)))
            if precision == "int8":
                assert "QLinearConv" in kinds and not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & set(kinds), kinds
                precisions = session.get_modelmeta().custom_metadata_map["precision"]
                assert json.loads(precisions) == "int8", precisions
            parts = [session.run(["logits"], {"images": part.numpy()})[0] for part in images.split(50)]
            out[f"{name} {precision}"] = torch.cat([torch.from_numpy(part) for part in parts])
    return out


def main(case, folder):
    path = f"{folder}/in.safetensors"
    x = load_file(path) if os.path.exists(path) else {}
    with open(f"{folder}/settings.json") as file:
        settings = json.load(file)
    out = globals()[case](x, settings, folder)
    save_file({name: t.detach().contiguous().clone() for name, t in out.items()}, f"{folder}/out.safetensors")


main(*sys.argv[1:])
