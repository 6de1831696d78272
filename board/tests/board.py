"""What a room sees on the projector: board.py PROGRAM FOLDER starts a board with its file in the folder, posts what
FOLDER/post.json holds under several names, and looks at the page in Chromium.

KDLAB_SCREENSHOTS names a folder for pictures of it; KDLAB_CHROMIUM names the browser.
"""
import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

from playwright.sync_api import expect, sync_playwright

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update"]
SIZES = {"projector": (1920, 1080), "old-projector": (1280, 720), "phone": (360, 740)}
# What a stranger would put on the page.
HTML = "<img src=x onerror=document.title='harmed'>"

# The contrast of a text with the page behind it, as WCAG 2 defines it; colours come as rgb(r, g, b).
CONTRAST = """selector => {
    const light = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(Number).map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const style = (element) => getComputedStyle(element);
    const text = document.querySelector(selector);
    const colour = text instanceof SVGElement ? style(text).fill : style(text).color;
    const [a, b] = [light(colour), light(style(document.body).backgroundColor)].sort((a, b) => b - a);
    return (a + 0.05) / (b + 0.05);
}"""


class Board:
    def __init__(self, program, folder):
        self.program, self.folder, self.port = program, folder, 0
        self.start()

    def start(self):
        arguments = {
            "file": str(self.folder / "board.sqlite"), "host": "127.0.0.1", "port": self.port, "profiles": ["laptop"],
            "remove": None,
        }
        self.process = subprocess.Popen([self.program, json.dumps(arguments)], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.address, self.port, self.code = re.search(r"(http://[\d.]+:(\d+))/#(\w+)", line).groups()
        self.port = int(self.port)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def send(self, what, body):
        request = urllib.request.Request(
            f"{self.address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            return json.load(urllib.request.urlopen(request, timeout=20))
        except urllib.error.HTTPError as error:
            return json.load(error)


def main(program, folder):
    folder = pathlib.Path(folder)
    template = json.loads((folder / "post.json").read_text())
    board = Board(program, folder)
    browser = os.environ.get("KDLAB_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser, "no Chromium found: install it (Debian: apt-get install chromium) or set KDLAB_CHROMIUM"
    try:
        with sync_playwright() as play:
            chromium = play.chromium.launch(executable_path=browser, args=FLAGS)
            look(chromium, board, template)
            chromium.close()
    finally:
        board.kill()


def person(board, number):
    return {"code": board.code, "id": f"{number:032x}"}


def post(board, template, number, seeds, points):
    """Posts pairs of one person whose differences are these points."""
    body = copy.deepcopy(template) | person(board, number) | {"name": f"Ada {number}", "data": HTML}
    first = body["pairs"][0]
    body["pairs"] = [
        first | {"seed": seed, "alone": 0.4, "distilled": 0.4 + p / 100} for seed, p in zip(seeds, points)
    ]
    return board.send("post", body)["rows"][0]


def look(chromium, board, template):
    page = chromium.new_page(viewport={"width": 1920, "height": 1080}, color_scheme="light")
    trouble, requests = [], []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{board.address}/#{board.code}")
    dots, said = page.locator("circle.dot"), page.locator(".said")
    expect(page.locator("main")).to_contain_text("Nothing yet")
    expect(page.locator("#line")).to_have_text(f'lab.join("{board.address}", "{board.code}")?')

    # Bets, before anybody has a result.
    for number, points in enumerate([3, 5, 30]):
        board.send("join", person(board, number) | {"bets": {"patience": points}})
    expect(page.locator("path.bet")).to_have_count(3)
    expect(said).to_contain_text("half of them below +5.0 points")

    # Dots as they come, and an interval that shrinks.
    post(board, template, 0, [3], [4.0])
    expect(dots).to_have_count(1)
    expect(said.nth(1)).to_contain_text("no verdict before a second seed")
    post(board, template, 0, [4], [5.0])
    expect(dots).to_have_count(2)
    # Those that were there stay as they are.
    expect(page.locator("circle.new")).to_have_count(1)
    widths = []
    for number in range(1, 5):
        row = post(board, template, number, [3 * number + i for i in range(1, 4)], [4.0 + number / 4, 5.5, 5.0])
        expect(dots).to_have_count(2 + 3 * number)
        setting, seeds, people, mean, interval, decision = row
        low, high = interval.split(" to ")
        widths.append(float(high) - float(low))
        shown = said.nth(1)
        expect(shown).to_contain_text(f"{mean} points ({interval.replace('-', '−')})")
        expect(shown.locator("strong")).to_have_text(decision)
        expect(shown).to_contain_text(f"{seeds} seeds from {people} people")
    assert decision == "BETTER" and widths == sorted(widths, reverse=True) and widths[-1] < widths[0], widths
    # The bet of 5 lies inside, those of 3 and 30 do not.
    expect(said.nth(1)).to_contain_text("1 of 3 bets inside")
    label = page.locator('[data-row^="kd"] svg').get_attribute("aria-label")
    assert decision in label and "seeds" in label, label

    # A text is a text.
    expect(page.locator(".about").first).to_contain_text(HTML)
    assert page.locator("img").count() == 0 and page.title() == "The class's board"

    # The board is killed, and comes back with all dots.
    expected = dots.count()
    board.kill()
    expect(page.locator("#trouble")).to_contain_text("does not answer")
    trouble[:] = [text for text in trouble if "ERR_" not in text]
    assert not trouble, trouble
    board.start()
    post(board, template, 5, [90], [4.5])
    expect(dots).to_have_count(expected + 1, timeout=30_000)
    expect(page.locator("#trouble")).to_have_text("")
    trouble.clear()

    export = urllib.request.urlopen(board.address + "/board.csv").read().decode()
    assert export.count("\n") == expected + 2 and f"'{HTML}" in export, export
    assert page.locator("a[download]").get_attribute("href") == "board.csv"

    pictures = os.environ.get("KDLAB_SCREENSHOTS")
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            expect(page.locator("svg").first).to_be_visible()
            over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert over <= 0, f"{over} pixels wider than a window of {width}"
            if pictures:
                page.screenshot(path=f"{pictures}/board-{name}-{scheme}.png", full_page=name == "phone")
        for text in ("h1", ".about", ".said strong", ".said small", "svg text", "footer p", "a"):
            contrast = page.evaluate(CONTRAST, text)
            assert contrast >= 4.5, f"{scheme}: {text} has a contrast of {contrast:.1f}"
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2, backgrounds
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in backgrounds

    # On a projector it is read from the last row: the verdict has a 40th of the picture's height or more, and is in
    # sight at once.
    page.set_viewport_size({"width": 1920, "height": 1080})
    strong = said.nth(1).locator("strong")
    expect(strong).to_be_in_viewport()
    assert strong.bounding_box()["height"] >= 1080 / 40
    outside = [url for url in requests if not url.startswith(board.address)]
    assert not outside and not trouble, (outside, trouble)


if __name__ == "__main__":
    main(*sys.argv[1:])
