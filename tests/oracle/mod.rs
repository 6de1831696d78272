//! The oracle of the tests, which says which results are right: Python's torch, in the environment that `cargo lab
//! test` sets up.

use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Kind, Tensor};

/// What `oracle.py` wrote: its tensors by name, and the folder with its other files.
pub struct Answer {
    pub tensors: HashMap<String, Tensor>,
    #[allow(dead_code)]
    pub folder: tempfile::TempDir,
}

impl Answer {
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the oracle said nothing of {name}"))
    }

    pub fn number(&self, name: &str) -> f64 {
        self.get(name).to_kind(Kind::Double).double_value(&[])
    }
}

/// Runs a case of `oracle.py` in a new folder.
#[allow(dead_code)]
pub fn ask(case: &str, tensors: &[(&str, &Tensor)], settings: Value) -> Answer {
    ask_in(tempfile::tempdir().unwrap(), case, tensors, settings)
}

/// The Python that has torch, with a program of this repository to run.
pub fn python(program: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".kdlab/venv/bin/python");
    assert!(python.exists(), "{} is missing: run `cargo lab test`, which sets it up", python.display());
    let mut command = Command::new(python);
    // Python's torch brings its own libtorch. Tests run side by side: with a thread each they don't slow each other.
    command.arg(root.join(program)).env_remove("LD_LIBRARY_PATH").env("OMP_NUM_THREADS", "1");
    command
}

/// Runs a case of `oracle.py` in a folder that holds files for it.
pub fn ask_in(folder: tempfile::TempDir, case: &str, tensors: &[(&str, &Tensor)], settings: Value) -> Answer {
    if !tensors.is_empty() {
        let tensors: Vec<_> = tensors.iter().map(|(name, t)| (*name, t.contiguous())).collect();
        Tensor::write_safetensors(&tensors, folder.path().join("in.safetensors")).unwrap();
    }
    std::fs::write(folder.path().join("settings.json"), settings.to_string()).unwrap();
    let output = python("tests/oracle/oracle.py").arg(case).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let hint =
        if said.contains("ModuleNotFoundError") { "run `cargo lab test`, which installs Python's torch" } else { "" };
    assert!(output.status.success(), "oracle.py {case}: {said}{hint}");
    let tensors = Tensor::read_safetensors(folder.path().join("out.safetensors")).unwrap().into_iter().collect();
    Answer { tensors, folder }
}

/// The weight folder of the cache, which set-up fills.
#[allow(dead_code)]
pub fn weights() -> PathBuf {
    kdlab::data::DataOptions::default().cache.join("weights")
}

/// Largest difference of two tensors of one shape.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// [`difference`] as a share of the largest value of `b`.
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    difference(a, b) / b.to_kind(Kind::Double).abs().max().double_value(&[]).max(f64::MIN_POSITIVE)
}
