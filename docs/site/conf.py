"""Sphinx's configuration of the site that `cargo lab docs` builds. The pages stay where a forge shows them: the source
folder is the repository itself, the start page is README.md, and contents.md is the table of contents."""
import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.core.render import NbElementRenderer

ROOT = Path(__file__).resolve().parents[2]

project = "kdlab"
author = "The kdlab authors"
project_copyright = "2026, the kdlab authors"
extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "README"
include_patterns = [
    "*.md", "benches/README.md", "docs/*.md", "docs/site/reference.md", "kernel/README.md", "kernel/client/README.md",
    "kernel/examples/*.ipynb", "notebooks/*.ipynb", "notebooks/page/*.ipynb",
]
# Sphinx does not look into these at all.
exclude_patterns = [".kdlab", ".git", "target", "runs", "fuzz", "src", "tests", "**/node_modules"]

# Notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_error_lexer = "myst-ansi"
# Nothing comes from the network when the site is read: no widgets' scripts, and formulas as MathML.
nb_ipywidgets_js = {}
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
# A line of prose may begin with "% of".
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target"]
# A section of a notebook may be two levels below the one before.
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = "kdlab"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
copybutton_selector = "div.highlight:not(.output) pre"


def with_contents(app, name, source):
    """Adds the table of contents to the start page, without the pages that this copy of the repository lacks."""
    if name == root_doc:
        def where_it_is(line):
            return line[0] if (ROOT / f"{line[1]}.md").exists() else ""

        contents = (ROOT / "docs/site/contents.md").read_text()
        source[0] += "\n\n" + re.sub(r".*<(docs/.+)>\n", where_it_is, contents)


def described(self, data, plain=NbElementRenderer.render_image):
    """Gives a figure its description, which the kernel writes beside it."""
    [image] = plain(self, data)
    image["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
    return [image]


def mathml(display):
    def write(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return write, None


def finish(app, problem):
    """Puts the start page and the reference in place, and fails where a picture has no description."""
    if problem:
        return
    out = Path(app.outdir)
    shutil.copy(out / "README.html", out / "index.html")
    if reference := os.environ.get("KDLAB_REFERENCE"):
        shutil.copytree(reference, out / "reference", dirs_exist_ok=True)
    for name in app.env.found_docs:
        for image in re.findall(r"<img [^>]*>", (out / f"{name}.html").read_text()):
            if not re.search(r'alt="[^"]', image):
                raise SystemExit(f"{name}: a picture without a description: {image[:200]}")


def setup(app):
    NbElementRenderer.render_image = described
    app.add_html_math_renderer("mathml", mathml("inline"), mathml("block"))
    app.connect("source-read", with_contents)
    app.connect("env-get-outdated", lambda *_: [root_doc])  # the contents may have changed
    app.connect("build-finished", finish)
