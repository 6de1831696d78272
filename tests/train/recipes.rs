//! What a fit promises about its recipe: it is refused, resumed, averaged and ended as its settings say.

use super::*;

/// A network with BatchNorm, whose statistics are averaged too.
fn normalised_model() -> Model {
    let build = |vs: &nn::Path| {
        Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
            .add("fc1", nn::linear(vs / "fc1", 48, 16, Default::default()))
            .add("bn", nn::batch_norm1d(vs / "bn", 16, Default::default()))
            .func("relu", |x| x.relu())
            .add("fc2", nn::linear(vs / "fc2", 16, 10, Default::default()))
    };
    Model::new("normalised", Device::Cpu, 1, &build).unwrap()
}

fn everything() -> Recipe {
    Recipe {
        optimizer: UpdateRule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 5e-4 },
        decay_weights_only: true,
        schedule: Schedule::OneCycle,
        warmup: 1.0,
        clip_norm: Some(1.0),
        average: Some(0.9),
        label_smoothing: 0.1,
        class_weights: Some((1..=10).map(f64::from).collect()),
        patience: Some(4),
    }
}

/// A control that is stopped after an epoch, and the listener that stops it.
pub fn stopping_after(epoch: usize) -> (Control, Listener) {
    let control = Control::default();
    let hand = control.clone();
    let listener = Listener::new(move |event| {
        if matches!(event, Event::Epoch { record, .. } if record.epoch == epoch) {
            hand.stop("test");
        }
    });
    (control, listener)
}

#[test]
fn an_interrupted_recipe_ends_as_an_unbroken_one_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let run = |name: &str, (control, listener): (Control, Listener)| {
        let mut model = normalised_model();
        let folder = Some(folder.path().join(name));
        let options = FitOptions { recipe: everything(), folder, control, listener, ..options(5) };
        let criterion = Criterion::kd(KdLoss::new(4.0, 0.5).unwrap());
        (fit(&mut model, &train, &validation, &criterion, &options).unwrap(), values(&model))
    };
    let whole = run("whole", Default::default());
    assert_eq!(whole.0.records.len(), 5);
    for epoch in [1, 3] {
        let name = format!("broken after {epoch}");
        assert_eq!(run(&name, stopping_after(epoch)).0.records.len(), epoch);
        let resumed = run(&name, Default::default());
        assert_eq!((curve(&resumed.0), &resumed.1), (curve(&whole.0), &whole.1));
        let files = [name.as_str(), "whole"].map(|name| folder.path().join(name).join("best.safetensors"));
        let [broken, unbroken] = files.map(|file| std::fs::read(file).unwrap());
        assert!(broken == unbroken);
    }
}

/// Stopped in its validation, the fit goes on with the weights themselves, not with their average.
#[test]
fn a_stop_in_validation_leaves_the_weights_that_were_trained() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let recipe = Recipe { average: Some(0.9), ..Recipe::default() };
    let run = |name: &str, stop: bool| {
        let control = Control::default();
        let (hand, steps) = (control.clone(), AtomicUsize::new(0));
        let criterion = Criterion::hard("watched", move |s, y| {
            // 8 training and 2 validation batches an epoch.
            if stop && steps.fetch_add(1, Ordering::Relaxed) == 18 {
                hand.stop("test");
            }
            s.cross_entropy_for_logits(y)
        });
        let mut model = normalised_model();
        let folder = Some(folder.path().join(name));
        let options = FitOptions { recipe: recipe.clone(), folder, control, ..options(3) };
        (fit(&mut model, &train, &validation, &criterion, &options).unwrap(), values(&model))
    };
    let whole = run("whole", false);
    assert_eq!(run("broken", true).0.records.len(), 1);
    let resumed = run("broken", false);
    assert_eq!((curve(&resumed.0), resumed.1), (curve(&whole.0), whole.1));
}

#[test]
fn the_average_is_what_is_judged_kept_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let run_folder = folder.path().join("run");
    let recipe = Recipe { average: Some(0.95), ..Recipe::default() };
    let options = FitOptions { recipe, folder: Some(run_folder.clone()), ..options(6) };
    let mut model = normalised_model();
    let history = fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
    let best = history.best().unwrap();
    let measured = evaluate(&model, &validation, 8).unwrap();
    assert_eq!(measured.accuracy(), best.validation.accuracy);
    assert!((measured.cross_entropy - best.validation.cross_entropy).abs() < 1e-5);
    let mut loaded = normalised_model();
    loaded.load(run_folder.join("best.safetensors")).unwrap();
    assert_eq!(values(&loaded), values(&model));
    let checkpoint = Tensor::read_safetensors(run_folder.join("checkpoint.safetensors")).unwrap();
    let of = |part: &str| {
        let name = format!("{part}/bn.running_mean");
        checkpoint.iter().find(|(found, _)| *found == name).map(|(_, t)| t.shallow_clone()).unwrap()
    };
    assert_ne!(of("weights"), of("average"), "statistics of BatchNorm are averaged with the weights");
    if best.epoch == 6 {
        assert_eq!(of("best"), of("average"));
    }
}

#[test]
fn a_fit_whose_validation_no_longer_improves_ends_early_and_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let fit_with = |patience, name: &str, (control, listener): (Control, Listener)| {
        let recipe = Recipe { patience, ..Recipe::default() };
        let folder = Some(folder.path().join(name));
        // So large a step makes accuracy jump about.
        let options = FitOptions { recipe, learning_rate: 0.5, folder, control, listener, ..options(30) };
        let mut model = tiny_model(1);
        let history = fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
        (history, values(&model))
    };
    let all = fit_with(None, "all", Default::default()).0;
    let (history, weights) = fit_with(Some(3), "patient", Default::default());
    let done = history.records.len();
    assert!(done < 30, "it would never have ended");
    assert_eq!(curve(&history), curve(&all)[..done], "up to there it is the run without patience");
    assert_eq!((done, &history.stopped), (history.best().unwrap().epoch + 3, &None));
    // No epoch before it was the third in a row without a better one.
    for shorter in 1..done {
        let part = History { records: history.records[..shorter].to_vec(), ..history.clone() };
        assert!(shorter < part.best().unwrap().epoch + 3);
    }
    // It counts as finished: a later call trains anew, and one that was interrupted before goes on to the same end.
    assert_eq!(fit_with(Some(3), "patient", Default::default()).0.records.len(), done);
    fit_with(Some(3), "broken", stopping_after(2));
    let resumed = fit_with(Some(3), "broken", Default::default());
    assert_eq!((curve(&resumed.0), resumed.1), (curve(&history), weights));
    let read = History::load(folder.path().join("broken/history.json")).unwrap();
    assert_eq!(read, resumed.0);
}

/// The slider moves the learning rate that the schedule multiplies.
#[test]
fn the_schedule_multiplies_a_learning_rate_that_was_set_live() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let run = |learning_rate, control: Control| {
        let recipe = Recipe { schedule: Schedule::Cosine, warmup: 0.5, ..Recipe::default() };
        let options = FitOptions { recipe, learning_rate, control, ..options(3) };
        let mut model = tiny_model(1);
        fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
        values(&model)
    };
    let control = Control::default();
    control.set_learning_rate(2e-2).unwrap();
    assert_eq!(run(1e-2, control), run(2e-2, Control::default()));
    assert_ne!(run(1e-2, Control::default()), run(2e-2, Control::default()));
}

#[test]
fn two_recipes_never_share_a_run_and_older_checkpoints_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let run_folder = folder.path().join("run");
    let run = |recipe: Recipe, epoch| {
        let begun = Arc::new(AtomicUsize::new(9));
        let (control, seen) = (Control::default(), Arc::clone(&begun));
        let hand = control.clone();
        let listener = Listener::new(move |event| match event {
            Event::Started { history, .. } => seen.store(history.records.len(), Ordering::Relaxed),
            Event::Epoch { record, .. } if record.epoch == epoch => hand.stop("test"),
            _ => {}
        });
        let options = FitOptions { recipe, folder: Some(run_folder.clone()), control, listener, ..options(3) };
        fit(&mut tiny_model(1), &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
        begun.load(Ordering::Relaxed)
    };
    let averaged = Recipe { average: Some(0.9), ..Recipe::default() };
    assert_eq!(run(averaged.clone(), 1), 0);
    assert_eq!(run(Recipe { average: Some(0.99), ..Recipe::default() }, 1), 0, "another recipe begins anew");
    assert_eq!(run(Recipe::default(), 1), 0);
    // A history as it was written before there were recipes.
    let path = run_folder.join("checkpoint.safetensors");
    let old = resume::edited(&std::fs::read(&path).unwrap(), r#",\"steps_per_epoch\":8"#, "");
    std::fs::write(&path, old).unwrap();
    assert_eq!(run(Recipe::default(), 9), 1, "an older checkpoint goes on");
}

/// A student of convolutions: its layer `relu1` has 4 channels at half the size of the images.
fn convolutions(channels: i64) -> Model {
    let build = |vs: &nn::Path| {
        let config = nn::ConvConfig { stride: 2, padding: 1, ..Default::default() };
        Layers::new()
            .add("conv1", nn::conv2d(vs / "conv1", 3, channels, 3, config))
            .add("relu1", kdlab::models::Op::ReLU)
            .func("pool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", channels, 10, Default::default()))
    };
    Model::new("convolutions", Device::Cpu, 1, &build).unwrap()
}

#[test]
fn features_are_tapped_by_name_projected_resumed_and_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let (teacher, transform) = (convolutions(6), normalised(32));
    let compute = |layer: &str, split| {
        let cache = folder.path().join("cache");
        layer_features(&teacher, layer, split, &transform, 7, Some(&cache), &Listener::default())
    };
    let maps = compute("relu1", &data.train).unwrap();
    assert_eq!(maps.tensor.size(), [data.train.len() as i64, 6 * 16 * 16]);
    let images = Examples::images(&data.train, &transform).unwrap().batch(&[3], Device::Cpu).unwrap().inputs;
    let alone = teacher.forward(&images, false).unwrap();
    let pooled = compute("pool", &data.train).unwrap();
    let fc = teacher.state();
    let logits = pooled.tensor.get(3).unsqueeze(0).linear(&fc[3].1, Some(&fc[2].1));
    assert!((logits - alone).abs().max().double_value(&[]) < 1e-5, "the layer's own output, of its own image");
    assert!(compute("relu1", &data.train).unwrap().from_disk);
    assert!(compute("relu9", &data.train).unwrap_err().to_string().contains("no layer \"relu9\"; it has conv1, relu1"));

    let (train, validation) = (train.with_teacher_features(&maps).unwrap(), validation);
    let [hint, attention, relational] = ["hint", "attention", "relational"].map(|name| name.parse().unwrap());
    for method in [hint, attention, relational] {
        let run = |name: &str, (control, listener): (Control, Listener)| {
            let kd = Criterion::kd(KdLoss::new(4.0, 0.5).unwrap());
            let criterion = kd.with_features(method, "relu1").unwrap();
            let mut model = convolutions(4);
            let folder = Some(folder.path().join(format!("{method} {name}")));
            let options = FitOptions { folder, control, listener, ..options(3) };
            (fit(&mut model, &train, &validation, &criterion, &options).unwrap(), values(&model))
        };
        let whole = run("whole", Default::default());
        run("broken", stopping_after(1));
        let resumed = run("broken", Default::default());
        assert_eq!((curve(&resumed.0), resumed.1), (curve(&whole.0), whole.1), "{method}");
        let [saved, checkpoint] = ["best", "checkpoint"].map(|file| {
            let path = folder.path().join(format!("{method} whole/{file}.safetensors"));
            Tensor::read_safetensors(path).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        });
        assert_eq!(saved.len(), 4, "the student alone: {saved:?}");
        let projected = checkpoint.iter().any(|name| name == "projection/weight");
        assert_eq!(projected, matches!(method, FeatureMethod::Hint { .. }), "{checkpoint:?}");
    }

    let refused = |train: &Examples, layer: &str, method: FeatureMethod| {
        let criterion = Criterion::cross_entropy().with_features(method, layer).unwrap();
        fit(&mut convolutions(4), train, &validation, &criterion, &options(1)).unwrap_err().to_string()
    };
    let e = refused(&train, "relu2", hint);
    assert!(e.contains("no layer \"relu2\"; it has conv1, relu1, pool, fc"), "{e}");
    let e = refused(&train, "pool", attention);
    assert!(
        e.contains("attention compares layer pool of the student, [1, 4], with the teacher's features, [1, 6, 16, 16]")
    );
    let e = refused(&examples(&data).0, "relu1", hint);
    assert!(e.contains("hint needs the teacher's features") && e.contains("with_teacher_features"), "{e}");
    let e = Criterion::cross_entropy().with_features(FeatureMethod::Hint { weight: -1.0 }, "relu1").err().unwrap();
    assert!(e.to_string().contains("hint: a weight must be >= 0, got -1"));
    let views = kdlab::data::Views::cross(2).unwrap();
    let e = train.with_views(&views).err().unwrap().to_string();
    assert!(e.contains("augmentation shows the student other views"), "{e}");
}

/// Also inside of an optimizer or a schedule, where a setting that is passed over would go unnoticed.
#[test]
fn a_setting_that_does_not_exist_is_refused_wherever_it_stands() {
    for (text, unknown) in [
        (r#"{"optimiser": "Adam"}"#, "optimiser"),
        (r#"{"optimizer": {"AdamW": {"weight_decay": 0.01, "betas": [0.5, 0.9]}}}"#, "betas"),
        (r#"{"schedule": {"Step": {"epochs": 3, "factor": 0.1, "gamma": 0.5}}}"#, "gamma"),
    ] {
        let error = serde_json::from_str::<Recipe>(text).expect_err(unknown).to_string();
        assert!(error.contains(&format!("unknown field `{unknown}`")), "{error}");
    }
}

#[test]
fn recipes_that_do_not_fit_are_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let (train, validation) = examples(&dataset(folder.path(), 0));
    let mut model = tiny_model(1);
    let before = values(&model);
    let plain = Recipe::default;
    let step = |epochs, factor| Recipe { schedule: Schedule::Step { epochs, factor }, ..plain() };
    for (recipe, says) in [
        (step(3, 0.1), "after every 3 epochs, and the run has 3 after its warm-up: take fewer epochs"),
        (step(0, 0.1), "after every 0 epochs"),
        (Recipe { warmup: 1.0, ..step(2, 0.1) }, "after every 2 epochs, and the run has 2 after its warm-up"),
        (step(1, 1.5), "a factor between 0 and 1, got 1.5; try 0.1"),
        (Recipe { warmup: 3.0, ..plain() }, "fewer than the run, which has 3, got 3; try 0.3"),
        (Recipe { warmup: -1.0, ..plain() }, "got -1"),
        (Recipe { warmup: f64::NAN, ..plain() }, "got NaN"),
        (Recipe { clip_norm: Some(0.0), ..plain() }, "clipped must be > 0, got 0; try 1"),
        (Recipe { average: Some(1.0), ..plain() }, "average must be between 0 and 1, got 1; try 0.99"),
        (Recipe { label_smoothing: -0.1, ..plain() }, "label smoothing must be in [0, 1), got -0.1; try 0.1"),
        (Recipe { class_weights: Some(vec![1.0; 9]), ..plain() }, "9 class weights for 10 classes: give one for each"),
        (Recipe { class_weights: Some(vec![0.0; 10]), ..plain() }, "class weights must be > 0, got 0"),
        (Recipe { class_weights: Some(vec![1e-60; 10]), ..plain() }, "class weights must be 1e-37 to 1e38, got 1e-60"),
        (Recipe { patience: Some(0), ..plain() }, "patience must be at least 1 epoch, got 0; None runs all epochs"),
        (
            Recipe { optimizer: UpdateRule::AdamW { weight_decay: -0.1 }, ..plain() },
            "weight decay must be >= 0, got -0.1",
        ),
    ] {
        let options = FitOptions { recipe, ..options(3) };
        let e = fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).unwrap_err().to_string();
        assert!(e.contains(says) && !e.contains('\n'), "{e}");
    }
    // A loss of one's own computes its own cross-entropy.
    let own = Criterion::hard("mine", |logits, labels| logits.cross_entropy_for_logits(labels));
    let smoothed = FitOptions { recipe: Recipe { label_smoothing: 0.1, ..plain() }, ..options(1) };
    let e = fit(&mut model, &train, &validation, &own, &smoothed).unwrap_err().to_string();
    assert!(e.contains("criterion mine computes its own cross-entropy"), "{e}");
    assert_eq!(values(&model), before);
}
