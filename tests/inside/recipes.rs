//! Recipes against PyTorch, step by step in f64: optimizers, schedules, clipping, averages, smoothing and weights.

use super::oracle::{Answer, ask_in, relative};
use super::{dataset, random};
use kdlab::data::{Split, shuffled};
use kdlab::models::{Layers, Model};
use kdlab::train::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, nn};

const SEED: u64 = 3;
/// 64 images make 11 steps, the last of 4 images.
const BATCH: usize = 6;
const RATE: f64 = 1e-2;

/// A network with BatchNorm, in f64. A bias before BatchNorm would have no gradient but roundings, which Adam enlarges.
fn network() -> Model {
    let build = |vs: &nn::Path| {
        let unbiased = nn::LinearConfig { bias: false, ..Default::default() };
        Layers::new()
            .add("fc1", nn::linear(vs / "fc1", 12, 16, unbiased))
            .add("bn", nn::batch_norm1d(vs / "bn", 16, Default::default()))
            .func("relu", |x| x.relu())
            .add("fc2", nn::linear(vs / "fc2", 16, 10, Default::default()))
    };
    let model = Model::new("net", Device::Cpu, SEED, &build).unwrap();
    for (_, mut variable) in model.state() {
        variable.set_data(&variable.to_kind(Kind::Double));
    }
    model
}

/// Features f64 `[N, 12]` and teacher's logits f64 `[N, 10]`, which know the classes somewhat.
fn tables(split: &Split) -> [Tensor; 2] {
    let n = split.len() as i64;
    let classes = split.labels().unwrap().one_hot(10).to_kind(Kind::Double);
    let features = random([n, 12], n) + classes.narrow(1, 0, 5).repeat([1, 3]).narrow(1, 0, 12) * 2.0;
    [features, random([n, 10], n + 1) + classes * 4.0]
}

/// A recipe, temperature and alpha where there is a teacher, and whether a fifth of the images has no label.
type Case = (Recipe, Loss, bool);

#[derive(Clone, Copy, Debug)]
enum Loss {
    Hard,
    Kd(KdLoss),
    Published(Method),
    /// Cross-entropy and features.
    Features(FeatureMethod),
}

/// The name of a method and its weights.
fn weights_of(method: FeatureMethod) -> (String, Vec<f64>) {
    let weights = match method {
        FeatureMethod::Hint { weight } | FeatureMethod::Attention { weight } => vec![weight],
        FeatureMethod::Relational { distance, angle } => vec![distance, angle],
    };
    let text = method.to_string(); // such as hint(2)
    (text.split('(').next().unwrap().to_owned(), weights)
}

struct Runs {
    cases: Vec<Case>,
    histories: Vec<History>,
    checkpoints: Vec<HashMap<String, Tensor>>,
    torch: Answer,
}

/// Trains each case on both sides, for so many epochs.
fn both(cases: Vec<Case>, epochs: usize) -> Runs {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    network().save(folder.path().join("first.safetensors")).unwrap();
    let parts = [&data.train, &data.validation].map(|split| (split, tables(split)));
    let labels = data.train.labels().unwrap();
    let unlabelled = Tensor::arange(labels.size()[0], (Kind::Int64, Device::Cpu)).remainder(5).eq(0);
    let few = labels.masked_fill(&unlabelled, UNLABELLED);
    let features = random([labels.size()[0], 24], 9);
    let wide = CachedTensor::new(&data.train, features.shallow_clone(), "24 wide").unwrap();
    let (mut histories, mut checkpoints, mut runs) = (vec![], vec![], vec![]);
    for (i, (recipe, loss, partly)) in cases.iter().enumerate() {
        let [train, validation] = parts.each_ref().map(|(split, [features, logits])| {
            let table = |t: &Tensor| CachedTensor::new(split, t.shallow_clone(), "f64").unwrap();
            Examples::features(split, &table(features)).unwrap().with_teacher(&table(logits)).unwrap()
        });
        let train = match loss {
            Loss::Features(_) => train.with_teacher_features(&wide).unwrap(),
            _ => train,
        };
        let train = if *partly { train.with_labels(&few).unwrap() } else { train };
        let (criterion, kd) = match *loss {
            Loss::Hard => (Criterion::cross_entropy(), Value::Null),
            Loss::Kd(kd) => (Criterion::kd(kd), json!([kd.temperature(), kd.alpha()])),
            Loss::Published(method) => (Criterion::published(method), json!(method)),
            Loss::Features(method) => {
                let criterion = Criterion::cross_entropy().with_features(method, "relu").unwrap();
                (criterion, json!({"features": weights_of(method)}))
            }
        };
        let run = folder.path().join(i.to_string());
        let options = FitOptions {
            epochs,
            batch_size: BATCH,
            learning_rate: RATE,
            recipe: recipe.clone(),
            seed: SEED,
            folder: Some(run.clone()),
            ..FitOptions::default()
        };
        histories.push(fit(&mut network(), &train, &validation, &criterion, &options).unwrap());
        let checkpoint = Tensor::read_safetensors(run.join("checkpoint.safetensors")).unwrap();
        checkpoints.push(checkpoint.into_iter().collect());
        runs.push(json!([recipe, kd, if *partly { "few" } else { "labels" }]));
    }
    let orders: Vec<_> =
        (1..=epochs).map(|e| Tensor::from_slice(&shuffled(data.train.len(), SEED, e as u64))).collect();
    let [(_, [inputs, teacher]), (_, [validation_inputs, validation_teacher])] = &parts;
    let tensors = [
        ("inputs", inputs),
        ("labels", &labels),
        ("few", &few),
        ("teacher", teacher),
        ("features", &features),
        ("validation_inputs", validation_inputs),
        ("validation_labels", &data.validation.labels().unwrap()),
        ("validation_teacher", validation_teacher),
        ("order", &Tensor::stack(&orders, 0)),
    ];
    let settings: Value = json!({"runs": runs, "batch_size": BATCH, "learning_rate": RATE, "seed": SEED});
    let torch = ask_in(folder, "recipes", &tensors, settings);
    Runs { cases, histories, checkpoints, torch }
}

impl Runs {
    /// Learning rates of all steps, losses of all epochs, and at the end weights, moments and averages.
    fn agree(&self) {
        for (i, history) in self.histories.iter().enumerate() {
            let what = format!("{:?}", self.cases[i]);
            let list = |name: &str| Vec::<f64>::try_from(self.torch.get(&format!("{i}/{name}"))).unwrap();
            let rates = list("rates");
            assert_eq!((rates.len(), history.steps_per_epoch), (11 * history.epochs, 11));
            for (step, rate) in rates.iter().enumerate() {
                let ours = history.learning_rate(step as f64 / 11.0, RATE);
                assert!((ours - rate).abs() < 1e-12 * RATE, "{what}: step {step} at {ours}, {rate} in PyTorch");
            }
            for (record, (train, validation)) in
                history.records.iter().zip(list("losses").into_iter().zip(list("validation")))
            {
                for (ours, theirs) in [(record.train.loss, train), (record.validation.loss, validation)] {
                    assert!((ours - theirs).abs() < 1e-9, "{what}: epoch {}: {ours}, {theirs}", record.epoch);
                }
            }
            let compared = self.checkpoints[i].iter().filter(|(name, _)| !name.starts_with("best/"));
            let mut count = 0;
            for (name, ours) in compared {
                let gap = relative(ours, self.torch.get(&format!("{i}/{name}")));
                assert!(gap < 1e-9, "{what}: {name} differs by {gap:e} of its largest value");
                count += 1;
            }
            assert!(count >= 12, "{what}: {count} tensors");
            assert_eq!(self.cases[i].0.average.is_some(), self.checkpoints[i].contains_key("average/bn.running_var"));
        }
    }
}

#[test]
fn every_optimizer_under_every_schedule_takes_pytorch_s_steps() {
    let rules = [
        UpdateRule::Adam,
        UpdateRule::AdamW { weight_decay: 0.1 },
        UpdateRule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.01 },
        UpdateRule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
    ];
    let step = Schedule::Step { epochs: 3, factor: 0.3 };
    let mut cases = Vec::new();
    for (i, optimizer) in rules.into_iter().enumerate() {
        for (j, schedule) in [Schedule::Constant, Schedule::Cosine, step, Schedule::OneCycle].into_iter().enumerate() {
            // Each optimizer and each schedule with a warm-up and without.
            let warmup = if (i + j) % 2 == 0 { 0.0 } else { 1.6 };
            cases.push((Recipe { optimizer, schedule, warmup, ..Recipe::default() }, Loss::Hard, false));
        }
    }
    both(cases, 10).agree();
}

#[test]
fn decay_clipping_averages_smoothing_and_weights_are_pytorch_s() {
    let adamw = UpdateRule::AdamW { weight_decay: 0.2 };
    let sgd = UpdateRule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.05 };
    let weights = || Some((1..=10).map(|class| 0.3 * f64::from(class)).collect());
    let plain = Recipe::default();
    let labels = Recipe { label_smoothing: 0.1, class_weights: weights(), ..plain.clone() };
    let all = Recipe {
        optimizer: sgd,
        decay_weights_only: true,
        schedule: Schedule::OneCycle,
        warmup: 1.0,
        clip_norm: Some(0.5),
        average: Some(0.9),
        ..labels.clone()
    };
    let kd = Loss::Kd(KdLoss::new(3.0, 0.6).unwrap());
    let cases = vec![
        (Recipe { optimizer: adamw, decay_weights_only: true, ..plain.clone() }, Loss::Hard, false),
        (Recipe { optimizer: sgd, decay_weights_only: true, ..plain.clone() }, kd, false),
        (Recipe { clip_norm: Some(0.3), ..plain.clone() }, Loss::Hard, false),
        (Recipe { optimizer: sgd, clip_norm: Some(0.3), ..plain.clone() }, kd, false),
        (Recipe { average: Some(0.95), ..plain.clone() }, Loss::Hard, false),
        (Recipe { label_smoothing: 0.2, ..plain.clone() }, Loss::Hard, false),
        (Recipe { class_weights: weights(), ..plain }, Loss::Hard, false),
        (labels.clone(), kd, false),
        (labels.clone(), Loss::Hard, true),
        (labels, kd, true),
        (all, kd, true),
    ];
    let runs = both(cases, 10);
    runs.agree();
    // Each of them matters: no two runs end with the same weights.
    let ends: Vec<_> = runs.checkpoints.iter().map(|c| c["weights/fc1.weight"].shallow_clone()).collect();
    for (i, a) in ends.iter().enumerate() {
        assert!(ends[..i].iter().all(|b| relative(a, b) > 1e-4), "{:?}", runs.cases[i]);
    }
}

/// DKD's warm-up ends within these epochs.
#[test]
fn methods_run_as_their_authors_ran_them() {
    let optimizer = UpdateRule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let names = ["kd", "dkd", "standardised-kd", "argmax"];
    let case = |name: &str| (Recipe { optimizer, ..Recipe::default() }, Loss::Published(name.parse().unwrap()), false);
    let runs = both(names.map(case).to_vec(), 22);
    runs.agree();
    let alphas = runs.histories.iter().map(|h| h.records[0].hyperparameters.alpha.unwrap()).collect::<Vec<_>>();
    assert_eq!(alphas, [0.9, 0.5, 9.0 / 9.1, 0.9]);
    assert_eq!(runs.histories[1].criterion, "dkd-published");
    let e = Criterion::published(Method::Dkd { target: 1.0, non_target: 8.0 }).check(19).unwrap_err().to_string();
    assert!(e.contains("criterion dkd-published raises its soft term over 20 epochs, and the run has 19"), "{e}");
}

/// Hints with their projection, and relations, over 110 steps: the projection's weights and moments too.
#[test]
fn features_teach_as_their_papers_say() {
    let hint = FeatureMethod::Hint { weight: 2.0 };
    let cases = [hint, "relational".parse().unwrap()].map(|method| (Recipe::default(), Loss::Features(method), false));
    let runs = both(cases.to_vec(), 10);
    runs.agree();
    assert!(runs.checkpoints[0].contains_key("mean/projection/weight"));
    assert!(!runs.checkpoints[1].contains_key("projection/weight"), "relations need none");
    assert_eq!(runs.histories[0].criterion, "cross-entropy+hint");
}

/// Values and gradients of all methods on features of convolutions of two sizes.
#[test]
fn features_of_convolutions_are_compared_as_their_papers_say() {
    let (s, t) = (random([6, 5 * 64], 1).view([6, 5, 8, 8]), random([6, 5 * 16], 2).view([6, 5, 4, 4]));
    let methods = ["hint", "attention", "relational"].map(|name| name.parse::<FeatureMethod>().unwrap());
    let settings = json!({"methods": methods.map(weights_of)});
    let torch = ask_in(tempfile::tempdir().unwrap(), "features", &[("student", &s), ("teacher", &t)], settings);
    for method in methods {
        let s = s.copy().set_requires_grad(true);
        let loss = method.loss(&s, &t, None).unwrap();
        loss.backward();
        assert!(relative(&loss, torch.get(&format!("loss {method}"))) < 1e-9, "{method}");
        assert!(relative(&s.grad(), torch.get(&format!("grad {method}"))) < 1e-9, "gradient, {method}");
    }
}

#[test]
fn no_two_recipes_share_a_key_and_older_ones_keep_theirs() {
    let plain = Recipe::default;
    let step = |epochs, factor| Recipe { schedule: Schedule::Step { epochs, factor }, ..plain() };
    let sgd = |momentum, nesterov, weight_decay| Recipe {
        optimizer: UpdateRule::Sgd { momentum, nesterov, weight_decay },
        ..plain()
    };
    let recipes = [
        plain(),
        Recipe { optimizer: UpdateRule::AdamW { weight_decay: 0.1 }, ..plain() },
        Recipe { optimizer: UpdateRule::AdamW { weight_decay: 0.1 }, decay_weights_only: true, ..plain() },
        sgd(0.9, false, 0.1),
        sgd(0.9, true, 0.1),
        sgd(0.9, false, 0.0),
        Recipe { schedule: Schedule::Cosine, ..plain() },
        Recipe { schedule: Schedule::OneCycle, ..plain() },
        step(3, 0.1),
        step(3, 0.1 + 1e-15),
        step(4, 0.1),
        Recipe { warmup: 1.0, ..plain() },
        Recipe { warmup: 1.0 + 1e-15, ..plain() },
        Recipe { clip_norm: Some(1.0), ..plain() },
        Recipe { average: Some(0.9), ..plain() },
        Recipe { label_smoothing: 0.1, ..plain() },
        Recipe { class_weights: Some(vec![1.0, 2.0]), ..plain() },
        Recipe { class_weights: Some(vec![2.0, 1.0]), ..plain() },
        Recipe { patience: Some(3), ..plain() },
    ];
    for (i, a) in recipes.iter().enumerate() {
        assert!(recipes[..i].iter().all(|b| a.key() != b.key() && a.to_string() != b.to_string()), "{a:?}");
        assert_eq!(serde_json::from_value::<Recipe>(json!(a)).unwrap(), *a);
    }
    // The keys of checkpoints that were written before there were recipes.
    assert_eq!(plain().key(), "");
    assert_eq!(recipes[1].key(), " AdamW { weight_decay: 0.1 }");
    assert_eq!(recipes[3].key(), " Sgd { momentum: 0.9, weight_decay: 0.1 }");
    let all = Recipe { warmup: 5.0, schedule: Schedule::Cosine, patience: Some(3), ..sgd(0.9, true, 5e-4) };
    assert_eq!(all.to_string(), "sgd0.9-nesterov-decay0.0005-cosine-warmup5-patience3");
    let few: Recipe = serde_json::from_str(r#"{"schedule": "Cosine", "warmup": 1}"#).unwrap();
    assert_eq!(few, Recipe { schedule: Schedule::Cosine, warmup: 1.0, ..plain() });
    assert!(serde_json::from_str::<Recipe>(r#"{"warm_up": 1}"#).is_err());
}
