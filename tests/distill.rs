//! The distillation room against definitions written out by hand, and the training loop's promises.

mod common;

use common::dataset;
use kdlab::data::{DataOptions, Dataset, Transform, cifar10};
use kdlab::distill::*;
use kdlab::models::{Arch, Backbone, Layers, Model, Precision, head, student};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, nn};

fn tiny(vs: &nn::Path) -> Layers {
    Layers::new()
        .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
        .add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
}

fn tiny_model(seed: u64) -> Model {
    Model::new("tiny", Device::Cpu, seed, &tiny).unwrap()
}

/// Random logits for every sample: a teacher that knows nothing, but always the same.
fn teacher(split: &kdlab::data::Split, seed: f64) -> CachedTensor {
    let n = split.len() as i64;
    let values = (Tensor::arange(n * 10, (Kind::Float, Device::Cpu)) + seed).sin().reshape([n, 10]) * 3.0;
    CachedTensor::new(split, values, &format!("test {seed}")).unwrap()
}

fn examples(data: &Dataset) -> (Examples, Examples) {
    let transform = Transform::cifar10(32);
    let of = |split| Examples::images(split, &transform).unwrap().with_teacher(&teacher(split, 1.0)).unwrap();
    (of(&data.train), of(&data.validation))
}

fn options(epochs: usize) -> FitOptions {
    FitOptions { epochs, batch_size: 8, learning_rate: 1e-2, ..FitOptions::default() }
}

fn random(shape: [i64; 2], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Double, Device::Cpu)) * 3.0
}

/// sum_c p_c (log p_c - log q_c) / B, written with loops and without the functions under test.
fn by_hand(student: &Tensor, labels: &[i64], teacher: &Tensor, t: f64, alpha: f64) -> f64 {
    let rows = |x: &Tensor| -> Vec<Vec<f64>> { Vec::try_from(x.shallow_clone()).unwrap() };
    let softmax = |row: &[f64], t: f64| -> Vec<f64> {
        let exp: Vec<f64> = row.iter().map(|v| (v / t).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.iter().map(|e| e / sum).collect()
    };
    let (s, te) = (rows(student), rows(teacher));
    let mut total = 0.0;
    for ((s, te), &label) in s.iter().zip(&te).zip(labels) {
        let (p, q) = (softmax(te, t), softmax(s, t));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p.ln() - q.ln())).sum();
        total += alpha * t * t * kl - (1.0 - alpha) * softmax(s, 1.0)[label as usize].ln();
    }
    total / s.len() as f64
}

#[test]
fn kd_loss_is_its_formula() {
    let (s, t) = (random([6, 10], 1), random([6, 10], 2));
    let labels = [3, 0, 9, 1, 1, 5];
    for temperature in [0.5, 1.0, 2.0, 4.0, 20.0] {
        for alpha in [0.0, 0.3, 1.0] {
            let loss = KdLoss::new(temperature, alpha).unwrap();
            let got = loss.forward(&s, &Tensor::from_slice(&labels), &t).unwrap().double_value(&[]);
            let want = by_hand(&s, &labels, &t, temperature, alpha);
            assert!((got - want).abs() < 1e-9 * want.abs().max(1.0), "T {temperature} alpha {alpha}: {got} {want}");
        }
    }
}

#[test]
fn kd_gradient_is_the_analytic_one() {
    // d/ds of T^2 KL(p || q) / B is T (q - p) / B.
    let t = random([5, 10], 4);
    for temperature in [1.0, 4.0] {
        let s = random([5, 10], 3).set_requires_grad(true);
        KdLoss::new(temperature, 1.0)
            .unwrap()
            .forward(&s, &Tensor::zeros([5], (Kind::Int64, Device::Cpu)), &t)
            .unwrap()
            .backward();
        let want = (soft_targets(&s.detach(), temperature).unwrap() - soft_targets(&t, temperature).unwrap())
            * (temperature / 5.0);
        assert!((s.grad() - want).abs().max().double_value(&[]) < 1e-12);
    }
}

#[test]
fn divergence_is_zero_for_equals_directed_and_finite_at_extremes() {
    let kd = KdLoss::new(2.0, 1.0).unwrap();
    let (a, b) = (random([4, 10], 5), random([4, 10], 6));
    let value = |s: &Tensor, t: &Tensor| kd.divergence(s, t).unwrap().double_value(&[]);
    assert!(value(&a, &a).abs() < 1e-12);
    assert!(value(&a, &b) > 0.0);
    assert!((value(&a, &b) - value(&b, &a)).abs() > 1e-3, "teacher and student must not be exchangeable");
    let extreme = Tensor::from_slice(&[1e4f32, -1e4, 0.0, -1e4, 1e4, 0.0]).reshape([2, 3]);
    assert!(value(&extreme, &extreme.flip([1])).is_finite());
}

#[test]
fn a_term_without_weight_has_no_say() {
    let (s, t) = (random([4, 10], 7), random([4, 10], 8));
    let (labels, unknown) = (Tensor::from_slice(&[1i64, 2, 3, 4]), Tensor::full([4], -1, (Kind::Int64, Device::Cpu)));
    let loss = |alpha, labels: &Tensor, teacher: &Tensor| {
        KdLoss::new(4.0, alpha).unwrap().forward(&s, labels, teacher).unwrap().double_value(&[])
    };
    let broken = t.full_like(f64::NAN);
    assert_eq!(loss(0.0, &labels, &broken), cross_entropy(&s, &labels).unwrap().double_value(&[]));
    assert_eq!(loss(1.0, &unknown, &t), loss(1.0, &labels, &t));
    assert!(loss(0.5, &labels, &broken).is_nan());
}

#[test]
fn bad_values_are_named_with_their_fix() {
    let message = |r: kdlab::Result<KdLoss>| r.unwrap_err().to_string();
    assert_eq!(message(KdLoss::new(-2.0, 0.5)), "temperature must be > 0, got -2; try 1 to 10");
    assert!(message(KdLoss::new(f64::NAN, 0.5)).contains("got NaN"));
    assert!(message(KdLoss::new(0.0, 0.5)).contains("got 0"));
    assert!(message(KdLoss::new(f64::INFINITY, 0.5)).contains("got inf"));
    assert!(message(KdLoss::new(1.0, 1.5)).contains("alpha must be in [0, 1], got 1.5"));
    assert!(message(KdLoss::new(1.0, f64::NAN)).contains("alpha"));
    let control = Control::new();
    assert!(control.set_temperature(0.0).is_err() && control.set_alpha(-0.1).is_err());
    let logits = |c| Tensor::zeros([2, c], (Kind::Float, Device::Cpu));
    let e = KdLoss::new(1.0, 1.0).unwrap().divergence(&logits(10), &logits(12)).unwrap_err().to_string();
    assert!(e.contains("[2, 10]") && e.contains("[2, 12]"), "{e}");
}

#[test]
fn adam_is_its_formula() {
    let weight = Tensor::from_slice(&[1.0f64, -2.0]).set_requires_grad(true);
    let mut adam = Adam::new(vec![("w".into(), weight.shallow_clone())]).unwrap();
    let (mut w, mut m, mut v) = ([1.0, -2.0], [0.0; 2], [0.0; 2]);
    for step in 1..=5 {
        adam.zero_grad();
        (weight.square() * 0.5 + weight.sin()).sum(Kind::Double).backward();
        adam.step(0.1).unwrap();
        for i in 0..2 {
            let g: f64 = w[i] + f64::cos(w[i]);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (m, v): (f64, f64) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.999f64.powi(step)));
            w[i] -= 0.1 * m / (v.sqrt() + 1e-8);
            assert!((weight.double_value(&[i as i64]) - w[i]).abs() < 1e-12, "step {step}");
        }
    }
}

#[test]
fn metrics_count_every_sample_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let mut model = tiny_model(1);
    // 64 training images in batches of 5: the last batch is short, so a mean of batch means would be another number.
    let history = fit(
        &mut model,
        &train,
        &validation,
        &Criterion::kd(KdLoss::new(4.0, 0.9).unwrap()),
        &FitOptions { batch_size: 5, ..options(1) },
    )
    .unwrap();
    let record = history.records[0];
    let result = evaluate(&model, &validation, 3).unwrap();
    assert_eq!(result.total, data.validation.len());
    assert!((result.accuracy() - record.validation.accuracy).abs() < 1e-12);
    assert!((result.cross_entropy - record.validation.cross_entropy).abs() < 1e-5);
    let teacher = teacher(&data.validation, 1.0).tensor;
    let kl = KdLoss::new(4.0, 0.9).unwrap().divergence(&result.logits, &teacher).unwrap().double_value(&[]);
    assert!((record.validation.divergence.unwrap() - kl).abs() < 1e-5);
    let total = 0.9 * 16.0 * kl + 0.1 * result.cross_entropy;
    assert!((record.validation.loss - total).abs() < 1e-4);
    let confusion = result.confusion().unwrap();
    assert_eq!(confusion.iter().flatten().sum::<usize>(), result.total);
    assert_eq!((0..10).map(|c| confusion[c][c]).sum::<usize>(), result.correct);
}

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

/// What of a history does not depend on the clock.
fn curve(history: &History) -> Vec<(Metrics, Metrics)> {
    history.records.iter().map(|r| (r.train, r.validation)).collect()
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
    let transform = Transform::cifar10(32);
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
            let mut model = Model::new("net", Device::Cpu, 1, &hidden).unwrap();
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
    let transform = Transform::cifar10(32);
    let model = tiny_model(5);
    let of = |split| {
        let plain = Examples::images(split, &transform).unwrap();
        let logits = CachedTensor::new(split, predict(&model, &plain, 7).unwrap(), "tiny").unwrap();
        plain.with_teacher(&logits).unwrap()
    };
    let (train, validation) = (of(&data.train), of(&data.validation));
    let directly = evaluate(&model, &Examples::images(&data.train, &transform).unwrap(), 9).unwrap().correct as i64;
    let watch = |defect: Option<teaching::Defect>| {
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
        match defect {
            None => fit(&mut student, &train, &validation, &criterion, &options).unwrap(),
            Some(d) => teaching::fit_with_defect(d, &mut student, &train, &validation, &criterion, &options).unwrap(),
        };
        let counts = right.lock().unwrap().clone();
        counts[..4].to_vec()
    };
    assert!(directly > 0);
    assert_eq!(watch(None), [directly; 4]);
    assert_ne!(watch(Some(teaching::Defect::MismatchedTeacher)), [directly; 4], "this test would catch the mismatch");
}

fn values(model: &Model) -> Vec<f32> {
    model.state().iter().flat_map(|(_, t)| Vec::<f32>::try_from(t.flatten(0, -1)).unwrap()).collect()
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
    let control = Control::new();
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
    let seen: Vec<_> = history.records.iter().map(|r| (r.temperature, r.alpha)).collect();
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
    let plain = Examples::images(&data.train, &Transform::cifar10(32)).unwrap();
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
    assert_eq!(values(&model), before);
    // Logits of another split, or of the same images split with another seed.
    let images = || Examples::images(&data.train, &Transform::cifar10(32)).unwrap();
    assert!(images().with_teacher(&teacher(&data.validation, 1.0)).is_err());
    let other = tempfile::tempdir().unwrap();
    let e = images().with_teacher(&teacher(&dataset(other.path(), 1).train, 1.0)).err().unwrap().to_string();
    assert!(e.contains("computed for other data"), "{e}");
}

#[test]
fn cached_logits_belong_to_their_images_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = Transform::cifar10(32);
    let model = tiny_model(5);
    let plain = Examples::images(&data.train, &transform).unwrap();
    let logits = predict(&model, &plain, 7).unwrap();
    let cached = CachedTensor::new(&data.train, logits, "tiny").unwrap();
    let examples = plain.with_teacher(&cached).unwrap();
    for epoch in 1..4 {
        for indices in kdlab::data::batches(&kdlab::data::shuffled(examples.len(), 9, epoch), 6).unwrap() {
            let batch = examples.batch(&indices, Device::Cpu).unwrap();
            let direct = tch::no_grad(|| model.forward(&batch.inputs, false)).unwrap();
            assert!((batch.teacher().unwrap() - direct).abs().max().double_value(&[]) < 1e-5);
        }
    }
}

#[test]
fn a_selection_keeps_images_and_answers_together() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let logits = teacher(&data.train, 1.0);
    let rows = [7i64, 3, 40, 3];
    let (part, selected) = (data.train.select(&rows).unwrap(), logits.select(&data.train, &rows).unwrap());
    let examples = Examples::images(&part, &Transform::cifar10(32)).unwrap().with_teacher(&selected).unwrap();
    for (i, &row) in rows.iter().enumerate() {
        assert_eq!(part.image(i as i64).unwrap(), data.train.image(row).unwrap());
        assert_eq!(selected.tensor.get(i as i64), logits.tensor.get(row));
    }
    assert_eq!(examples.len(), 4);
    // The key goes by the rows and by what the values were made from.
    let key = |seed, rows: &[i64]| teacher(&data.train, seed).select(&data.train, rows).unwrap().key;
    assert_eq!(key(1.0, &rows), selected.key);
    assert!(key(2.0, &rows) != selected.key && key(1.0, &[7, 3, 3, 40]) != selected.key);
    assert!(logits.select(&data.validation, &[0]).is_err());
    for bad in [&[][..], &[64], &[-1]] {
        assert!(data.train.select(bad).is_err() && logits.select(&data.train, bad).is_err());
    }
}

#[test]
fn a_run_s_best_weights_are_loaded_for_its_own_data() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let runs = folder.path().join("runs");
    let lab = kdlab::Lab {
        profile: kdlab::Profile::smoke(),
        device: Device::Cpu,
        precision: Precision::F32,
        folder: runs.clone(),
        cache: folder.path().to_owned(),
        queue: Queue::default(),
    };
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
fn features_are_computed_once_and_never_used_for_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let cache = folder.path().join("cache");
    let passes = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&passes);
    let listener = Listener::new(move |e| {
        if let Event::Progress(p) = e
            && p.done == p.total
        {
            *counter.lock().unwrap() += 1;
        }
    });
    let resnet = |seed| Backbone::untrained(Arch::ResNet18, Device::Cpu, seed).unwrap();
    let run = |backbone: &Backbone, data: &Dataset, size| {
        backbone_features(backbone, &data.validation, &Transform::imagenet(size), 4, Some(&cache), &listener).unwrap()
    };
    let backbone = resnet(1);
    let first = run(&backbone, &data, 32);
    let second = run(&backbone, &data, 32);
    assert_eq!((first.from_disk, second.from_disk, *passes.lock().unwrap()), (false, true, 1));
    assert_eq!(first.tensor, second.tensor);
    // Another size, other weights, another normalisation, another split seed, other pixels: each is computed anew.
    assert!(!run(&backbone, &data, 40).from_disk);
    assert!(!run(&resnet(2), &data, 32).from_disk);
    let otherwise = |transform: Transform| {
        backbone_features(&backbone, &data.validation, &transform, 4, Some(&cache), &listener).unwrap().from_disk
    };
    let [mut mean, mut std] = [Transform::imagenet(32), Transform::imagenet(32)];
    mean.mean[2] += 1e-6;
    std.std[0] += 1e-6;
    assert!(!otherwise(mean) && !otherwise(std) && otherwise(Transform::imagenet(32)));
    // Weights that were changed in place since they were loaded.
    let changed = resnet(1);
    tch::no_grad(|| drop(changed.model.state()[0].1.shallow_clone().fill_(0.5)));
    assert!(!run(&changed, &data, 32).from_disk);
    let again = tempfile::tempdir().unwrap();
    assert!(!run(&backbone, &dataset(again.path(), 1), 32).from_disk);
    let mut bytes = std::fs::read(again.path().join("data_batch_1.bin")).unwrap();
    for pixel in bytes.iter_mut().skip(1).step_by(3073) {
        *pixel ^= 1;
    }
    std::fs::write(again.path().join("data_batch_1.bin"), bytes).unwrap();
    let options = DataOptions { folder: Some(again.path().to_owned()), validation: 0.2, ..DataOptions::default() };
    assert!(!run(&backbone, &cifar10(&options).unwrap(), 32).from_disk);
    assert_eq!(*passes.lock().unwrap(), 8);
    // Logits go by the head's weights too.
    let logits = |seed| {
        let head = head(Arch::ResNet18.features(), 10, Device::Cpu, seed).unwrap();
        teacher_logits(&head, &data.validation, &first, Some(&cache)).unwrap().from_disk
    };
    assert_eq!([logits(1), logits(1), logits(2)], [false, true, false]);
    // A damaged file is no features.
    for file in std::fs::read_dir(&cache).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert!(!run(&backbone, &data, 32).from_disk);
}

#[test]
fn a_head_on_features_equals_the_articles_way() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = Transform::imagenet(32);
    let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
    let features = |split| backbone_features(&backbone, split, &transform, 8, None, &Listener::default()).unwrap();
    let run = |train: Examples, validation: Examples| {
        let mut model = head(Arch::ResNet18.features(), 10, Device::Cpu, 3).unwrap();
        fit(
            &mut model,
            &train,
            &validation,
            &Criterion::cross_entropy(),
            &FitOptions { learning_rate: 1e-3, ..options(2) },
        )
        .unwrap();
        values(&model)
    };
    let cached = run(
        Examples::features(&data.train, &features(&data.train)).unwrap(),
        Examples::features(&data.validation, &features(&data.validation)).unwrap(),
    );
    let through = |split| Examples::through_backbone(split, &transform, &backbone).unwrap();
    let forward = run(through(&data.train), through(&data.validation));
    // Batches of another make-up may take other kernels: rounding, which Adam's normalised steps pass on.
    let largest = cached.iter().zip(&forward).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-4, "{largest}");
}

/// Run by `a_killed_fit_resumes…` in a process of its own; by itself it does nothing.
#[test]
fn child_fit() {
    let Ok(folder) = std::env::var("KDLAB_TEST_CHILD") else {
        return;
    };
    let folder = Path::new(&folder);
    let data = dataset(folder, 0);
    let (train, validation) = examples(&data);
    let marker = folder.join("in-third-epoch");
    let slow = std::env::var_os("KDLAB_TEST_SLOW").is_some();
    let steps = AtomicUsize::new(0);
    let criterion = Criterion::soft("slow", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
        // 8 training and 2 validation batches an epoch: the 25th is in the middle of the third.
        if slow && steps.fetch_add(1, Ordering::Relaxed) == 24 {
            std::fs::write(&marker, "").unwrap();
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap()
    });
    let mut model = Model::new("student", Device::Cpu, 1, &|vs| student(vs, 10)).unwrap();
    let options = FitOptions { folder: Some(folder.join("run")), learning_rate: 1e-3, ..options(4) };
    fit(&mut model, &train, &validation, &criterion, &options).unwrap();
    model.save(folder.join("final.safetensors")).unwrap();
}

#[test]
fn a_killed_fit_resumes_and_ends_as_an_unbroken_one() {
    let child = |folder: &Path, slow: bool| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_fit"]).env("KDLAB_TEST_CHILD", folder).stdout(std::process::Stdio::null());
        if slow {
            command.env("KDLAB_TEST_SLOW", "1");
        }
        command.spawn().unwrap()
    };
    let (broken, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut killed = child(broken.path(), true);
    let start = std::time::Instant::now();
    while !broken.path().join("in-third-epoch").exists() {
        assert!(start.elapsed().as_secs() < 50 && killed.try_wait().unwrap().is_none(), "the child never got there");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    killed.kill().unwrap(); // SIGKILL
    killed.wait().unwrap();
    let history = |folder: &Path| History::load(folder.join("run/history.json")).unwrap();
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
fn a_checkpoint_of_other_settings_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let resumed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&resumed);
    let listener = Listener::new(move |e| {
        if let Event::Started { history, .. } = e
            && !history.records.is_empty()
        {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let run_folder = folder.path().join("run");
    let run = |temperature: f64, seed: u64, stop_after: usize| {
        let control = Control::new();
        let (hand, inner) = (control.clone(), listener.clone());
        let listener = Listener::new(move |e| {
            inner.hear(e);
            if let Event::Epoch { record, .. } = e
                && record.epoch == stop_after
            {
                hand.stop("test");
            }
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
    assert_eq!([kept("run-1"), kept("run-2")].map(|h| h.records[0].temperature), [Some(4.0), Some(2.0)]);
    assert!(!folder.path().join("run-3").exists());
}

#[test]
fn a_mistake_is_made_on_purpose_or_not_at_all() {
    use teaching::{Defect, fit_with_defect};
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let test = Examples::images(&data.test, &Transform::cifar10(32)).unwrap().with_teacher(&teacher(&data.test, 1.0));
    let test = test.unwrap();
    let kd = Criterion::kd(KdLoss::new(2.0, 0.5).unwrap());
    // The test split cannot pick weights by accident.
    let e = fit(&mut tiny_model(1), &train, &test, &kd, &options(1)).unwrap_err().to_string();
    assert!(e.contains("the test split was given for validation"), "{e}");
    let run = |defect, validation: &Examples, criterion: &Criterion| {
        fit_with_defect(defect, &mut tiny_model(1), &train, validation, criterion, &options(2))
    };
    let right = fit(&mut tiny_model(1), &train, &validation, &kd, &options(2)).unwrap();
    assert_eq!(right.defect, None);
    assert!(!serde_json::to_string(&right).unwrap().contains("defect"), "an ordinary history does not mention it");
    for defect in [Defect::MismatchedTeacher, Defect::KlOverClasses, Defect::AdamRebuilt] {
        let wrong = run(defect, &validation, &kd).unwrap();
        assert_eq!(wrong.defect, Some(defect));
        assert_ne!(curve(&wrong), curve(&right), "{defect} changed nothing");
        let json = serde_json::to_string(&wrong).unwrap();
        assert!(json.contains(&format!("\"defect\":\"{defect:?}\"")), "{json}");
    }
    let picked = run(Defect::BestOnTest, &test, &kd).unwrap();
    assert_eq!(picked.records[1].train, right.records[1].train, "only the choice of weights is another");
    // Where a mistake could not show, it is refused, and the message says what it needs.
    let refused =
        |defect, validation, criterion: &Criterion| run(defect, validation, criterion).unwrap_err().to_string();
    let hard = Criterion::cross_entropy();
    assert!(refused(Defect::MismatchedTeacher, &validation, &hard).contains("criterion with a teacher"));
    let unheard = Criterion::kd(KdLoss::new(2.0, 0.0).unwrap());
    assert!(refused(Defect::MismatchedTeacher, &validation, &unheard).contains("alpha > 0"));
    let own = Criterion::soft("own", KdLoss::new(2.0, 0.5).unwrap(), |s, y, _, _, _| s.cross_entropy_for_logits(y));
    for criterion in [&hard, &unheard, &own] {
        assert!(refused(Defect::KlOverClasses, &validation, criterion).contains("Criterion::kd with alpha > 0"));
    }
    let e = fit_with_defect(Defect::AdamRebuilt, &mut tiny_model(1), &train, &validation, &kd, &options(1));
    assert!(e.unwrap_err().to_string().contains("more than one epoch"));
    assert!(refused(Defect::BatchNormDrift, &validation, &kd).contains("frozen BatchNorm"));
    assert!(refused(Defect::BestOnTest, &validation, &kd).contains("test split"));
    // Nobody meets them unasked: one notebook names them, and the prelude does not.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let notebooks = std::fs::read_dir(root.join("notebooks")).unwrap().map(|entry| entry.unwrap().path());
    let files = notebooks.filter(|path| path.extension().is_some_and(|e| e == "ipynb"));
    let naming: Vec<_> = files
        .chain([root.join("prelude/prelude.rs")])
        .filter(|path| std::fs::read_to_string(path).unwrap().contains("_defect"))
        .collect();
    assert_eq!(naming, [root.join("notebooks/06_spot_the_bug.ipynb")]);
    // A run with a mistake in it is not continued by one without, nor lost.
    let options = |control| FitOptions { folder: Some(folder.path().join("run")), control, ..options(3) };
    let control = Control::new();
    let hand = control.clone();
    let listener = Listener::new(move |e| {
        if let Event::Epoch { .. } = e {
            hand.stop("test");
        }
    });
    let stopped = FitOptions { listener, ..options(control) };
    fit_with_defect(Defect::AdamRebuilt, &mut tiny_model(1), &train, &validation, &kd, &stopped).unwrap();
    let after = fit(&mut tiny_model(1), &train, &validation, &kd, &options(Control::new())).unwrap();
    assert_eq!((after.records.len(), after.defect), (3, None));
    assert_eq!(History::load(folder.path().join("run-1/history.json")).unwrap().defect, Some(Defect::AdamRebuilt));
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
fn a_report_card_sums_up_what_can_be_measured_apart() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = Transform::cifar10(32);
    let (a, b) = (tiny_model(1), tiny_model(2));
    let test = Examples::images(&data.test, &transform).unwrap();
    let logits = CachedTensor::new(&data.test, predict(&a, &test, 4).unwrap(), "known").unwrap();
    let graded = |name, model, logits| Graded { name, model, transform: &transform, logits };
    let (card, evaluations) =
        report_card(&data.test, &[graded("teacher", &a, Some(&logits)), graded("pupil", &b, None)], 7).unwrap();
    assert_eq!((card.images, card.rows.len(), evaluations.len()), (20, 2, 2));
    for (row, model) in card.rows.iter().zip([&a, &b]) {
        let apart = evaluate(model, &test, 4).unwrap();
        assert_eq!((row.accuracy, row.confusion.clone()), (apart.accuracy(), apart.confusion().unwrap()));
        assert!((row.nll - apart.cross_entropy).abs() < 1e-6);
        assert_eq!((row.parameters, row.macs), (490, 480));
        let file = folder.path().join("model.safetensors");
        model.save(&file).unwrap();
        assert_eq!(row.file_bytes as u64, std::fs::metadata(&file).unwrap().len());
        assert!(row.latency_ms > 0.0 && row.latency_ms < 1e3);
    }
    let agreement = evaluations[1].agreement(&evaluations[0]).unwrap();
    assert_eq!([card.rows[0].agreement, card.rows[1].agreement], [None, Some(agreement)]);
    let path = folder.path().join("card.json");
    card.save(&path).unwrap();
    let read: ReportCard = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(read, card);
    let e = report_card(&data.test, &[], 7).err().unwrap().to_string();
    assert!(e.contains("no models"), "{e}");
    let e = report_card(&data.validation, &[graded("teacher", &a, Some(&logits))], 7).err().unwrap().to_string();
    assert!(e.contains("samples"), "{e}");
    let other = evaluate(&a, &Examples::images(&data.validation, &transform).unwrap(), 4).unwrap();
    assert!(evaluations[0].agreement(&other).unwrap_err().to_string().contains("same split"));
    assert!(evaluations[0].calibration(0).unwrap_err().to_string().contains("0 bins"));
}
