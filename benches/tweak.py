"""From a changed T to its curve, in notebook 5 on the live kernel: `.kdlab/venv/bin/python benches/tweak.py`.

Needs `cargo lab setup` and images (`KDLAB_DATA`). Runs the notebook's first cell and its fit, then the fit with another
temperature in each round, and moves the slider while it runs. Measures seconds from Return, or from the move of the
slider, to the figure.
"""
import argparse
import json
import os
import statistics
import tempfile
import time

from cells import ROOT, Kernel

TEACHER = "{\n    let lab = Lab::open()?;\n    lab.teacher(&lab.dataset()?)?;\n};"
# While the second, third and fourth of the epochs run.
MOVES = [0.2, 0.35, 0.45]


def code():
    """Returns the first cell and the fit of notebook 5."""
    cells = json.loads((ROOT / "notebooks/05_tweak.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return sources[0], next(source for source in sources if "fit(&mut pupil" in source)


class Fit:
    """A run of the fit's cell. Its figure is first drawn empty, then again with every point."""

    def __init__(self, client, source, moves):
        self.client, self.begun, self.figures, self.sliders = client, time.monotonic(), [], {}
        self.sent, self.left = [], list(moves)
        client.execute_interactive(source, timeout=1200, output_hook=self.hear)
        self.seconds = time.monotonic() - self.begun

    def hear(self, message):
        now, content = time.monotonic() - self.begun, message["content"]
        if message["msg_type"] == "error":
            raise SystemExit("\n".join(content["traceback"]))
        if message["msg_type"] == "comm_open":
            state = content["data"]["state"]
            self.sliders[state.get("description")] = content["comm_id"]
        if message["msg_type"] == "update_display_data" and "image/png" in content["data"]:
            self.figures.append(now)
            if self.left and len(self.figures) > 1 and now > self.left[0]:
                self.left.pop(0)
                self.move(7.0 + len(self.left))

    def move(self, temperature):
        data = {"method": "update", "state": {"value": temperature}, "buffer_paths": []}
        message = self.client.session.msg("comm_msg", {"comm_id": self.sliders["T"], "data": data})
        self.sent.append(time.monotonic() - self.begun)
        self.client.shell_channel.send(message)

    def after(self):
        """Returns the seconds from each move of the slider to the next figure."""
        return [next(figure for figure in self.figures if figure > sent) - sent for sent in self.sent]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="laptop")
    args = parser.parse_args()
    first, fit = code()
    with tempfile.TemporaryDirectory() as folder:
        kernel = Kernel("live", folder, KDLAB_PROFILE=args.profile, KDLAB_RUNS=folder)
        try:
            for source in [TEACHER, first]:
                kernel.run(source)
            whole = Fit(kernel.client, fit, []).seconds
            points, runs, slid = [], [], []
            for i in range(args.rounds):
                tried = fit.replace("temperature: f64 = 4.0;", f"temperature: f64 = {i + 1}.0;")
                assert tried != fit, "notebook 5 begins with another temperature"
                done = Fit(kernel.client, tried, [whole * share for share in MOVES])
                points.append(done.figures[0])
                runs.append(done.seconds)
                slid += done.after()
        finally:
            kernel.close()
    print(f"Seconds, profile {args.profile}, {args.rounds} rounds, {len(os.sched_getaffinity(0))} cores\n")
    print("| | median | largest |\n| --- | ---: | ---: |")
    rows = {
        "Return to the first point of the curve": points,
        "the slider moved to the figure that shows it": slid,
        "Return to a finished run": runs,
    }
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    main()
