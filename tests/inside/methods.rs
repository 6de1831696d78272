//! Other ways to hold a student to its teacher, and labels that are few or wrong.

use super::{dataset, normalised, random, tiny};
use kdlab::models::Model;
use kdlab::train::*;
use tch::{Device, Kind, Tensor};

fn rows(x: &Tensor) -> Vec<Vec<f64>> {
    Vec::try_from(x.shallow_clone()).unwrap()
}

fn softmax(row: &[f64], t: f64) -> Vec<f64> {
    let exp: Vec<f64> = row.iter().map(|v| (v / t).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p.ln() - q.ln())).sum()
}

/// TCKD and NCKD of one image, with loops.
fn by_hand(student: &[f64], label: usize, teacher: &[f64], t: f64) -> (f64, f64) {
    let parts = |logits: &[f64]| {
        let target = softmax(logits, t)[label];
        let others: Vec<f64> = logits.iter().enumerate().filter(|(c, _)| *c != label).map(|(_, z)| *z).collect();
        ([target, 1.0 - target], softmax(&others, t))
    };
    let ((s2, s), (t2, te)) = (parts(student), parts(teacher));
    (kl(&t2, &s2), kl(&te, &s))
}

/// TCKD and NCKD, scalars: dkd with a weight of 0 for the other one.
fn decoupled(student: &Tensor, labels: &Tensor, teacher: &Tensor, temperature: f64) -> kdlab::Result<(Tensor, Tensor)> {
    let kd = KdLoss::new(temperature, 0.5).unwrap();
    let part = |target, non_target| Method::Dkd { target, non_target }.divergence(kd, student, labels, teacher);
    Ok((part(1.0, 0.0)?, part(0.0, 1.0)?))
}

#[test]
fn dkd_is_its_formula() {
    let (s, t, labels) = (random([6, 10], 1), random([6, 10], 2), [3i64, 0, 9, 1, 1, 5]);
    for temperature in [0.5, 1.0, 4.0] {
        let (tckd, nckd) = decoupled(&s, &Tensor::from_slice(&labels), &t, temperature).unwrap();
        let (mut target, mut others) = (0.0, 0.0);
        for ((s, t), &label) in rows(&s).iter().zip(&rows(&t)).zip(&labels) {
            let (a, b) = by_hand(s, label as usize, t, temperature);
            target += a / 6.0;
            others += b / 6.0;
        }
        assert!((tckd.double_value(&[]) - target).abs() < 1e-9 && (nckd.double_value(&[]) - others).abs() < 1e-9);
        let kd = KdLoss::new(temperature, 0.5).unwrap();
        let dkd = Method::Dkd { target: 1.5, non_target: 4.0 };
        let mixed = dkd.divergence(kd, &s, &Tensor::from_slice(&labels), &t).unwrap().double_value(&[]);
        assert!((mixed - 1.5 * target - 4.0 * others).abs() < 1e-9);
    }
}

/// The paper's equation 5: plain KD is `TCKD + (1 - p_target) * NCKD`.
#[test]
fn plain_kd_is_both_parts_of_dkd_with_the_second_muted() {
    for seed in 0..5 {
        let (s, t, label) = (random([1, 10], 2 * seed), random([1, 10], 2 * seed + 1), Tensor::from_slice(&[seed]));
        let (tckd, nckd) = decoupled(&s, &label, &t, 4.0).unwrap();
        let p = soft_targets(&t, 4.0).unwrap().double_value(&[0, seed]);
        let plain = KdLoss::new(4.0, 1.0).unwrap().divergence(&s, &t).unwrap();
        assert!((plain - tckd - nckd * (1.0 - p)).abs().double_value(&[]) < 1e-12);
    }
}

#[test]
fn standardised_logits_have_lost_scale_and_shift() {
    let (s, t, labels) = (random([6, 10], 1), random([6, 10], 2), Tensor::zeros([6], (Kind::Int64, Device::Cpu)));
    let kd = KdLoss::new(2.0, 0.5).unwrap();
    let loss = |s: &Tensor, t: &Tensor| Method::StandardisedKd.divergence(kd, s, &labels, t).unwrap().double_value(&[]);
    let plain = loss(&s, &t);
    // The 1e-7 of the paper's code is all that is left of the scale.
    assert!((loss(&(&s * 5.0 + 3.0), &(&t * 0.2 - 7.0)) - plain).abs() < 1e-5);
    assert!((loss(&s, &(&s * 9.0))).abs() < 1e-9, "logits of one direction agree");
    let z = |row: &Vec<f64>| {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let deviation = (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        row.iter().map(|v| (v - mean) / (deviation + 1e-7)).collect::<Vec<_>>()
    };
    let pairs = rows(&s).iter().map(z).zip(rows(&t).iter().map(z)).collect::<Vec<_>>();
    let by_hand: f64 = pairs.iter().map(|(s, t)| kl(&softmax(t, 2.0), &softmax(s, 2.0))).sum::<f64>() / 6.0;
    assert!((plain - by_hand).abs() < 1e-9);
}

#[test]
fn gradients_stay_finite_where_logits_are_extreme() {
    let t = Tensor::from_slice(&[1000.0f32, -1000.0, 0.0, 500.0]).reshape([1, 4]);
    for method in ["kd", "dkd", "standardised-kd"] {
        let s = Tensor::from_slice(&[-1000.0f32, 1000.0, 0.0, 0.0]).reshape([1, 4]).set_requires_grad(true);
        let kd = KdLoss::new(1.0, 1.0).unwrap();
        let method: Method = method.parse().unwrap();
        let loss = method.divergence(kd, &s, &Tensor::from_slice(&[0i64]), &t).unwrap();
        loss.backward();
        assert!(bool::try_from(s.grad().isfinite().all()).unwrap() && loss.double_value(&[]).is_finite(), "{method}");
    }
}

#[test]
fn methods_have_names_and_refuse_what_they_cannot_do() {
    for name in ["kd", "dkd", "standardised-kd", "argmax", "dkd(1,0.5)"] {
        assert_eq!(name.parse::<Method>().unwrap().to_string(), name);
        let json = serde_json::to_string(&name.parse::<Method>().unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Method>(&json).unwrap().to_string(), name);
    }
    let said = "dkd(1,-2)".parse::<Method>().unwrap_err().to_string();
    assert!(said.contains("no method named \"dkd(1,-2)\"; there are kd, dkd"), "{said}");
    let (s, t) = (random([2, 10], 1), random([2, 10], 2));
    let said = |labels: &[i64]| decoupled(&s, &Tensor::from_slice(labels), &t, 1.0).unwrap_err().to_string();
    assert!(said(&[1, UNLABELLED]).contains("needs the label of every image, 0 to 9"));
    assert!(said(&[1]).contains("a label for each image"));
    let (one, kd) = (random([3, 1], 1), KdLoss::new(1.0, 0.5).unwrap());
    let said = Method::StandardisedKd.divergence(kd, &one, &Tensor::from_slice(&[0i64, 0, 0]), &one).unwrap_err();
    assert!(said.to_string().contains("[3, 1]"));
}

/// The first loss of a fit in one batch is the formula at the first weights: soft targets of all images, labels of
/// some.
#[test]
fn images_without_labels_are_taught_by_the_teacher_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, n) = (&data.train, data.train.len() as i64);
    let transform = normalised(32);
    let of = |split: &kdlab::data::Split| {
        CachedTensor::new(split, random([split.len() as i64, 10], 5).to_kind(Kind::Float), "t").unwrap()
    };
    let (logits, validation_logits) = (of(train), of(&data.validation));
    let few = train.labelled_subset(0.3, 7).unwrap();
    let labels = train.labels().unwrap();
    let known: Vec<i64> =
        (0..n).map(|i| if few.contains(&i) { labels.int64_value(&[i]) } else { UNLABELLED }).collect();
    let examples = Examples::images(train, &transform).unwrap().with_teacher(&logits).unwrap();
    let examples = examples.with_labels(&Tensor::from_slice(&known)).unwrap();
    let validation = Examples::images(&data.validation, &transform).unwrap().with_teacher(&validation_logits).unwrap();
    let model = || Model::new("tiny", Device::Cpu, 3, &tiny).unwrap();
    let before = predict(&model(), &Examples::images(train, &transform).unwrap(), 64).unwrap();
    let kd = KdLoss::new(3.0, 0.6).unwrap();
    let options = FitOptions { epochs: 1, batch_size: n as usize, ..FitOptions::default() };
    let first = |examples: &Examples| {
        fit(&mut model(), examples, &validation, &Criterion::kd(kd), &options).unwrap().records[0].train
    };
    let got = first(&examples);
    let pick = Tensor::from_slice(&few);
    let hard = before.index_select(0, &pick).cross_entropy_for_logits(&labels.index_select(0, &pick)).double_value(&[]);
    let soft = kd.divergence(&before, &logits.tensor).unwrap().double_value(&[]);
    assert!((got.loss - (0.6 * 9.0 * soft + 0.4 * hard)).abs() < 1e-4, "{got:?}");
    assert!((got.cross_entropy - hard).abs() < 1e-4, "of the labelled ones only");
    let right = before.argmax(-1, false).eq_tensor(&labels).index_select(0, &pick).sum(Kind::Int64).int64_value(&[]);
    assert!((got.accuracy - right as f64 / few.len() as f64).abs() < 1e-9);
    // With a batch of its own for each image, most batches have no label at all.
    let alone = FitOptions { epochs: 2, batch_size: 1, ..FitOptions::default() };
    let weighted = Recipe { label_smoothing: 0.1, class_weights: Some(vec![0.5; 10]), ..Recipe::default() };
    for options in [alone.clone(), FitOptions { recipe: weighted, ..alone.clone() }] {
        let done = fit(&mut model(), &examples, &validation, &Criterion::kd(kd), &options).unwrap();
        assert!(done.records.iter().all(|r| r.train.loss.is_finite()));
    }
    let refused = fit(&mut model(), &examples, &validation, &Criterion::distil("dkd".parse().unwrap(), kd), &alone);
    assert!(refused.unwrap_err().to_string().contains("criterion dkd looks at the label of every image"));
    let nothing = Examples::images(train, &transform).unwrap().with_labels(&Tensor::full(
        [n],
        UNLABELLED,
        (Kind::Int64, Device::Cpu),
    ));
    assert!(nothing.err().unwrap().to_string().contains("not only that"));
}

#[test]
fn few_and_noisy_labels_are_seeded_stratified_and_as_many_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let train = dataset(folder.path(), 0).train;
    let labels = Vec::<i64>::try_from(train.labels().unwrap()).unwrap();
    let few = train.labelled_subset(0.25, 1).unwrap();
    assert_eq!(few.len(), train.len() / 4);
    assert!((0..10).all(|class| few.iter().any(|&i| labels[i as usize] == class)));
    assert_eq!(few, train.labelled_subset(0.25, 1).unwrap());
    assert_ne!(few, train.labelled_subset(0.25, 2).unwrap());
    assert_eq!(train.labelled_subset(0.0001, 1).unwrap().len(), 10, "one of each class at least");
    let noisy = |fraction, seed| Vec::<i64>::try_from(train.noisy_labels(fraction, seed).unwrap()).unwrap();
    let wrong = |noisy: &[i64]| noisy.iter().zip(&labels).filter(|(a, b)| a != b).count();
    assert_eq!(wrong(&noisy(0.25, 1)), train.len() / 4);
    assert_eq!(wrong(&noisy(0.0, 1)), 0);
    assert_eq!(wrong(&noisy(1.0, 1)), train.len());
    assert!(noisy(1.0, 1).iter().all(|l| (0..10).contains(l)));
    assert_eq!(noisy(0.25, 1), noisy(0.25, 1));
    assert_ne!(noisy(0.25, 1), noisy(0.25, 2));
    assert!(train.labelled_subset(0.0, 1).unwrap_err().to_string().contains("(0, 1], got 0"));
    assert!(train.noisy_labels(1.5, 1).unwrap_err().to_string().contains("[0, 1], got 1.5"));
}

/// Hinton et al.'s correction, against trying every bias.
#[test]
fn the_best_bias_is_the_best() {
    for seed in 0..5 {
        let (logits, class) = (random([60, 4], seed), seed % 4);
        let labels = (random([60, 1], seed + 50).abs() * 10.0).to_kind(Kind::Int64).remainder(4).reshape(-1);
        let e = Evaluation::new(&logits, &labels).unwrap();
        let right = |bias: f64| e.with_bias(class, bias).unwrap().correct;
        let best = (-2000..2000).map(|i| right(f64::from(i) / 100.0)).max().unwrap();
        let bias = e.best_bias(class).unwrap();
        assert!(right(bias) >= best, "seed {seed}: {} with {bias}, but {best} is possible", right(bias));
    }
    let e = Evaluation::new(&random([4, 3], 1), &Tensor::from_slice(&[0i64, 1, 2, 0])).unwrap();
    assert!(e.best_bias(3).unwrap_err().to_string().contains("class 3: there are 3"));
    assert_eq!(e.recall().unwrap().len(), 3);
}
