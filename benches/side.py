"""What both Python sides of the benchmark share: the data, and the lines they exchange with `cargo lab bench`.

The first argument of a side is its task in JSON. For every line that it then reads, it runs one round and answers with
one line.
"""

import json
import sys
import time
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file


class Task:
    """One measurement: sizes, images and the weights that all sides begin with."""

    def __init__(self, spec):
        self.__dict__.update(spec)
        self.folder = Path(self.folder)
        self.device = torch.device(self.device)
        torch.set_num_threads(self.threads)
        pixels = numpy.fromfile(self.folder / "images.u8", numpy.uint8)
        self.images = torch.from_numpy(pixels).view(-1, 3, self.height, self.width)
        self.labels = torch.from_numpy(numpy.fromfile(self.folder / "labels.u8", numpy.uint8)).long()
        self.order = torch.from_numpy(numpy.fromfile(self.folder / "order.i64", numpy.int64)).view(-1, self.train)

    def held_out(self):
        """Returns the indices of the validation images, which follow the training images."""
        return torch.arange(self.train, len(self.labels))

    def batches(self, epoch):
        return self.order[epoch].split(self.batch)

    def tensors(self, name):
        return load_file(self.folder / f"{name}.safetensors")

    def logits(self):
        return self.tensors("logits")["logits"]

    def student(self, pool_first=False):
        """Returns the article's network. With `pool_first`, ReLU runs after max-pooling: the two commute, and ReLU then
        sees a quarter of the values."""
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
                self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
                self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
                self.conv4 = nn.Conv2d(128, 128, 3, padding=1)
                self.pool = nn.MaxPool2d(2)
                self.average = nn.AdaptiveAvgPool2d(1)
                self.fc1 = nn.Linear(128, 32)
                self.fc2 = nn.Linear(32, 10)

            def forward(self, x):
                x = self.halved(self.conv2(torch.relu(self.conv1(x))))
                x = self.halved(self.conv4(torch.relu(self.conv3(x))))
                return self.fc2(self.fc1(self.average(x).flatten(1)))

            def halved(self, x):
                return torch.relu(self.pool(x)) if pool_first else self.pool(torch.relu(x))

        net = Net()
        net.load_state_dict(self.tensors("student"))
        return net.to(self.device)

    def backbone(self):
        """Returns the network up to its features."""
        weights = self.tensors("backbone")
        if self.arch == "efficientnet-lite0":
            from efficientnet_lite_pytorch import EfficientNet

            net = EfficientNet.from_name("efficientnet-lite0")
            net._fc = net._dropout = torch.nn.Identity()
        else:
            import torchvision

            net = getattr(torchvision.models, self.arch)(weights=None)
            net.fc = torch.nn.Identity()
        net.load_state_dict(weights)
        return net.to(self.device)

    def event(self):
        """Records a point in the GPU's queue; None on a CPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_mb():
    """Returns the peak memory of this process in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def serve(workloads):
    """Prepares the workload of the task, then runs a round of it for every line."""
    task = Task(json.loads(sys.argv[1]))
    round_ = workloads[task.workload](task)
    print(json.dumps({"ready": True}), flush=True)
    for number, _ in enumerate(sys.stdin):
        start, begin = time.perf_counter(), task.event()
        measured = round_(number)
        if end := task.event():
            end.synchronize()
            measured["device_seconds"] = begin.elapsed_time(end) / 1e3
        measured["seconds"] = measured.pop("seconds", time.perf_counter() - start)
        measured["peak_mb"] = peak_mb()
        print(json.dumps(measured), flush=True)
