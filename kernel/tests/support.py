"""A kernel as a frontend sees it: starts one, runs cells, and keeps every message with its time of arrival."""
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import unittest
from queue import Empty

import psutil
from jupyter_client import BlockingKernelClient, KernelManager

# Seconds for a cell. It may have to wait for the compiler, and the compiler for other work on a small machine.
CELL = 180
# The other fields of an execute_request.
REQUEST = {
    "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True,
}
ANSI = re.compile(r"\x1b\[[0-9;]*m")

# Code for cells: a client of the kernel's socket, and a wait that ends when the test opens a gate (or fails the cell).
HELPERS = r'''
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
pub struct Live { out: UnixStream, input: BufReader<UnixStream> }
impl Live {
    pub fn open() -> Live {
        let address = std::env::var("LIVE_KERNEL_SOCKET").expect("LIVE_KERNEL_SOCKET is set");
        let out = UnixStream::connect(address).expect("the socket is open");
        let token = std::env::var("LIVE_KERNEL_TOKEN").expect("LIVE_KERNEL_TOKEN is set");
        let mut live = Live { input: BufReader::new(out.try_clone().unwrap()), out };
        live.send(&format!("{{\"token\": \"{token}\"}}"));
        live
    }
    pub fn send(&mut self, line: &str) { self.out.write_all(format!("{line}\n").as_bytes()).unwrap(); }
    /// The next answer; pushes before it are dropped.
    pub fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.input.read_line(&mut line).unwrap();
            assert!(!line.is_empty(), "the kernel closed the connection");
            let start = line.trim_start_matches([' ', '{']);
            if start.starts_with("\"ok\"") || start.starts_with("\"error\"") { return line.trim().to_owned(); }
        }
    }
    pub fn ask(&mut self, line: &str) -> String { self.send(line); self.answer() }
    /// From now on every line that the kernel sends is put into `file`, with the time it came.
    pub fn listen(&self, file: &str) {
        let mut input = BufReader::new(self.out.try_clone().unwrap());
        let mut log = std::fs::File::options().create(true).append(true).open(file).unwrap();
        std::thread::spawn(move || {
            let mut line = String::new();
            while input.read_line(&mut line).is_ok_and(|n| n > 0) {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
                log.write_all(format!("{now} {}\n", line.trim()).as_bytes()).unwrap();
                line.clear();
            }
        });
    }
    pub fn close(&self) { self.out.shutdown(std::net::Shutdown::Both).unwrap(); }
}
/// The request that shows a text of this type as the display `id`.
pub fn shown(id: &str, update: bool, mime: &str, text: &str) -> String {
    let data = format!(r#"{{"{mime}": "{text}"}}"#);
    format!(r#"{{"display": {{"id": "{id}", "update": {update}, "data": {data}, "metadata": {{}}}}}}"#)
}
pub fn is_there(path: &str) -> bool { std::path::Path::new(path).exists() }
pub fn gate(path: &str) {
    for _ in 0..6_000 {
        if is_there(path) { return; }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the test never opened the gate {path}");
}
/// Computes until the gate opens, asking nobody.
pub fn spin(path: &str) {
    let begin = std::time::Instant::now();
    while !is_there(path) {
        for i in 0..1_000_000u64 { std::hint::black_box(i); }
        assert!(begin.elapsed().as_secs() < 60, "the test never opened the gate {path}");
    }
}
'''


def rust(value):
    """Returns a Rust literal of a text, or of the JSON of anything else."""
    text = value if isinstance(value, (str, pathlib.Path)) else json.dumps(value)
    return f'r####"{text}"####'


def display(id, text, update=False, **more):
    return {"display": {"id": id, "update": update, "data": {"text/plain": text, **more}, "metadata": {}}}


def plain(text):
    return ANSI.sub("", text)


class Cell:
    """One execute_request, and the messages that answer it."""

    def __init__(self, client, id):
        self.client, self.id = client, id
        self.reply = None

    def all(self, *types):
        found = [m for m in self.client.seen if m["parent_header"].get("msg_id") == self.id]
        return [m for m in found if not types or m["msg_type"] in types]

    def stream(self, name):
        return "".join(m["content"]["text"] for m in self.all("stream") if m["content"]["name"] == name)

    @property
    def stdout(self):
        return self.stream("stdout")

    @property
    def stderr(self):
        return plain(self.stream("stderr"))

    @property
    def errors(self):
        return self.all("error")

    @property
    def error_text(self):
        """The whole text of the errors."""
        contents = [m["content"] for m in self.errors]
        return plain("\n".join(line for c in contents for line in [c["ename"], c["evalue"], *c["traceback"]]))

    @property
    def running(self):
        return not any(m["content"]["execution_state"] == "idle" for m in self.all("status"))

    def wait(self, condition, what, timeout=CELL):
        """Waits until `condition()` holds; fails when the cell ends before."""
        self.client.wait(lambda: condition() or not self.running, f"{what}, or the end of the cell", timeout)
        if not condition():
            raise AssertionError(f"the cell ended without {what}: {self.describe()}")

    def wait_text(self, text, timeout=CELL):
        self.wait(lambda: text in self.stdout, f"{text!r} on stdout", timeout)

    def finish(self, timeout=CELL):
        self.reply = self.client.reply(self.id, timeout)
        self.client.wait(lambda: not self.running, "the cell's status idle", 10)
        return self

    @property
    def status(self):
        return self.reply["content"]["status"]

    def describe(self):
        return f"stdout {self.stdout[-2000:]!r}, stderr {self.stderr[-2000:]!r}, errors {self.error_text!r}"


class OtherPage:
    """Makes a client with a session of its own, as a reloaded page has one."""

    def __init__(self, manager):
        self.file = manager.connection_file

    def client(self):
        client = BlockingKernelClient()
        client.load_connection_file(self.file)
        return client


class Client:
    """One frontend. A thread keeps the messages on iopub; the other channels are read when asked."""

    def __init__(self, manager, timeout=600):
        self.kc = manager.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=timeout)
        self.seen, self.replies, self.broken, self.closing = [], {}, None, False
        self.news = threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while not self.closing:
            try:
                message = self.kc.iopub_channel.get_msg(timeout=0.1)
            except Empty:
                continue
            except Exception as problem:
                self.broken = problem
                message = None
            with self.news:
                if message:
                    message["came"] = time.time()
                    self.seen.append(message)
                self.news.notify_all()
            if message is None:
                return

    def wait(self, condition, what, timeout):
        """Waits until `condition()` holds, which is checked after every message."""
        with self.news:
            if not self.news.wait_for(lambda: self.broken or condition(), timeout):
                raise AssertionError(f"{what} did not come within {timeout} s; the last messages: {self.tail()}")
            if self.broken:
                raise self.broken

    def tail(self):
        return [(m["msg_type"], str(m["content"])[:300]) for m in self.seen[-8:]]

    def first(self, type, timeout, parent=None, matching=lambda content: True):
        """Waits for the first message of this type, and returns it."""
        found = []

        def look():
            same = [m for m in self.seen if m["msg_type"] == type and matching(m["content"])]
            found[:] = [m for m in same if parent in (None, m["parent_header"].get("msg_id"))]
            return bool(found)

        self.wait(look, f"a message {type}", timeout)
        return found[0]

    def send(self, type, content, channel="shell", buffers=(), **more):
        message = {**self.kc.session.msg(type, content, **more), "buffers": list(buffers)}
        getattr(self.kc, f"{channel}_channel").send(message)
        return message["header"]["msg_id"]

    def reply(self, id, timeout, channel="shell"):
        end = time.monotonic() + timeout
        while id not in self.replies:
            try:
                message = getattr(self.kc, f"{channel}_channel").get_msg(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                raise AssertionError(f"no reply within {timeout} s; the last messages: {self.tail()}") from None
            message["came"] = time.time()
            self.replies[message["parent_header"].get("msg_id")] = message
        return self.replies.pop(id)

    def ask(self, type, content, timeout=30, channel="shell"):
        return self.reply(self.send(type, content, channel), timeout, channel)["content"]

    def begin(self, code, **content):
        return Cell(self, self.send("execute_request", {"code": code, **REQUEST, **content}))

    def run(self, code, timeout=CELL, **content):
        return self.begin(code, **content).finish(timeout)

    def ok(self, code, timeout=CELL, **content):
        cell = self.run(code, timeout, **content)
        if cell.status != "ok" or cell.errors:
            raise AssertionError(f"{code}\nends as {cell.status}: {cell.describe()}")
        return cell

    def interrupt(self):
        return self.ask("interrupt_request", {}, channel="control")

    def close(self):
        self.closing = True
        self.reader.join()
        self.kc.stop_channels()


def family(pid):
    """Returns the process and all below it, with their names. psutil compares processes by id and start."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process] = process.name()
    return found


def still_there(members):
    """Returns those of them that still exist, including ended ones that their parent has not waited for.

    What a killed kernel leaves to init has ended when it has ended: init may take its time to wait for it.
    """
    def exists(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            left_to_init = process.status() == psutil.STATUS_ZOMBIE and process.ppid() == 1
            return process.is_running() and not left_to_init
        return False

    return {process: name for process, name in members.items() if exists(process)}


def describe(members):
    """Returns a line for each process: what it is doing, its parent, and its command."""
    lines = []
    for process, name in members.items():
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {name}: {process.status()}, parent {process.ppid()}, {process.cmdline()[:3]}")
    return "\n".join(lines)


def wait_until(condition, what, timeout):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.01)


def wait_for_end(members, timeout=15):
    """Waits until none of the processes is left."""
    end = time.monotonic() + timeout
    while left := still_there(members):
        if time.monotonic() > end:
            raise AssertionError(f"not ended within {timeout} s:\n{describe(left)}")
        time.sleep(0.01)


class Kernel:
    """A kernel with a folder of its own for data and runs, or with that of the kernel `beside`, and its first client.

    Its environment also has the variables `own`.
    """

    def __init__(self, beside=None, **own):
        self.shares = beside is not None
        self.folder = beside.folder if self.shares else pathlib.Path(tempfile.mkdtemp(prefix="kdlab-test-"))
        self.log = open(self.folder / "kernel.log", "ab")
        self.manager = KernelManager(kernel_name="kdlab")
        data = self.folder / "data" if self.shares else tiny_cifar(self.folder / "data")
        own = {"KDLAB_RUNS": str(self.folder / "runs"), "KDLAB_DATA": str(data), "KDLAB_PROFILE": "smoke", **own}
        self.manager.start_kernel(cwd=str(self.folder), env={**os.environ, **own}, stdout=self.log, stderr=self.log)
        self.members, self.client = {}, None
        try:
            self.client = Client(self.manager)
            self.pid = self.manager.provisioner.pid
            self.remember()
        except BaseException:
            print((self.folder / "kernel.log").read_text(errors="replace")[-3000:], file=sys.stderr)
            self.manager.shutdown_kernel(now=True)
            raise

    def remember(self):
        """Notes its present processes, so that those left over can be named after its end."""
        self.members.update(family(self.pid))
        return self.members

    def environment(self, name):
        """Returns a variable of the process that runs cells; fails without one."""
        for process in family(self.pid):
            with contextlib.suppress(psutil.Error):
                values = process.environ()
                if "EVCXR_IS_RUNTIME" in values and name in values:
                    return values[name]
        raise AssertionError(f"no process of the kernel that runs cells has {name} in its environment")

    def file(self, name):
        return self.folder / name

    def restart(self):
        """Restarts it as a frontend does: the client stays connected."""
        old = dict(self.remember())
        self.manager.restart_kernel()
        self.pid = self.manager.provisioner.pid
        wait_until(lambda: not still_there(old), f"the end of the old kernel's processes {list(old.values())}", 15)
        self.client.close()
        self.client = Client(self.manager)
        self.members = {}
        self.remember()

    def stop(self, ask=True):
        """Shuts it down as Jupyter does. Kills processes that outlive it by more than 15 s, and returns their names."""
        if self.client:
            if self.manager.is_alive():
                self.remember()
            self.client.close()
        if ask:
            self.manager.shutdown_kernel()
        end = time.monotonic() + 15
        while (left := still_there(self.members)) and time.monotonic() < end:
            time.sleep(0.05)
        for process in left:
            process.kill()
        self.manager.cleanup_resources()
        self.log.close()
        if not self.shares:
            shutil.rmtree(self.folder)
        return sorted(left.values())


class KernelCase(unittest.TestCase):
    """Tests that share one kernel with those of the same file, because a start takes seconds. It must leave nothing."""

    kernel: Kernel
    client: Client

    @classmethod
    def setUpClass(cls):
        if KernelCase.of != cls.__module__:
            kernel = KernelCase.kernel = Kernel()
            KernelCase.of, KernelCase.client = cls.__module__, kernel.client
            unittest.addModuleCleanup(cls.end, kernel)
            kernel.client.ok(HELPERS)

    of = None

    @staticmethod
    def end(kernel):
        KernelCase.of = None
        left = kernel.stop()
        if left:
            raise AssertionError(f"processes outlive the kernel: {left}")

    gates = 0

    def gate(self):
        """Returns the path of a file that a cell waits for. It exists at the latest when the test ends."""
        KernelCase.gates += 1
        path = self.kernel.file(f"gate-{KernelCase.gates}")
        self.addCleanup(path.touch)
        return path


def tiny_cifar(folder):
    """Writes 600 images in CIFAR-10's layout whose brightness shows their class, enough for the smoke profile."""
    draw = random.Random(0)
    folder.mkdir()
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels = [*range(10)] * 10
        images = [bytes([label, *(label * 25 + b % 30 for b in draw.randbytes(3072))]) for label in labels]
        (folder / name).write_bytes(b"".join(images))
    return folder
