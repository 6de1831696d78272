"""Settings of an installation, whose accounts share a machine: a kernel's sockets are files that only
their owner opens.

At TCP ports of the machine, every account could read along what a kernel publishes.
"""
import os
import stat
import sys
import tempfile

from jupyter_core.paths import jupyter_runtime_dir

c = get_config()  # noqa: F821
c.ConnectionFileMixin.transport = "ipc"


def own_folder():
    """Makes a folder with a short name that nobody else can open."""
    folder = os.path.join(tempfile.gettempdir(), f"jupyter-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o77:
        sys.exit(f"{folder} is not yours alone: set JUPYTER_RUNTIME_DIR to a folder of yours with a short path")
    return folder


# The path of a socket has at most 107 bytes.
if len(jupyter_runtime_dir()) + len("/kernel-00000000-0000-0000-0000-000000000000-ipc-1") > 107:
    os.environ["JUPYTER_RUNTIME_DIR"] = own_folder()
