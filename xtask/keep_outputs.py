"""Takes the outputs of executed notebooks into the course's own: `ROOT EXECUTED`, for `cargo lab docs --outputs-from`.

A forge shows a notebook of at most 150 kB, so figures become smaller and get a palette. A notebook's last figure also
becomes its thumbnail in docs/thumbs/. What only a running kernel can show, such as a slider, is left out.
"""
import base64
import io
import json
import re
import sys
from pathlib import Path

from PIL import Image

from clean_notebook import clean, code, code_cells, joined, seal

# Below 150 kB, so that a later change of the text still fits without a new run.
MOST = 145_000
# How much smaller a figure becomes in each direction, how many colours it keeps, and the quality of a photograph. While
# a notebook is too large, its largest figure takes the next step.
STEPS = [(1, 64, 80), (1, 24, 75), (0.75, 32, 70), (0.6, 32, 65), (0.5, 32, 60), (0.5, 16, 50), (0.4, 12, 35)]
WIDGET = "application/vnd.jupyter.widget-view+json"


class Refused(Exception):
    pass


def few_colours(image, colours):
    return image.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)


def light(png, scale, colours, quality):
    """Returns a figure as PNG with a palette, or as JPEG where that is smaller: its type and its base64."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    # Other filters draw rings around lines, which cost a third of the bytes.
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    palette, photograph = io.BytesIO(), io.BytesIO()
    few_colours(image, colours).save(palette, "PNG", optimize=True)
    image.save(photograph, "JPEG", quality=quality, optimize=True)
    if len(photograph.getvalue()) < len(palette.getvalue()):
        return "image/jpeg", base64.b64encode(photograph.getvalue()).decode()
    return "image/png", base64.b64encode(palette.getvalue()).decode()


def outputs(cell, folders):
    """Returns what a page can show of a cell's outputs, without the folders of the machine that ran it."""
    kept = []
    for output in cell["outputs"]:
        # A traceback stays a list of lines.
        output = output | {key: joined(output[key]) for key in ("data", "text") if key in output}
        data = output.get("data", {})
        if data.pop(WIDGET, None) and data.get("text/plain", "").startswith("(this frontend"):
            continue
        images = {kind: data.pop(kind) for kind in list(data) if kind.startswith("image/")}
        text = json.dumps(output)
        for folder, name in folders:
            text = text.replace(folder, name)
        kept.append(json.loads(text))
        kept[-1].get("data", {}).update(images)
    return kept


def in_lines(output):
    """Splits texts into lines, as Jupyter stores them."""
    data = output.get("data", {})
    data.update({key: data[key].splitlines(True) for key in data if key.startswith("text/")})
    if "text" in output:
        output["text"] = output["text"].splitlines(True)


def take(course, run, folders):
    """Returns the text of the course's notebook with the outputs of its run, and its last figure as the run drew it."""
    if code(course) != code(run):
        raise Refused("its code has changed since that run; run it again")
    if any("".join(cell["source"]).strip() and cell["execution_count"] is None for cell in code_cells(run)):
        raise Refused("that run stopped before its end")
    for cell, ran in zip(code_cells(course), code_cells(run)):
        cell["outputs"], cell["execution_count"] = outputs(ran, folders), ran["execution_count"]
    all_outputs = [output for cell in code_cells(course) for output in cell["outputs"]]
    profile = re.search(r"profile +(\w+)", json.dumps(all_outputs))
    if profile and profile[1] != "laptop":
        raise Refused(f"it ran in the profile {profile[1]}; the course shows laptop")
    figures = [output for output in all_outputs if "image/png" in output.get("data", {})]
    drawn = [figure["data"]["image/png"] for figure in figures]
    steps = [0] * len(figures)

    def step(index):
        figure = figures[index]
        kind, image = light(drawn[index], *STEPS[steps[index]])
        # The blocks of an enlarged small picture take fewer bytes than what a smaller size makes of them.
        if len(image) >= min(len(text) for key, text in figure["data"].items() if key.startswith("image/")):
            return
        about = figure["metadata"].pop(next(iter(figure["metadata"]), kind), {})
        texts = {key: value for key, value in figure["data"].items() if key.startswith("text/")}
        figure["data"] = {kind: image} | texts
        figure["metadata"][kind] = about

    for output in all_outputs:
        in_lines(output)
    for index in range(len(figures)):
        step(index)
    while True:
        course["metadata"]["kdlab"] = {"seal": seal(course)}
        text = clean(json.loads(json.dumps(course)))
        if len(text.encode()) <= MOST:
            return text, drawn[-1] if drawn else None
        larger = [index for index in range(len(figures)) if steps[index] + 1 < len(STEPS)]
        if not larger:
            raise Refused(f"with its outputs it has more than {MOST} bytes")
        heaviest = max(larger, key=lambda index: len(json.dumps(figures[index]["data"])))
        steps[heaviest] += 1
        step(heaviest)


def thumbnail(png, path):
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((360, 240), Image.Resampling.LANCZOS)
    path.parent.mkdir(exist_ok=True)
    few_colours(image, 32).save(path, optimize=True)


def main(root, executed):
    root, executed = Path(root), Path(executed).resolve()
    folders = [(str(executed.parent), "runs/laptop"), (str(root), "kdlab"), (str(Path.home()), "~")]
    refused = 0
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if not (executed / path.name).is_file():
            continue
        try:
            course, run = (json.loads((folder / path.name).read_text()) for folder in (path.parent, executed))
            text, figure = take(course, run, folders)
        except Exception as problem:
            # The other notebooks are taken.
            known = isinstance(problem, Refused)
            reason = problem if known else f"that run cannot be read ({type(problem).__name__}: {problem}); run it again"
            print(f"{path.name}: {reason}", file=sys.stderr)
            refused += 1
            continue
        path.write_text(text)
        if figure:
            thumbnail(figure, root / "docs/thumbs" / f"{path.name[:2]}.png")
        print(f"{path.name}: {len(text.encode()) // 1000} kB")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
