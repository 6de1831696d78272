"""Drives the page of a student in Chromium: page.py FOLDER PICTURE prints what it shows, as JSON.

KDLAB_SCREENSHOTS names a folder for pictures of it; KDLAB_CHROMIUM names the browser.
"""
import json
import os
import pathlib
import shutil
import sys

from playwright.sync_api import expect, sync_playwright

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]


def shown(page, name):
    """Waits for the answer to a picture, and returns its rows: the student's and the teacher's probabilities."""
    # Not by wait_for_function: the page's policy forbids what that evaluates.
    expect(page.locator("body")).to_have_attribute("data-shown", name, timeout=60_000)
    rows = page.locator("tbody tr").all()
    values = [[float(data.get_attribute("value")) for data in row.locator("data").all()] for row in rows]
    return list(zip(*values))


def milliseconds(page):
    return float(page.locator("#time").inner_text().split(" ms")[0])


def launch(play):
    """Starts the browser of this machine."""
    program = os.environ.get("KDLAB_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "no Chromium found: install it (Debian: apt-get install chromium) or set KDLAB_CHROMIUM"
    return play.chromium.launch(executable_path=program, args=FLAGS)


def opened(page, folder):
    """Opens the page in a folder and waits for its student."""
    page.goto((pathlib.Path(folder) / "index.html").resolve().as_uri())
    expect(page.locator("body")).to_have_attribute("data-shown", "nothing", timeout=120_000)
    images = page.locator("#examples img").all()
    return page.locator("#examples button"), [image.get_attribute("alt") for image in images]


def main(folder, picture):
    pictures = os.environ.get("KDLAB_SCREENSHOTS")
    found = {"student": [], "teacher": [], "file": []}
    with sync_playwright() as play:
        browser = launch(play)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        trouble, requests, times = [], [], []
        bad = ("error", "warning")
        page.on("console", lambda message: trouble.append(message.text) if message.type in bad else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        examples, names = opened(page, folder)
        assert len(names) == len(set(names)) == examples.count()
        for i, name in enumerate(names):
            examples.nth(i).click()
            student, teacher = shown(page, name)
            found["student"].append(student)
            found["teacher"].append(teacher)
            times.append(milliseconds(page))
        said = page.locator("#status").inner_text()
        assert "The student" in said and "The teacher says" in said and "The label is" in said, said
        if pictures:
            page.screenshot(path=f"{pictures}/page-wide.png", full_page=True)

        # By the keyboard alone: the first stops of Tab are the file, the camera and the first picture.
        page.locator("h1").click()
        stops = []
        for _ in range(3):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.id || document.activeElement.firstChild.alt"))
        assert stops == ["file", "camera", names[0]], stops
        page.keyboard.press("Enter")
        assert shown(page, names[0])[0] == found["student"][0]
        assert page.locator("#examples [aria-pressed=true]").count() == 1
        # What a screen reader finds: every control and picture has a name.
        tree = page.locator("body").aria_snapshot()
        for part in ['button "Choose a picture"', 'button "Use the camera"', f'button "{names[0]}"', "status", "table"]:
            assert part in tree, f"{part} is missing: {tree}"

        page.set_input_files("#file", picture)
        found["file"] = [shown(page, pathlib.Path(picture).name)[0]]
        assert page.locator("th.teacher").is_hidden()
        page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
        expect(page.locator("#trouble")).to_contain_text("notes.png can't be read")

        page.locator("#camera").click()
        shown(page, "camera")
        expect(page.locator("#camera")).to_have_text("Stop the camera")
        page.locator("#camera").click()
        expect(page.locator("#video")).to_be_hidden()

        for width in (1100, 360, 320):
            page.set_viewport_size({"width": width, "height": 740})
            examples.nth(1).click()
            shown(page, names[1])
            over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert over <= 0, f"{over} pixels wider than a window of {width}"
            if pictures and width == 360:
                page.screenshot(path=f"{pictures}/page-narrow.png", full_page=True)
        found["milliseconds"] = sorted(times)[len(times) // 2]
        assert not trouble, trouble
        outside = [url for url in requests if not url.startswith(("file:", "blob:", "data:"))]
        assert not outside, outside
        browser.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
