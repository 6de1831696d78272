"""What saturates first on one machine with 8 GPUs, and on 64 of them. It prints the tables of docs/scale.md.

    python3 benches/scale.py
    .kdlab/venv/bin/python benches/scale.py --measure    # measures MEASURED_HERE again; needs `cargo lab setup --tests`

Nothing here ran on such machines: it divides what is needed by what there is.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GPUS, NODES = 8, 64
IMAGE = 3 * 224 * 224  # bytes of a square
GRADIENTS = 4 * 264_618  # bytes, of the student
BATCH = 64

# Images a second on one H100, from docs/log.md ("CUDA").
H100 = {"features of ResNet-50, 224 px": 2048 / 0.186, "student, 224 px": 2048 / 0.433, "student, 32 px": 32768 / 1.59}
# On two cores of a Xeon at 2.8 GHz; the last two while other programs kept them busy.
MEASURED_HERE = {
    "crops of JPEGs of 500 x 375 px, a core": 170.0,
    # Four fits of 6 epochs on two cores in 30.1 s: 1,000 images at 16 px, validation and test.
    "seconds of a fit's epoch on a core": 30.1 * 2 / 4 / 6,
    "fits that Dask hands out, a second": 6.0,
    "seconds of a hop of gloo, 7 numbers": 117e-6,
}
# Bytes that a fit of a sweep writes after each epoch: its checkpoint, best weights and history.
EPOCH_FILES, EPOCH_BYTES = 3, 5.4e6
EPOCHS = 6
DASK_TASK = 1e-3  # seconds; distributed.dask.org: "each task suffers about 1ms of overhead"

# In bytes a second, one way. DGX H100 User Guide: 8 GPUs, 900 GB/s of NVLink (both ways) and a ConnectX-7 of 400 Gb/s
# each, 112 cores. A drive of PCIe 4.0 x4: 16 GT/s a lane, 128 of 130 bits. A file server with a port of 100 Gb/s.
NVLINK, INFINIBAND, DRIVE, SERVER, CORES = 450e9, 50e9, 4 * 16e9 * 128 / 130 / 8, 12.5e9, 112


def gb(value):
    return f"{value / 1e9:,.1f} GB/s"


def images():
    """Bytes and decoded images for GPUs that are never idle."""
    print("| work | images/s of a GPU | of 8 GPUs, as bytes | of 64 machines | one drive feeds | one server feeds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for work, rate in H100.items():
        if "224" in work:
            need = rate * IMAGE
            feeds = f"{DRIVE / need:.0f} GPUs | {SERVER / need:.0f} GPUs"
            print(f"| {work} | {rate:,.0f} | {gb(GPUS * need)} | {gb(GPUS * NODES * need)} | {feeds} |")
    decoded, rate = MEASURED_HERE["crops of JPEGs of 500 x 375 px, a core"], H100["student, 224 px"]
    print(
        f"\nCrops of the original files: {rate / decoded:.0f} cores a GPU are needed, and {CORES // GPUS} are there, "
        "which "
        f"decode {CORES / GPUS * decoded:,.0f} images a second: {CORES / GPUS * decoded / rate:.0%} of the GPU.\n"
    )


def sums():
    """Seconds of a step's sums, beside the step."""
    step = BATCH / H100["student, 32 px"]
    hop = MEASURED_HERE["seconds of a hop of gloo, 7 numbers"]
    agreement = lambda ranks: 2 * (ranks - 1) * hop  # a ring
    print("| GPUs | gradients: time on the wire "
          "| agreement before each batch (gloo) | a step of 64 images on one GPU |")
    print("| ---: | ---: | ---: | ---: |")
    for ranks in (2, GPUS, 8 * GPUS, NODES * GPUS):
        wire = 2 * (ranks - 1) / ranks * GRADIENTS / (NVLINK if ranks <= GPUS else INFINIBAND)
        print(f"| {ranks} | {1e6 * wire:.0f} µs | {1e3 * agreement(ranks):.1f} ms | {1e3 * step:.1f} ms |")
    print(f"\nThe agreement takes as long as the step at {step / 2 / hop + 1:.0f} ranks.\n")


def sweeps():
    """Fits, files and bytes a second where every core makes a fit."""
    epoch = MEASURED_HERE["seconds of a fit's epoch on a core"]
    print("| cores | fits/s | files/s | written to the common folder |\n| ---: | ---: | ---: | ---: |")
    for cores in (CORES, 8 * CORES, NODES * CORES):
        print(f"| {cores:,} | {cores / epoch / EPOCHS:,.1f} | {EPOCH_FILES * cores / epoch:,.0f} "
              f"| {gb(cores * EPOCH_BYTES / epoch)} |")
    fits = MEASURED_HERE["fits that Dask hands out, a second"]
    full = SERVER / EPOCH_BYTES * epoch
    print(f"\nA server's port is full at {full:,.0f} cores. Dask hands out "
          f"enough for {fits * EPOCHS * epoch:,.0f} at {fits:.0f} fits a")
    print(f"second, as two busy cores did, and for {EPOCHS * epoch / DASK_TASK:,.0f} at its documented overhead.\n")


def rank(number, size, port):
    import torch.distributed as dist
    import torch

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=size)
    values, seconds = torch.zeros(7, dtype=torch.double), []
    for _ in range(3000):
        begun = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - begun)
    # Other programs on the machine make most of them slower.
    print(sorted(seconds)[len(seconds) // 20])


def measure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--rank"]
    started = [
        subprocess.Popen([*command, str(number), "2", str(port)], stdout=subprocess.PIPE, text=True)
        for number in (0, 1)
    ]
    seconds = max(float(process.communicate()[0]) for process in started)
    print(f"a sum of 7 numbers by gloo, 2 ranks, which takes 2 hops: {1e6 * seconds:.0f} µs")
    with tempfile.TemporaryDirectory() as folder:
        work, program = Path(folder) / "work.json", Path(folder) / "fit"
        fits = [{"place": n, "seed": n, "name": f"fit-{n}"} for n in range(300)]
        work.write_text(json.dumps({"environment": {}, "cpus": {}, "fits": fits}))
        program.write_text("#!/bin/sh\necho '{\"run\": {}}'\n")
        program.chmod(0o755)
        dask = os.environ.get("KDLAB_DASK", ROOT / ".kdlab/dask/bin/python")
        command = [dask, ROOT / "src/study/dispatcher.py", work, "local:2", program]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ends = [time.perf_counter() for line in process.stdout if '"run"' in line]
        print(f"fits that Dask hands out: {(len(ends) - 1) / (ends[-1] - ends[0]):.0f} a second")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--rank", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return rank(*args.rank)
    if args.measure:
        return measure()
    for part in (images, sums, sweeps):
        part()


if __name__ == "__main__":
    main()
