//! The loss, Adam and evaluations against definitions written out by hand.

use super::random;
use kdlab::train::*;
use tch::{Device, Kind, Tensor};

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
    assert_eq!(
        loss(0.0, &labels, &broken),
        s.cross_entropy_loss::<Tensor>(&labels, None, tch::Reduction::Mean, -100, 0.0).double_value(&[])
    );
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
    let control = Control::default();
    assert!(control.set_temperature(0.0).is_err() && control.set_alpha(-0.1).is_err());
    let logits = |c| Tensor::zeros([2, c], (Kind::Float, Device::Cpu));
    let e = KdLoss::new(1.0, 1.0).unwrap().divergence(&logits(10), &logits(12)).unwrap_err().to_string();
    assert!(e.contains("[2, 10]") && e.contains("[2, 12]"), "{e}");
}

#[test]
fn adam_is_its_formula() {
    let double = (Kind::Double, Device::Cpu);
    let laid_out = |t: Tensor| t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    // A vector, a convolution with its channels innermost, one that a step may pass over, and more than are updated
    // together.
    let first = [
        Tensor::from_slice(&[1.0f64, -2.0]),
        laid_out(Tensor::linspace(-1, 1, 24, double).reshape([2, 3, 2, 2])),
        Tensor::linspace(0, 3, 6, double).reshape([2, 3]).tr(),
        Tensor::linspace(-3, 3, (1 << 20) + 1, double),
    ];
    let named = |(i, t): (usize, &Tensor)| (format!("p{i}"), t.copy().set_requires_grad(true));
    let parameters: Vec<_> = first.iter().enumerate().map(named).collect();
    let shared = parameters.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    let mut adam = Optimizer::new(&Recipe::default(), shared).unwrap();
    let mut known: Vec<_> = first.iter().map(|t| (t.copy(), t.zeros_like(), t.zeros_like())).collect();
    for step in 1..=5 {
        let used = |i: &usize| *i != 2 || step % 2 == 1;
        let loss = |i: usize| (parameters[i].1.square() * 0.5 + parameters[i].1.sin()).sum(Kind::Double);
        let all: Tensor = (0..parameters.len()).filter(used).map(loss).sum();
        adam.backward_step(&all, 0.1, None).unwrap();
        for (i, (w, m, v)) in known.iter_mut().enumerate() {
            if used(&i) {
                let g = &*w + w.cos();
                *m = &*m * 0.9 + &g * 0.1;
                *v = &*v * 0.999 + g.square() * 0.001;
                let (m, v) = (&*m / (1.0 - 0.9f64.powi(step)), &*v / (1.0 - 0.999f64.powi(step)));
                *w = &*w - m * 0.1 / (v.sqrt() + 1e-8);
            }
            let off = (&parameters[i].1 - &*w).abs().max().double_value(&[]);
            assert!(off < 1e-12, "step {step}, parameter {i}: off by {off}");
        }
    }
}

#[test]
fn a_class_that_the_teacher_rules_out_adds_nothing() {
    let (s, t) = (random([6, 10], 1).set_requires_grad(true), random([6, 10], 2));
    let _ = t.select(1, 3).fill_(f64::NEG_INFINITY);
    let kd = KdLoss::new(4.0, 1.0).unwrap();
    let got = kd.divergence(&s, &t).unwrap();
    // F.kl_div on probabilities: its definition of 0 * log 0 is 0.
    let log_student = (&s / 4.0).log_softmax(-1, None::<Kind>);
    let want = log_student.kl_div(&(&t / 4.0).softmax(-1, None::<Kind>), tch::Reduction::Sum, false) / 6.0;
    assert!((got.double_value(&[]) - want.double_value(&[])).abs() < 1e-12);
    let gradient = |loss: &Tensor| Tensor::run_backward(&[loss], &[&s], true, false).remove(0);
    assert!(gradient(&got).allclose(&gradient(&want), 1e-12, 1e-12, false));
    let labels = Tensor::from_slice(&[0i64, 1, 2, 4, 5, 6]);
    let dkd = Method::Dkd { target: 1.0, non_target: 8.0 }.divergence(kd, &s, &labels, &t).unwrap();
    assert!(dkd.double_value(&[]).is_finite());
    assert!(bool::try_from(gradient(&dkd).isfinite().all()).unwrap());
}

#[test]
fn no_gradient_reaches_the_teacher() {
    let (s, t) = (random([6, 10], 1).set_requires_grad(true), random([6, 10], 2).set_requires_grad(true));
    let labels = Tensor::from_slice(&[0i64, 1, 2, 4, 5, 6]);
    let kd = KdLoss::new(4.0, 1.0).unwrap();
    for method in [Method::Kd, Method::Dkd { target: 1.0, non_target: 8.0 }, Method::StandardisedKd] {
        method.divergence(kd, &s, &labels, &t).unwrap().backward();
        assert!(s.grad().defined() && !t.grad().defined(), "{method}");
    }
}

#[test]
fn images_without_a_label_are_not_measured() {
    let logits = Tensor::from_slice(&[3.0, 0.0, 0.0, 3.0, 3.0, 0.0, 0.0, 3.0]).view([4, 2]);
    let labels = Tensor::from_slice(&[0i64, UNLABELLED, 1, UNLABELLED]);
    let measured = Evaluation::new(&logits, &labels).unwrap();
    assert_eq!((measured.accuracy(), measured.total), (0.5, 2));
    assert_eq!(measured.recall().unwrap(), [1.0, 0.0]);
    assert_eq!(measured.confusion().unwrap(), [[1, 0], [1, 0]]);
    let none = Evaluation::new(&logits, &Tensor::from_slice(&[UNLABELLED; 4])).err().unwrap();
    assert!(none.to_string().contains("none of the 4 images has a label"), "{none}");
}

#[test]
fn constants_of_an_optimizer_out_of_range_are_named() {
    let message =
        |optimizer| Optimizer::new(&Recipe { optimizer, ..Recipe::default() }, vec![]).err().unwrap().to_string();
    assert_eq!(message(UpdateRule::AdamW { weight_decay: -1.0 }), "weight decay must be >= 0, got -1; try 0.01");
    let sgd = |momentum, weight_decay| UpdateRule::Sgd { momentum, nesterov: true, weight_decay };
    assert_eq!(message(sgd(1.0, 0.0)), "momentum must be in [0, 1), got 1; try 0.9");
    assert!(message(sgd(f64::NAN, 0.0)).contains("got NaN") && message(sgd(0.9, f64::NAN)).contains("got NaN"));
    assert_eq!(message(sgd(0.0, 0.0)), "Nesterov's momentum needs a momentum above 0, got 0; try 0.9");
}

#[test]
fn two_optimisers_of_one_model_both_act() {
    let start = || Tensor::from_slice(&[1.0f64, 2.0]).set_requires_grad(true);
    let parameter = start();
    let own = || vec![("p".to_owned(), parameter.shallow_clone())];
    let mut first = Optimizer::new(&Recipe::default(), own()).unwrap();
    let mut second = Optimizer::new(&Recipe::default(), own()).unwrap();
    // Adam's first step is as long as the learning rate, whatever the gradient.
    for (adam, wanted) in [(&mut first, [0.9, 1.9]), (&mut second, [0.8, 1.8])] {
        let loss = parameter.square().sum(Kind::Double);
        adam.backward_step(&loss, 0.1, None).unwrap();
        let got = Vec::<f64>::try_from(parameter.shallow_clone()).unwrap();
        assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-6), "{got:?} {wanted:?}");
    }
}

#[test]
fn what_an_evaluation_cannot_measure_is_refused() {
    let of = |labels: &[i64]| Evaluation::new(&random([3, 3], 1), &Tensor::from_slice(labels)).unwrap();
    let e = of(&[0, 1, 2]).agreement(&of(&[0, 2, 2])).unwrap_err().to_string();
    assert!(e.contains("same split"), "{e}");
    assert!(of(&[0, 1, 2]).calibration(0).unwrap_err().to_string().contains("0 bins"));
}
