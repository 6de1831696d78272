//! What `cargo lab docs --outputs-from` takes of executed notebooks. Needs the venv of `cargo lab setup --tests`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A figure of the course, as a cell shows it.
fn figure() -> Value {
    let python = "import base64, io; from PIL import Image; f = io.BytesIO(); \
                  Image.effect_noise((900, 400), 90).save(f, 'PNG'); print(base64.b64encode(f.getvalue()).decode())";
    let made = Command::new(root().join(".kdlab/venv/bin/python")).args(["-c", python]).output().expect("the venv");
    let png = String::from_utf8(made.stdout).expect("base64");
    json!({"output_type": "display_data", "data": {"image/png": png.trim(), "text/plain": ["figure: noise"]},
        "metadata": {"image/png": {"alt": "noise", "width": 800, "height": 400}}})
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository")
}

fn notebook(source: &str, outputs: &[Value], count: Value) -> String {
    json!({"cells": [{"cell_type": "code", "id": "a", "source": [source], "metadata": {}, "execution_count": count,
        "outputs": outputs}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    .to_string()
}

/// Takes the outputs of a run of one notebook, whose code in the repository is `1 + 1`.
fn take(folder: &TempDir, source: &str, outputs: &[Value], count: Value) -> Output {
    let executed = folder.path().join("runs/laptop/executed");
    for dir in [&folder.path().join("notebooks"), &folder.path().join("docs"), &executed] {
        fs::create_dir_all(dir).expect("a folder");
    }
    fs::write(folder.path().join("notebooks/01_one.ipynb"), notebook("1 + 1", &[], Value::Null)).expect("a notebook");
    fs::write(executed.join("01_one.ipynb"), notebook(source, outputs, count)).expect("a run");
    let mut python = Command::new(root().join(".kdlab/venv/bin/python"));
    python.arg(root().join("xtask/keep_outputs.py")).arg(folder.path()).arg(executed).output().expect("Python starts")
}

#[test]
fn outputs_become_small_and_lose_what_only_a_kernel_can_show() {
    let folder = TempDir::new().expect("a temporary folder");
    let slider = json!({"output_type": "display_data", "metadata": {}, "data": {
        "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
        "text/plain": ["(this frontend shows no sliders)"]}});
    let place = format!(
        "profile   laptop\nruns      {}/runs/laptop",
        folder.path().canonicalize().expect("it is there").display()
    );
    let said = json!({"output_type": "stream", "name": "stdout", "text": [place]});
    let taken = take(&folder, "1 + 1", &[slider, said, figure()], json!(3));
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let text = fs::read_to_string(folder.path().join("notebooks/01_one.ipynb")).expect("a notebook");
    assert!(text.len() <= 150_000 && text.contains("runs      runs/laptop") && !text.contains("sliders"), "{text}");
    let notebook: Value = serde_json::from_str(&text).expect("JSON");
    let outputs = &notebook["cells"][0]["outputs"];
    let about = &outputs[1]["metadata"];
    let about = if about["image/jpeg"].is_null() { &about["image/png"] } else { &about["image/jpeg"] };
    assert_eq!(about["width"], 800, "a smaller figure is shown in its old size: {about}");
    assert_eq!(notebook["metadata"]["kdlab"]["seal"].as_str().map(str::len), Some(16));
    assert!(folder.path().join("docs/thumbs/01.png").exists());
}

#[test]
fn runs_of_other_code_or_profiles_or_without_an_end_are_refused() {
    let smoke = json!({"output_type": "stream", "name": "stdout", "text": ["profile   smoke"]});
    for (source, outputs, count, why) in [
        ("1 + 2", vec![], json!(1), "its code has changed since that run"),
        ("1 + 1", vec![], Value::Null, "stopped before its end"),
        ("1 + 1", vec![smoke], json!(1), "it ran in the profile smoke"),
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let refused = take(&folder, source, &outputs, count);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(why), "{said}");
        let kept = fs::read_to_string(folder.path().join("notebooks/01_one.ipynb")).expect("a notebook");
        assert!(!kept.contains("seal"), "{kept}");
    }
}

#[test]
fn a_run_that_cannot_be_read_is_named_and_the_other_runs_are_taken() {
    let folder = TempDir::new().expect("a temporary folder");
    let no_picture = json!({"output_type": "display_data", "metadata": {}, "data": {"image/png": "aGVsbG8="}});
    for (name, text) in [("02_two", "{"), ("00_zero", &*notebook("1 + 1", &[no_picture], json!(1)))] {
        for (dir, text) in [("notebooks", &*notebook("1 + 1", &[], Value::Null)), ("runs/laptop/executed", text)] {
            fs::create_dir_all(folder.path().join(dir)).expect("a folder");
            fs::write(folder.path().join(dir).join(name).with_extension("ipynb"), text).expect("a notebook");
        }
    }
    let taken = take(&folder, "1 + 1", &[], json!(1));
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(!taken.status.success() && !said.contains("Traceback"), "{said}");
    for name in ["00_zero", "02_two"] {
        assert!(said.contains(&format!("{name}.ipynb: that run cannot be read")), "{said}");
    }
    let one = fs::read_to_string(folder.path().join("notebooks/01_one.ipynb")).expect("a notebook");
    assert!(one.contains("seal"), "{one}");
}
