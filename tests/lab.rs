//! What a notebook opens first. The environment decides, so each case runs in a process of its own.

use kdlab::Lab;
use kdlab::study::{Sweep, Verdict};
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
        (Ok(lab), "bets") => {
            let bet = |i| lab.bet(&format!("{} {i}", std::process::id()), 1.0);
            (0..20).try_for_each(bet).map_or_else(|e| format!("error: {e}"), |()| "done".into())
        }
        (Ok(lab), "stored") => stored(&lab).unwrap_or_else(|e| format!("error: {e}")),
        (Ok(lab), _) => {
            let made = lab.dataset().and_then(|data| lab.teacher(&data)?.logits(&data.train));
            made.map_or_else(|e| format!("error: {e}"), |logits| format!("{:?}", logits.tensor.size()))
        }
    };
    println!("<<{said}>>");
}

/// Runs a sweep, stores its report as the repository does, and asks for it and for another one. Returns which of them
/// were run, and the closing table.
fn stored(lab: &Lab) -> kdlab::Result<String> {
    let data = lab.dataset()?;
    let plan = Sweep { images: Some(30), seeds: vec![0, 1], ..lab.sweep_plan("few") };
    let (made, store) = (lab.folder.join("sweeps/few"), lab.folder.join("notebooks/stored/few.json"));
    let mut said = vec![];
    let mut ask = |plan: &Sweep| {
        let report = lab.sweep_or_stored(plan, &data)?;
        said.push(made.exists().to_string());
        if made.exists() {
            std::fs::create_dir_all(store.parent().expect("a folder")).expect("it can be made");
            std::fs::copy(made.join("sweep.json"), &store).expect("the report is written");
            std::fs::remove_dir_all(&made).expect("it is there");
        }
        Ok::<_, kdlab::Error>(report)
    };
    let report = ask(&plan)?;
    assert_eq!(ask(&plan)?, report);
    ask(&Sweep { epochs: 2, ..plan })?;
    let table = lab.report(&data, &lab.teacher(&data)?, &[&report])?.to_string();
    Ok(format!("{} {table}", said.join(" ")))
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
fn the_teacher_is_trained_once_and_again_where_it_does_not_fit() {
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
    let file = folder.path().join("smoke/teacher/history.json");
    let ask = || {
        assert_eq!(child_says("teacher", &variables), "[300, 10]");
        let history = kdlab::train::History::load(&file).unwrap();
        assert!(history.stopped.is_none() && history.records.len() == 2, "{history:?}");
        (history.data_key, std::fs::metadata(&file).unwrap().modified().unwrap())
    };
    let first = ask();
    assert_eq!(ask(), first, "it was trained twice");
    let stored = child_says("stored", &[&variables[..], &[("KDLAB_ROOT", &format!("{path}/smoke"))]].concat());
    assert!(stored.starts_with("true false true"), "{stored}");
    for row in ["teacher efficientnet-lite0", "few: alone", "few: kd-T4-alpha0.9"] {
        assert!(stored.contains(row), "{row} is missing in {stored}");
    }
    // A teacher of other data lies there, then a half-trained one of these data.
    let history = r#"{"name":"teacher","criterion":"ce","data_key":"other","epochs":2,"records":[],"stopped":null}"#;
    for history in [history.to_owned(), history.replace("other", &first.0).replace("null", r#""interrupted""#)] {
        std::fs::write(&file, history).unwrap();
        assert_eq!(ask().0, first.0);
    }
    std::fs::write(&file, &history[..40]).unwrap();
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

#[test]
fn bets_of_two_processes_at_once_are_all_kept() {
    let runs = tempfile::tempdir().expect("a folder");
    let variables = [("KDLAB_PROFILE", "smoke"), ("KDLAB_RUNS", runs.path().to_str().expect("text"))];
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..2).map(|_| scope.spawn(|| child_says("bets", &variables))).collect();
        all.into_iter().for_each(|child| assert!(child.join().expect("it ends").ends_with("done")));
    });
    let text = std::fs::read_to_string(runs.path().join("smoke/bets.json")).expect("bets");
    assert_eq!(text.matches("1.0").count(), 40, "{text}");
}

#[test]
fn bets_are_kept_and_shown_beside_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let mut lab = Lab::open().unwrap();
    lab.folder = folder.path().to_owned();
    let verdict = Verdict::new(&[0.40, 0.41, 0.42], &[0.45, 0.47, 0.46], 1).unwrap();
    assert!(lab.bets(&[("patience", &verdict)]).unwrap().to_string().contains("none"));
    lab.bet("patience", 50.0).unwrap();
    lab.bet("patience", 5.0).unwrap();
    lab.bet("other", -2.5).unwrap();
    let table = lab.bets(&[("patience", &verdict), ("other", &verdict)]).unwrap().to_string();
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["patience", "+5.0", "+5.0", "+2.5", "to", "+7.5", "inside"]);
    assert_eq!((rows[1][1], rows[1][6]), ("-2.5", "outside"));
    for odd in [f64::NAN, 101.0, -1e9] {
        let e = lab.bet("patience", odd).unwrap_err().to_string();
        assert!(e.contains(&format!("-100 to 100, got {odd}")), "{e}");
    }
    std::fs::write(folder.path().join("bets.json"), "[").unwrap();
    assert!(lab.bet("patience", 1.0).unwrap_err().to_string().contains("does not hold bets"));
}
