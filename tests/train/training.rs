//! What the training loop promises.

use super::*;

#[test]
fn the_same_seed_gives_the_same_run_and_another_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let run = |seed| {
        let mut model = tiny_model(1);
        let history =
            fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &FitOptions { seed, ..options(3) });
        curve(&history.unwrap())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn alpha_zero_is_the_student_alone_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    for build in [&tiny as &dyn Fn(&nn::Path) -> Layers, &|vs| student(vs, 10)] {
        let run = |criterion: Criterion| {
            let mut model = Model::new("net", Device::Cpu, 1, build).unwrap();
            let history = fit(&mut model, &train, &validation, &criterion, &options(3)).unwrap();
            (history.records.iter().map(|r| (r.train.loss, r.validation.accuracy)).collect::<Vec<_>>(), values(&model))
        };
        let alone = run(Criterion::cross_entropy());
        assert_eq!(alone, run(Criterion::kd(KdLoss::new(4.0, 0.0).unwrap())));
        assert_ne!(alone.1, run(Criterion::kd(KdLoss::new(4.0, 0.5).unwrap())).1);
    }
}

/// Logits that name the class of every image, with doubts.
fn knowing_teacher(data: &Dataset, split: &kdlab::data::Split) -> CachedTensor {
    let doubts = (teacher(split, 2.0).tensor) * 0.3;
    let logits = split.labels().unwrap().one_hot(data.classes.len() as i64).to_kind(Kind::Float) * 8.0 + doubts;
    CachedTensor::new(split, logits, "knows").unwrap()
}

/// A line through a 48-dimensional space cannot rank ten shades of grey; with a layer in between it can.
fn hidden(vs: &nn::Path) -> Layers {
    Layers::new()
        .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
        .add("fc1", nn::linear(vs / "fc1", 48, 64, Default::default()))
        .func("relu", |x| x.relu())
        .add("fc2", nn::linear(vs / "fc2", 64, 10, Default::default()))
}

#[test]
fn alpha_one_learns_from_the_teacher_alone_at_every_temperature() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = normalised(32);
    let of = |split| Examples::images(split, &transform).unwrap().with_teacher(&knowing_teacher(&data, split)).unwrap();
    let (train, validation) = (of(&data.train), of(&data.validation));
    for temperature in [1.0, 4.0, 10.0] {
        let kd = KdLoss::new(temperature, 1.0).unwrap();
        // The labels it is given are all wrong: at alpha = 1 they must not matter.
        let misled = Criterion::soft("misled", kd, |s, y, t, temperature, alpha| {
            let wrong = (y + 1).remainder(10);
            KdLoss::new(temperature, alpha).unwrap().forward(s, &wrong, t).unwrap()
        });
        let run = |criterion: &Criterion| {
            let mut model = Model::new("net", Device::Cpu, 2, &hidden).unwrap();
            let options = FitOptions { learning_rate: 1e-2, ..options(100) };
            let history = fit(&mut model, &train, &validation, criterion, &options).unwrap();
            (history.best().unwrap().validation.accuracy, values(&model))
        };
        let (accuracy, weights) = run(&Criterion::kd(kd));
        assert!(accuracy >= 0.9, "T {temperature}: {accuracy} of the validation images");
        assert_eq!(run(&misled).1, weights, "T {temperature}: labels had a say");
    }
}

#[test]
fn the_teacher_is_as_good_batch_by_batch_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = normalised(32);
    let model = tiny_model(5);
    let of = |split| {
        let plain = Examples::images(split, &transform).unwrap();
        let logits = CachedTensor::new(split, predict(&model, &plain, 7).unwrap(), "tiny").unwrap();
        plain.with_teacher(&logits).unwrap()
    };
    let (train, validation) = (of(&data.train), of(&data.validation));
    let directly = evaluate(&model, &Examples::images(&data.train, &transform).unwrap(), 9).unwrap().correct as i64;
    let watch = |mistake: Option<kdlab::study::mistakes::Mistake>| {
        let right = Arc::new(Mutex::new(vec![0i64]));
        let (count, next) = (Arc::clone(&right), Arc::clone(&right));
        let kd = KdLoss::new(2.0, 0.5).unwrap();
        let criterion = Criterion::soft("watched", kd, move |s, y, t, temperature, alpha| {
            let loss = KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap();
            if loss.requires_grad() {
                let hits = t.argmax(-1, false).eq_tensor(y).sum(Kind::Int64).int64_value(&[]);
                *count.lock().unwrap().last_mut().unwrap() += hits;
            }
            loss
        });
        let listener = Listener::new(move |e| {
            if let Event::Epoch { .. } = e {
                next.lock().unwrap().push(0);
            }
        });
        let options = FitOptions { listener, ..options(4) };
        let mut student = tiny_model(1);
        match mistake {
            None => fit(&mut student, &train, &validation, &criterion, &options).unwrap(),
            Some(d) => {
                kdlab::study::mistakes::fit_with_mistake(d, &mut student, &train, &validation, &criterion, &options)
                    .unwrap()
            }
        };
        let counts = right.lock().unwrap().clone();
        counts[..4].to_vec()
    };
    assert!(directly > 0);
    assert_eq!(watch(None), [directly; 4]);
    assert_ne!(
        watch(Some(kdlab::study::mistakes::Mistake::MismatchedTeacher)),
        [directly; 4],
        "this test would catch the mismatch"
    );
}

#[test]
fn the_best_epochs_weights_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let mut model = tiny_model(1);
    // So large a step makes accuracy jump about: the last epoch is hardly ever the best.
    let wild = FitOptions { learning_rate: 0.5, folder: Some(folder.path().join("run")), ..options(8) };
    let history = fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &wild).unwrap();
    let best = history.best().unwrap();
    assert!(history.records.iter().all(|r| r.validation.accuracy <= best.validation.accuracy));
    assert_eq!(evaluate(&model, &validation, 8).unwrap().accuracy(), best.validation.accuracy);
    let mut loaded = tiny_model(2);
    loaded.load(folder.path().join("run/best.safetensors")).unwrap();
    assert_eq!(values(&loaded), values(&model));
    assert_eq!(History::load(folder.path().join("run/history.json")).unwrap(), history);
}

#[test]
fn a_notebooks_own_loss_and_network_fit() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    fn loss_kd(s: &Tensor, y: &Tensor, t: &Tensor, temperature: f64, alpha: f64) -> Tensor {
        let (log_s, log_t) = ((s / temperature).log_softmax(-1, None), (t / temperature).log_softmax(-1, None));
        let kl = (log_t.exp() * (&log_t - log_s)).sum(None) / s.size()[0] as f64;
        kl * (alpha * temperature * temperature) + s.cross_entropy_for_logits(y) * (1.0 - alpha)
    }
    let kd = KdLoss::new(4.0, 0.7).unwrap();
    let run = |criterion: Criterion| {
        let mut model = tiny_model(1);
        fit(&mut model, &train, &validation, &criterion, &options(2)).unwrap().records[1].train.loss
    };
    let (own, ours) = (run(Criterion::soft("loss_kd", kd, loss_kd)), run(Criterion::kd(kd)));
    assert!((own - ours).abs() < 1e-4, "{own} {ours}");
    let hard = Criterion::hard("mine", |logits, labels| logits.cross_entropy_for_logits(labels));
    assert!((run(hard) - run(Criterion::cross_entropy())).abs() < 1e-6);
    let vector =
        Criterion::hard("unreduced", |logits, _| logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Float));
    let e = fit(&mut tiny_model(1), &train, &validation, &vector, &options(1)).unwrap_err().to_string();
    assert!(e.contains("scalar"), "{e}");
}

#[test]
fn live_changes_act_on_the_running_fit_and_stop_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let control = Control::default();
    let hand = control.clone();
    let listener = Listener::new(move |event| {
        if let Event::Epoch { record, .. } = event {
            match record.epoch {
                1 => hand.set_temperature(8.0).and(hand.set_alpha(0.25)).unwrap(),
                3 => hand.stop("enough"),
                _ => {}
            }
        }
    });
    let options = FitOptions { control, listener, ..options(9) };
    let criterion = Criterion::kd(KdLoss::new(2.0, 0.5).unwrap());
    let mut model = tiny_model(1);
    let history = fit(&mut model, &train, &validation, &criterion, &options).unwrap();
    let seen: Vec<_> =
        history.records.iter().map(|r| (r.hyperparameters.temperature, r.hyperparameters.alpha)).collect();
    assert_eq!(seen, [(Some(2.0), Some(0.5)), (Some(8.0), Some(0.25)), (Some(8.0), Some(0.25))]);
    assert_eq!(history.stopped.as_deref(), Some("enough"));
    assert_eq!(evaluate(&model, &validation, 8).unwrap().accuracy(), history.best().unwrap().validation.accuracy);
}

#[test]
fn a_loss_that_is_no_number_stops_the_fit_and_keeps_the_good_weights() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let steps = Arc::new(AtomicUsize::new(0));
    let criterion = Criterion::hard("breaks", move |logits, labels| {
        let scale = if steps.fetch_add(1, Ordering::Relaxed) > 12 { f64::NAN } else { 1.0 };
        logits.cross_entropy_for_logits(labels) * scale
    });
    let mut model = tiny_model(1);
    let folder = folder.path().join("run");
    let e =
        fit(&mut model, &train, &validation, &criterion, &FitOptions { folder: Some(folder.clone()), ..options(5) });
    let e = e.unwrap_err().to_string();
    assert!(e.contains("loss became NaN in epoch") && e.contains("learning rate"), "{e}");
    assert!(values(&model).iter().all(|v| v.is_finite()));
    assert!(!History::load(folder.join("history.json")).unwrap().records.is_empty());
}

#[test]
fn what_cannot_be_fitted_is_refused_before_the_first_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let plain = Examples::images(&data.train, &normalised(32)).unwrap();
    let kd = || Criterion::kd(KdLoss::new(1.0, 0.5).unwrap());
    let refused = |model: &mut Model, train: &Examples, criterion: Criterion, options: FitOptions| {
        fit(model, train, &validation, &criterion, &options).unwrap_err().to_string()
    };
    let mut model = tiny_model(1);
    let before = values(&model);
    let e = refused(&mut model, &train, kd(), FitOptions { batch_size: 0, ..options(1) });
    assert!(e.contains("batch size must be at least 1, got 0"), "{e}");
    let e = refused(&mut model, &train, kd(), FitOptions { learning_rate: f64::NAN, ..options(1) });
    assert!(e.contains("learning rate"), "{e}");
    let e = refused(&mut model, &train, kd(), options(0));
    assert!(e.contains("epochs"), "{e}");
    let e = refused(&mut model, &plain, kd(), options(1));
    assert!(e.contains("with_teacher"), "{e}");
    let narrow = |vs: &nn::Path| {
        Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", 3, 3, Default::default()))
    };
    let e = refused(&mut Model::new("narrow", Device::Cpu, 0, &narrow).unwrap(), &train, kd(), options(1));
    assert!(e.contains("labels go up to 9"), "{e}");
    let wide = |vs: &nn::Path| {
        Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", 3, 12, Default::default()))
    };
    let e = refused(&mut Model::new("wide", Device::Cpu, 0, &wide).unwrap(), &train, kd(), options(1));
    assert!(e.contains("teacher has 10 classes and the student 12"), "{e}");
    let small = Examples::images(&data.train, &normalised(3)).unwrap();
    let mut article = Model::new("student", Device::Cpu, 0, &|vs| student(vs, 10)).unwrap();
    let e = refused(&mut article, &small, Criterion::cross_entropy(), options(1));
    assert!(e.contains("student: images of 3x3 pixels are too small") && e.contains("give images of 4x4"), "{e}");
    assert_eq!(values(&model), before);
    // Logits of another split, or of the same images split with another seed.
    let images = || Examples::images(&data.train, &normalised(32)).unwrap();
    assert!(images().with_teacher(&teacher(&data.validation, 1.0)).is_err());
    let other = tempfile::tempdir().unwrap();
    let e = images().with_teacher(&teacher(&dataset(other.path(), 1).train, 1.0)).err().unwrap().to_string();
    assert!(e.contains("computed for other data"), "{e}");
}

#[test]
fn what_makes_a_loss_no_number_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (_, validation) = examples(&data);
    let images = || Examples::images(&data.train, &normalised(32)).unwrap();
    let broken = Tensor::full([data.train.len() as i64, 10], f64::NAN, (Kind::Float, Device::Cpu));
    let broken = CachedTensor::new(&data.train, broken, "broken").unwrap();
    let train = images().with_teacher(&broken).unwrap();
    let kd = Criterion::kd(KdLoss::new(4.0, 0.5).unwrap());
    let e = fit(&mut tiny_model(1), &train, &validation, &kd, &options(1)).unwrap_err().to_string();
    assert!(e.contains("the teacher's logits are not finite") && !e.contains("learning rate"), "{e}");
    let masked = teacher(&data.train, 1.0).tensor.shallow_clone();
    let _ = masked.select(1, 3).fill_(f64::NEG_INFINITY);
    let masked = images().with_teacher(&CachedTensor::new(&data.train, masked, "masked").unwrap()).unwrap();
    let standardised = Criterion::distil(Method::StandardisedKd, KdLoss::new(4.0, 0.5).unwrap());
    let e = fit(&mut tiny_model(1), &masked, &validation, &standardised, &options(1)).unwrap_err().to_string();
    assert!(e.contains("rules classes out by logits of -inf"), "{e}");
    fit(&mut tiny_model(1), &masked, &validation, &kd, &options(1)).unwrap();
    // 64 images in batches of 9 leave one.
    let normalised = |vs: &nn::Path| tiny(vs).add("bn", nn::batch_norm1d(vs / "bn", 10, Default::default()));
    let mut model = Model::new("normalised", Device::Cpu, 0, &normalised).unwrap();
    let options = FitOptions { batch_size: 9, ..options(1) };
    let e = fit(&mut model, &images(), &validation, &Criterion::cross_entropy(), &options).unwrap_err().to_string();
    assert!(e.contains("more than 1 value per channel when training, got input size [1, 10]"), "{e}");
}

/// Pictures of three colours in a folder, at 64 pixels.
#[test]
fn a_small_student_learns_from_pictures_of_64_pixels() {
    let folder = tempfile::tempdir().unwrap();
    for (class, colour) in [("blue", [40, 60, 200u8]), ("green", [30, 180, 60]), ("red", [210, 50, 40])] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        for i in 0..16u8 {
            let shade = |x: u32, y: u32| colour.map(|c| c.saturating_add(i).saturating_sub((x * y % 23) as u8));
            let picture = image::RgbImage::from_fn(60 + u32::from(i), 50, |x, y| image::Rgb(shade(x, y)));
            picture.save(folder.path().join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    let data = kdlab::data::image_folder(folder.path(), 64, &DataOptions::default()).unwrap();
    let of = |split| Examples::images(split, &Transform::imagenet(64)).unwrap();
    let mut model = Model::new("small", Device::Cpu, 0, &|vs| Student::Small.layers(vs, 3, 64)).unwrap();
    let options = FitOptions { learning_rate: 3e-3, batch_size: 8, ..options(6) };
    fit(&mut model, &of(&data.train), &of(&data.validation), &Criterion::cross_entropy(), &options).unwrap();
    let found = evaluate(&model, &of(&data.test), 8).unwrap();
    assert_eq!((found.correct, found.total), (5, 5)); // a tenth
}
