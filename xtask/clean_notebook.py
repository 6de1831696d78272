"""Git's clean filter for notebooks: removes what a run leaves in them. Reads one from stdin and writes it to stdout.

`cargo lab setup` configures it; `.gitattributes` names the files. It keeps sources, tags and the wrong answers that
exercises list, and writes a notebook as Jupyter does.
"""
import json
import sys

KEPT = {"tags", "wrong"}
LANGUAGE = {"name", "mimetype", "file_extension", "codemirror_mode", "pygments_lexer"}


def clean(notebook):
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key in KEPT}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    about = notebook["metadata"]
    language = about.get("language_info", {})
    # The stock kernel misspells it.
    language.setdefault("pygments_lexer", language.get("pygment_lexer", "rust"))
    about["language_info"] = {key: value for key, value in language.items() if key in LANGUAGE}
    notebook["metadata"] = {key: about[key] for key in ("kernelspec", "language_info") if key in about}
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode()
    try:
        text = clean(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # It is no notebook: git gets it unchanged.
    sys.stdout.buffer.write(text.encode())
