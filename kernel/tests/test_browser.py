"""What a person sees: JupyterLab in Chromium, a fit that runs, its sliders and its Stop button.

KDLAB_SCREENSHOTS names a folder for pictures; without it they are thrown away. KDLAB_CHROMIUM names a browser
other than the usual ones.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

from playwright.sync_api import expect, sync_playwright

from support import CELL, family, tiny_cifar, wait_for_end, wait_until

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
# Makes the teacher of notebook 2, so that notebook 5 begins at once.
TEACHER = """
{
    let lab = Lab::open()?;
    lab.teacher(&lab.dataset()?)?;
};
"""
AFTER = """
println!("stopped {:?} after {} epochs", history.stopped, history.records.len());
for change in &history.changes { println!("change at {:.2}: T {:?}", change.epoch, change.after.temperature); }
println!("alive: {} parameters, {} images", pupil.parameters(), train.len());
"""
# Whether the page can run cells. Before that its indicator says idle, too, and JupyterLab drops a cell without a word.
READY = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""

# Cells that ask the user: for a line, for a file, to run another cell, and three questions.
ASKS = [
    '''let mut name = String::new();
print!("name? ");
std::io::stdin().read_line(&mut name)?;
println!("hello {}", name.trim());''',
    '''use kdlab_client::{Panel, Widget};
let upload = Panel::open(Widget::upload("Your image", "image/*"), |_, _, _| ());
upload.show("this frontend uploads no files")?;
while upload.files("Your image").is_empty() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}
let sum: u64 = upload.files("Your image")[0].bytes.iter().map(|byte| u64::from(*byte)).sum();
println!("{} {sum}", upload.files("Your image")[0].name);''',
    '''println!("before");
kdlab_client::clear_output(false)?;
kdlab_client::set_next_input("let written = 1;", false)?;
println!("after");''',
    "let checks = quick_checks(4)?;\nchecks",
]


def chromium():
    named = os.environ.get("KDLAB_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        raise AssertionError(
            "no Chromium found, which this test drives: install it (Debian: apt-get install chromium), "
            "or set KDLAB_CHROMIUM to it"
        )
    return found


def notebook(root):
    """Returns the cells of notebook 5 up to its fit, with a long training, and a cell that shows the result."""
    course = json.loads((root / "notebooks/05_tweak.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in course["cells"] if cell["cell_type"] == "code"]
    last = next(i for i, source in enumerate(code) if "fit(&mut pupil" in source)
    begin, *between, fit = code[: last + 1]
    smaller = "lab.profile.student_size = lab.profile.sweep_size;"
    assert smaller in begin, "this fit would be over before it is steered"
    begin = begin.replace(smaller, "")
    sources = [TEACHER.strip(), begin, *between, "lab.profile.student_epochs = 100;\n" + fit, AFTER.strip()]
    return of(sources)


def of(sources):
    """Returns a notebook with these cells."""
    cells = [
        {"cell_type": "code", "id": f"c{i}", "execution_count": None, "metadata": {}, "outputs": [], "source": source}
        for i, source in enumerate(sources)
    ]
    spec = {"kernelspec": {"name": "kdlab", "display_name": "Rust (kdlab)", "language": "rust"}}
    return {"cells": cells, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}


class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.program = chromium()
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="kdlab-browser-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.pictures = pathlib.Path(os.environ.get("KDLAB_SCREENSHOTS") or cls.folder / "pictures")
        cls.pictures.mkdir(parents=True, exist_ok=True)
        course = cls.folder / "notebooks"
        course.mkdir()
        cls.file = course / "live.ipynb"
        cls.file.write_text(json.dumps(notebook(pathlib.Path(os.environ["KDLAB_ROOT"]))))
        cls.cells = json.loads(cls.file.read_text())["cells"]
        (course / "asks.ipynb").write_text(json.dumps(of(ASKS)))
        cls.set("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False})
        cls.theme("Light")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cls.address = f"http://127.0.0.1:{port}"
        own = {
            "KDLAB_RUNS": str(cls.folder / "runs"),
            "KDLAB_DATA": str(tiny_cifar(cls.folder / "data")),
            "KDLAB_PROFILE": "smoke",
            "JUPYTERLAB_SETTINGS_DIR": str(cls.folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(cls.folder / "workspaces"),
        }
        # As `cargo lab` starts it, except for the token, the browser, and what `READY` asks for.
        flags = [
            f"--ServerApp.root_dir={course}", "--KernelSpecManager.ensure_native_kernel=False",
            "--KernelSpecManager.allowed_kernelspecs=kdlab", "--MappingKernelManager.default_kernel_name=kdlab",
            "--MappingKernelManager.kernel_info_timeout=600", "--ServerApp.token=", "--ServerApp.password=",
            "--no-browser", "--port", str(port), "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True",
        ]
        flags += ["--allow-root"] if os.geteuid() == 0 else []
        log = open(cls.folder / "jupyterlab.log", "wb")
        cls.addClassCleanup(log.close)
        cls.server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *flags], env={**os.environ, **own}, stdout=log, stderr=log, cwd=course
        )
        cls.addClassCleanup(cls.stop_server)
        wait_until(cls.answers, "JupyterLab's first answer", 60)

    @classmethod
    def answers(cls):
        if cls.server.poll() is not None:
            raise AssertionError("JupyterLab ended: " + (cls.folder / "jupyterlab.log").read_text()[-3000:])
        try:
            return urllib.request.urlopen(cls.address + "/api", timeout=5).status == 200
        except OSError:
            return False

    @classmethod
    def stop_server(cls):
        members = family(cls.server.pid)
        cls.server.send_signal(signal.SIGTERM)
        cls.server.wait(30)
        wait_for_end(members, 20)

    @classmethod
    def set(cls, plugin, settings):
        path = cls.folder / f"settings/@jupyterlab/{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    @classmethod
    def theme(cls, name):
        cls.set("apputils-extension/themes", {"theme": f"JupyterLab {name}"})

    def cell(self, page, index):
        return page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def prompt(self, page, index):
        return self.cell(page, index).locator(".jp-InputArea-prompt").first

    def run_cell(self, page, index):
        """Runs a cell, and waits until JupyterLab has taken it: its prompt is `[*]`, or already a number."""
        editor = self.cell(page, index).locator(".cm-content")
        editor.click()
        expect(editor).to_be_focused()
        page.keyboard.press("Control+Enter")
        expect(self.prompt(page, index)).to_have_text(re.compile(r"\[(\*|\d+)\]"), timeout=20_000)

    def running(self, page, index):
        return "*" in self.prompt(page, index).inner_text()

    def finish(self, page, index, timeout=CELL):
        """Waits until the cell has its number, and returns the text below it."""
        prompt = self.prompt(page, index)
        wait_until(lambda: prompt.inner_text().strip("[]: ").isdigit(), f"the end of cell {index}", timeout)
        cell = self.cell(page, index)
        return cell.locator(".jp-OutputArea").inner_text() if cell.locator(".jp-OutputArea-child").count() else ""

    def saved(self, index):
        """Returns the outputs of that cell in the file, and none while Jupyter writes the file in place.

        Not through the server: asked for a notebook that it is just writing, it takes it for broken, moves it away
        and puts the backup in its place, which the end of the writing has removed by then. The notebook is lost.
        """
        try:
            return json.loads(self.file.read_text())["cells"][index]["outputs"]
        except ValueError:
            return []

    def take_picture(self, page, name):
        page.screenshot(path=self.pictures / f"{name}.png", full_page=True)

    def report(self, page, name):
        """Prints what the page shows and what JupyterLab said last, and takes a picture."""
        log = (self.folder / "jupyterlab.log").read_text(errors="replace")
        print(f"the page:\n{page.locator('body').inner_text()}\nJupyterLab:\n{log[-5000:]}", file=sys.stderr)
        self.take_picture(page, name)

    def open(self, browser, name="live.ipynb", cells=None):
        page = browser.new_page(viewport={"width": 1300, "height": 1900})
        page.set_default_timeout(60_000)
        try:
            # Without the notebooks that an earlier test has left open.
            page.goto(f"{self.address}/lab/tree/{name}?reset")
            page.locator(".jp-Notebook .jp-CodeCell").nth((cells or len(self.cells)) - 1).wait_for()
            page.wait_for_function(READY, timeout=120_000)
        except BaseException:
            self.report(page, "failed-open")
            raise
        return page

    def test_a_fit_is_seen_steered_and_stopped(self):
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=self.program, args=FLAGS)
            page = self.open(browser)
            try:
                self.walk(page)
                # Close the notebook and open it again in the other theme, as it was saved.
                page.keyboard.press("Control+s")
                wait_until(lambda: self.saved(-1), "the saved notebook", 20)
                self.theme("Dark")
                page.close()
                page = self.open(browser)
                self.look_again(page)
            except BaseException:
                self.report(page, "failed")
                raise
            finally:
                browser.close()

    def walk(self, page):
        last = len(self.cells) - 1
        fit = last - 1
        for index in range(fit):
            self.run_cell(page, index)
            self.finish(page, index)
        self.run_cell(page, fit)
        below = self.cell(page, fit)

        # The figure changes while the cell runs.
        figure = below.locator(".jp-OutputArea-output img")
        figure.first.wait_for()
        self.assertEqual(figure.count(), 1)
        seen = []

        def changes():
            source = figure.get_attribute("src")
            if source not in seen:
                seen.append(source)
            return len(seen) >= 4

        wait_until(changes, "the third change of the figure", 60)
        self.assertTrue(self.running(page, fit))
        self.assertIn("img/s", below.locator(".jp-OutputArea").inner_text())
        self.assertEqual(below.locator("progress").count(), 1)
        box = figure.bounding_box()

        # Move the T slider by keys; every key acts at once.
        row = below.locator(".widget-hslider").filter(has=page.get_by_text("T", exact=True))
        handle = row.locator(".noUi-handle")
        for name in ["T", "alpha", "learning rate"]:
            expect(below.get_by_role("slider", name=name, exact=True)).to_have_count(1)
        handle.focus()
        before = float(row.locator(".widget-readout").inner_text())
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        expect(row.locator(".widget-readout")).not_to_have_text(f"{before:.1f}")
        after = float(row.locator(".widget-readout").inner_text())
        self.assertGreater(after, before)
        drawn = len(seen)
        wait_until(lambda: changes() and len(seen) > drawn, "the figure after the slider moved", 20)
        self.take_picture(page, "running-light")
        # The figure keeps its place and size, so nothing jumps.
        self.assertEqual(figure.bounding_box(), box)
        self.assertTrue(self.running(page, fit))

        # Pause stops the bar, and a second click continues it.
        pause = below.get_by_role("button", name="Pause")
        bar = below.locator("progress")
        pause.click()
        expect(below.locator(".jp-OutputArea")).to_contain_text("paused")
        held = bar.get_attribute("value")
        below.get_by_role("button", name="Resume").click()
        wait_until(lambda: bar.get_attribute("value") != held, "the bar after the pause", 20)

        # Switch to the other theme while the cell runs.
        page.locator(".lm-MenuBar-item", has_text="Settings").click()
        for entry in ["Theme", "JupyterLab Dark"]:
            page.locator(".lm-Menu-item").filter(has=page.get_by_text(entry, exact=True)).click()
        expect(page.locator("body[data-jp-theme-light=false]")).to_be_attached()
        self.take_picture(page, "running-dark")

        below.get_by_role("button", name="Stop").click()
        text = self.finish(page, fit, 20)
        self.assertIn("Stop button", text)
        self.assertIn(f"T {before:g} -> ", text.replace("→", "->"))
        self.assertNotIn("Error", text)
        self.assertEqual(below.locator(".widget-hslider, .jupyter-button, progress").count(), 0)
        self.assertEqual(figure.count(), 1)
        self.take_picture(page, "stopped-dark")

        # Nothing was lost.
        self.run_cell(page, last)
        text = self.finish(page, last)
        self.assertRegex(text, r'stopped Some\(".*Stop button.*"\) after \d+ epochs')
        self.assertIn(f"T Some({after:g}", text)
        self.assertIn("alive: 264618 parameters, 300 images", text)

    def test_a_page_that_is_reloaded_in_mid_fit_goes_on(self):
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=self.program, args=FLAGS)
            page = self.open(browser)
            try:
                self.reload(page)
            except BaseException:
                self.report(page, "failed-reload")
                raise
            finally:
                browser.close()

    def reload(self, page):
        last = len(self.cells) - 1
        fit = last - 1
        for index in range(fit):
            self.run_cell(page, index)
            self.finish(page, index)
        self.run_cell(page, fit)
        below = self.cell(page, fit)
        below.locator(".widget-hslider").first.wait_for()
        below.locator(".jp-RenderedImage img").first.wait_for()
        self.assertEqual(below.locator(".widget-html img").count(), 0)
        page.keyboard.press("Control+s")
        view = "application/vnd.jupyter.widget-view+json"
        wait_until(lambda: any(view in output.get("data", {}) for output in self.saved(fit)), "the saved sliders", 20)
        page.reload()
        below = self.cell(page, fit)

        # The curve goes on below the sliders.
        curve = below.locator(".widget-html img")
        curve.wait_for(timeout=60_000)
        seen = set()

        def changes():
            seen.add(curve.get_attribute("src"))
            return len(seen) >= 3

        wait_until(changes, "the second change of the curve", 60)
        self.assertIn("img/s", below.locator(".jp-OutputArea").inner_text())
        self.assertIn("accuracy", curve.get_attribute("alt"))
        self.take_picture(page, "reloaded")
        below.get_by_role("button", name="Stop").click()
        expect(below.locator(".widget-html").first).to_contain_text("Stop button", timeout=20_000)
        expect(below.locator(".widget-hslider")).to_have_count(0)
        expect(curve).to_have_count(1)

        # A page that has lost the outputs shows where the results are.
        self.run_cell(page, last)
        output = self.cell(page, last).locator(".jp-OutputArea")
        wait_until(lambda: "alive" in output.inner_text(), "the next cell", CELL)
        text = self.cell(page, last).locator(".jp-OutputArea").inner_text()
        self.assertRegex(text, r"note: this page was opened while cell \[\d+\] ran")
        self.assertIn('lab.history("T4-alpha0.9-seed0")?', text)
        self.take_picture(page, "reloaded-stopped")

    def test_a_cell_asks_for_a_line_and_for_a_file(self):
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=self.program, args=FLAGS)
            page = self.open(browser, "asks.ipynb", len(ASKS))
            try:
                self.answer(page)
            except BaseException:
                self.report(page, "failed-asks")
                raise
            finally:
                browser.close()

    def answer(self, page):
        self.run_cell(page, 0)
        box = self.cell(page, 0).locator(".jp-Stdin-input")
        box.wait_for(timeout=CELL * 1000)
        box.fill("Ada")
        self.take_picture(page, "asks")
        box.press("Enter")
        self.assertIn("hello Ada", self.finish(page, 0))

        self.run_cell(page, 1)
        button = self.cell(page, 1).get_by_role("button", name="Your image")
        button.wait_for(timeout=CELL * 1000)
        content = bytes(range(256)) * 4000
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files({"name": "cat.png", "mimeType": "image/png", "buffer": content})
        self.assertIn(f"cat.png {sum(content)}", self.finish(page, 1))
        self.take_picture(page, "uploaded")

        # An answer is judged; it stands nowhere in the page before.
        self.run_cell(page, 3)
        self.finish(page, 3)
        checks = self.cell(page, 3).locator(".jp-OutputArea")
        self.assertNotRegex(page.content(), "Right[.]|Not quite[.]")
        for answer, said in [("b", "✗ b) Not quite."), ("a", "✓ a) Right.")]:
            checks.get_by_role("button", name=answer, exact=True).first.click()
            expect(checks).to_contain_text(said)
        self.take_picture(page, "quick-checks")

        self.run_cell(page, 2)
        text = self.finish(page, 2)
        self.assertIn("after", text)
        self.assertNotIn("before", text)
        expect(self.cell(page, 3).locator(".cm-content")).to_have_text("let written = 1;")

    def look_again(self, page):
        fit = self.cell(page, len(self.cells) - 2)
        expect(page.locator("body[data-jp-theme-light=false]")).to_be_attached()
        expect(fit.locator(".jp-OutputArea-output img")).to_have_count(1)
        self.assertIn("Stop button", fit.locator(".jp-OutputArea").inner_text())
        self.assertNotIn("Error displaying widget", page.locator(".jp-Notebook").inner_text())
        self.take_picture(page, "reopened-dark")
        data = [data for output in self.saved(-2) for data in output.get("data", {})]
        self.assertIn("image/png", data)
        self.assertNotIn("application/vnd.jupyter.widget-view+json", data)


if __name__ == "__main__":
    unittest.main()
