"""A kernel in reserve: taken by the next notebook of the server, and gone with the server."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import unittest

import psutil

from support import Kernel, family, still_there, wait_for_end, wait_until

# A Jupyter server sets this; nbclient and the like do not.
OPENED = {"JPY_SESSION_NAME": "a.ipynb"}


def reserves(server):
    """Returns the kernels that wait, or have waited, in reserve for the server with this process number."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            values = process.environ()
            if "LIVE_KERNEL_FOLDER" not in values and values.get("LIVE_KERNEL_RESERVE") == "wait":
                # One leads its group. Programs that it begins, such as `rustc --version`, have the same environment.
                if values.get("JPY_PARENT_PID") == str(server) and os.getpgid(process.pid) == process.pid:
                    found.append(process.pid)
    return found


def rested(pid, seconds=2):
    """Returns whether the processes have used no processor for a while."""
    def used():
        return sum(sum(process.cpu_times()[:2]) for process in still_there(family(pid)))
    begun = used()
    time.sleep(seconds)
    return used() - begun < 0.1 and len(family(pid)) >= 3


def below(pid):
    return [process for process in family(pid) if process.pid != pid]


def value(cell):
    return cell.all("execute_result")[0]["content"]["data"]["text/plain"]


class Reserve(unittest.TestCase):
    def start(self, *args, **own):
        kernel = Kernel(*args, **{**OPENED, **own})
        self.addCleanup(lambda: kernel.client.closing or kernel.stop())
        return kernel

    def waiting(self, *before):
        """Waits for a kernel in reserve that is none of those before. Returns its process number."""
        new = lambda: set(reserves(os.getpid())) - set(before)
        wait_until(new, "a kernel in reserve", 60)
        [pid] = new()
        wait_until(lambda: rested(pid), "the kernel in reserve has opened", 180)
        return pid

    def test_the_next_notebook_takes_the_kernel_in_reserve(self):
        first = self.start()
        first.client.ok("let mine = 1;")
        pid = self.waiting()
        members = family(pid)
        elsewhere = self.start()
        elsewhere.client.ok("1")
        self.assertTrue(below(elsewhere.pid), "a kernel in another folder starts by itself")
        time.sleep(5)  # so that it has tried to keep one for its own folder
        wait_until(lambda: reserves(os.getpid()) == [pid], "no second one waits", 30)
        begun = time.monotonic()
        second = self.start(first, JPY_SESSION_NAME="b.ipynb")
        self.assertEqual(value(second.client.ok("let t = Tensor::from_slice(&[1i64, 2]);\nt.size()")), "[2]")
        print(f"opened in {time.monotonic() - begun:.2f} s")
        self.assertEqual(below(second.pid), [], "another kernel serves")
        for absent in ["mine", "warm_up"]:
            self.assertIn("cannot find value", second.client.run(absent).describe())
        cell = second.client.begin('println!("begun"); let mut n = 0u64; loop { n += 1; std::hint::black_box(n); }')
        cell.wait_text("begun")
        second.client.interrupt()
        self.assertEqual(cell.finish().errors[0]["content"]["ename"], "Interrupted")
        self.assertEqual(value(second.client.ok("t.size()")), "[2]")
        # It may start the next one in reserve itself.
        next_one = self.waiting(pid)
        self.assertEqual(second.stop(), [])
        wait_for_end(members)
        third = self.start(first)
        third.client.ok("1")  # it has taken the one in reserve
        self.assertEqual(below(third.pid), [], "another kernel serves")
        members = family(next_one)
        os.kill(third.pid, signal.SIGKILL)
        wait_for_end(members)

    def test_it_ends_with_the_server(self):
        here = str(pathlib.Path(__file__).parent)
        code = (
            "from test_reserve import *; kernel = Kernel(**OPENED); kernel.client.ok('1')\n"
            "print(kernel.folder, flush=True); input()"
        )
        server = subprocess.Popen(
            [sys.executable, "-c", code], cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with server:
            folder = server.stdout.readline().strip()
            wait_until(lambda: reserves(server.pid), "a kernel in reserve", 60)
            [pid] = reserves(server.pid)
            wait_until(lambda: len(family(pid)) >= 3, "its processes", 60)
            members = family(pid)
            server.kill()
        wait_for_end(members)
        shutil.rmtree(folder)

    def test_none_starts_where_no_server_opens_notebooks_or_the_user_wants_none(self):
        for own in [{"JPY_SESSION_NAME": ""}, {"LIVE_KERNEL_RESERVE": "off"}]:
            kernel = self.start(**own)
            kernel.client.ok("1")
            time.sleep(5)
            self.assertEqual(reserves(os.getpid()), [], own)
