"""How many fits of a sweep a machine makes in a minute: one after the other on all cores, as sweeps ran before each fit
took one thread; side by side in one process; and on one and two of Dask's workers.

    cargo lab bench sweep
    .kdlab/venv/bin/python benches/sweep.py PROGRAM    # the program of `cargo lab bench`, and Dask is installed

Needs images (`KDLAB_DATA`) and an idle machine. Each way makes `--fits` and a third of them: the difference is the
time of the fits without the start.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "target/debug/sweep"


def plan(args, fits):
    """A sweep of so many fits: each seed alone and distilled."""
    sizes = {"images": args.images, "epochs": args.epochs, "size": 16}
    return json.dumps({"name": "speed", "seeds": list(range(fits // 2)), **sizes})


def timed(command, runs, **variables):
    environment = os.environ | {"KDLAB_ROOT": str(ROOT), "KDLAB_PROFILE": "laptop", "KDLAB_DEVICE": "cpu"}
    environment |= {"KDLAB_RUNS": str(runs), "KDLAB_PRECISION": "f32", **variables}
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{command} failed: {done.stderr}")
    return time.monotonic() - begun


def sweep(args, teacher, fits, *on):
    """Seconds of a sweep whose teacher is there already."""
    with tempfile.TemporaryDirectory() as runs:
        shutil.copytree(teacher, runs, dirs_exist_ok=True)
        return timed([SWEEP, plan(args, fits), *on], runs)


def one_by_one(args, teacher, fits, threads):
    """Seconds of as many fits of the same size, one after the other in one process."""
    task = {"workload": "fits", "size": 16, "batch": 64, "epochs": args.epochs}
    task |= {"train": args.images, "validation": 1000, "test": 2000}
    task |= {"folder": str(teacher), "device": "cpu", "threads": threads, "fits": fits, "f32": True}
    return timed([args.program, "measure", json.dumps(task)], teacher, OMP_NUM_THREADS=str(threads))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="our side of the bench")
    parser.add_argument("--fits", type=int, default=12, help="a multiple of 6")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = {
        "one after the other, 1 thread": lambda *a: one_by_one(*a, 1),
        f"one after the other, {cores} threads": lambda *a: one_by_one(*a, cores),
        "side by side, a thread each": sweep,
        "Dask, 1 worker": lambda *a: sweep(*a, "--on", "local:1"),
        "Dask, 2 workers": lambda *a: sweep(*a, "--on", "local:2"),
    }
    few = args.fits // 3
    rates, starts = {}, {}
    with tempfile.TemporaryDirectory() as teacher:
        warm = {"name": "warm", "seeds": [0], "images": args.images, "epochs": 1, "size": 16}
        timed([SWEEP, json.dumps(warm)], teacher)
        shutil.rmtree(Path(teacher) / "laptop/sweeps")
        for number in range(1, args.rounds + 1):
            for name, way in ways.items():
                short, long = way(args, teacher, few), way(args, teacher, args.fits)
                rate = (args.fits - few) / (long - short)
                rates.setdefault(name, []).append(60 * rate)
                starts.setdefault(name, []).append(short - few / rate)
                print(f"round {number}, {name}: {few} fits {short:.1f} s, {args.fits} fits {long:.1f} s", flush=True)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    names = list(ways)
    one, before = rate[names[0]], rate[names[1]]
    print("\n| way | fits a minute | against all threads | start, s |\n| --- | ---: | ---: | ---: |")
    for name in names:
        print(f"| {name} | {rate[name]:.1f} | {rate[name] / before:.2f}x | {statistics.median(starts[name]):.1f} |")
    if cores > 1:
        # Amdahl's law through one thread and all: what share of a fit more threads do not shorten.
        serial = min(1, max(0, (one / before - 1 / cores) / (1 - 1 / cores)))
        print("\n| calculated | 8 cores | 16 cores |\n| --- | ---: | ---: |")
        row = " | ".join(f"{one / (serial + (1 - serial) / n):.0f}" for n in (8, 16))
        print(f"| one after the other, all threads ({serial:.0%} of a fit takes as long on any number) | {row} |")
        row = " | ".join(f"{rate[names[2]] / cores * n:.0f}" for n in (8, 16))
        print(f"| side by side, a thread each, at this rate a core | {row} |")


if __name__ == "__main__":
    main()
