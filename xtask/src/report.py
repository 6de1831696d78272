"""Makes one HTML page of executed notebooks: `TARGET TITLE TEMPLATES NOTEBOOK...`.

Making and reading it needs no network.
"""
import html
import os
import re
import sys

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter

# Code comes first, so that a dollar sign in it stays one; then `details` elements, display and inline formulas.
APART = re.compile(
    r"(```.*?```|`[^`\n]*`)|(<details>\s*<summary>.*?</summary>|</details>)"
    r"|\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)",
    re.S,
)

# The template hides the ends of long lines of code, and breaks the output of cells in the middle of words.
STYLE = """<style>
.jp-InputArea-editor { overflow-x: auto; }
.jp-RenderedText pre { word-break: normal; overflow-wrap: break-word; }
</style>"""


def without_html(text, kept):
    """Replaces each formula and each end of a `details` element by a word, and puts their HTML into `kept`.

    The exporter would change MathML, and close a `details` where its summary ends.
    """
    def replace(match):
        code, fold, display, inline = match.groups()
        if code:
            return code
        try:
            kept.append(fold or convert(display or inline, display="block" if display else "inline"))
        except Exception:
            return match[0]
        word = f"kdlabKept{len(kept) - 1}x"
        # As a comment, because a `details` holds paragraphs and cannot be part of one.
        return f"\n\n<!--{word}-->\n\n" if fold else word

    return APART.sub(replace, text)


def heading(cells, name):
    for cell in cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return name


def seconds(cells):
    return sum(cell.metadata.get("kdlab", {}).get("seconds", 0) for cell in cells)


def main(target, title, templates, *paths):
    whole, contents, kept = nbformat.v4.new_notebook(), [], []
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        cells = nbformat.read(path, as_version=4).cells
        contents.append(f'<li><a href="#{name}">{html.escape(heading(cells, name))}</a> ({seconds(cells):.0f} s)</li>')
        whole.cells.append(nbformat.v4.new_markdown_cell(f'<a id="{name}"></a>\n\n---'))
        for cell in cells:
            if cell.cell_type == "markdown":
                cell.source = without_html(cell.source, kept)
            cell.id = f"{name}-{len(whole.cells)}"[-64:]
            whole.cells.append(cell)
    first = f"# {title}\n\n<ol>{''.join(contents)}</ol>"
    whole.cells.insert(0, nbformat.v4.new_markdown_cell(first))
    whole.metadata["language_info"] = {"name": "rust", "pygments_lexer": "rust", "file_extension": ".rs"}

    exporter = HTMLExporter(template_name="rust", extra_template_basedirs=[templates], embed_images=True)
    page, _ = exporter.from_notebook_node(whole, {"metadata": {"name": title}})
    # The template's scripts load MathJax, require.js and Mermaid from the network; the page needs none of them.
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.S)
    page = re.sub(r"<link\b[^>]*\bhref=[\"']https?:[^>]*>", "", page)
    page = re.sub(r"@import\s+(url\()?[\"']?https?:[^;]*;", "", page)
    page = re.sub(r"(?:<!--)?kdlabKept(\d+)x(?:-->)?", lambda match: kept[int(match[1])], page)
    page = page.replace("</head>", STYLE + "</head>", 1)
    beside = target + ".part"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(page)
        os.replace(beside, target)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


main(*sys.argv[1:])
