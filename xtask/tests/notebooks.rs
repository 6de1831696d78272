//! The run of notebooks through the real kernel, as people start it. Needs `cargo lab setup` to have been run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs `lab run --no-setup` on one notebook with these cells; gives the whole output and the folder of results.
fn run(folder: &TempDir, name: &str, cells: &[&str]) -> Output {
    let cells: Vec<Value> = (cells.iter().enumerate())
        .map(|(i, source)| {
            json!({"cell_type": "code", "id": format!("c{i}"), "execution_count": null, "metadata": {}, "outputs": [], "source": source})
        })
        .collect();
    let notebook = json!({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5});
    let path = folder.path().join(name);
    fs::write(&path, notebook.to_string()).expect("the temporary folder can be written");
    Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["run", "--no-setup", "--profile", "smoke", "--out"])
        .arg(folder.path())
        .arg(&path)
        .output()
        .expect("lab starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn executed(folder: &TempDir, name: &str) -> Value {
    let path: PathBuf = folder.path().join("executed").join(name);
    serde_json::from_str(&fs::read_to_string(path).expect("the executed notebook is written")).expect("it is JSON")
}

fn fails_with(folder: &TempDir, name: &str, cells: &[&str], wanted: &[&str]) {
    let output = run(folder, name, cells);
    let said = text(&output.stderr);
    assert!(!said.contains("cargo lab setup first"), "{said}");
    assert!(!output.status.success(), "{name} should fail; it said: {}", text(&output.stdout));
    for part in wanted {
        assert!(said.contains(part), "{name}: `{part}` is missing in: {said}");
    }
    assert!(!text(&output.stdout).contains("not reached"));
}

#[test]
fn failing_cells_fail() {
    let folder = TempDir::new().expect("a temporary folder");
    let question = r#"let l: Result<i32, String> = Err("temperature must be > 0, got -1".into()); l?;"#;
    fails_with(
        &folder,
        "question.ipynb",
        &["let a = 1;", question, "println!(\"not reached\");"],
        &["question, cell 2 of 3", "let l: Result<i32, String>", "temperature must be > 0, got -1"],
    );
    // What ran before the failure is kept, and nothing after it ran.
    let cells = executed(&folder, "question.ipynb")["cells"].clone();
    assert!(cells[1]["outputs"].to_string().contains("temperature must be > 0"), "{cells}");
    assert_eq!(cells[2]["outputs"], json!([]));
    fails_with(
        &folder,
        "panic.ipynb",
        &["let b = 2;", "if b == 2 { panic!(\"alpha is out of range\"); }", "println!(\"not reached\");"],
        &["panic, cell 2 of 3", "if b == 2", "alpha is out of range"],
    );
    fails_with(&folder, "compile.ipynb", &["let n: i32 = \"text\";"], &["compile, cell 1 of 1", "mismatched types"]);
    fails_with(&folder, "abort.ipynb", &["std::process::abort();"], &["abort, cell 1 of 1", "SIGABRT"]);
}

#[test]
fn good_cells_pass_and_the_report_stands_alone() {
    let folder = TempDir::new().expect("a temporary folder");
    let cells = [
        "let t = Tensor::from_slice(&[1f32, 2.0]);",
        "eprintln!(\"error: ordinary chatter on stderr\"); let n = 3; println!(\"n is {n} {}\", n + 1); println!();",
        "fn half(x: i32) -> Result<i32, String> { if x % 2 == 0 { Ok(x / 2) } else { Err(\"odd\".into()) } }\nlet h = half(84)?; h",
        "let caught = half(3); if let Err(error) = &caught { eprintln!(\"{}\", error); }",
    ];
    let output = run(&folder, "good.ipynb", &cells);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let notebook = executed(&folder, "good.ipynb").to_string();
    assert!(notebook.contains("n is 3 4") && notebook.contains("42"), "{notebook}");
    let report = fs::read_to_string(folder.path().join("report.html")).expect("the report is written");
    assert!(report.contains("n is 3 4"));
    for fetched in ["<script", "src=\"http", "src='http", "@import", "url(http"] {
        assert!(!report.contains(fetched), "the report would fetch something: {fetched}");
    }
}

#[test]
fn several_kernels_run_at_once() {
    let folders: Vec<TempDir> = (0..3).map(|_| TempDir::new().expect("a temporary folder")).collect();
    std::thread::scope(|scope| {
        for (n, folder) in folders.iter().enumerate() {
            scope.spawn(move || {
                let cell = format!("println!(\"kernel {{}}\", {n});");
                let output = run(folder, "many.ipynb", &[&cell]);
                assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
                assert!(executed(folder, "many.ipynb").to_string().contains(&format!("kernel {n}")));
            });
        }
    });
}

#[test]
fn unknown_names_are_refused_with_what_there_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["run", "--no-setup", "--profile", "tiny"])
        .output()
        .expect("lab starts");
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("article, laptop or smoke"), "{}", text(&output.stderr));
    assert!(Path::new(env!("CARGO_BIN_EXE_lab")).exists());
}
