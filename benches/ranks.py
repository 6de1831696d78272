"""How training scales from one process to two, of one thread each: `target/debug/train` beside PyTorch's
DistributedDataParallel (DDP) on the same work, in turns, because other programs on the machine slow all of them down.

    cargo build --workspace --bin train
    .kdlab/venv/bin/python benches/ranks.py plan.toml

The plan (`lab.write_plan("plan.toml")`) says how many images, at which size, in which batches and precision.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 4  # in each round; the first one warms up


def ranks(command, size, environment):
    """Runs the command as so many ranks, which find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | environment | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [shared | {"RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in own]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{command} failed")
    return outputs[0]


def kdlab(plan, size, folder):
    ranks([ROOT / "target/debug/train", plan], size, {"KDLAB_RUNS": str(folder), "KDLAB_ROOT": str(ROOT)})
    history = json.loads((folder / "scale" / "student-distilled" / "history.json").read_text())
    return statistics.median(record["images_per_second"] for record in history["records"][1:])


def ddp(plan, size, _):
    return float(ranks([sys.executable, __file__, str(plan), "--rank"], size, {}).split()[-1])


def rank(plan):
    """One rank of the same training in PyTorch: bytes in memory, channels-last, fused Adam, given logits."""
    import torch
    import torch.nn.functional as F
    from pytorch import loss_kd
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo")
    number, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    profile, side, batch = plan["profile"], plan["profile"]["student_size"], plan["profile"]["batch_size"]
    images = torch.randint(0, 256, (profile["train_images"], 3, 32, 32), dtype=torch.uint8)
    labels, logits = torch.randint(0, 10, (len(images),)), torch.randn(len(images), 10)

    def halving(channels, wider):
        convolutions = nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(), nn.Conv2d(wider, wider, 3, padding=1)
        return *convolutions, nn.MaxPool2d(2), nn.ReLU()

    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 32), nn.Linear(32, 10)
    net = nn.Sequential(*halving(3, 64), *halving(64, 128), *end).to(memory_format=torch.channels_last)
    net = DistributedDataParallel(net) if size > 1 else net
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    bf16 = torch.autocast("cpu", torch.bfloat16) if plan["precision"] == "bf16" else contextlib.nullcontext()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    speeds = []
    for _ in range(EPOCHS):
        begun = time.perf_counter()
        for whole in torch.randperm(len(images)).split(batch):
            rows = whole[len(whole) * number // size : len(whole) * (number + 1) // size]
            x = images[rows].float().div_(255)
            if side < 32:
                x = F.interpolate(x, side, mode="bilinear", antialias=True)
            x = x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
            with bf16:
                outputs = net(x).float()
            # DDP takes the mean over ranks.
            loss = loss_kd(outputs, labels[rows], logits[rows], profile["temperature"], profile["alpha"])
            adam.zero_grad(set_to_none=True)
            (loss * (len(rows) * size / len(whole))).backward()
            adam.step()
        speeds.append(len(images) / (time.perf_counter() - begun))
    print(statistics.median(speeds[1:]))
    torch.distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return rank(tomllib.loads(args.plan.read_text()))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        text = re.sub(r"(?m)^student_epochs = .*", f"student_epochs = {EPOCHS}", args.plan.read_text())
        plan = Path(folder) / "plan.toml"
        plan.write_text(re.sub(r'(?m)^(\[profile\]\nname) = .*', r'\1 = "scale"', text))
        kdlab(plan, 2, Path(folder))  # the teacher, once
        for number in range(1, args.rounds + 1):
            for side in (kdlab, ddp):
                for size in (1, 2):
                    found.setdefault((side.__name__, size), []).append(side(plan, size, Path(folder)))
            last = {f"{name} {size}": round(speeds[-1]) for (name, size), speeds in found.items()}
            print(f"round {number}:", last, flush=True)
    median = {key: statistics.median(speeds) for key, speeds in found.items()}
    print("| images/s | 1 rank | 2 ranks | ratio |\n| --- | ---: | ---: | ---: |")
    for name, title in (("kdlab", "kdlab"), ("ddp", "PyTorch's DDP")):
        one, two = median[name, 1], median[name, 2]
        print(f"| {title} | {one:,.0f} | {two:,.0f} | {two / one:.2f}x |")


if __name__ == "__main__":
    main()
