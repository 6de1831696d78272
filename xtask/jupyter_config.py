"""Settings of an installation, whose accounts share a machine: a kernel's sockets are files that only their owner can open.

At TCP ports of the machine, every account could read along what a kernel publishes.
"""
import sys

from jupyter_core.paths import jupyter_runtime_dir

c = get_config()  # noqa: F821
# The path of a socket has at most 107 bytes.
if len(jupyter_runtime_dir()) + len("/kernel-00000000-0000-0000-0000-000000000000-ipc-1") <= 107:
    c.ConnectionFileMixin.transport = "ipc"
else:
    sys.exit(f"{jupyter_runtime_dir()} is too long for sockets: set JUPYTER_RUNTIME_DIR to a shorter folder of yours")
