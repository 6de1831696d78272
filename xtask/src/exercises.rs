//! `cargo lab exercises`: makes the copies for students and instructors from one source for each exercise.
//!
//! A source is a notebook that runs. Tags in the metadata of its cells say what they are. A `todo` cell holds a
//! solution between [`BEGIN`] and [`END`] lines; its metadata lists common wrong answers under `wrong`, each with
//! what the check says about it. The `check` cell follows. An `instructor` cell is not for students.
//! With the marks of nbgrader, the same sources are assignments that it grades.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::execute::execute;
use crate::files;
use crate::notebooks;
use crate::paths::Paths;
use crate::progress::{self, Clock};

/// The marks of a solution, as in nbgrader. The text after the colon becomes the text of the student's `todo!`.
const BEGIN: &str = "// BEGIN SOLUTION";
const END: &str = "// END SOLUTION";

/// What nbgrader has to know of Rust notebooks.
const NBGRADER: &str = include_str!("../../kernel/programs/course/nbgrader_config.py");

#[derive(Args)]
pub struct ExercisesArgs {
    /// Exercises: the start of a name in notebooks/exercises/source/ such as `e1` [default: all]
    notebooks: Vec<PathBuf>,
    /// Fail if a student's copy is not what its source gives; write nothing
    #[arg(long, group = "mode")]
    check: bool,
    /// Execute the sources with solutions and notes into <runs>/<profile>/instructor/, with one HTML report
    #[arg(long, group = "mode")]
    instructor: bool,
    /// Try the checks on all answers: they have to pass each solution, and refuse each wrong answer and each todo
    #[arg(long, group = "mode")]
    answers: bool,
    /// Write the exercises into this folder as assignments of nbgrader, which grades answers by the checks
    #[arg(long, value_name = "FOLDER", group = "mode")]
    nbgrader: Option<PathBuf>,
    /// article, laptop or smoke, for --instructor and --answers [default: as `cargo lab run`]
    #[arg(long)]
    profile: Option<String>,
    /// Fail if something is not set up, instead of setting it up
    #[arg(long)]
    no_setup: bool,
}

/// Runs `cargo lab exercises`.
pub fn run(paths: &Paths, args: &ExercisesArgs) -> Result<()> {
    let sources = notebooks::find(&paths.notebooks().join("exercises/source"), &args.notebooks)?;
    if let Some(course) = &args.nbgrader {
        return assignments(course, &sources);
    }
    if args.check || !(args.instructor || args.answers) {
        return students(&paths.notebooks().join("exercises"), &sources, args.check);
    }
    let profile = notebooks::ready(paths, args.no_setup, args.profile.as_deref())?;
    let out = paths.runs()?.join(&profile).join(if args.instructor { "instructor" } else { "answers" });
    files::create_dir(Some(&out))?;
    let made = if args.instructor { instructor } else { answers };
    let mut notebooks = Vec::new();
    for source in &sources {
        let target = out.join(file_name(source));
        files::write(&target, &text_of(&made(&read(source)?).with_context(|| file_name(source))?)?)?;
        notebooks.push(target);
    }
    if args.instructor {
        let title = format!("Exercises with solutions, profile {profile}");
        return notebooks::execute_all(paths, &notebooks, &out, &out.join("report.html"), &profile, &title);
    }
    let clock = Clock::start();
    let (mut tried, mut problems) = (0, Vec::new());
    for notebook in &notebooks {
        execute(paths, notebook, notebook, &profile)?;
        let (some, found) = misjudged(&read(notebook)?);
        tried += some;
        problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", file_name(notebook))));
    }
    if !problems.is_empty() {
        bail!("{} of {tried} wrong answers are not told as they should be:\n{}", problems.len(), problems.join("\n"));
    }
    progress::line(&format!("every solution passes, and {tried} wrong answers get their message, in {clock}"));
    Ok(())
}

/// Writes the students' copies. With `check`, writes nothing and fails if a copy is not what its source gives.
fn students(folder: &Path, sources: &[PathBuf], check: bool) -> Result<()> {
    let mut stale = Vec::new();
    for source in sources {
        let copy = text_of(&student(&read(source)?).with_context(|| file_name(source))?)?;
        let target = folder.join(file_name(source));
        let old = fs::read_to_string(&target).unwrap_or_default();
        if old == copy {
            continue;
        }
        if check {
            stale.push(file_name(source));
            continue;
        }
        if is_answered(&old) {
            bail!("{} has answers in it: put it elsewhere first", target.display());
        }
        files::write(&target, &copy)?;
        progress::line(&format!("wrote {}", file_name(source)));
    }
    if !stale.is_empty() {
        bail!(
            "not what notebooks/exercises/source gives: {}; edit the source and run `cargo lab exercises`",
            stale.join(", ")
        );
    }
    if check {
        progress::line(&format!("{} students' copies are what their sources give", sources.len()));
    }
    Ok(())
}

/// Writes a course of nbgrader with an assignment for each source. Keeps settings, and refuses to write over an
/// assignment that was changed there.
fn assignments(course: &Path, sources: &[PathBuf]) -> Result<()> {
    let settings = course.join("nbgrader_config.py");
    if !settings.exists() {
        files::write(&settings, NBGRADER)?;
    }
    for source in sources {
        let name = source.file_stem().unwrap_or_default();
        let target = course.join("source").join(name).join(file_name(source));
        let text = text_of(&assignment(&read(source)?).with_context(|| file_name(source))?)?;
        if fs::read_to_string(&target).is_ok_and(|old| old != text) {
            bail!("{} differs from the exercise: remove it, or name another folder", target.display());
        }
        files::write(&target, &text)?;
        progress::line(&format!("wrote {}", target.display()));
    }
    Ok(())
}

/// Returns an exercise as nbgrader's assignment: without notes; each check is a test of one point; and grading puts
/// back whatever code is no answer.
fn assignment(source: &Value) -> Result<Value> {
    let mut kept = Vec::new();
    let mut tested = None;
    for (index, cell) in cells(source).iter().enumerate() {
        if has_tag(cell, "instructor") {
            continue;
        }
        let mut copy = stripped(cell);
        copy["metadata"] = json!({});
        if cell["cell_type"] == "code" {
            let mut marks = json!({
                "schema_version": 3, "grade_id": cell["id"], "grade": false, "locked": true, "solution": false,
                "task": false,
            });
            if let Some(todo) = Todo::of(source, index)? {
                let name = todo.name();
                marks["grade_id"] = json!(format!("{name}-answer"));
                (marks["solution"], marks["locked"]) = (true.into(), false.into());
                copy["source"] = lines(&todo.marked(&text(&cell["source"])));
                tested = Some(name);
            } else if has_tag(cell, "check")
                && let Some(name) = tested.take()
            {
                (marks["grade_id"], marks["grade"], marks["points"]) = (name.into(), true.into(), 1.into());
            }
            copy["metadata"] = json!({ "nbgrader": marks });
        }
        kept.push(copy);
    }
    Ok(with_cells(source, kept))
}

/// Returns what students get: the source without solutions, notes, outputs and metadata other than the tags.
fn student(source: &Value) -> Result<Value> {
    let mut kept = Vec::new();
    for (index, cell) in cells(source).iter().enumerate() {
        if has_tag(cell, "instructor") {
            continue;
        }
        let mut cell = stripped(cell);
        cell["metadata"] = match &cell["metadata"]["tags"] {
            Value::Null => json!({}),
            tags => json!({ "tags": tags }),
        };
        if let Some(todo) = Todo::of(source, index)? {
            cell["source"] = lines(&todo.untouched());
        }
        kept.push(cell);
    }
    Ok(with_cells(source, kept))
}

/// Returns what is executed for instructors: the whole source, and after each check the common wrong answers.
fn instructor(source: &Value) -> Result<Value> {
    let mut kept = Vec::new();
    let mut wrong: &[Value] = &[];
    for (index, cell) in cells(source).iter().enumerate() {
        kept.push(stripped(cell));
        if Todo::of(source, index)?.is_some() {
            wrong = cell["metadata"]["wrong"].as_array().map_or(&[], Vec::as_slice);
        }
        if has_tag(cell, "check") && !wrong.is_empty() {
            let of =
                |one: &Value| format!("- {}:\n\n{}", text(&one["says"]), indented(&text(&one["source"]), "      "));
            let list: Vec<String> = wrong.iter().map(of).collect();
            kept.push(json!({
                "cell_type": "markdown", "id": format!("wrong{index}"), "metadata": {"tags": ["instructor"]},
                "source": lines(&format!("**Often answered, and what the check says**\n\n{}", list.join("\n\n"))),
            }));
            wrong = &[];
        }
    }
    Ok(with_cells(source, kept))
}

/// Returns the source with the wrong answers and the untouched todo before each solution. Each of them shares one
/// cell with the check. That cell may fail, and its metadata says what the check has to print.
fn answers(source: &Value) -> Result<Value> {
    let mut kept = Vec::new();
    for (index, cell) in cells(source).iter().enumerate() {
        if let Some(todo) = Todo::of(source, index)? {
            let wrong = cell["metadata"]["wrong"].as_array().map_or(&[][..], Vec::as_slice);
            let given = wrong.iter().map(|one| (todo.answered(&text(&one["source"])), text(&one["says"])));
            let untouched = (todo.untouched(), todo.task.clone());
            for (number, (answer, says)) in given.chain([untouched]).enumerate() {
                kept.push(json!({
                    "cell_type": "code", "id": format!("answer{index}-{number}"),
                    "execution_count": null, "outputs": [], "metadata": {"tags": ["raises-exception"], "says": says},
                    "source": lines(&format!("{answer}\n{}", todo.check)),
                }));
            }
        }
        kept.push(stripped(cell));
    }
    Ok(with_cells(source, kept))
}

/// Returns how many wrong answers an executed notebook holds, and those that the check did not refuse in the right
/// words.
fn misjudged(executed: &Value) -> (usize, Vec<String>) {
    let (mut tried, mut problems) = (0, Vec::new());
    for cell in cells(executed).iter().filter(|cell| cell["metadata"]["says"].is_string()) {
        tried += 1;
        let says = text(&cell["metadata"]["says"]);
        let outputs = cell["outputs"].as_array().into_iter().flatten();
        let said: String = outputs.map(|output| text(&output["evalue"]) + &text(&output["text"])).collect();
        if !said.contains(&says) {
            problems.push(format!("`{says}` is missing in `{}` about\n{}", said.trim(), text(&cell["source"])));
        }
    }
    (tried, problems)
}

/// Returns whether a student's copy has a todo cell without a `todo!`.
fn is_answered(copy: &str) -> bool {
    let copy: Value = serde_json::from_str(copy).unwrap_or_default();
    cells(&copy).iter().any(|cell| has_tag(cell, "todo") && !text(&cell["source"]).contains("todo!("))
}

/// A cell with a solution.
struct Todo {
    before: String,
    indent: String,
    /// What the student has to do.
    task: String,
    after: String,
    /// The cell that judges the answer.
    check: String,
}

impl Todo {
    /// Returns the todo in a cell, or `None` if the cell has none.
    ///
    /// # Errors
    /// If tag, marks and check do not fit together.
    fn of(notebook: &Value, index: usize) -> Result<Option<Todo>> {
        let cell = &cells(notebook)[index];
        let source = text(&cell["source"]);
        if !has_tag(cell, "todo") {
            if source.contains(BEGIN) || source.contains(END) {
                bail!("cell {index} has a solution in it and no tag `todo`");
            }
            return Ok(None);
        }
        let rows: Vec<&str> = source.lines().collect();
        let at = |mark: &str| -> Result<usize> {
            let mut found = (0..rows.len()).filter(|&n| rows[n].trim_start().starts_with(mark));
            match (found.next(), found.next()) {
                (Some(row), None) => Ok(row),
                _ => bail!("cell {index} is tagged `todo` and needs one line `{mark}`"),
            }
        };
        let (begin, end) = (at(BEGIN)?, at(END)?);
        let (indent, mark) = rows[begin].split_at(rows[begin].len() - rows[begin].trim_start().len());
        let task = mark[BEGIN.len()..].trim_start_matches(':').trim();
        if end < begin || task.is_empty() {
            bail!("cell {index} needs `{BEGIN}: what to do` before `{END}`");
        }
        let next = cells(notebook)[index + 1..].iter().find(|cell| cell["cell_type"] == "code");
        let Some(check) = next.filter(|cell| has_tag(cell, "check")) else {
            bail!("cell {index} is tagged `todo`, and the next code cell is no `check`");
        };
        let joined = |rows: &[&str]| rows.iter().map(|row| format!("{row}\n")).collect();
        Ok(Some(Todo {
            before: joined(&rows[..begin]),
            indent: indent.into(),
            task: task.into(),
            after: joined(&rows[end + 1..]),
            check: text(&check["source"]),
        }))
    }

    fn answered(&self, answer: &str) -> String {
        format!("{}{}\n{}", self.before, indented(answer, &self.indent), self.after.trim_end())
    }

    fn untouched(&self) -> String {
        // `todo!` takes its text as a format string.
        self.answered(&format!("todo!({:?})", self.task.replace('{', "{{").replace('}', "}}")))
    }

    /// The first word of the task, which names what has to be written.
    fn name(&self) -> String {
        self.task.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
    }

    /// Returns the cell with its task before the solution. nbgrader has the same `todo!` for all cells.
    fn marked(&self, source: &str) -> String {
        let (head, rest) = source.split_once(BEGIN).unwrap_or_default();
        let (_, solution) = rest.split_once('\n').unwrap_or_default();
        format!("{head}// {}\n{}{BEGIN}\n{solution}", self.task, self.indent)
    }
}

fn indented(text: &str, indent: &str) -> String {
    text.lines().map(|line| format!("{indent}{line}")).collect::<Vec<_>>().join("\n")
}

fn cells(notebook: &Value) -> &[Value] {
    notebook["cells"].as_array().map_or(&[], Vec::as_slice)
}

fn with_cells(notebook: &Value, cells: Vec<Value>) -> Value {
    let mut notebook = notebook.clone();
    notebook["cells"] = cells.into();
    notebook
}

fn has_tag(cell: &Value, tag: &str) -> bool {
    cell["metadata"]["tags"].as_array().is_some_and(|tags| tags.iter().any(|one| one == tag))
}

/// Returns a cell without what an execution leaves in it.
fn stripped(cell: &Value) -> Value {
    let mut cell = cell.clone();
    if cell["cell_type"] == "code" {
        cell["outputs"] = json!([]);
        cell["execution_count"] = Value::Null;
    }
    cell
}

/// Returns a text of a notebook, which is a string or a list of lines with their line ends.
fn text(value: &Value) -> String {
    match value {
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        value => value.as_str().unwrap_or_default().to_owned(),
    }
}

/// Returns a text as Jupyter writes it, so that saving a copy unchanged changes nothing.
fn lines(text: &str) -> Value {
    text.split_inclusive('\n').collect()
}

fn text_of(notebook: &Value) -> Result<String> {
    let wide = serde_json::to_string_pretty(notebook)?;
    // Jupyter indents by one space. Strings in JSON hold no line ends, so every line starts with its indentation.
    let narrow = |line: &str| format!("{}\n", &line[(line.len() - line.trim_start_matches(' ').len()) / 2..]);
    Ok(wide.lines().map(narrow).collect())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no notebook", path.display()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Value {
        let code = |source: &str, metadata: Value| {
            json!({"cell_type": "code", "id": "a", "execution_count": 3, "outputs": [{"text": "7"}],
                "metadata": metadata, "source": lines(source)})
        };
        let note =
            json!({"cell_type": "markdown", "id": "b", "metadata": {"tags": ["instructor"]}, "source": "say this"});
        let todo = "fn seven() -> i32 {\n    // BEGIN SOLUTION: a {number}\n    3 +\n    4\n    // END SOLUTION\n}";
        let wrong = json!({"tags": ["todo"], "wrong": [{"source": "8", "says": "one too many"}]});
        let check = code("assert_eq!(seven(), 7);", json!({"tags": ["check"], "trusted": true}));
        json!({"cells": [note, code(todo, wrong), check], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    }

    #[test]
    fn students_get_neither_solutions_nor_notes_nor_outputs() {
        let copy = student(&source()).expect("a copy");
        assert_eq!(text(&cells(&copy)[0]["source"]), "fn seven() -> i32 {\n    todo!(\"a {{number}}\")\n}");
        assert_eq!(cells(&copy)[1]["metadata"], json!({"tags": ["check"]}));
        let copy = text_of(&copy).expect("JSON");
        for hidden in ["SOLUTION", "3 +", "too many", "say this", "trusted", "\"7\""] {
            assert!(!copy.contains(hidden), "{hidden} is in {copy}");
        }
        assert!(!is_answered(&copy) && is_answered(&copy.replace("todo!(", "7 // (")));
    }

    #[test]
    fn a_stale_copy_is_named_and_an_answered_one_is_kept() {
        let folder = tempfile::TempDir::new().expect("a temporary folder");
        let from = folder.path().join("source.ipynb");
        fs::write(&from, source().to_string()).expect("a source");
        let copies = folder.path().join("copies");
        fs::create_dir(&copies).expect("a folder");
        let copy = copies.join("source.ipynb");
        let run = |check| students(&copies, std::slice::from_ref(&from), check).map_err(|error| error.to_string());
        assert!(run(true).is_err_and(|said| said.contains("source.ipynb")));
        assert!(run(false).is_ok() && run(true).is_ok());
        let answered = fs::read_to_string(&copy).expect("a copy").replace("todo!", "answer");
        fs::write(&copy, &answered).expect("an answer");
        assert!(run(false).is_err_and(|said| said.contains("has answers in it")));
        assert_eq!(fs::read_to_string(&copy).expect("a copy"), answered);
    }

    #[test]
    fn wrong_answers_stand_with_the_check_and_have_to_be_told() {
        let mut tried = answers(&source()).expect("a notebook");
        let answer = &cells(&tried)[1];
        assert_eq!(text(&answer["source"]), "fn seven() -> i32 {\n    8\n}\nassert_eq!(seven(), 7);");
        assert_eq!(cells(&tried)[2]["metadata"]["says"], "a {number}");
        tried["cells"][1]["outputs"] = json!([{"evalue": "this is one too many"}]);
        let (count, problems) = misjudged(&tried);
        assert!(count == 2 && problems.len() == 1 && problems[0].contains("`a {number}` is missing"), "{problems:?}");
    }

    #[test]
    fn a_course_of_nbgrader_has_marks_and_no_notes_and_is_not_written_over() {
        let folder = tempfile::TempDir::new().expect("a temporary folder");
        let (from, course) = (folder.path().join("e9.ipynb"), folder.path().join("course"));
        fs::write(&from, source().to_string()).expect("a source");
        let write = || assignments(&course, std::slice::from_ref(&from)).map_err(|error| error.to_string());
        assert_eq!(write().and_then(|()| write()), Ok(()));
        let target = course.join("source/e9/e9.ipynb");
        let written = read(&target).expect("a notebook");
        let [answer, check] = cells(&written) else { panic!("{written}") };
        let (answered, tested) = (&answer["metadata"]["nbgrader"], &check["metadata"]["nbgrader"]);
        assert!(answered["solution"] == true && answered["locked"] == false && answered["grade_id"] == "a-answer");
        assert!(tested["grade"] == true && tested["points"] == 1 && tested["grade_id"] == "a");
        let begin = "fn seven() -> i32 {\n    // a {number}\n    // BEGIN SOLUTION\n    3 +\n";
        assert!(text(&answer["source"]).starts_with(begin), "{answer}");
        fs::write(&target, "{}").expect("a change");
        assert!(write().is_err_and(|said| said.contains("differs from the exercise")));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let broken = |from: &str, to: &str| {
            let source: Value = serde_json::from_str(&source().to_string().replace(from, to)).expect("JSON");
            student(&source).expect_err("it is broken").to_string()
        };
        assert!(broken("[\"todo\"]", "[]").contains("no tag `todo`"));
        assert!(broken("// END SOLUTION", "").contains("needs one line `// END SOLUTION`"));
        assert!(broken(": a {number}", "").contains("what to do"));
        assert!(broken("[\"check\"]", "[]").contains("no `check`"));
    }
}
