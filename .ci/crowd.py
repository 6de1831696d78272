"""Measures an installation with many accounts at once: `sudo PREFIX/.kdlab/venv/bin/python .ci/crowd.py`.

Makes accounts, which are removed again. Each opens a kernel of the installation and runs small cells; then some of
them train the student of notebook 5 at the same time. Prints tables in Markdown, and what follows for 30 people.
"""
import argparse
import json
import math
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from account import below, proportional_memory

PREFIX = pathlib.Path(sys.prefix).parent.parent
CELLS = 6
# Prints how many images the fit trained, and its seconds of training and validation.
SPEED = """println!("{}", train.len() * history.records.len());
println!("{}", history.records.iter().map(|r| r.seconds).sum::<f64>());"""


class Account:
    def __init__(self, number, folder, profile):
        self.name, self.home, self.profile = f"kdlab-crowd-{number}", folder / f"crowd-{number}", profile
        subprocess.run(["useradd", "--home-dir", self.home, "--create-home", self.name], check=True)

    def open(self):
        """Opens a kernel, whose first cells run."""
        variables = [f"HOME={self.home}", f"USER={self.name}", "PATH=/usr/bin:/bin", f"KDLAB_PROFILE={self.profile}"]
        program = [sys.executable, self.home.parent / "account.py", "--serve"]
        self.process = subprocess.Popen(
            ["runuser", "-u", self.name, "--", "env", "-i", *variables, *program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        )
        self.facts = self.answer()
        return self

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the kernel of {self.name} ended")
        return json.loads(line)

    def run(self, code):
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def work(self):
        """Returns the seconds of small cells, one every ten seconds."""
        seconds = []
        for number in range(CELLS):
            time.sleep(random.uniform(5, 15))
            seconds.append(self.run(f"let y{number} = x{number} + {number};")["seconds"])
        return seconds

    def train(self, fit, seed):
        """Returns images per second."""
        said = self.run(fit.replace("let seed = 0;", f"let seed = {seed};") + "\n" + SPEED)["printed"]
        images, seconds = map(float, said.split()[-2:])
        return images / seconds

    def memory(self):
        return proportional_memory(self.facts["pid"])

    def cpu(self):
        """Returns the CPU seconds of the kernel's processes, with those that have ended."""
        stats = [pathlib.Path(f"/proc/{pid}/stat").read_text() for pid in below(self.facts["pid"])]
        ticks = [sum(map(int, stat.rsplit(")", 1)[1].split()[11:15])) for stat in stats]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)

    def kill(self):
        subprocess.run(["pkill", "-KILL", "-u", self.name], check=False)

    def remove(self):
        self.kill()
        subprocess.run(["userdel", "--force", self.name], check=False)


def at_once(accounts, work):
    """Returns what `work` gives for each account, None for those that failed."""
    def tried(account):
        try:
            return work(account)
        except Exception as problem:
            print(f"failed: {account.name}: {problem}", file=sys.stderr)

    with ThreadPoolExecutor(len(accounts)) as pool:
        try:
            return list(pool.map(tried, accounts))
        except BaseException:
            for account in accounts:
                account.kill()
            raise


def spread(values, digits):
    """Returns p50 and p95 with so many digits behind the point."""
    values = sorted(values)
    both = statistics.median(values), values[math.ceil(0.95 * len(values)) - 1]
    return [f"{value:.{digits}f}" for value in both]


def largest_memory(accounts, done):
    """Returns the largest mean memory of a kernel until `done`."""
    largest = 0
    while not done.wait(1):
        largest = max(largest, statistics.mean(account.memory() for account in accounts))
    return largest


def row(*columns):
    print("|", " | ".join(columns), "|", flush=True)


def measure(accounts, training):
    cores = len(os.sched_getaffinity(0))
    first = accounts[0].open()
    alone, cpu = first.facts["tensor"], first.cpu()
    first.close()
    # The next kernel of this account is a first one again.
    shutil.rmtree(first.home / ".cache")

    row("", "p50", "p95")
    row("---", "---:", "---:")
    row("one kernel opens alone: s to the first tensor", f"{alone:.1f}", "")
    row("CPU of that and ten cells, s", f"{cpu:.1f}", "")
    opened = [account for account in at_once(accounts, Account.open) if account]
    failures = len(accounts) - len(opened)
    for key, what in [("answers", "the kernel answers"), ("tensor", "the first tensor")]:
        row(f"{len(opened)} open at once: s to {what}", *spread([account.facts[key] for account in opened], 1))
    memory = [account.memory() for account in opened]
    row("memory of a kernel, MB (PSS)", *spread(memory, 0))
    worked = at_once(opened, Account.work)
    failures += worked.count(None)
    cells = [seconds for account in worked for seconds in account or []]
    row("a small cell, of which each account runs one every 10 s: s", *spread(cells, 2))

    notebook = json.loads((PREFIX / "notebooks/05_tweak.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    prepare, fit = code[0], next(cell for cell in code if "fit(&mut" in cell)
    students = opened[:training]
    failures += at_once(students, lambda account: account.run(prepare)).count(None)
    before = students[0].train(fit, 1000)
    done, largest = threading.Event(), []
    watch = threading.Thread(target=lambda: largest.append(largest_memory(students, done)))
    watch.start()
    begin = time.monotonic()
    speeds = at_once(students, lambda account: account.train(fit, 1 + students.index(account)))
    seconds = time.monotonic() - begin
    done.set()
    watch.join()
    after = students[0].train(fit, 1001)
    failures += speeds.count(None)
    speeds = [speed for speed in speeds if speed]
    fair = (before + after) / 2 / len(students)
    shares = [speed / fair for speed in speeds]
    print()
    row("fits at once", "images/s of each", "sum", "of a fair share", "s", "memory of a kernel, MB")
    row("---:", "---", "---:", "---", "---:", "---:")
    row("1", f"{before:.0f} before, {after:.0f} after", "", "", "", "")
    each = ", ".join(f"{speed:.0f}" for speed in speeds)
    share = f"{min(shares):.2f} to {max(shares):.2f}"
    row(str(len(speeds)), each, f"{sum(speeds):.0f}", share, f"{seconds:.0f}", f"{largest[0]:.0f}")
    print(f"\nfailures: {failures}")

    idle, busy = statistics.mean(memory), largest[0]
    print(f"24 GB, 2 of them for the system, hold {22_000 // idle:.0f} kernels, or {22_000 // busy:.0f} that train.")
    print(
        f"By calculation, 30 people on 16 cores: kernels take {30 * idle / 1000:.0f} GB, and {30 * busy / 1000:.0f} GB "
        f"when all train; all have opened after {max(alone, 30 * cpu / 16):.0f} s; when all train, each fit has "
        f"{sum(speeds) / cores * 16 / 30:.0f} images/s."
    )
    at_once(opened, Account.close)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--accounts", type=int, default=10)
    parser.add_argument("--training", type=int, default=8, help="how many of them train at once")
    parser.add_argument("--profile", default="laptop")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    accounts = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        shutil.copy(pathlib.Path(__file__).with_name("account.py"), folder)
        try:
            for number in range(args.accounts):
                accounts.append(Account(number, folder, args.profile))
            measure(accounts, args.training)
        finally:
            for account in accounts:
                account.remove()


if __name__ == "__main__":
    main()
