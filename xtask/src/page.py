"""Writes the page of a student: page.py STUDENT.onnx FOLDER TEMPLATE CACHE [EXAMPLES]. Ends with one line that says why
when it can't."""
import base64
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(data):
    """The numbers of a protobuf message's fields with their bytes; of the fields here, only those with bytes count."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 2:
            size, at = varint(data, at)
            if at + size > len(data):
                raise ValueError("cut off")
            yield key >> 3, data[at : at + size]
            at += size
        elif key & 7 == 0:
            _, at = varint(data, at)
        else:
            raise ValueError("no ONNX file")


def card(file):
    """The metadata that Model::save_onnx wrote."""
    try:
        entries = [dict(fields(entry)) for number, entry in fields(file.read_bytes()) if number == 14]
        found = {entry[1].decode(): json.loads(entry[2]) for entry in entries}
        optional = {name: found.get(name, usual) for name, usual in (("threshold", 0), ("framing", "squeeze"))}
        size = found["stored_size"]
        if not (isinstance(size, int) and size > 0):
            sys.exit(
                f"{file} says that pictures have {size} pixels a side (stored_size); save it with 1 or more, "
                "the side of its training images"
            )
        return {"classes": found["classes"], "stored_size": size} | optional
    except (ValueError, IndexError, KeyError):
        sys.exit(f"{file} is no student as ONNX; Model::save_onnx writes one (notebook 14)")


def runtime(cache):
    """The files of the package, fetched once by npm."""
    archive = cache / f"{PACKAGE}-{VERSION}.tgz"

    def good():
        return archive.exists() and base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == SHA512

    if not good():
        if not shutil.which("npm"):
            sys.exit(
                "npm is missing, which fetches the browser's runtime once: install Node.js "
                "(Debian: apt-get install npm)"
            )
        print(f"fetching {PACKAGE} {VERSION}, once (33 MB)", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent"], cwd=cache, capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            sys.exit(f"npm could not fetch {PACKAGE}: {reason}; check the network and run this again")
        if not good():
            archive.unlink(missing_ok=True)
            sys.exit(f"what npm fetched is not {PACKAGE} {VERSION} as it was published; run this again")
    with tarfile.open(archive) as files:
        names = ["ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]
        return [files.extractfile(f"package/dist/{name}").read() for name in names]


def examples(file, classes):
    """Pictures with labels and the teacher's probabilities, as kdlab::show::save_examples writes them."""
    if file is None:
        return []
    try:
        found = json.loads(file.read_bytes())
        if found["classes"] != classes:
            sys.exit(
                f"{file} has other classes than the student: {', '.join(found['classes'])}; make both from one data set"
            )
        return found["examples"]
    except (OSError, ValueError, KeyError, TypeError):
        sys.exit(f"{file} can't be read; kdlab::show::save_examples writes such a file")


def main(student, folder, template, cache, pictures=None):
    student, folder, template = (pathlib.Path(path) for path in (student, folder, template))
    if not student.is_file():
        sys.exit(f"there is no file {student}; notebook 14 writes a student with save_onnx")
    known = card(student)
    shown = examples(pictures and pathlib.Path(pictures), known["classes"])
    if folder.exists() and not (folder / "student.js").exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} holds something else than a page; give another folder with --out")
    library, loader, wasm = runtime(pathlib.Path(cache))

    def text(data):
        return json.dumps(base64.b64encode(data).decode())

    network = f"kdlab.card = {json.dumps(known)};\nkdlab.examples = {json.dumps(shown)};\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in template.iterdir():
            shutil.copyfile(file, folder / file.name)
        (folder / "ort.wasm.min.js").write_bytes(library)
        (folder / "runtime.js").write_text(
            f"const kdlab = {{}};\nkdlab.loader = {text(loader)};\nkdlab.wasm = {text(wasm)};\n"
        )
        (folder / "student.js").write_text(network + f"kdlab.network = {text(student.read_bytes())};\n")
    except OSError as error:
        sys.exit(f"the page can't be written: {error}; give another folder with --out")
    print(f"{folder / 'index.html'}: open it in a browser, or copy the folder to a phone or a web server")


main(*sys.argv[1:])
