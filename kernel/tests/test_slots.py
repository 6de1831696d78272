"""Build directories of kernels: damage is repaired, and the end of a kernel frees its directory."""
import fcntl
import os
import pathlib
import random
import signal
import tempfile
import time
import unittest
from unittest import mock

from support import Kernel, wait_for_end, wait_until


def slot_of(kernel):
    return pathlib.Path(kernel.environment("EVCXR_TMPDIR"))


def value(kernel, code="1 + 1"):
    return kernel.client.ok(code).all("execute_result")[0]["content"]["data"]["text/plain"]


def libraries(slot, name):
    return sorted(slot.glob(f"target/*/debug/deps/{name}"))


class Slots(unittest.TestCase):
    def start(self):
        kernel = Kernel()
        self.running.append(kernel)
        return kernel

    def setUp(self):
        self.running = []
        self.addCleanup(lambda: [self.end(kernel) for kernel in [*self.running]])

    def end(self, kernel):
        self.running.remove(kernel)
        self.assertEqual(kernel.stop(), [])

    def test_missing_libraries_heal_at_the_next_start(self):
        kernel = self.start()
        slot = slot_of(kernel)
        self.assertEqual(value(kernel), "2")
        self.end(kernel)
        names = ["libpxfm-*.rlib", "libimage-*.r*", "libhalf-*.rmeta"]
        gone = [path for name in names for path in libraries(slot, name)]
        self.assertGreaterEqual(len(gone), 4)
        for path in gone:
            path.unlink()
        # The slot's own copy of a library is truncated; that of the template stays whole.
        cut = libraries(slot, "libtch-*.rlib")[0]
        whole = cut.read_bytes()
        cut.unlink()
        cut.write_bytes(whole[:1000])
        kernel = self.start()
        self.assertEqual(slot_of(kernel), slot)
        self.assertEqual(value(kernel), "2")
        self.assertEqual(cut.read_bytes(), whole)
        self.assertTrue(all(path.exists() for path in gone))
        self.assertIn("it is copied again", (kernel.folder / "kernel.log").read_text())

    def test_damage_under_a_running_kernel_heals(self):
        kernel = self.start()
        slot = slot_of(kernel)
        self.assertEqual(value(kernel), "2")
        cut = libraries(slot, "libfdeflate-*.rlib")[0]
        whole = cut.stat()
        content = cut.read_bytes()[:500]
        cut.unlink()
        cut.write_bytes(content)
        os.utime(cut, ns=(whole.st_atime_ns, whole.st_mtime_ns))
        kernel.client.ok("let kept = 40;", timeout=400)
        for path in libraries(slot, "libpxfm-*.rlib"):
            path.unlink()
        cell = kernel.client.run("kept + 2", timeout=400)
        self.assertEqual(cell.all("execute_result")[0]["content"]["data"]["text/plain"], "42")

    def test_kills_at_random_moments_leave_a_kernel_that_works(self):
        draw = random.Random(19)
        for _ in range(int(os.environ.get("KDLAB_KILLS", "2"))):
            kernel = self.start()
            slot = slot_of(kernel)
            for path in libraries(slot, "libbytemuck-*.r*"):
                path.unlink()
            kernel.client.begin("1 + 1")
            time.sleep(draw.uniform(0.1, 6))
            members = dict(kernel.remember())
            os.kill(kernel.pid, signal.SIGKILL)
            wait_until(lambda: not kernel.manager.is_alive(), "the end of the kernel", 5)
            wait_for_end(members)
            self.end(kernel)
        self.assertEqual(value(self.start()), "2")

    def test_what_a_cell_started_does_not_hold_the_directory(self):
        kernel = self.start()
        slot = slot_of(kernel)
        pid = kernel.file("pid")
        shell = f'["sh", "-c", "echo $$ > {pid}; exec sleep 60"]'
        start = f'std::process::Command::new("setsid").args({shell}).spawn()?; ()'
        kernel.client.ok(start)
        wait_until(lambda: pid.exists() and pid.read_text().strip(), "the process that a cell started", 10)
        left = int(pid.read_text())
        self.addCleanup(lambda: os.kill(left, signal.SIGKILL))
        lock = open(slot.with_name(f"{slot.name}.lock"), "r+")
        self.addCleanup(lock.close)
        with self.assertRaises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(kernel.pid, signal.SIGKILL)
        wait_until(lambda: not kernel.manager.is_alive(), "the end of the kernel", 5)
        time.sleep(1)
        os.kill(left, 0)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_another_cargo_home_and_opt_compile_no_crate(self):
        own = lambda home: {"CARGO_HOME": home, "RUSTFLAGS": "-Cdebuginfo=1"}
        with tempfile.TemporaryDirectory() as other, mock.patch.dict(os.environ, own(other)):
            kernel = self.start()
            slot = slot_of(kernel)
            before = {path: path.stat().st_mtime_ns for path in libraries(slot, "libtch-*.rlib")}
            begun = time.monotonic()
            self.assertEqual(value(kernel), "2")
            self.assertLess(time.monotonic() - begun, 60)
            kernel.client.run(":opt 3")
            self.assertEqual(value(kernel, "2 + 2"), "4")
            self.assertEqual({path: path.stat().st_mtime_ns for path in libraries(slot, "libtch-*.rlib")}, before)
        self.assertEqual(value(self.start()), "2")

    def test_a_long_folder_for_temporary_files(self):
        with tempfile.TemporaryDirectory() as short:
            long = pathlib.Path(short) / ("x" * 110)
            long.mkdir()
            with mock.patch.dict(os.environ, {"TMPDIR": str(long)}):
                self.assertEqual(value(self.start()), "2")

    def test_cargo_that_is_not_in_path_is_found(self):
        folders = os.environ["PATH"].split(":")
        home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
        rest = [folder for folder in folders if not (pathlib.Path(folder) / "cargo").exists()]
        if not (home / "bin/cargo").exists():
            self.skipTest("no rustup")
        with mock.patch.dict(os.environ, {"PATH": ":".join(rest)}):
            os.environ.pop("CARGO", None)
            self.assertEqual(value(self.start()), "2")


if __name__ == "__main__":
    unittest.main()
