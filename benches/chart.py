"""Draws docs/bench.svg from the first table of benches/README.md: python3 benches/chart.py"""
import math
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEFT, WIDTH, STEP, TOP = 400, 380, 34, 44
COLOURS = {"PyTorch, best": "#0072b2", "article": "#d55e00"}


def x(ratio):
    """Returns the place on a logarithmic axis from 0.5 to 200."""
    return LEFT + WIDTH * math.log(ratio / 0.5) / math.log(200 / 0.5)


page = (ROOT / "benches/README.md").read_text()
table = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
rows = [[cell.strip() for cell in row] for row in table[2:12]]
height = TOP + STEP * len(rows) + 40
parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}"',
    'font-family="sans-serif" font-size="13">',
]
parts.append(f'<rect width="880" height="{height}" fill="white"/>')
for place, (name, colour) in enumerate(COLOURS.items()):
    parts.append(f'<circle cx="{LEFT + 150 * place}" cy="16" r="5" fill="{colour}"/>')
    parts.append(f'<text x="{LEFT + 10 + 150 * place}" y="21">{name}</text>')
for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200):
    strong = 'stroke="#222" stroke-width="2"' if tick == 1 else 'stroke="#ddd"'
    parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 10}" y2="{height - 40}" {strong}/>')
    parts.append(f'<text x="{x(tick):.1f}" y="{height - 24}" text-anchor="middle">{tick:g}</text>')
for index, (what, _, *others) in enumerate(rows):
    y = TOP + STEP * index + 8
    parts.append(f'<text x="{LEFT - 24}" y="{y + 4}" text-anchor="end">{what}</text>')
    for colour, text in zip(COLOURS.values(), others):
        for ratio in re.findall(r"[\d.]+(?=x)", text):
            parts.append(f'<circle cx="{x(float(ratio)):.1f}" cy="{y}" r="6" fill="{colour}"/>')
parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{height - 6}" text-anchor="middle">times the seconds of kdlab</text>')
parts.append("</svg>")
(ROOT / "docs/bench.svg").write_text("\n".join(parts) + "\n")
