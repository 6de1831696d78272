//! Runs of notebooks through the real kernel, as people start them. Needs a finished `cargo lab setup`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A cell that starts like this may fail: the notebook goes on after it.
const MAY_FAIL: &str = "// may fail";

/// Runs `lab run --no-setup` on one notebook with these cells, with its results in `folder`. Returns its whole output.
fn run(folder: &TempDir, name: &str, cells: &[&str]) -> Output {
    run_on("live", folder, name, cells)
}

fn run_on(kernel: &str, folder: &TempDir, name: &str, cells: &[&str]) -> Output {
    let cells: Vec<Value> = (cells.iter().enumerate())
        .map(|(i, source)| {
            let tags = if source.starts_with(MAY_FAIL) { json!(["raises-exception"]) } else { json!([]) };
            json!({
                "cell_type": "code", "id": format!("c{i}"), "execution_count": null,
                "metadata": {"tags": tags}, "outputs": [], "source": source
            })
        })
        .collect();
    let notebook = json!({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5});
    let path = folder.path().join(name);
    fs::write(&path, notebook.to_string()).expect("the temporary folder can be written");
    Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["run", "--no-setup", "--profile", "smoke", "--out"])
        .arg(folder.path())
        .arg(&path)
        .env("KDLAB_KERNEL", kernel)
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
    let question = "let kd = KdLoss::new(-1.0, 0.5)?;";
    fails_with(
        &folder,
        "question.ipynb",
        &["let a = 1;", question, "println!(\"not reached\");"],
        &["question, cell 2 of 3", "KdLoss::new(-1.0, 0.5)", "temperature must be > 0, got -1"],
    );
    // The notebook holds what ran up to the failure, and nothing after it ran.
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
        "fn half(x: i32) -> Result<i32, String> { if x % 2 == 0 { Ok(x / 2) } else { Err(\"odd\".into()) } }\n\
         let h = half(84)?; h",
        "let caught = half(3); if let Err(error) = &caught { eprintln!(\"{}\", error); }",
        "plot(&[1, 2], &[3, 4], [\"x\", \"y\"])?",
    ];
    let output = run(&folder, "good.ipynb", &cells);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let notebook = executed(&folder, "good.ipynb").to_string();
    assert!(notebook.contains("n is 3 4") && notebook.contains("42"), "{notebook}");
    let report = fs::read_to_string(folder.path().join("report.html")).expect("the report is written");
    assert!(report.contains("n is 3 4"));
    assert!(report.contains("alt=\"line through 2 points") && !report.contains("No description"));
    for fetched in ["<script", "src=\"http", "src='http", "@import", "url(http"] {
        assert!(!report.contains(fetched), "the report would fetch something: {fetched}");
    }
}

#[test]
fn a_failed_cell_loses_nothing() {
    let folder = TempDir::new().expect("a temporary folder");
    let cells = [
        "let mut net = Model::new(\"net\", Device::Cpu, 1, &|vs| student(vs, 10))?;\nlet before = net.parameters();",
        "// may fail\nlet kd = KdLoss::new(0.0, 0.5)?;\nnet.freeze();",
        "// may fail\nprintln!(\"{}\", net.parameters());\npanic!(\"boom\");",
        "// may fail\nlet y = net.forward(&Tensor::zeros([1, 5, 8, 8], (Kind::Float, Device::Cpu)), false)?;",
        "assert_eq!(net.trainable().len(), 12);\nprintln!(\"still {} of {before}\", net.parameters());",
    ];
    let output = run(&folder, "kept.ipynb", &cells);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let cells = executed(&folder, "kept.ipynb")["cells"].clone();
    assert!(cells[1]["outputs"].to_string().contains("temperature must be > 0, got 0; try 1 to 10"), "{cells}");
    assert!(
        cells[3]["outputs"].to_string().contains("layer `conv1` refused its input of shape [1, 5, 8, 8]"),
        "{cells}"
    );
    assert!(cells[4]["outputs"].to_string().contains("still 264618 of 264618"), "{cells}");
}

/// Runs notebooks of the course in the profile that takes seconds. Returns what `lab` printed.
fn course(runs: &TempDir, kernel: &str, notebooks: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["run", "--no-setup", "--profile", "smoke"]).args(notebooks);
    // Two courses run at once. With one thread each they do not slow each other down.
    command.env("KDLAB_RUNS", runs.path()).env("KDLAB_KERNEL", kernel).env("OMP_NUM_THREADS", "1");
    let output = command.output().expect("lab starts");
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Returns the outputs of a notebook of the course.
fn outputs(runs: &TempDir, name: &str) -> Vec<Value> {
    let path = runs.path().join("smoke/executed").join(name).with_extension("ipynb");
    let text = fs::read_to_string(path).expect("the executed notebook is written");
    let notebook: Value = serde_json::from_str(&text).expect("it is JSON");
    let cells = notebook["cells"].as_array().into_iter().flatten();
    cells.flat_map(|cell| cell["outputs"].as_array().cloned().unwrap_or_default()).collect()
}

const ARTICLE: [&str; 8] = [
    "00_start",
    "01_data",
    "02_teacher",
    "03_student",
    "04_distillation",
    "05_tweak",
    "06_spot_the_bug",
    "07_report_card",
];
const WORKSHOP: [&str; 7] = [
    "08_dark_knowledge",
    "09_few_labels",
    "10_omitted_class",
    "11_noisy_labels",
    "12_patience",
    "13_temperature_and_alpha",
    "14_bring_your_own",
];

fn figures(runs: &TempDir, names: &[&str]) -> Vec<usize> {
    let of = |name: &&str| outputs(runs, name).iter().filter(|output| output["data"]["image/png"].is_string()).count();
    names.iter().map(of).collect()
}

#[test]
fn the_course_runs() {
    let runs = TempDir::new().expect("a temporary folder");
    // Without names it runs notebooks 0 to 7.
    let said = course(&runs, "live", &[]);
    for row in ["teacher efficientnet-lite0", "article-step: alone", "few-labels: argmax", "cargo lab run --all"] {
        assert!(said.contains(row), "{row} is missing in: {said}");
    }
    assert!(!runs.path().join("smoke/executed/08_dark_knowledge.ipynb").exists());
    let said = |name: &str| Value::from(outputs(&runs, name)).to_string();
    // Each fit leaves the last state of its live figure.
    assert_eq!(figures(&runs, &ARTICLE), [1, 2, 3, 0, 7, 5, 5, 7]);
    assert!(said("03_student").contains("264618 parameters, largest difference 0"));
    for defect in ["teacher outputs of other images", "KL averaged over batch x classes", "best weights picked on test"]
    {
        assert!(said("06_spot_the_bug").contains(defect), "{defect} is not revealed");
    }
    let card = fs::read_to_string(runs.path().join("smoke/report-card.json")).expect("the report card is written");
    let card: Value = serde_json::from_str(&card).expect("it is JSON");
    let graded: Vec<_> = card["rows"].as_array().into_iter().flatten().map(|row| row["model"].clone()).collect();
    assert_eq!(graded[..3], ["teacher", "alone, seed 0", "distilled, seed 0"]);
    assert_eq!(graded.len(), 7, "three seeds of each");
    assert!(said("07_report_card").contains("agreement with teacher (%)"));
    let results = fs::read_to_string(runs.path().join("smoke/results.json")).expect("results are written");
    let results: Value = serde_json::from_str(&results).expect("they are JSON");
    assert_eq!(results["rows"].as_array().map(Vec::len), Some(8));
    assert!(!said("02_teacher").contains("found on disk"));
    course(&runs, "live", &["02"]);
    assert!(said("02_teacher").contains("found on disk"), "the backbone ran again over the same images");
}

#[test]
fn the_workshop_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../notebooks");
    let there = fs::read_dir(folder).expect("the notebooks are there").flatten();
    assert_eq!(there.filter(|f| f.path().is_file()).count(), ARTICLE.len() + WORKSHOP.len(), "each is run by a test");
    let runs = TempDir::new().expect("a temporary folder");
    course(&runs, "live", &[&["02_teacher"], &WORKSHOP[..]].concat());
    assert_eq!(figures(&runs, &WORKSHOP), [5, 3, 0, 2, 1, 1, 6]);
    // Every sweep prints a verdict; which one does not matter in so small a run.
    for name in &WORKSHOP[1..6] {
        let said = Value::from(outputs(&runs, name)).to_string();
        let verdicts = ["BETTER", "WORSE", "NO WORTHWHILE GAIN", "UNDECIDED"];
        assert!(verdicts.iter().any(|verdict| said.contains(verdict)), "{name}: {said}");
    }
}

/// The same notebooks run without live parts on evcxr_jupyter as it is.
#[test]
fn the_course_runs_on_stock_evcxr_jupyter() {
    let runs = TempDir::new().expect("a temporary folder");
    // One of the sweeps is enough.
    let names = [&ARTICLE[1..6], &WORKSHOP[1..2]].concat();
    course(&runs, "stock", &names);
    assert_eq!(figures(&runs, &names), [2, 2, 0, 5, 3, 3]);
    let sweep = Value::from(outputs(&runs, WORKSHOP[1])).to_string();
    assert!(sweep.contains(" of 40 runs done; "), "a sweep prints its runs: {sweep}");
    let fits = Value::from(outputs(&runs, "04_distillation")).to_string();
    assert!(fits.contains("student-distilled  2/2  train"), "a fit prints its epochs: {fits}");
    // A cell that fails stops the run there, too.
    let folder = TempDir::new().expect("a temporary folder");
    let output = run_on("stock", &folder, "question.ipynb", &["let kd = KdLoss::new(-1.0, 0.5)?;", "1 + 1"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("temperature must be > 0, got -1"), "{}", text(&output.stderr));
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
