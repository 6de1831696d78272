"""A class hands in right and wrong answers, nbgrader grades them: nbgrader.py NBGRADER COURSE SOURCES [EXERCISE...].

Person `right` hands in the solutions; person `wrong-N` hands in the Nth usual mistake of each answer that has so many.
"""
import concurrent.futures
import csv
import html
import json
import os
import pathlib
import re
import subprocess
import sys

nbgrader, course, sources = sys.argv[1], *map(pathlib.Path, sys.argv[2:4])
# nbgrader calls alembic by its name.
os.environ["PATH"] = f"{pathlib.Path(nbgrader).parent}:{os.environ['PATH']}"
MARKED = re.compile(r"^( *)// BEGIN SOLUTION.*?// END SOLUTION *\n?", re.DOTALL | re.MULTILINE)


def call(*command):
    done = subprocess.run([nbgrader, *command], cwd=course, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def filled(released, mistakes, number):
    """Returns a notebook with somebody's answers, and by test what is wrong: what the check says about it."""
    notebook, wrong = json.loads(json.dumps(released)), {}
    for cell in notebook["cells"]:
        name, answer = cell["metadata"].get("nbgrader", {}).get("grade_id", "").rpartition("-")[::2]
        if answer != "answer":
            continue
        text, solution, known = "".join(cell["source"]), *mistakes[name]
        if number is not None and number < len(known):
            solution, wrong[name] = known[number]["source"], known[number]["says"]
        answered = re.sub(
            r"^( *)todo!\(.*\)$",
            lambda found: "\n".join(found[1] + line for line in solution.split("\n")), text, flags=re.MULTILINE,
        )
        assert answered != text, text
        cell["source"] = answered
    return notebook, wrong


def grade(name):
    """Hands in everybody's answers to an exercise; returns what has to be said about them."""
    source = json.loads((sources / f"{name}.ipynb").read_text())
    mistakes = {}
    for cell in source["cells"]:
        text = "".join(cell["source"])
        if "todo" in cell["metadata"].get("tags", []):
            word = re.search(r"BEGIN SOLUTION: (\w+)", text)[1]
            body = MARKED.search(text)[0].split("\n")[1:-2]
            indent = min(len(line) - len(line.lstrip()) for line in body if line.strip())
            mistakes[word] = "\n".join(line[indent:] for line in body), cell["metadata"].get("wrong", [])
    call("generate_assignment", name)
    released = json.loads((course / "release" / name / f"{name}.ipynb").read_text())
    shown = json.dumps(released)
    assert not any(word in shown for word in ["SOLUTION", "For the instructor"]), "the release holds answers"
    expected = {}
    numbers = [None, *range(max(len(known) for _, known in mistakes.values()))]
    for number in numbers:
        person = "right" if number is None else f"wrong-{number}"
        notebook, expected[person] = filled(released, mistakes, number)
        target = course / "submitted" / person / name / f"{name}.ipynb"
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(notebook))
    return len(mistakes), expected


def feedback(person, name):
    """Returns by test the error that the person's page shows."""
    graded = json.loads((course / "autograded" / person / name / f"{name}.ipynb").read_text())
    page = html.unescape(re.sub(r"<[^>]*>", "", (course / "feedback" / person / name / f"{name}.html").read_text()))
    errors = {}
    for cell in graded["cells"]:
        for output in cell.get("outputs", []):
            # The page also holds the source of the check, which knows all mistakes.
            if output["output_type"] == "error" and f"error: {output['evalue'].splitlines()[0]}" in page:
                errors[cell["metadata"]["nbgrader"]["grade_id"]] = output["evalue"]
    return errors


names = sys.argv[4:] or sorted(path.stem for path in sources.glob("*.ipynb"))
given = {name: grade(name) for name in names}


def graded(name):
    call("autograde", name)
    call("generate_feedback", name)


with concurrent.futures.ThreadPoolExecutor(2) as two:
    list(two.map(graded, names))
call("export", "--to", "grades.csv")
points = {(row["assignment"], row["student_id"]): row for row in csv.DictReader(open(course / "grades.csv"))}
said = 0
for name, (tests, expected) in given.items():
    for person, wrong in expected.items():
        row = points[name, person]
        assert float(row["max_score"]) == tests, row
        assert float(row["score"]) == tests - len(wrong), f"{name}, {person}: {row['score']} points, wrong: {wrong}"
        errors = feedback(person, name)
        for test, what in wrong.items():
            assert what in errors.get(test, ""), f"{name}, {person}: {test}: `{what}` is not in {errors}"
            said += 1
print(f"{len(points)} answers to {len(given)} exercises graded; feedback names each of {said} mistakes")
