"""Sets a machine up without a network: `python3 xtask/bundle.py FILE`, with a file that `cargo lab bundle` made.

`cargo lab` itself is compiled from crates that only the bundle holds, so this script needs nothing but Python. It
unpacks into .kdlab/bundle, makes cargo take its crates from there, and goes on with `cargo lab setup`.
"""
import gzip
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time

FORMAT = 1
MACHINE = platform.system() + " " + platform.machine()
# .cargo/config.toml includes this file if it exists. Its path is relative to the repository.
CARGO = """# Written by set-up from a bundle. Remove this file to have cargo fetch crates from the network again.
[source.crates-io]
replace-with = "bundle"

[source.bundle]
directory = ".kdlab/bundle/crates"
"""


def size(count):
    return "%.1f GB" % (count / 1e9) if count >= 1e9 else "%.0f MB" % (count / 1e6)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


class Hashed:
    """Counts and hashes every byte that is read from a file or written to it."""

    def __init__(self, file):
        self.file, self.sum, self.count = file, hashlib.sha256(), 0

    def passed(self, data):
        self.sum.update(data)
        self.count += len(data)
        return data

    def read(self, count=-1):
        return self.passed(self.file.read(count))

    def write(self, data):
        return self.file.write(self.passed(data))

    def flush(self):
        self.file.flush()

    def found(self):
        return {"bytes": self.count, "sha256": self.sum.hexdigest()}


def lock_of(root):
    with open(os.path.join(root, "Cargo.lock"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


# ---- Making one: `--pack ROOT FILE MANIFEST PART[/NAME]=PATH...` ----


def pack(root, target, manifest, *contents):
    staging = os.path.join(root, ".kdlab", "bundle.parts")
    beside = target + ".part"
    manifest = dict(json.loads(manifest), format=FORMAT, machine=MACHINE, lock=lock_of(root), parts={})
    try:
        remove(staging)
        os.makedirs(staging)
        for name in dict.fromkeys(content.partition("=")[0].split("/")[0] for content in contents):
            clock = time.monotonic()
            with open(os.path.join(staging, name), "wb") as file:
                hashed = Hashed(file)
                # The hash covers the file as it is written.
                with gzip.GzipFile("", "wb", 6, hashed, mtime=0) as packed:
                    with tarfile.open(mode="w", fileobj=packed, dereference=True) as archive:
                        for place, _, path in (content.partition("=") for content in contents):
                            if place.split("/")[0] == name:
                                archive.add(path, place, filter=wanted)
            manifest["parts"][name] = hashed.found()
            print("  %-9s %7s   %.0f s" % (name, size(hashed.count), time.monotonic() - clock), flush=True)
        with open(os.path.join(staging, "manifest.json"), "w") as file:
            json.dump(manifest, file, indent=1)
        with tarfile.open(beside, "w") as archive:
            for name in ["manifest.json", *manifest["parts"]]:
                archive.add(os.path.join(staging, name), name, filter=wanted)
        os.replace(beside, target)
    except OSError as problem:
        sys.exit("error: %s; is there room for it?" % problem)
    finally:
        remove(beside)
        remove(staging)


def wanted(info):
    """Leaves out locks, incomplete downloads and the names of the user who packs."""
    name = os.path.basename(info.name)
    if name.endswith(".part") or name.startswith(".") and name.endswith(".lock"):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


# ---- Using one: `--unpack ROOT FILE` ----


def unpack(root, path):
    kdlab = os.path.join(root, ".kdlab")
    beside, bundle, cargo = (os.path.join(kdlab, name) for name in ("bundle.new", "bundle", "offline.toml"))
    if not os.path.isfile(path):
        sys.exit("error: there is no file %s" % path)
    try:
        remove(beside)
        os.makedirs(beside)
        with tarfile.open(path, "r:") as archive:
            manifest = read_manifest(root, path, archive)
            for name, expected in manifest["parts"].items():
                print("  unpacking %s (%s)" % (name, size(expected["bytes"])), flush=True)
                part(archive, name, expected, beside)
        with open(os.path.join(beside, "manifest.json"), "w") as file:
            json.dump(manifest, file, indent=1)
        # At no moment may cargo be sent to an incomplete bundle.
        remove(cargo)
        remove(bundle)
        os.rename(beside, bundle)
        with open(cargo + ".new", "w") as file:
            file.write(CARGO)
        os.replace(cargo + ".new", cargo)
    except (tarfile.TarError, EOFError, ValueError, KeyError, OSError) as problem:
        reason = "%s: %s" % (type(problem).__name__, problem)
        sys.exit("error: cannot unpack %s: %s\nCopy the file anew, and see that 2 GB are free here." % (path, reason))
    finally:
        remove(beside)


def read_manifest(root, path, archive):
    first = archive.next()
    if first is None or first.name != "manifest.json":
        sys.exit("error: %s is no bundle: `cargo lab bundle` makes one" % path)
    manifest = json.load(archive.extractfile(first))
    if manifest["format"] != FORMAT:
        sys.exit("error: %s is a bundle of format %s, this version reads %s: make a new one with `cargo lab bundle`"
                 % (path, manifest["format"], FORMAT))
    if manifest["machine"] != MACHINE:
        sys.exit("error: %s was made on %s and this is %s, where its libraries cannot run: make one with "
                 "`cargo lab bundle` on a machine like this" % (path, manifest["machine"], MACHINE))
    if manifest["lock"] != lock_of(root):
        sys.exit("error: %s was made for another version of the repository (its Cargo.lock differs): check out "
                 "commit %s, or make a new one with `cargo lab bundle`" % (path, manifest.get("commit", "unknown")))
    return manifest


def part(archive, name, expected, target):
    member = archive.next()
    if member is None or member.name != name:
        raise tarfile.TarError("the part `%s` is missing" % name)
    hashed = Hashed(archive.extractfile(member))
    # Python has filters from 3.11.4 on.
    filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    problem = None
    try:
        with tarfile.open(mode="r|gz", fileobj=hashed) as inner:
            for info in inner:
                check(info, name)
                inner.extract(info, target, **filters)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        problem = error
    while hashed.read(1 << 20):
        pass
    if hashed.found() != expected:
        raise tarfile.TarError("its part `%s` is damaged (SHA-256 %s, not %s)"
                               % (name, hashed.found()["sha256"][:16], expected["sha256"][:16]))
    if problem:
        raise problem


def check(info, part):
    """Refuses files outside the part's own folder, links and special files."""
    inside = os.path.normpath(info.name).split(os.sep)[0] == part
    if not inside or not (info.isreg() or info.isdir()):
        raise tarfile.TarError("`%s` does not belong into the part `%s`" % (info.name, part))


def main(arguments):
    if sys.version_info < (3, 10):
        sys.exit("error: this is Python %s; 3.10 or newer is needed" % platform.python_version())
    # Cleans up as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        if arguments[:1] == ["--pack"]:
            return pack(*arguments[1:])
        if arguments[:1] == ["--unpack"]:
            return unpack(*arguments[1:])
        if len(arguments) != 1 or arguments[0].startswith("-"):
            sys.exit(__doc__)
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        if shutil.which("cargo") is None:
            sys.exit("error: cargo is not found: install Rust first, a bundle does not hold it")
        unpack(root, arguments[0])
        print("  compiling `cargo lab`", flush=True)
        return subprocess.call(["cargo", "lab", "setup", "--cpu"], cwd=root)
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
