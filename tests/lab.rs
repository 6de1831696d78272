//! What a notebook opens first. The environment decides, so each case runs in a process of its own.

use kdlab::Lab;
use std::process::Command;

/// Prints what `Lab::open` and its first steps say; by itself it does nothing.
#[test]
fn child() {
    let Ok(step) = std::env::var("KDLAB_TEST_CHILD") else { return };
    let said = match (Lab::open(), step.as_str()) {
        (Err(e), _) => format!("error: {e}"),
        (Ok(lab), "open") => lab.to_string(),
        (Ok(lab), "runs") => lab.runs().to_string(),
        (Ok(lab), "history") => lab.history("nix").err().map_or("no error".into(), |e| e.to_string()),
        (Ok(lab), _) => {
            let data = lab.dataset().expect("KDLAB_DATA holds a dataset");
            let values = tch::Tensor::zeros([data.train.len() as i64, 1280], tch::kind::FLOAT_CPU);
            let features = kdlab::train::CachedTensor::new(&data.train, values, "test").expect("one row each");
            if step == "half" {
                let history = format!(
                    r#"{{"name":"teacher","criterion":"ce","data_key":{:?},"epochs":2,"records":[],
                        "stopped":"interrupted"}}"#,
                    features.key
                );
                std::fs::write(lab.folder.join("teacher/history.json"), history).expect("the folder is there");
            }
            lab.teacher_head(10, &features).err().map_or("no error".into(), |e| e.to_string())
        }
    };
    println!("<<{said}>>");
}

fn child_says(step: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this test has a path"));
    command.args(["--exact", "child", "--nocapture"]).env("KDLAB_TEST_CHILD", step);
    for name in ["KDLAB_PROFILE", "KDLAB_DEVICE", "KDLAB_DATA", "KDLAB_RUNS", "KDLAB_ROOT"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) = said.split_once("<<").unwrap_or_else(|| panic!("{said}"));
    rest.rsplit_once(">>").expect("it ends").0.to_owned()
}

#[test]
fn the_environment_chooses_profile_and_device() {
    let said = child_says("open", &[("KDLAB_PROFILE", "smoke"), ("KDLAB_DEVICE", "cpu")]);
    assert!(said.contains("smoke") && said.contains("up to 300 train"), "{said}");
    assert!(child_says("open", &[("KDLAB_DEVICE", "cpu")]).contains("laptop"));
    let said = child_says("open", &[("KDLAB_PROFILE", "article"), ("KDLAB_DEVICE", "cpu")]);
    assert!(said.contains("all train") && said.contains("meant for CUDA"), "{said}");
    for unknown in ["huge", "Laptop"] {
        assert!(child_says("open", &[("KDLAB_PROFILE", unknown)]).contains("may be article, laptop or smoke"));
    }
    assert!(child_says("open", &[("KDLAB_DEVICE", "tpu")]).contains("may be cpu or cuda"));
    assert!(child_says("open", &[("KDLAB_PRECISION", "bf16")]).contains(", bf16\n"));
    assert!(child_says("open", &[("KDLAB_PRECISION", "f16")]).contains("KDLAB_PRECISION: there is no precision"));
    if !tch::Cuda::is_available() {
        let said = child_says("open", &[("KDLAB_DEVICE", "cuda")]);
        assert!(said.contains("sees no CUDA device") && said.contains("KDLAB_DEVICE=cpu"), "{said}");
    }
}

#[test]
fn a_missing_or_foreign_teacher_names_the_notebook_to_run() {
    let folder = tempfile::tempdir().unwrap();
    let record = |i: usize| {
        let mut bytes = vec![(i % 10) as u8];
        bytes.resize(3073, i as u8);
        bytes
    };
    std::fs::write(folder.path().join("data_batch_1.bin"), (0..400).flat_map(record).collect::<Vec<_>>()).unwrap();
    std::fs::write(folder.path().join("test_batch.bin"), (0..200).flat_map(record).collect::<Vec<_>>()).unwrap();
    let path = folder.path().to_str().unwrap();
    let variables = [("KDLAB_PROFILE", "smoke"), ("KDLAB_DATA", path), ("KDLAB_RUNS", path), ("KDLAB_DEVICE", "cpu")];
    let said = child_says("teacher", &variables);
    assert!(said.contains("run notebook 02_teacher first"), "{said}");
    // A teacher of other data lies there.
    let teacher = folder.path().join("smoke/teacher");
    std::fs::create_dir_all(&teacher).unwrap();
    std::fs::write(teacher.join("best.safetensors"), "").unwrap();
    let history = r#"{"name":"teacher","criterion":"ce","data_key":"other","epochs":1,"records":[],"stopped":null}"#;
    std::fs::write(teacher.join("history.json"), history).unwrap();
    let said = child_says("teacher", &variables);
    assert!(said.contains("trained on other data") && said.contains("run notebook 02_teacher again"), "{said}");
    // One of these data that was interrupted.
    let said = child_says("half", &variables);
    assert!(said.contains("half-trained: it ended after 0 of 2 epochs (interrupted)"), "{said}");
    std::fs::write(teacher.join("history.json"), &history[..40]).unwrap();
    let said = child_says("runs", &variables);
    assert!(said.contains("teacher") && said.contains("damaged"), "{said}");
    let said = child_says("history", &variables);
    assert!(said.contains("no finished epoch of a fit \"nix\"") && said.contains("fits there: teacher"), "{said}");
}

#[test]
fn every_number_of_a_profile_can_be_changed() {
    let mut lab = Lab::open().unwrap();
    (lab.profile.student_epochs, lab.profile.sweep_size) = (3, 24);
    assert_eq!((lab.fit_options("own").epochs, lab.sweep_plan("own").size), (3, 24));
}
