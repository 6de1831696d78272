"""Executes one notebook through the kernel `kdlab`: `INPUT OUTPUT [--watch] [--shared]`.

Prints what happens as JSON on stdout, one object a line. Exits with 0 only if no cell failed that may not fail. After
each cell the output file holds what was executed so far. With --watch it ends when its stdin closes, so that it does
not outlive the program that started it. With --shared it reaches the kernel as Jupyter's configuration says, because
other accounts use this machine.
"""
import json
import os
import re
import signal
import sys
import threading
import time
import uuid

import nbformat
from jupyter_core.application import JupyterApp
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

# evcxr reports cells that fail through `?` or a panic as ok. `stop_marker.rs` makes such a cell print this on stderr.
STOPPED = re.compile(r"^\^ this (error|panic) ended the cell: nothing after it ran$", re.M)
PANIC = re.compile(r"^thread '.*'( \(\d+\))? panicked at ", re.M)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def first_line(source):
    lines = [line.strip() for line in source.splitlines() if re.search(r"\w", line)]
    return lines[0] if lines else ""


def stderr_of(outputs):
    return COLOURS.sub("", "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"))


def failure(outputs):
    """Returns the error of a cell, or None. Ordinary text on stderr is no error."""
    for output in outputs:
        if output.output_type == "error":
            lines = COLOURS.sub("", "\n".join(output.traceback or [output.evalue])).strip()
            return lines or output.evalue
    text = stderr_of(outputs)
    stopped, panic = STOPPED.search(text), PANIC.search(text)
    if panic and (stopped is None or stopped[1] == "panic"):
        # Without its first line, which names a place in generated code.
        message = text[panic.start():].split("\nstack backtrace:")[0].split("\n^ this ")[0]
        return "panic: " + message.partition("\n")[2].strip()
    if stopped:
        before = text[:stopped.start()].strip().splitlines()
        return "\n".join(before[-3:]) or f"an {stopped[1]} without a text"
    return None


class Runner(NotebookClient):
    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            say("stream", name=msg["content"]["name"], text=msg["content"]["text"])
        return super().process_message(msg, cell, cell_index)


class Failed(Exception):
    pass


def execute(source, target):
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    folder = os.path.dirname(os.path.abspath(source))
    # No limit for a cell. Before the kernel answers, a cold build directory compiles every crate.
    resources = {"metadata": {"path": folder}}
    runner = Runner(
        notebook, timeout=None, startup_timeout=3600, kernel_name="kdlab", resources=resources, config=configuration()
    )
    if "--watch" in sys.argv:
        threading.Thread(target=end_with_stdin, args=[runner], daemon=True).start()
    clock = time.monotonic()
    number, cell = 0, None
    say("start", cells=len(code))

    def save():
        nbformat.write(notebook, target + ".part")
        os.replace(target + ".part", target)

    try:
        with runner.setup_kernel():
            say("kernel", seconds=time.monotonic() - clock)
            for number, index in enumerate(code, 1):
                cell, begun = notebook.cells[index], time.monotonic()
                may_fail = "raises-exception" in cell.metadata.get("tags", [])
                say("cell", number=number, source=first_line(cell.source))
                error = None
                try:
                    runner.execute_cell(cell, index)
                except CellExecutionError as problem:
                    error = failure(cell.outputs) or COLOURS.sub("", str(problem)).strip()
                error = error or failure(cell.outputs)
                seconds = time.monotonic() - begun
                cell.metadata["kdlab"] = {"seconds": round(seconds, 2)}
                save()
                if error and not may_fail:
                    say("failed", number=number, source=first_line(cell.source), error=error)
                    raise Failed
                say("done", number=number, seconds=seconds)
    except DeadKernelError:
        save()
        source = first_line(cell.source) if cell else ""
        say("failed", number=number, source=source, error="the kernel died (see the messages above; out of memory?)")
        raise Failed from None
    save()
    say("end", seconds=time.monotonic() - clock)


def configuration():
    app = JupyterApp()
    if "--shared" in sys.argv:
        app.load_config_file()
        # Sockets lie beside it.
        app.config.ConnectionFileMixin.connection_file = os.path.join(app.runtime_dir, f"kernel-{uuid.uuid4()}.json")
    return Config(ConnectionFileMixin=app.config.ConnectionFileMixin)


def end_with_stdin(runner):
    """Ends the kernel, a process group of its own, and this program when the program that started it is gone."""
    while os.read(0, 4096):
        pass
    if runner.km is not None and runner.km.has_kernel:
        os.killpg(runner.km.provisioner.pid, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    try:
        execute(sys.argv[1], sys.argv[2])
    except Failed:
        sys.exit(1)
    except Exception as problem:
        say("failed", number=0, source="", error=f"{type(problem).__name__}: {problem}")
        sys.exit(1)
