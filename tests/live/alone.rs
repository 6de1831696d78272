//! Without a kernel: control, resume, background runs, printed lines.

use super::*;

#[test]
fn a_pause_holds_the_fit_and_does_not_count() {
    let b = bench();
    let options = plain_options("paused", 2);
    let control = options.control.clone();
    let begun = Arc::new(Mutex::new(None));
    let (hand, at) = (control.clone(), Arc::clone(&begun));
    let criterion = watched(move |step, _| {
        let mut at = at.lock().unwrap();
        if step == 9 {
            hand.pause();
            *at = Some(Instant::now());
            let hand = hand.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(3));
                hand.resume();
            });
        }
        if step == 10 {
            let waited = at.unwrap().elapsed();
            assert!(waited > Duration::from_secs(3), "it went on after {waited:?}");
        }
    });
    let start = Instant::now();
    let history = fit(&mut model(), &b.train, &b.validation, &criterion, &options).unwrap();
    assert!(history.seconds() < start.elapsed().as_secs_f64() - 2.9);
    let speed = |epoch: usize| history.records[epoch].images_per_second;
    assert!(speed(1) > 64.0 / 3.0, "the pause counts as work: {} img/s", speed(1));
    assert!(history.changes.is_empty() && history.stopped.is_none());
    assert!(!serde_json::to_string(&history).unwrap().contains("changes"));
    // A stop ends the pause too.
    control.pause();
    control.stop("enough");
    assert!(shows(&control, "paused: false"));
}

#[test]
fn changes_survive_a_resume_and_old_histories_load() {
    let b = bench();
    let folder = b.folder.path().join("run");
    let run = |criterion: &Criterion, control: Control, listener: Listener| {
        let options = FitOptions { folder: Some(folder.clone()), control, listener, ..plain_options("run", 4) };
        fit(&mut model(), &b.train, &b.validation, criterion, &options).unwrap()
    };
    let control = Control::default();
    let hand = control.clone();
    let criterion = watched(move |step, _| match step {
        3 => hand.set_temperature(2.0).unwrap(),
        12 => hand.set_learning_rate(1e-4).unwrap(),
        // Its epoch is not finished, but a stop keeps the half that is trained.
        17 => hand.set_alpha(0.9).unwrap(),
        19 => hand.stop("test"),
        _ => {}
    });
    let told = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&told);
    let listener = Listener::new(move |event| {
        if let Event::Changed { change, .. } = event {
            note.lock().unwrap().push(*change);
        }
    });
    let first = run(&criterion, control, listener);
    assert_eq!((first.records.len(), first.changes.len()), (2, 3));
    assert_eq!(*told.lock().unwrap(), first.changes);
    // Another control, as after a restart of the kernel: the values that were in force come from the checkpoint.
    let begun = Arc::new(Mutex::new(None));
    let note = Arc::clone(&begun);
    let listener = Listener::new(move |event| {
        if let Event::Started { history, hyperparameters: settings } = event {
            *note.lock().unwrap() = Some((history.records.len(), *settings));
        }
    });
    let control = Control::default();
    let whole = run(&watched(|_, _| ()), control.clone(), listener);
    assert_eq!(whole.changes, first.changes);
    assert_eq!(whole.changes.iter().map(|c| c.epoch).collect::<Vec<_>>(), [0.5, 1.625, 2.25]);
    let settings = Hyperparameters { temperature: Some(2.0), alpha: Some(0.9), learning_rate: 1e-4 };
    assert_eq!(*begun.lock().unwrap(), Some((2, settings)));
    assert_eq!((whole.records.len(), whole.records[3].hyperparameters.learning_rate), (4, 1e-4));
    let file = folder.join("history.json");
    assert_eq!(History::load(&file).unwrap(), whole);
    // Older files have no list of changes.
    let mut old: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("changes");
    std::fs::write(&file, old.to_string()).unwrap();
    let old = History::load(&file).unwrap();
    assert_eq!((old.records.len(), old.changes.len()), (4, 0));
}

#[test]
fn background_runs_take_turns_and_outlive_errors() {
    let b = bench();
    let lab = kdlab::Lab::open().unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let spawn = |name: &str, criterion: Criterion, learning_rate: f64| {
        let (heard, of) = (Arc::clone(&order), name.to_owned());
        let listener = Listener::new(move |event| match event {
            Event::Started { .. } => heard.lock().unwrap().push(format!("{of} began")),
            Event::Finished(_) | Event::Failed { .. } => heard.lock().unwrap().push(format!("{of} ended")),
            _ => {}
        });
        let options = FitOptions { listener, learning_rate, ..plain_options(name, 2) };
        lab.spawn(model(), &b.train, &b.validation, criterion, options).unwrap()
    };
    let (gate, opened) = mpsc::channel::<()>();
    let opened = Mutex::new(opened);
    let first = watched(move |step, _| {
        if step == 12 {
            let _ = opened.lock().unwrap().recv_timeout(LIMIT);
        }
    });
    let runs = [
        spawn("first", first, 1e-3),
        spawn("refused", Criterion::cross_entropy(), -1.0),
        spawn("panics", Criterion::hard("panics", |_, _| panic!("on purpose")), 1e-3),
        spawn("last", watched(|_, _| ()), 1e-3),
    ];
    // `spawn` returned at once. The first run is under way, and its state can be read and changed.
    until("the second epoch", || runs[0].to_string().starts_with("first: running, epoch 2 of 2"));
    assert_eq!(runs[0].history().records.len(), 1);
    assert_eq!(runs[3].to_string(), "last: queued");
    runs[0].control().set_temperature(9.0).unwrap();
    assert!(runs[0].to_string().starts_with("first: running, epoch 2 of 2; best validation accuracy"), "{}", runs[0]);
    drop(gate);
    let [first, refused, panics, last] = runs;
    let (fitted, history) = first.wait().unwrap();
    assert_eq!(history.records[1].hyperparameters.temperature, Some(9.0));
    assert_eq!(evaluate(&fitted, &b.validation, 8).unwrap().accuracy(), history.best().unwrap().validation.accuracy);
    // The queue goes on after its owner and its runs are dropped.
    drop(lab);
    assert!(refused.wait().unwrap_err().to_string().contains("learning rate must be > 0, got -1"));
    until("the panic", || panics.to_string().contains("failed"));
    assert_eq!(panics.to_string(), "panics: failed: libtorch: the fit panicked: on purpose");
    assert!(panics.wait().is_err());
    let (_, history) = last.wait().unwrap();
    assert_eq!((history.records.len(), history.changes.len()), (2, 0));
    let ended =
        ["first began", "first ended", "refused ended", "panics began", "panics ended", "last began", "last ended"];
    assert_eq!(*order.lock().unwrap(), ended);
}

/// The test below runs this in processes of their own; without the variable it does nothing.
#[test]
fn child_prints() {
    let Ok(case) = std::env::var("KDLAB_TEST_CHILD") else { return };
    let b = bench();
    let options = live_options(&case, 2);
    let history = fit(&mut model(), &b.train, &b.validation, &Criterion::cross_entropy(), &options).unwrap();
    assert_eq!(history.records.len(), 2);
    evaluate(&model(), &b.validation, 8).unwrap();
    // In the background nothing is printed until somebody waits.
    let lab = kdlab::Lab::open().unwrap();
    let run =
        lab.spawn(model(), &b.train, &b.validation, Criterion::cross_entropy(), live_options("unheard", 2)).unwrap();
    until("its end", || run.to_string().contains("finished"));
    run.wait().unwrap();
}

#[test]
fn without_a_kernel_lines_are_printed_and_nothing_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let deaf = folder.path().join("deaf");
    let other = Kernel::listen(&deaf, "another token");
    let nobody = folder.path().join("nobody");
    for (case, socket) in [("stock", None), ("nobody", Some(&nobody)), ("deaf", Some(&deaf))] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "alone::child_prints", "--nocapture"]).env("KDLAB_TEST_CHILD", case);
        match socket {
            Some(path) => command.env("LIVE_KERNEL_SOCKET", path).env("LIVE_KERNEL_TOKEN", "secret"),
            None => command.env_remove("LIVE_KERNEL_SOCKET"),
        };
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for line in [
            format!("{case}  1/2  train "),
            format!("{case}  2/2  train "),
            format!("{case}: kept the weights of epoch "),
        ] {
            assert!(said.contains(&line), "{line} is missing in {said}");
        }
        assert!(!said.contains("unheard"), "{said}");
    }
    assert!(other.messages().is_empty());
}
