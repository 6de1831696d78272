"""A teacher and its student on four runtimes, one image at a time: `cargo lab bench devices` calls this.

devices.py LAB OURS FOLDER runs it, where LAB is `cargo lab` as a program and OURS that of `benches/kdlab.rs`.
devices.py onnx FILE PICTURE... measures Python's onnxruntime in a process of its own.
"""
import base64
import csv
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN, TEST, SHOWN = 4000, 1000, 100


def peak_mb(process="self"):
    """Returns the peak memory of a process."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def python(file, pictures):
    """Times onnxruntime on pictures."""
    import numpy
    import onnxruntime
    from PIL import Image

    session, answers, times = onnxruntime.InferenceSession(file), [], []
    for picture in pictures:
        images = numpy.asarray(Image.open(picture).convert("RGB"))[None]
        begun = time.perf_counter()
        [probabilities] = session.run(["probabilities"], {"images": images})
        times.append(1e3 * (time.perf_counter() - begun))
        answers.append(int(probabilities[0].argmax()))
    print(json.dumps({"milliseconds": times, "answers": answers, "peak_mb": peak_mb()}))


def browser(lab, file, pictures):
    """Times the page of `cargo lab page` on its examples, in Chromium."""
    import psutil
    from playwright.sync_api import sync_playwright

    sys.path.append(str(ROOT / "tests/oracle"))
    import page as driver

    folder = file.with_name("page-" + file.stem)
    output([lab, "page", file, "--out", folder, "--examples", pictures])
    answers, times = [], []
    with sync_playwright() as play:
        chromium = driver.launch(play)
        page = chromium.new_page()
        buttons, names = driver.opened(page, folder)
        for i, name in enumerate(names):
            buttons.nth(i).click()
            student = driver.shown(page, name)[0]
            answers.append(student.index(max(student)))
            times.append(driver.milliseconds(page))
        children = psutil.Process().children(recursive=True)
        peak = max(peak_mb(child.pid) for child in children if "--type=renderer" in child.cmdline())
        chromium.close()
    return {"milliseconds": times, "answers": answers, "peak_mb": peak}


def output(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stderr or done.stdout}")
    return done


def tract(lab, file, pictures, classes):
    """What `cargo lab classify` says."""
    answers = file.with_suffix(".csv")
    said = output([lab, "classify", pictures, "--model", file, "--out", answers]).stderr
    with answers.open() as table:
        found = [classes.index(row["class"]) for row in csv.DictReader(table)]
    p50, peak = re.search(r"p50 ([\d.]+) ms", said)[1], re.search(r"peak memory: (\d+) MB", said)[1]
    return {"milliseconds": [float(p50)], "answers": found, "peak_mb": int(peak) * 2**20 / 1e6}


def table(head, rows):
    print("| " + " | ".join(head) + " |\n| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main(lab, ours, folder):
    folder = pathlib.Path(folder)

    def torch(**task):
        done = output([ours, "measure", json.dumps(task)]).stdout
        return json.loads(done.splitlines()[-1])

    task = {"workload": "networks", "folder": str(folder), "train": TRAIN, "test": TEST}
    if not (folder / "networks.json").exists():  # of an earlier run
        subprocess.run([ours, "measure", json.dumps(task)], check=True)
    known = json.loads((folder / "networks.json").read_text())
    examples = json.loads((folder / "examples.json").read_text())
    pictures, labels, classes = [], [], known["classes"]
    for i, example in enumerate(examples["examples"]):
        picture = folder / "pictures" / f"{i:05}.png"  # in the order of their names
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(base64.b64decode(example["png"]))
        pictures.append(str(picture))
        labels.append(example["label"])
    first = folder / "first.json"
    first.write_text(json.dumps(examples | {"examples": examples["examples"][:SHOWN]}))

    def accuracy(answers):
        return 100 * statistics.mean(answer == label for answer, label in zip(answers, labels))

    networks, rows = {"teacher": known["arch"], "student": "student, f32", "student-int8": "student, int8"}, []
    results, agree = {}, []
    pass_over = {"workload": "pictures", "pictures": pictures}
    for name, shown in networks.items():
        file, arch = folder / f"{name}.onnx", {"arch": known["arch"]} if name == "teacher" else {}
        found = [
            None if name == "student-int8" else torch(file=str(folder / f"{name}.safetensors"), **pass_over, **arch),
            tract(lab, file, folder / "pictures", classes),
            json.loads(output([sys.executable, __file__, "onnx", file, *pictures]).stdout),
            browser(lab, file, first),
        ]
        # onnxruntime runs all three.
        answers, cost = found[2]["answers"], known[name.removesuffix("-int8")]
        results[name] = found[2]
        agree += [statistics.mean(map(int.__eq__, run["answers"], answers)) for run in found if run]
        cells = [
            f"{statistics.median(run['milliseconds']):.1f} ms, {run['peak_mb']:.0f} MB" if run else "reads no ONNX"
            for run in found
        ]
        size, parameters, macs = file.stat().st_size / 1e6, cost["parameters"] / 1e6, cost["macs"] / 1e6
        known_of = [f"{shown}, {cost['side']} px", f"{size:.2f} MB", f"{parameters:.2f} M", f"{macs:.0f} M"]
        rows.append([*known_of, f"{accuracy(answers):.1f} %", *cells])
    print(f"\n{known['data']}: {TRAIN} training images, {len(labels)} test images")
    print("median time of one image, peak memory of the process")
    programs = ["Rust, libtorch", "Rust, tract", "Python, onnxruntime", "browser"]
    table(["network", "file", "parameters", "MACs", "accuracy", *programs], rows)
    same = f"the same class for {100 * min(agree):.1f} % of the images or more"
    print(f"(the runtimes give {same}; libtorch runs no int8 from ONNX)\n")

    student = {"workload": "pictures", "file": str(folder / "student.safetensors"), "pictures": pictures}
    exact, rows = torch(**student), []
    for name, run, file in [
        ("f32 (libtorch)", exact, "student.safetensors"),
        ("bf16 (libtorch)", torch(**student, precision="bf16"), "student.safetensors"),
        ("f32 (onnxruntime)", results["student"], "student.onnx"),
        ("int8 (onnxruntime)", results["student-int8"], "student-int8.onnx"),
    ]:
        pairs = [(a == label, b == label) for a, b, label in zip(exact["answers"], run["answers"], labels)]
        compared = output([ours, "measure", json.dumps({"workload": "difference", "right": pairs})]).stdout
        points, (least, most) = json.loads(compared)
        same = 100 * statistics.mean(map(int.__eq__, exact["answers"], run["answers"]))
        change = "" if run is exact else f"{points:+.1f} ({least:+.1f} to {most:+.1f})"
        size, time = (folder / file).stat().st_size / 1e6, statistics.median(run["milliseconds"])
        right = f"{accuracy(run['answers']):.1f} %"
        rows.append([name, f"{size:.2f} MB", right, change, f"{same:.1f} %", f"{time:.2f} ms"])
    table(["student", "file", "accuracy", "points from f32 (95 %)", "same answer", "one image"], rows)


if __name__ == "__main__":
    if sys.argv[1] == "onnx":
        python(sys.argv[2], sys.argv[3:])
    else:
        main(*sys.argv[1:])
