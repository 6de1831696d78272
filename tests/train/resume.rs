//! What is on disk after a fit, finished or killed, and who may go on from it.

use super::*;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The fit of these tests in the folder `run` of `folder`. A slow one stops in the middle of its third epoch, until
/// there is a file `go`.
fn small_fit(folder: &Path, slow: bool, given: FitOptions) -> (Model, History) {
    let data = dataset(tempfile::tempdir().unwrap().path(), 0);
    let (train, validation) = examples(&data);
    let (marker, go, steps) = (folder.join("in-third-epoch"), folder.join("go"), AtomicUsize::new(0));
    let criterion = Criterion::soft("slow", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
        // 8 training and 2 validation batches an epoch: the 25th is in the middle of the third.
        if slow && steps.fetch_add(1, Ordering::Relaxed) == 24 {
            std::fs::write(&marker, "").unwrap();
            let start = Instant::now();
            while !go.exists() && start.elapsed().as_secs() < 60 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap()
    });
    let mut model = Model::new("student", Device::Cpu, 1, &|vs| student(vs, 10)).unwrap();
    let options = FitOptions { folder: Some(folder.join("run")), learning_rate: 1e-3, ..given };
    let history = fit(&mut model, &train, &validation, &criterion, &options).unwrap();
    (model, history)
}

/// Run by tests below in a process of its own; by itself it does nothing.
#[test]
fn child_fit() {
    let Ok(folder) = std::env::var("KDLAB_TEST_CHILD") else {
        return;
    };
    let (folder, slow) = (Path::new(&folder), std::env::var_os("KDLAB_TEST_SLOW").is_some());
    let (model, _) = small_fit(folder, slow, options(4));
    model.save(folder.join("final.safetensors")).unwrap();
}

fn child(folder: &Path, slow: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "resume::child_fit"]).env("KDLAB_TEST_CHILD", folder).stdout(Stdio::null());
    if slow {
        command.env("KDLAB_TEST_SLOW", "1");
    }
    command.spawn().unwrap()
}

/// A fit in another process, which has come to its third epoch.
fn begun(folder: &Path) -> Child {
    let (mut child, start) = (child(folder, true), Instant::now());
    while !folder.join("in-third-epoch").exists() {
        assert!(start.elapsed().as_secs() < 120 && child.try_wait().unwrap().is_none(), "the child never got there");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn history(folder: &Path, name: &str) -> History {
    History::load(folder.join(name).join("history.json")).unwrap()
}

#[test]
fn a_killed_fit_resumes_and_ends_as_an_unbroken_one() {
    let (broken, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut killed = begun(broken.path());
    killed.kill().unwrap(); // SIGKILL
    killed.wait().unwrap();
    let history = |folder: &Path| history(folder, "run");
    assert_eq!(history(broken.path()).records.len(), 2);
    let begun = std::fs::metadata(broken.path().join("run/history.json")).unwrap().modified().unwrap();
    assert!(child(broken.path(), false).wait().unwrap().success());
    assert!(child(whole.path(), false).wait().unwrap().success());
    assert!(std::fs::metadata(broken.path().join("run/history.json")).unwrap().modified().unwrap() > begun);
    assert_eq!(curve(&history(broken.path())), curve(&history(whole.path())));
    assert_eq!(history(broken.path()).records.len(), 4);
    let weights = |folder: &Path| std::fs::read(folder.join("final.safetensors")).unwrap();
    assert!(weights(broken.path()) == weights(whole.path()), "the resumed student ended with other weights");
}

#[test]
fn a_fit_waits_for_another_process_in_its_folder_until_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = begun(folder.path());
    let text = std::fs::read_to_string(folder.path().join(".run.lock")).unwrap();
    assert!(text.starts_with(&format!("process {} on ", other.id())), "{text}");
    let started = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&started);
    let listener = Listener::new(move |event| {
        counter.fetch_add(matches!(event, Event::Started { .. }).into(), Ordering::Relaxed);
    });
    let fit_here = |control: Control| {
        let options = FitOptions { seed: 1, control, listener: listener.clone(), ..options(4) };
        small_fit(folder.path(), false, options).1
    };

    let control = Control::default();
    let stopped = std::thread::scope(|scope| {
        let fit = scope.spawn(|| fit_here(control.clone()));
        while !fit.is_finished() {
            control.stop("test");
            std::thread::sleep(Duration::from_millis(50));
        }
        fit.join().unwrap()
    });
    assert_eq!((stopped.stopped.as_deref(), stopped.records.len()), (Some("test"), 0));

    let done = std::thread::scope(|scope| {
        let fit = scope.spawn(|| fit_here(Control::default()));
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(started.load(Ordering::Relaxed), 0, "it did not wait");
        other.kill().unwrap(); // SIGKILL
        other.wait().unwrap();
        fit.join().unwrap()
    });
    // The files of the two did not mix.
    assert_eq!([&done, &history(folder.path(), "run-1")].map(|h| h.records.len()), [4, 2]);
    assert_eq!(curve(&history(folder.path(), "run")), curve(&done));
    assert!(folder.path().join("run-1/checkpoint.safetensors").exists());
}

#[test]
fn a_fit_that_waited_for_the_same_one_has_its_result() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = begun(folder.path());
    let (weights, done) = std::thread::scope(|scope| {
        let fit = scope.spawn(|| {
            let (model, history) = small_fit(folder.path(), false, options(4));
            (values(&model), history)
        });
        // By then it waits.
        std::thread::sleep(Duration::from_secs(2));
        std::fs::write(folder.path().join("go"), "").unwrap();
        fit.join().unwrap()
    });
    assert!(other.wait().unwrap().success());
    // With the same seconds: it was not trained again.
    assert_eq!(done, history(folder.path(), "run"));
    let mut theirs = Model::new("student", Device::Cpu, 2, &|vs| student(vs, 10)).unwrap();
    theirs.load(folder.path().join("final.safetensors")).unwrap();
    assert!(weights == values(&theirs));
}

#[test]
fn a_checkpoint_of_other_settings_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let resumed = Arc::new(AtomicUsize::new(0));
    let run_folder = folder.path().join("run");
    let run = |temperature: f64, seed: u64, stop_after: usize| {
        let control = Control::default();
        let (hand, counter) = (control.clone(), Arc::clone(&resumed));
        let listener = Listener::new(move |e| match e {
            Event::Started { history, .. } if !history.records.is_empty() => {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Event::Epoch { record, .. } if record.epoch == stop_after => hand.stop("test"),
            _ => {}
        });
        let options = FitOptions { folder: Some(run_folder.clone()), seed, control, listener, ..options(4) };
        let criterion = Criterion::kd(KdLoss::new(temperature, 0.5).unwrap());
        fit(&mut tiny_model(1), &train, &validation, &criterion, &options).unwrap().records.len()
    };
    assert_eq!(run(4.0, 0, 2), 2);
    assert_eq!(run(2.0, 0, 2), 2); // another temperature: from the start
    assert_eq!(run(2.0, 1, 2), 2); // another seed: from the start
    assert_eq!(resumed.load(Ordering::Relaxed), 0);
    assert_eq!(run(2.0, 1, 0), 4); // the same again: goes on
    assert_eq!(resumed.load(Ordering::Relaxed), 1);
    assert_eq!(run(2.0, 1, 0), 4); // finished: trained anew
    assert_eq!(resumed.load(Ordering::Relaxed), 1);
    // The two that made room are still there.
    let kept = |name: &str| History::load(folder.path().join(name).join("history.json")).unwrap();
    assert_eq!(
        [kept("run-1"), kept("run-2")].map(|h| h.records[0].hyperparameters.temperature),
        [Some(4.0), Some(2.0)]
    );
    assert!(!folder.path().join("run-3").exists());
    let mut lab = kdlab::Lab::open().unwrap();
    lab.folder = folder.path().into();
    let mut names: Vec<_> = lab.histories().into_iter().map(|history| history.name).collect();
    names.sort();
    assert_eq!(names, ["run", "run-1", "run-2"]);
}

#[test]
fn a_stop_in_validation_ends_it_at_once_and_trains_no_epoch_twice() {
    let (broken, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = dataset(broken.path(), 0);
    let (train, validation) = examples(&data);
    // Passes over batches: in training, and in validation after the stop.
    let run = |folder: &Path, stop_in: Option<usize>| {
        let (trained, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (steps, after) = (Arc::clone(&trained), Arc::clone(&late));
        let control = Control::default();
        let hand = control.clone();
        // 8 training and 2 validation batches an epoch.
        let criterion = Criterion::soft("mine", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
            if s.requires_grad() {
                steps.fetch_add(1, Ordering::Relaxed);
            } else if stop_in.is_some_and(|epoch| steps.load(Ordering::Relaxed) == 8 * epoch) {
                after.fetch_add(1, Ordering::Relaxed);
                hand.stop("enough");
            }
            KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap()
        });
        let mut model = tiny_model(1);
        let options = FitOptions { folder: Some(folder.join("run")), control, ..options(3) };
        let history = fit(&mut model, &train, &validation, &criterion, &options).unwrap();
        (history, values(&model), trained.load(Ordering::Relaxed), late.load(Ordering::Relaxed))
    };
    let unbroken = run(whole.path(), None);
    assert_eq!((unbroken.0.records.len(), unbroken.2), (3, 24));
    for (epoch, first) in [(2, 16), (1, 8)] {
        let folder = broken.path().join(epoch.to_string());
        std::fs::create_dir(&folder).unwrap();
        let (stopped, kept, trained, late) = run(&folder, Some(epoch));
        assert_eq!((stopped.records.len(), stopped.stopped.as_deref()), (epoch - 1, Some("enough")));
        assert_eq!((trained, late), (first, 1), "no batch comes after the stop");
        assert_eq!(History::load(folder.join("run/history.json")).unwrap(), stopped);
        // The model has the best weights so far: without a measured epoch, those it began with.
        assert_eq!(folder.join("run/best.safetensors").exists(), epoch > 1);
        assert!(epoch > 1 || kept == values(&tiny_model(1)));
        let (history, weights, trained, _) = run(&folder, None);
        assert_eq!(trained, 24 - first, "what was trained is not trained again");
        assert_eq!(curve(&history), curve(&unbroken.0));
        assert_eq!((history.stopped, weights), (None, unbroken.1.clone()));
    }
}

/// Stopped in two epochs, with dropout and a moving average: not a batch is trained twice, and the end is the same.
#[test]
fn a_stop_in_training_costs_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let dropping = |vs: &nn::Path| tiny(vs).add("dropout", Op::Dropout(0.3));
    // 8 training batches an epoch.
    let run = |name: &str, stop_at: Option<usize>| {
        let trained = Arc::new(AtomicUsize::new(0));
        let (steps, control) = (Arc::clone(&trained), Control::default());
        let hand = control.clone();
        let criterion = Criterion::soft("mine", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
            if s.requires_grad() && Some(steps.fetch_add(1, Ordering::Relaxed) + 1) == stop_at {
                hand.stop("enough");
            }
            KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap()
        });
        let mut model = Model::new("dropping", Device::Cpu, 1, &dropping).unwrap();
        let recipe = Recipe { average: Some(0.9), ..Recipe::default() };
        let options = FitOptions { folder: Some(folder.path().join(name)), control, recipe, ..options(3) };
        let history = fit(&mut model, &train, &validation, &criterion, &options).unwrap();
        (history, values(&model), trained.load(Ordering::Relaxed))
    };
    let whole = run("whole", None);
    for (stop_at, epochs) in [(Some(3), 0), (Some(2), 0), (Some(7), 1)] {
        let (stopped, _, trained) = run("run", stop_at);
        assert_eq!((stopped.records.len(), Some(trained)), (epochs, stop_at));
    }
    let (history, weights, trained) = run("run", None);
    assert_eq!((whole.2, trained), (24, 24 - 3 - 2 - 7));
    assert!(weights == whole.1, "other weights than those of an unbroken run");
    for (a, b) in history.records.iter().zip(&whole.0.records) {
        assert_eq!(a.validation, b.validation);
        // Sums of f32 in another order.
        assert!((a.train.loss - b.train.loss).abs() < 1e-6 && a.train.accuracy == b.train.accuracy, "{a:?} {b:?}");
    }
    // Weights that are no numbers are not worth keeping.
    let (steps, control) = (AtomicUsize::new(0), Control::default());
    let hand = control.clone();
    let criterion = Criterion::hard("diverging", move |s, y| {
        let step = steps.fetch_add(usize::from(s.requires_grad()), Ordering::Relaxed);
        if step == 4 {
            hand.stop("enough");
        }
        s.cross_entropy_for_logits(y) * if step > 3 { f64::NAN } else { 1.0 }
    });
    let options = FitOptions { folder: Some(folder.path().join("diverging")), control, ..options(1) };
    // Stopped, or diverged where progress was due just then.
    let _ = fit(&mut tiny_model(1), &train, &validation, &criterion, &options);
    assert!(!folder.path().join("diverging/checkpoint.safetensors").exists());
}

#[test]
fn a_run_s_best_weights_are_loaded_for_its_own_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let runs = folder.path().join("runs");
    let mut lab = kdlab::Lab::open().unwrap();
    lab.folder = runs.clone();
    (lab.device, lab.precision, lab.cache) = (Device::Cpu, Some(Precision::F32), folder.path().to_owned());
    let mut model = tiny_model(1);
    let options = FitOptions { folder: Some(runs.join("mine")), ..options(2) };
    fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
    let mut again = tiny_model(2);
    lab.load_best("mine", &mut again, &train).unwrap();
    assert_eq!(values(&again), values(&model));
    let e = lab.load_best("other", &mut again, &train).unwrap_err().to_string();
    assert!(e.contains("no run \"other\"") && e.contains("04_distillation"), "{e}");
    let e = lab.load_best("mine", &mut again, &validation).unwrap_err().to_string();
    assert!(e.contains("trained on other images"), "{e}");
}

#[test]
fn a_value_set_after_the_stop_counts_and_one_set_before_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let control = Control::default();
    let held = control.clone();
    let listener = Listener::new(move |event| match event {
        Event::Epoch { record, .. } if record.epoch == 1 => held.set_temperature(2.0).unwrap(),
        Event::Epoch { record, .. } if record.epoch == 2 => held.stop("test"),
        _ => {}
    });
    let criterion = Criterion::kd(KdLoss::new(4.0, 0.5).unwrap());
    let options = |control: Control, listener| FitOptions {
        folder: Some(folder.path().join("run")),
        control,
        listener,
        ..options(4)
    };
    let temperatures = |history: &History| {
        history.records.iter().map(|record| record.hyperparameters.temperature.unwrap()).collect::<Vec<_>>()
    };
    let run = |options: &FitOptions| fit(&mut tiny_model(1), &train, &validation, &criterion, options).unwrap();
    assert_eq!(temperatures(&run(&options(control.clone(), listener))), [4.0, 2.0]);
    control.set_temperature(8.0).unwrap();
    let resumed = run(&options(control, Listener::default()));
    assert_eq!(temperatures(&resumed), [4.0, 2.0, 8.0, 8.0]);
    let changes: Vec<_> = resumed.changes.iter().map(|c| (c.epoch, c.after.temperature.unwrap())).collect();
    assert_eq!(changes, [(1.0, 2.0), (2.0, 8.0)]);
}

#[test]
fn a_stop_is_on_disk_and_an_edited_loss_does_not_go_on_with_anothers_curve() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let run = folder.path().join("run");
    let loss = |factor: f64| {
        Criterion::soft("my loss", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
            KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap() * factor
        })
    };
    let fit_with = |factor: f64, stop_after: usize| {
        let control = Control::default();
        let held = control.clone();
        let listener = Listener::new(move |event| {
            if let Event::Epoch { record, .. } = event
                && record.epoch == stop_after
            {
                held.stop("enough");
            }
        });
        let mut model = Model::new("student", Device::Cpu, 1, &|vs| student(vs, 10)).unwrap();
        let options = FitOptions { folder: Some(run.clone()), control, listener, ..options(4) };
        fit(&mut model, &train, &validation, &loss(factor), &options).unwrap()
    };
    fit_with(1.0, 2);
    let stopped = History::load(run.join("history.json")).unwrap();
    assert_eq!((stopped.records.len(), stopped.stopped.as_deref()), (2, Some("enough")));
    // Another loss of the same name: a run of its own, and the stopped one is kept.
    let other = fit_with(300.0, 9);
    assert_eq!(other.records.len(), 4);
    assert!(other.records[0].train.loss > 50.0, "{:?}", other.records[0]);
    assert_eq!(History::load(folder.path().join("run-1/history.json")).unwrap(), stopped);
    // The same loss goes on where it was stopped.
    std::fs::rename(&run, folder.path().join("finished")).unwrap();
    std::fs::rename(folder.path().join("run-1"), &run).unwrap();
    let resumed = fit_with(1.0, 9);
    assert_eq!(curve(&resumed)[..2], curve(&stopped)[..]);
    assert_eq!((resumed.records.len(), &resumed.stopped), (4, &None));
    assert_eq!(History::load(run.join("history.json")).unwrap(), resumed);
    // Once more, and stopped: the finished one is still there, with its weights.
    let best = std::fs::read(run.join("best.safetensors")).unwrap();
    assert_eq!(fit_with(1.0, 1).stopped.as_deref(), Some("enough"));
    assert_eq!(History::load(run.join("history.json")).unwrap(), resumed);
    assert_eq!(std::fs::read(run.join("best.safetensors")).unwrap(), best);
    assert_eq!(curve(&fit_with(1.0, 9)), curve(&resumed));
}

#[test]
fn names_that_cannot_be_a_folder_of_the_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    for name in ["", "../x", "/tmp/x", ".hidden", "a/b", "cache", "sweeps"] {
        let mut model = Model::new("student", Device::Cpu, 1, &|vs| student(vs, 10)).unwrap();
        let run = folder.path().join("runs").join(name);
        let options = FitOptions { name: name.into(), folder: Some(run), ..options(1) };
        let error = fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).unwrap_err();
        assert!(error.to_string().contains(&format!("{name:?}")), "{name}: {error}");
        assert!(!folder.path().join("runs").exists(), "{name} left something behind");
    }
}

/// The header of a safetensors file with `from` replaced by `to`.
pub fn edited(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    assert!(header.contains(from), "{header}");
    let mut header = header.replace(from, to).trim_end().to_owned();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat()
}

#[test]
fn a_damaged_checkpoint_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (train, validation) = examples(&dataset(folder.path(), 0));
    let run_folder = folder.path().join("run");
    let run = |stop_after: usize| {
        let control = Control::default();
        let hand = control.clone();
        let listener = Listener::new(move |e| {
            if let Event::Epoch { record, .. } = e
                && record.epoch == stop_after
            {
                hand.stop("test");
            }
        });
        let options = FitOptions { folder: Some(run_folder.clone()), control, listener, ..options(3) };
        fit(&mut tiny_model(1), &train, &validation, &Criterion::cross_entropy(), &options).map_err(|e| e.to_string())
    };
    run(1).unwrap();
    let path = run_folder.join("checkpoint.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let resume = |bytes: Vec<u8>| {
        let _ = std::fs::remove_dir_all(&run_folder);
        std::fs::create_dir(&run_folder).unwrap();
        std::fs::write(&path, bytes).unwrap();
        run(0)
    };
    assert_eq!(resume(whole.clone()).unwrap().records.len(), 3);
    // As many steps as the type can count; the next one would be one too many.
    assert_eq!(
        resume(edited(&whole, r#""steps":"8""#, &format!(r#""steps":"{}""#, u64::MAX))).unwrap().records.len(),
        3
    );
    // Steps that are no number, and bytes that are no file: the fit starts anew.
    assert_eq!(resume(edited(&whole, r#""steps":"8""#, r#""steps":"-8""#)).unwrap().records.len(), 3);
    assert_eq!(resume(whole[..whole.len() / 2].to_vec()).unwrap().records.len(), 3);
    assert_eq!(resume(Vec::new()).unwrap().records.len(), 3);
    // A variable of another shape, and values that no slider gives, are told.
    let e = resume(edited(&whole, "weights/fc.bias", "weights/fc.bios")).unwrap_err();
    assert!(e.contains("lacks weights/fc.bias; delete it and fit again"), "{e}");
    let e = resume(edited(&whole, r#""live":"[null,null,null]""#, r#""live":"[-1.0,null,null]""#)).unwrap_err();
    assert!(e.contains("temperature must be > 0, got -1"), "{e}");
}
