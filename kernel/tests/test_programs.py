"""Programs that run a notebook or make a page of it, without a person: nbclient and nbconvert (docs/programs.md)."""
import pathlib
import unittest

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import v4

from support import CELL, family, plain, wait_for_end

TEMPLATES = pathlib.Path(__file__).parents[1] / "programs/nbconvert"
SOURCES = [
    'println!("to stdout"); eprintln!("to stderr");',
    'kdlab::show::plot(&[0, 1, 2], &[0, 1, 4], ["x", "y"])?',
    'let n: i32 = "text";',
    "1 + 1",
]


class Programs(unittest.TestCase):
    def test_a_notebook_stops_at_its_error_and_becomes_a_page_with_described_figures(self):
        notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in SOURCES])
        notebook.metadata["kernelspec"] = {"name": "kdlab", "display_name": "Rust (kdlab)", "language": "rust"}
        runner = NotebookClient(notebook, timeout=CELL, startup_timeout=600)
        with runner.setup_kernel():
            members = family(runner.km.provisioner.pid)
            for index in range(2):
                runner.execute_cell(notebook.cells[index], index)
            with self.assertRaises(CellExecutionError) as failed:
                runner.execute_cell(notebook.cells[2], 2)
            # What `jupyter execute --allow-errors` and nbgrader do.
            runner.execute_cell(notebook.cells[3], 3)
        wait_for_end(members)
        self.assertIn("mismatched types", plain(str(failed.exception)))
        streams, figure, error, last = [cell.outputs for cell in notebook.cells]
        texts = {output.name: output.text for output in streams if output.output_type == "stream"}
        self.assertEqual(texts, {"stdout": "to stdout\n", "stderr": "to stderr\n"})
        self.assertEqual([output.output_type for output in error], ["error"])
        self.assertEqual(last[0].data["text/plain"], "2")
        description = figure[0].metadata["image/png"]["alt"]
        self.assertTrue(description)

        exporter = HTMLExporter(template_name="rust", extra_template_basedirs=[str(TEMPLATES)])
        page, _ = exporter.from_notebook_node(notebook)
        self.assertRegex(page, r'<img alt="[^"]+" [^>]*src="data:image/png;base64,')
        self.assertNotIn("No description has been provided", page)
        for text in ["to stdout", "to stderr", "mismatched types"]:
            self.assertIn(text, page)


if __name__ == "__main__":
    unittest.main()
