"""How long cells take in the live kernel and in stock evcxr_jupyter: `.kdlab/venv/bin/python benches/cells.py`.

Needs `cargo lab setup` and images (`KDLAB_DATA`). No cell trains: this measures the time from Return to the answer. CPU
seconds are those of the kernel with all its processes, compilers included.
"""
import argparse
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time

import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIRST = 'let t = Tensor::from_slice(&[1f32, 2.0, 3.0]);\nt.softmax(-1, Kind::Float)'
# Cells of the notebooks, in an order in which they run.
CELLS = [
    "let mut lab = Lab::open()?;\nlab",
    "let data = lab.dataset()?;\ndata",
    "let order = shuffled(data.train.len(), lab.profile.seed, 1);\n"
    "let batch = data.train.batch(&order[..16.min(order.len())])?;\nbatch",
    "let inputs = Transform::imagenet(64).apply(&batch.images, lab.device)?;\n"
    'println!("inputs {:?} {:?}", inputs.size(), inputs.kind());',
    'println!("mean {:.3}", inputs.mean(Kind::Float).double_value(&[]));',
    "gallery(&data.train, &data.classes, &order[..12.min(order.len())])?",
    "class_balance(&data)",
    "fn net(vs: &nn::Path) -> Layers {\n"
    "    let same = nn::ConvConfig { padding: 1, ..Default::default() };\n"
    '    Layers::new()\n        .add("conv1", nn::conv2d(vs / "conv1", 3, 64, 3, same))\n'
    '        .func("relu1", |x| x.relu())\n        .func("pool1", |x| x.max_pool2d_default(2))\n'
    '        .func("avgpool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))\n'
    '        .add("fc1", nn::linear(vs / "fc1", 64, 10, Default::default()))\n}',
    'let small = Model::new("small", lab.device, lab.profile.seed, &net)?;\nsmall.summary([3, 32, 32])?',
    "for size in [32, 64] {\n"
    "    let images = Tensor::randn([2, 3, size, size], (Kind::Float, lab.device));\n"
    "    let logits = tch::no_grad(|| small.forward(&images, false))?;\n"
    '    println!("{:?} -> {:?}", images.size(), logits.size());\n};',
    "{\n    let ours = Model::new(\"student\", lab.device, lab.profile.seed, &|vs| student(vs, 10))?;\n"
    "    assert_eq!(ours.parameters(), 264_618);\n"
    '    println!("{} parameters", ours.parameters());\n};',
    "fn cost(costs: Table, name: &str, size: i64, summary: &Summary) -> Table {\n"
    '    let millions = |n: i64| format!("{:.1} M", n as f64 / 1e6);\n'
    '    costs.row(&[name.to_string(), format!("{size} px"), millions(summary.parameters), '
    "millions(summary.macs)])\n}\n"
    'let mut costs = Table::new(&["network", "image", "parameters", "MACs per image"]);\n'
    "for size in [64, 32] {\n    costs = cost(costs, \"small\", size, &small.summary([3, size, size])?);\n}\ncosts",
    "fn loss_kd(student: &Tensor, labels: &Tensor, teacher: &Tensor, temperature: f64, alpha: f64) -> Tensor {\n"
    "    let batch = student.size()[0] as f64;\n"
    "    let log_student = (student / temperature).log_softmax(-1, None);\n"
    "    let log_teacher = (teacher / temperature).log_softmax(-1, None);\n"
    "    let kl = (log_teacher.exp() * (&log_teacher - log_student)).sum(None) / batch;\n"
    "    let ce = student.cross_entropy_for_logits(labels);\n"
    "    kl * (alpha * temperature * temperature) + ce * (1.0 - alpha)\n}",
    "let (s, u) = (Tensor::randn([8, 10], (Kind::Float, Device::Cpu)), "
    "Tensor::randn([8, 10], (Kind::Float, Device::Cpu)));\n"
    "let y = Tensor::randint(10, [8], (Kind::Int64, Device::Cpu));\ns.size()",
    "loss_kd(&s, &y, &u, 4.0, 0.9)",
    "KdLoss::new(4.0, 0.9)?.forward(&s, &y, &u)?",
    "let kd = KdLoss::new(lab.profile.temperature, lab.profile.alpha)?;\n"
    'let criterion = Criterion::soft("loss_kd", kd, loss_kd);',
    'let options = lab.fit_options("bench");',
    "use std::collections::BTreeMap;",
    "let mut counts: BTreeMap<i64, usize> = BTreeMap::new();\n"
    "for label in Vec::<i64>::try_from(&batch.labels)? {\n    *counts.entry(label).or_default() += 1;\n}\ncounts",
    "let sure = s.softmax(-1, Kind::Float).max_dim(-1, false).0;\nsure.size()",
    "let index = (&sure - 0.7).abs().argmin(0, false).int64_value(&[]);\nindex",
    "let label = data.train.label(index)?;\ndata.classes[label as usize].clone()",
    "soft_targets_over_temperature(&s.get(index), &data.classes, Some(label))?",
    "s.matmul(&u.tr()).size()",
    'let temperature = 4.0;\nlet alpha = 0.9;\nlet name = format!("T{temperature}-alpha{alpha}");\nname',
    "lab.profile.clone()",
    "(&s - &u).abs().max().double_value(&[])",
    'let mut pupil = Model::new(&name, lab.device, 0, &|vs| student(vs, 10))?;\npupil.parameters()',
    'println!("{:?}", pupil.forward(&Tensor::zeros([2, 3, 32, 32], (Kind::Float, lab.device)), false)?.size());',
]


# A loop with and without the check for Interrupt (functions in a chain of iterators have none), and one with an
# operation on small tensors: nanoseconds of a round, the least of five.
CHECK = """{
let least = |n: u64, f: &dyn Fn(u64)| {
    let once = || { let begun = std::time::Instant::now(); f(n); begun.elapsed().as_secs_f64() * 1e9 / n as f64 };
    [once(), once(), once(), once(), once()].into_iter().fold(f64::MAX, f64::min)
};
let checked = least(100_000_000, &|n| for i in 0..n { std::hint::black_box(i); });
let bare = least(100_000_000, &|n| (0..n).map(std::hint::black_box).for_each(drop));
let small = Tensor::from_slice(&[1f32, 2.0]);
let operation = least(100_000, &|n| for _ in 0..n { let _ = &small + &small; });
println!("{}", (checked - bare).max(0.0) / operation);
}"""


def cpu_of(pid):
    """Returns the CPU seconds of a process and of all below it, with those of their children that have ended."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class Kernel:
    def __init__(self, kind, folder, **own):
        # The kernelspec names the repository that the kernel belongs to.
        specs = KernelSpecManager(kernel_dirs=[str(ROOT / ".kdlab/jupyter/kernels")])
        self.manager = KernelManager(kernel_name="kdlab", kernel_spec_manager=specs)
        env = {**os.environ, "KDLAB_KERNEL": kind, "KDLAB_PROFILE": "smoke", **own}
        self.begun = time.monotonic()
        self.manager.start_kernel(env=env, cwd=folder)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=600)
        self.ready = time.monotonic() - self.begun

    def memory(self):
        """Returns the memory of all its processes in GB, with their shares of what they share with others."""
        root = psutil.Process(self.manager.provisioner.pid)
        return sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)]) / 1e9

    def cpu(self):
        return cpu_of(self.manager.provisioner.pid)

    def run(self, code):
        begun, cpu, said = time.monotonic(), self.cpu(), []
        self.printed = ""

        def output(message):
            content = message["content"]
            if content.get("name") == "stdout":
                self.printed += content["text"]
            if message["msg_type"] == "error" or content.get("name") == "stderr":
                said.append(content.get("evalue") or content.get("text"))

        self.client.execute_interactive(code, timeout=600, output_hook=output)
        seconds = time.monotonic() - begun
        if said:
            raise SystemExit(f"{code}\n{''.join(said)}")
        return seconds, self.cpu() - cpu

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def wait_for_reserve():
    """Waits until the kernel that waits in reserve for this process rests."""
    def found():
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                values = process.environ()
                own = values.get("JPY_PARENT_PID") == str(os.getpid()) and "LIVE_KERNEL_FOLDER" not in values
                if own and values.get("LIVE_KERNEL_RESERVE") == "wait" and len(process.children()) > 0:
                    return cpu_of(process.pid)
        return None

    last = -1
    for _ in range(60):
        time.sleep(2)
        now = found()
        if now is not None and now - last < 0.05:
            return
        last = now if now is not None else -1
    raise SystemExit("no kernel waits in reserve")


def measure(kind, cells):
    with tempfile.TemporaryDirectory() as folder:
        # As a Jupyter server starts it, which has a kernel wait in reserve.
        kernel = Kernel(kind, folder, JPY_SESSION_NAME="bench.ipynb")
        try:
            # A cell without code is answered when the prelude is compiled.
            kernel.run("// ready")
            prelude = time.monotonic() - kernel.begun
            tensor = kernel.run(FIRST)
            opened = time.monotonic() - kernel.begun
            cpu, memory = kernel.cpu(), kernel.memory()
            seconds, cpus = zip(*[kernel.run(code) for code in cells])
            kernel.run(CHECK)
            check, from_reserve = float(kernel.printed), opened
            if kind == "live":
                wait_for_reserve()
                second = Kernel(kind, folder, JPY_SESSION_NAME="second.ipynb")
                try:
                    second.run(FIRST)
                    from_reserve = time.monotonic() - second.begun
                finally:
                    second.close()
        finally:
            kernel.close()
    return {
        "kernel answers": kernel.ready,
        "prelude": prelude,
        "first tensor cell": tensor[0],
        "opening to first tensor": opened,
        "CPU of the opening": cpu,
        "the next opening": from_reserve,
        "memory after the opening, GB": memory,
        "a check for Interrupt / a small tensor operation": check,
        "cells": seconds,
        "cells' CPU": cpus,
    }


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="keep all numbers in this file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kernels", nargs="+", default=["live", "stock"], choices=["live", "stock"])
    parser.add_argument("--cells", type=int, default=len(CELLS), help="only so many of the cells")
    parser.add_argument("--each", action="store_true", help="a line for every cell")
    args = parser.parse_args()
    cells = CELLS[: args.cells]
    runs = {kind: [] for kind in args.kernels}
    for _ in range(args.rounds):
        for kind in args.kernels:
            runs[kind].append(measure(kind, cells))
    if args.json:
        args.json.write_text(json.dumps({"code": cells, "runs": runs}, indent=1))
    rows = {}
    for name in runs[args.kernels[0]][0]:
        if name in ["cells", "cells' CPU"]:
            continue
        rows[name] = [statistics.median(run[name] for run in runs[kind]) for kind in args.kernels]
    every = {kind: [s for run in runs[kind] for s in run["cells"]] for kind in args.kernels}
    rows["a cell, p50"] = [percentile(every[kind], 0.5) for kind in args.kernels]
    rows["a cell, p95"] = [percentile(every[kind], 0.95) for kind in args.kernels]
    cpus = {kind: [s for run in runs[kind] for s in run["cells' CPU"]] for kind in args.kernels}
    rows["a cell's CPU, mean"] = [statistics.mean(cpus[kind]) for kind in args.kernels]
    heads = [*args.kernels, f"{args.kernels[0]} / {args.kernels[1]}"] if len(args.kernels) == 2 else args.kernels
    print(f"Seconds, median of {args.rounds}, {len(cells)} cells, {len(os.sched_getaffinity(0))} cores\n")
    print("| | " + " | ".join(heads) + " |\n| --- |" + " ---: |" * len(heads))
    for name, values in rows.items():
        ratio = [f"{values[0] / max(values[1], 1e-9):.2f}"] if len(values) == 2 else []
        digits = 6 if "check" in name else 2
        print(f"| {name} | " + " | ".join([f"{value:.{digits}f}" for value in values] + ratio) + " |")
    if args.each:
        for i, code in enumerate(cells):
            medians = [statistics.median(run["cells"][i] for run in runs[kind]) for kind in args.kernels]
            print(" ".join(f"{m:6.2f}" for m in medians), code.splitlines()[0][:90])


if __name__ == "__main__":
    main()
