"""Opens a kernel as the account that runs this, for `.ci/install` and `.ci/crowd.py`, and prints what that takes, as
JSON.

--hold FILE keeps it open until the file is there; --serve runs the cells that come on stdin, each a JSON string on a
line; --spy JSON tries to reach the kernel that the JSON describes.
"""
import contextlib
import json
import os
import pathlib
import socket
import statistics
import sys
import time
import uuid

from jupyter_client import KernelManager
from jupyter_core.application import JupyterApp


def below(pid):
    """Returns a process and all below it."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def proportional_memory(pid):
    """Returns megabytes: what processes share is divided among them."""
    kilobytes = 0
    for process in below(pid):
        # A compiler may end meanwhile.
        with contextlib.suppress(OSError):
            lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes // 1024


class Kernel:
    def __init__(self):
        # As a Jupyter server does it.
        app = JupyterApp()
        app.load_config_file()
        file = os.path.join(app.runtime_dir, f"kernel-{uuid.uuid4()}.json")
        begin = time.monotonic()
        self.manager = KernelManager(kernel_name="kdlab", config=app.config, connection_file=file)
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=600)
        answers = time.monotonic() - begin
        self.run("let t = Tensor::from_slice(&[1f32, 2.0]);")
        tensor = time.monotonic() - begin
        cells = [self.run(f"let x{i} = {i};")[1] for i in range(9)]
        child = self.run('println!("{}", std::process::id());')[0].strip()
        environment = self.run('println!("{}", std::env::var("LIVE_KERNEL_SOCKET").unwrap());')[0].strip()
        self.facts = {
            "user": os.environ.get("USER"), "answers": round(answers, 2), "tensor": round(tensor, 2),
            "cell": round(statistics.median(cells), 2), "pss_mb": proportional_memory(self.manager.provisioner.pid),
            "pid": self.manager.provisioner.pid, "child": int(child), "socket": environment,
            "connection": self.manager.connection_file,
            "iopub": self.client.iopub_channel.socket.last_endpoint.decode(),
            "home": os.environ["HOME"],
        }

    def run(self, code):
        printed, begin = [], time.monotonic()

        def hook(message):
            if message["msg_type"] == "error":
                raise SystemExit(f"{code}\n" + "\n".join(message["content"]["traceback"]))
            printed.append(message["content"].get("text", ""))

        reply = self.client.execute_interactive(code, timeout=1800, output_hook=hook)
        assert reply["content"]["status"] == "ok", reply
        return "".join(printed), time.monotonic() - begin

    def serve(self):
        for line in sys.stdin:
            try:
                printed, seconds = self.run(json.loads(line))
                answer = {"printed": printed, "seconds": seconds}
            except SystemExit as problem:
                answer = {"error": str(problem)}
            print(json.dumps(answer), flush=True)

    def end(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel()


def spy(facts):
    """Fails where this account can read or reach something of another's kernel."""
    def refused(what, attempt):
        try:
            attempt()
        except OSError:
            return
        raise SystemExit(f"{what} can be reached by another account")

    for name in ["socket", "connection"]:
        refused(facts[name], lambda: open(facts[name]).read())
    for address in [facts["socket"], facts["iopub"].removeprefix("ipc://")]:
        refused(address, lambda: socket.socket(socket.AF_UNIX).connect(address))
    for pid in [facts["pid"], facts["child"]]:
        refused(f"the environment of {pid}", lambda: open(f"/proc/{pid}/environ", "rb").read())
    for folder in [".cache/kdlab/cells", ".cache/kdlab/kernel", ".local/state/kdlab/runs"]:
        refused(folder, lambda: os.listdir(os.path.join(facts["home"], folder)))


def main(mode="", argument=""):
    if mode == "--spy":
        return spy(json.loads(argument))
    kernel = Kernel()
    print(json.dumps(kernel.facts), flush=True)
    if mode == "--serve":
        kernel.serve()
    while mode == "--hold" and not os.path.exists(argument):
        time.sleep(0.2)
    kernel.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
