//! The article's mistakes, made on purpose or not at all.

use super::*;

#[test]
fn a_mistake_is_made_on_purpose_or_not_at_all() {
    use kdlab::study::mistakes::{Mistake, fit_with_mistake};
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let test = Examples::images(&data.test, &normalised(32)).unwrap().with_teacher(&teacher(&data.test, 1.0));
    let test = test.unwrap();
    let kd = Criterion::kd(KdLoss::new(2.0, 0.5).unwrap());
    // The test split cannot pick weights by accident.
    let e = fit(&mut tiny_model(1), &train, &test, &kd, &options(1)).unwrap_err().to_string();
    assert!(e.contains("the test split was given for validation"), "{e}");
    let e = fit(&mut tiny_model(1), &test, &validation, &kd, &options(1)).unwrap_err().to_string();
    assert!(e.contains("the test split was given to train on"), "{e}");
    // Weights that are no numbers before the first step are not the learning rate's fault.
    let mut wild = tiny_model(1);
    let (name, weights) = wild.trainable().swap_remove(0);
    let _ = tch::no_grad(|| weights.shallow_clone().f_fill_(f64::NAN)).unwrap();
    let e = fit(&mut wild, &train, &validation, &kd, &options(1)).unwrap_err().to_string();
    assert!(e.contains(&format!("{name} holds numbers that are not finite before the first step")), "{e}");
    let run = |mistake, validation: &Examples, criterion: &Criterion| {
        fit_with_mistake(mistake, &mut tiny_model(1), &train, validation, criterion, &options(2))
    };
    let right = fit(&mut tiny_model(1), &train, &validation, &kd, &options(2)).unwrap();
    assert_eq!(right.mistake, None);
    assert!(!serde_json::to_string(&right).unwrap().contains("mistake"), "an ordinary history does not mention it");
    for mistake in [Mistake::MismatchedTeacher, Mistake::KlOverClasses, Mistake::AdamRebuilt] {
        let wrong = run(mistake, &validation, &kd).unwrap();
        assert_eq!(wrong.mistake, Some(format!("{mistake:?}")));
        assert_ne!(curve(&wrong), curve(&right), "{mistake} changed nothing");
        let json = serde_json::to_string(&wrong).unwrap();
        assert!(json.contains(&format!("\"mistake\":\"{mistake:?}\"")), "{json}");
    }
    let picked = run(Mistake::BestOnTest, &test, &kd).unwrap();
    assert_eq!(picked.records[1].train, right.records[1].train, "only the choice of weights is another");
    // Where a mistake could not show, it is refused, and the message says what it needs.
    let refused =
        |mistake, validation, criterion: &Criterion| run(mistake, validation, criterion).unwrap_err().to_string();
    let hard = Criterion::cross_entropy();
    assert!(refused(Mistake::MismatchedTeacher, &validation, &hard).contains("criterion with a teacher"));
    let unheard = Criterion::kd(KdLoss::new(2.0, 0.0).unwrap());
    assert!(refused(Mistake::MismatchedTeacher, &validation, &unheard).contains("alpha > 0"));
    let own = Criterion::soft("own", KdLoss::new(2.0, 0.5).unwrap(), |s, y, _, _, _| s.cross_entropy_for_logits(y));
    for criterion in [&hard, &unheard, &own] {
        assert!(refused(Mistake::KlOverClasses, &validation, criterion).contains("Criterion::kd with alpha > 0"));
    }
    let e = fit_with_mistake(Mistake::AdamRebuilt, &mut tiny_model(1), &train, &validation, &kd, &options(1));
    assert!(e.unwrap_err().to_string().contains("more than one epoch"));
    assert!(refused(Mistake::BatchNormDrift, &validation, &kd).contains("frozen BatchNorm"));
    assert!(refused(Mistake::BestOnTest, &validation, &kd).contains("test split"));
    // Nobody meets them unasked: one notebook names them, and the prelude does not.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let notebooks = std::fs::read_dir(root.join("notebooks")).unwrap().map(|entry| entry.unwrap().path());
    let files = notebooks.filter(|path| path.extension().is_some_and(|e| e == "ipynb"));
    let naming: Vec<_> = files
        .chain([root.join("prelude/prelude.rs")])
        .filter(|path| std::fs::read_to_string(path).unwrap().contains("_mistake"))
        .collect();
    assert_eq!(naming, [root.join("notebooks/06_spot_the_bug.ipynb")]);
    // A run with a mistake in it is not continued by one without, nor lost.
    let options = |control| FitOptions { folder: Some(folder.path().join("run")), control, ..options(3) };
    let control = Control::default();
    let hand = control.clone();
    let listener = Listener::new(move |e| {
        if let Event::Epoch { .. } = e {
            hand.stop("test");
        }
    });
    let stopped = FitOptions { listener, ..options(control) };
    fit_with_mistake(Mistake::AdamRebuilt, &mut tiny_model(1), &train, &validation, &kd, &stopped).unwrap();
    let after = fit(&mut tiny_model(1), &train, &validation, &kd, &options(Control::default())).unwrap();
    assert_eq!((after.records.len(), after.mistake), (3, None));
    let kept = History::load(folder.path().join("run-1/history.json")).unwrap();
    assert_eq!(kept.mistake.as_deref(), Some("AdamRebuilt"));
}

#[test]
fn a_bench_trains_the_same_students_with_and_without_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let test = Examples::images(&data.test, &normalised(32)).unwrap();
    let bench = Bench { train, validation, test, classes: 10, device: Device::Cpu, epochs: 1 };
    let kd = KdLoss::new(2.0, 0.5).unwrap();
    let right = bench.students("right", None, &Criterion::kd(kd)).unwrap();
    let same = bench.students("again", None, &Criterion::kd(kd)).unwrap();
    let wrong =
        bench.students("wrong", Some(kdlab::study::mistakes::Mistake::KlOverClasses), &Criterion::kd(kd)).unwrap();
    assert_eq!((right.networks.len(), right.accuracies.len()), (3, 3));
    assert_eq!(right.effect(&same).unwrap().differences, [0.0; 3]);
    for (right, wrong) in right.histories.iter().zip(&wrong.histories) {
        assert_ne!(curve(right), curve(wrong));
    }
    // The loop compares each image with the teacher's answer to it, and with that of another in the first mistake.
    let answers = teacher(&data.train, 1.0).tensor;
    let row = |logits: &Tensor| Vec::<f32>::try_from(logits).unwrap();
    for (case, belongs) in [(None, true), (Some(kdlab::study::mistakes::Mistake::MismatchedTeacher), false)] {
        let batches = bench.watch(case, kd, 2).unwrap();
        let labels: Vec<i64> = batches.iter().flat_map(|batch| Vec::<i64>::try_from(&batch.labels).unwrap()).collect();
        assert_eq!((batches.len(), labels.len()), (2, 2 * data.train.len()));
        let given: Vec<_> = (0..data.train.len() as i64).map(|i| row(&batches[0].teacher.get(i))).collect();
        let is_right = |(answer, label): (&Vec<f32>, &i64)| {
            let index = (0..data.train.len() as i64).find(|&i| row(&answers.get(i)) == *answer);
            data.train.label(index.expect("an answer of the teacher")).unwrap() == *label
        };
        assert_eq!(given.iter().zip(&labels).all(is_right), belongs);
    }
}

#[test]
fn a_frozen_backbone_does_not_drift_in_training() {
    let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
    let mut whole = backbone.with_head(&head(512, 10, Device::Cpu, 2).unwrap()).unwrap();
    assert_eq!(whole.trainable().iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["fc.bias", "fc.weight"]);
    tch::manual_seed(0);
    let x = Tensor::rand([4, 3, 32, 32], (Kind::Float, Device::Cpu));
    let before = values(&whole);
    let (train, eval) = (whole.forward(&x, true).unwrap(), whole.forward(&x, false).unwrap());
    assert_eq!(train, eval);
    assert_eq!(values(&whole), before);
    // Features and head give what the whole does; trained, the statistics move.
    let features = backbone.features(&x).unwrap();
    let head = head(512, 10, Device::Cpu, 2).unwrap();
    assert!((head.forward(&features, false).unwrap() - &eval).abs().max().double_value(&[]) < 1e-5);
    whole.unfreeze();
    assert_ne!(whole.forward(&x, true).unwrap(), eval);
    assert_ne!(values(&whole), before);
    let e = whole.freeze_except("classifier.").unwrap_err().to_string();
    assert!(e.contains("no variable begins with \"classifier.\""), "{e}");
    let e = backbone.with_head(&tiny_model(1)).unwrap_err().to_string();
    assert!(e.contains("tiny is no head for resnet18") && e.contains("[classes, 512]"), "{e}");
    // A second layer would be lost without a word.
    let deep = Model::new("deep", Device::Cpu, 0, &|vs| {
        Layers::new()
            .add("fc1", nn::linear(vs / "fc1", 512, 512, Default::default()))
            .add("fc", nn::linear(vs / "fc", 512, 10, Default::default()))
    });
    let e = backbone.with_head(&deep.unwrap()).unwrap_err().to_string();
    assert!(e.contains("deep is no head for resnet18") && e.contains("fc1.weight"), "{e}");
}

#[test]
fn a_network_that_is_all_frozen_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (train, validation) = examples(&dataset(folder.path(), 0));
    let mut model = tiny_model(1);
    model.freeze();
    let run = |model: &mut Model| fit(model, &train, &validation, &Criterion::cross_entropy(), &options(1));
    let e = run(&mut model).unwrap_err().to_string();
    assert!(e.contains("tiny: every variable is frozen") && e.contains("unfreeze()"), "{e}");
    model.unfreeze();
    assert_eq!(run(&mut model).unwrap().records.len(), 1);
}

/// libtorch's engine would end the process, and with it everything that a notebook holds.
#[test]
fn a_loss_without_a_gradient_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (train, validation) = examples(&dataset(folder.path(), 0));
    let run = |criterion: &Criterion| fit(&mut tiny_model(1), &train, &validation, criterion, &options(1));
    let detached = Criterion::hard("detached", |s, y| s.detach().cross_entropy_for_logits(y));
    let errors = Criterion::hard("errors", |s, y| s.argmax(-1, false).not_equal_tensor(y).mean(Kind::Float));
    let unrecorded = tch::no_grad(|| run(&Criterion::cross_entropy()));
    for refused in [run(&detached), run(&errors), unrecorded] {
        let e = refused.unwrap_err().to_string();
        assert!(e.contains("depends on no weight that learns"), "{e}");
    }
}

#[test]
fn student_and_teacher_that_are_swapped_are_told_at_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let (train, validation) = examples(&dataset(folder.path(), 0));
    // As notebook 4 writes it out. Swapped, it has a gradient: that of KL in the other direction.
    fn loss_kd(s: &Tensor, y: &Tensor, t: &Tensor, temperature: f64, alpha: f64) -> Tensor {
        let (log_s, log_t) = ((s / temperature).log_softmax(-1, None), (t / temperature).log_softmax(-1, None));
        let kl = (log_t.exp() * (&log_t - log_s)).sum(None) / s.size()[0] as f64;
        kl * (alpha * temperature * temperature) + s.cross_entropy_for_logits(y) * (1.0 - alpha)
    }
    let kd = |alpha| KdLoss::new(4.0, alpha).unwrap();
    let run = |criterion: Criterion| {
        let mut model = tiny_model(1);
        let before = values(&model);
        let done = fit(&mut model, &train, &validation, &criterion, &options(1)).map_err(|e| e.to_string());
        assert!(done.is_ok() || values(&model) == before, "no step was made");
        done
    };
    for alpha in [0.0, 0.5, 1.0] {
        run(Criterion::soft("loss_kd", kd(alpha), loss_kd)).unwrap();
        let e = run(Criterion::soft("swapped", kd(alpha), |s, y, t, temperature, alpha| {
            loss_kd(t, y, s, temperature, alpha)
        }));
        let e = e.unwrap_err();
        assert!(e.contains("no gradient towards the student") && e.contains("perhaps swapped"), "{e}");
    }
    // Only the teacher's term is swapped, and its target is detached: labels alone would teach.
    let half = Criterion::soft("half", kd(0.9), move |s, y, t, _, alpha| {
        kd(1.0).divergence(t, s).unwrap() * alpha + s.cross_entropy_for_logits(y) * (1.0 - alpha)
    });
    let e = run(half).unwrap_err();
    assert!(
        e.contains("the teacher teaches the student nothing") && e.contains("no gradient towards the student"),
        "{e}"
    );
    // Nothing reaches the student at all; and a loss without one of the terms is none of this.
    let none = Criterion::soft("none", kd(1.0), move |s, _, t, _, _| kd(1.0).divergence(t, s).unwrap());
    let e = run(none).unwrap_err();
    assert!(e.contains("depends on no weight that learns") && e.contains("swapped"), "{e}");
    run(Criterion::soft("teacher alone", kd(0.9), move |s, _, t, _, a| kd(1.0).divergence(s, t).unwrap() * a)).unwrap();
    // A student that begins as a copy of its teacher has no gradient from it, and nothing is swapped.
    let data = dataset(folder.path(), 0);
    let of = |split| {
        let plain = Examples::images(split, &normalised(32)).unwrap();
        let logits = CachedTensor::new(split, predict(&tiny_model(1), &plain, 7).unwrap(), "itself").unwrap();
        plain.with_teacher(&logits).unwrap()
    };
    let own = Criterion::soft("loss_kd", kd(0.5), loss_kd);
    fit(&mut tiny_model(1), &of(&data.train), &of(&data.validation), &own, &options(1)).unwrap();
    run(Criterion::soft("mean square", kd(0.9), |s, _, t, _, _| (s - t).square().mean(Kind::Float))).unwrap();
}

#[test]
fn a_loss_of_another_network_s_weights_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (train, validation) = examples(&dataset(folder.path(), 0));
    let other = || Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let elsewhere = Criterion::hard("elsewhere", move |_, _| other().square().sum(Kind::Float));
    let e = fit(&mut tiny_model(1), &train, &validation, &elsewhere, &options(1)).unwrap_err().to_string();
    assert!(e.contains("depends on no weight that learns"), "{e}");
}

/// In a loop of one's own the crate's loss sees nothing but two tensors; the one that learns tells which is the
/// student.
#[test]
fn the_loss_itself_refuses_a_student_without_gradient_beside_a_teacher_with_one() {
    let logits = |seed: f64| (Tensor::arange(20, (Kind::Float, Device::Cpu)) + seed).sin().view([2, 10]);
    let labels = Tensor::from_slice(&[1i64, 2]);
    let (student, teacher) = (logits(0.0).set_requires_grad(true), logits(5.0));
    let kd = KdLoss::new(4.0, 0.5).unwrap();
    let e = kd.forward(&teacher, &labels, &student).unwrap_err().to_string();
    assert!(e.contains("no gradient towards the student") && e.contains("swapped"), "{e}");
    kd.forward(&student, &labels, &teacher).unwrap().backward();
    let _ = kd.forward(&logits(0.0), &labels, &teacher).unwrap();
}
