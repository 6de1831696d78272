//! The loss and Adam against their formulas, written out by hand.

use super::*;

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
