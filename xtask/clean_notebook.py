"""Git's clean filter for notebooks: reads one from stdin and writes it to stdout as git should see it.

`cargo lab setup` configures it as `clean_notebook.py PATH`; `.gitattributes` names the files. It keeps sources, tags
and the wrong answers that exercises list, and writes a notebook as Jupyter does.

A run is no change: a notebook whose code is the committed one gets the committed outputs. Other outputs are dropped,
except those that keep_outputs.py took from a run and sealed: `metadata.kdlab.seal` is a digest of code and outputs.
"""
import hashlib
import json
import subprocess
import sys

KEPT = {"tags", "wrong"}
LANGUAGE = {"name", "mimetype", "file_extension", "codemirror_mode", "pygments_lexer"}


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def code(notebook):
    return ["".join(cell["source"]) for cell in code_cells(notebook)]


def joined(value):
    """Returns texts as one string, where Jupyter may have split them into lines."""
    if isinstance(value, dict):
        return {key: joined(item) for key, item in value.items()}
    if isinstance(value, list):
        return "".join(value) if all(isinstance(item, str) for item in value) else [joined(item) for item in value]
    return value


def seal(notebook):
    """Returns the digest that says which outputs belong to which code."""
    outputs = [joined(cell["outputs"]) for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps([code(notebook), outputs], sort_keys=True).encode()).hexdigest()[:16]


def seal_of(notebook):
    return notebook["metadata"].get("kdlab", {}).get("seal")


def clean(notebook, committed=None):
    """Returns the text of a notebook without what a run leaves in it."""
    sealed = seal_of(notebook)
    if sealed is None or sealed != seal(notebook):
        source = committed if committed and seal_of(committed) and code(committed) == code(notebook) else None
        sealed = seal_of(source) if source else None
        kept = code_cells(source) if source else [{"outputs": [], "execution_count": None}] * len(code(notebook))
        for cell, old in zip(code_cells(notebook), kept):
            cell["outputs"], cell["execution_count"] = old["outputs"], old["execution_count"]
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key in KEPT}
    about = notebook["metadata"]
    language = about.get("language_info", {})
    # The stock kernel misspells it.
    language.setdefault("pygments_lexer", language.get("pygment_lexer", "rust"))
    about["language_info"] = {key: value for key, value in language.items() if key in LANGUAGE}
    notebook["metadata"] = {key: about[key] for key in ("kernelspec", "language_info") if key in about}
    if sealed:
        notebook["metadata"]["kdlab"] = {"seal": sealed}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def committed(path):
    """Returns the notebook in git's index, or None."""
    try:
        shown = subprocess.run(["git", "show", f":{path}"], capture_output=True, check=True).stdout
        return json.loads(shown)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


if __name__ == "__main__":
    text = sys.stdin.buffer.read()
    try:
        text = clean(json.loads(text.decode()), committed(sys.argv[1]) if sys.argv[1:] else None).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # It is no notebook: git gets it unchanged.
    sys.stdout.buffer.write(text)
