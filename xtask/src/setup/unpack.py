"""Takes files out of wheels: `libtorch WHEELS TARGET VERSION`, `file WHEELS TARGET SHA256`, `check FILE SHA256`."""
import glob
import hashlib
import os
import re
import shutil
import sys
import zipfile

# From torch's CUDA wheel what runs on a CPU; from the two NVIDIA wheels what libtorch_cpu is linked against.
WANTED = re.compile(
    r"torch/(include/.*"
    r"|lib/(libtorch|libtorch_cpu|libc10|libshm|libgomp|libomp)[^/]*\.(so|dylib)[^/]*"
    r"|lib/libtorch_global_deps\.(so|dylib))$"
    r"|torch\.libs/.*|.*/(?P<cuda>libcudart|libcupti)\.so\.\d+$"
)
UNWANTED = re.compile(r"torch/lib/libtorch_(cuda|nvshmem|python).*|torch/lib/libc10_cuda.*")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def check(path, wanted):
    found = sha256(path)
    if found != wanted:
        sys.exit(f"{path}: SHA-256 is {found}, not {wanted}: remove the file and run `cargo lab setup` again")


def libtorch(wheels, target, version):
    for wheel in glob.glob(os.path.join(wheels, "*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                match = WANTED.match(info.filename)
                if info.is_dir() or not match or UNWANTED.match(info.filename):
                    continue
                if match["cuda"] or info.filename.startswith("torch.libs/"):
                    path = os.path.join(target, "lib", os.path.basename(info.filename))
                else:
                    path = os.path.join(target, info.filename.removeprefix("torch/"))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with archive.open(info) as source, open(path, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                print(path, flush=True)
    with open(os.path.join(target, "build-version"), "w") as file:
        file.write(version + "\n")


def file(wheels, target, wanted):
    name = os.path.basename(target)
    for wheel in glob.glob(os.path.join(wheels, "*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if os.path.basename(info.filename) == name:
                    beside = target + ".part"
                    with archive.open(info) as source, open(beside, "wb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                    check(beside, wanted)
                    os.replace(beside, target)
                    return
    sys.exit(f"no wheel in {wheels} holds {name}")


{"libtorch": libtorch, "file": file, "check": check}[sys.argv[1]](*sys.argv[2:])
