//! The exercises as students and instructors get them. Two of the tests need a finished `cargo lab setup`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn lab(runs: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.arg("exercises").args(args).env("KDLAB_RUNS", runs.path()).env("KDLAB_KERNEL", "live");
    command.output().expect("lab starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_students_copies_are_what_their_sources_give() {
    let runs = TempDir::new().expect("a temporary folder");
    let output = lab(&runs, &["--check"]);
    assert!(output.status.success(), "{}", said(&output));
}

/// What a check is for: solutions pass, and it explains untouched todos and the usual mistakes in its own words.
#[test]
fn checks_pass_solutions_and_tell_wrong_answers_apart() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../notebooks/exercises/source");
    let sources: Vec<String> = (fs::read_dir(folder).expect("the sources").flatten())
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .filter(|path| path.ends_with(".ipynb"))
        .collect();
    assert!(sources.len() >= 5, "{sources:?}");
    // Cells compile on one core each.
    std::thread::scope(|scope| {
        for half in sources.chunks(sources.len().div_ceil(2)) {
            scope.spawn(move || {
                let runs = TempDir::new().expect("a temporary folder");
                let mut args = vec!["--answers", "--no-setup", "--profile", "smoke"];
                args.extend(half.iter().map(String::as_str));
                let output = lab(&runs, &args);
                assert!(output.status.success(), "{}", said(&output));
                assert!(said(&output).contains("every solution passes"), "{}", said(&output));
            });
        }
    });
}

#[test]
fn instructors_get_executed_copies_with_notes() {
    let runs = TempDir::new().expect("a temporary folder");
    let output = lab(&runs, &["--instructor", "--no-setup", "--profile", "smoke", "e4"]);
    assert!(output.status.success(), "{}", said(&output));
    let folder = runs.path().join("smoke/instructor");
    let copy = fs::read_to_string(folder.join("e4_verdict.ipynb")).expect("the copy is written");
    for part in ["For the instructor", "Often answered", "BEGIN SOLUTION", "Right: +1.30 points"] {
        assert!(copy.contains(part), "`{part}` is missing in the instructor's copy");
    }
    let report = fs::read_to_string(folder.join("report.html")).expect("the report is written");
    assert!(report.contains("For the instructor") && report.contains("Right: +1.30 points"));
    // Hints are inside a `details` element.
    let folded =
        |part: &str| part.split("</details>").next().is_some_and(|inside| inside.contains("differences.iter().sum"));
    assert!(report.split("<summary>Hint</summary>").skip(1).any(folded));
}
