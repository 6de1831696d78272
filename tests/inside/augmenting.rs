//! Mixup with a teacher that judges each batch, step by step as PyTorch trains.

use super::oracle::{ask, relative};
use super::{dataset, normalised};
use kdlab::data::{Augment, shuffled};
use kdlab::models::{Layers, Model};
use kdlab::train::*;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, nn};

/// A linear network in f64 on images of 4 pixels, and the inputs of its linear layer in training.
fn network(seed: u64) -> (Model, Arc<Mutex<Vec<Tensor>>>) {
    let inputs = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&inputs);
    let build = move |vs: &nn::Path| {
        let seen = Arc::clone(&seen);
        let flat = move |x: &Tensor, train: bool| {
            let x = x.to_kind(Kind::Double).flatten(1, -1);
            if train {
                seen.lock().unwrap().push(x.copy());
            }
            x
        };
        Layers::new().add("flat", nn::func_t(flat)).add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
    };
    let model = Model::new("linear", Device::Cpu, seed, &build).unwrap();
    for (_, mut variable) in model.state() {
        variable.set_data(&variable.to_kind(Kind::Double));
    }
    (model, inputs)
}

#[test]
fn mixup_trains_as_in_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let augment = Augment { flip: true, crop: Some(0.5), mixup: Some(0.7), ..Augment::default() };
    let weights: Vec<f64> = (1..=10).map(|class| 0.3 * f64::from(class)).collect();
    let (seed, epochs, batch_size, learning_rate) = (5, 2, 12, 0.1);
    let kd = |alpha| Criterion::kd(KdLoss::new(3.0, alpha).unwrap());
    let cases = [(Criterion::mixed_cross_entropy(), None), (kd(0.6), Some(0.6)), (kd(1.0), Some(1.0))];

    let labels = data.train.labels().unwrap();
    let (mut own, mut partners, mut shares, mut sizes) = (vec![], vec![], vec![], vec![]);
    for epoch in 1..=epochs {
        for (step, rows) in shuffled(data.train.len(), seed, epoch as u64).chunks(batch_size).enumerate() {
            let mixing = augment.mixing(rows.len(), seed, epoch as u64, step as u64).unwrap().unwrap();
            let of = labels.index_select(0, &Tensor::from_slice(rows));
            partners.push(of.index_select(0, &Tensor::from_slice(&mixing.partners)));
            own.push(of);
            shares.push(mixing.share);
            sizes.push(rows.len());
        }
    }
    assert_eq!(sizes, [12, 12, 12, 12, 12, 4].repeat(2));
    let mut tensors = vec![
        ("labels", Tensor::cat(&own, 0)),
        ("partners", Tensor::cat(&partners, 0)),
        ("shares", Tensor::from_slice(&shares)),
        ("weights", Tensor::from_slice(&weights)),
    ];

    for (i, (criterion, alpha)) in cases.iter().enumerate() {
        let [(mut student, inputs), (teacher, _)] = [1, 2].map(network);
        let copies = |model: &Model| model.state().into_iter().map(|(_, t)| t.copy()).collect::<Vec<_>>();
        let (first, of_teacher) = (copies(&student), copies(&teacher));
        let online = OnlineTeacher::network(teacher, &normalised(4)).unwrap();
        let of = |split| Examples::images(split, &normalised(4)).unwrap().taught_by(&online).unwrap();
        let (train, validation) = (of(&data.train).augmented(&augment).unwrap(), of(&data.validation));
        let recipe = Recipe {
            optimizer: UpdateRule::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
            label_smoothing: 0.1,
            class_weights: Some(weights.clone()),
            ..Recipe::default()
        };
        let kept = Some(folder.path().join(format!("{alpha:?}")));
        let options =
            FitOptions { epochs, batch_size, learning_rate, recipe, seed, folder: kept, ..FitOptions::default() };
        fit(&mut student, &train, &validation, criterion, &options).unwrap();
        if i == 0 {
            tensors.push(("inputs", Tensor::cat(&inputs.lock().unwrap()[..], 0)));
            let names = ["bias", "weight", "teacher.bias", "teacher.weight"];
            tensors.extend(names.into_iter().zip(first.into_iter().chain(of_teacher)));
        }
    }
    let alphas = cases.map(|(_, alpha)| alpha);
    let settings = json!({"sizes": sizes, "label_smoothing": 0.1, "learning_rate": learning_rate, "temperature": 3.0,
        "alphas": alphas});
    let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (*name, t)).collect();
    let torch = ask("mixup", &tensors, settings);
    for alpha in alphas {
        // The student itself ends with the weights of its best epoch.
        let checkpoint = folder.path().join(format!("{alpha:?}/checkpoint.safetensors"));
        let checkpoint = Tensor::read_safetensors(checkpoint).unwrap();
        let alpha = alpha.map_or("None".to_owned(), |alpha| format!("{alpha:?}"));
        for name in ["weight", "bias"] {
            let (_, ours) = checkpoint.iter().find(|(found, _)| *found == format!("weights/fc.{name}")).unwrap();
            let gap = relative(ours, torch.get(&format!("{alpha} {name}")));
            assert!(gap < 1e-9, "alpha {alpha}: {name} differs by {gap:e} of its largest value");
        }
    }
}

#[test]
fn a_teacher_in_f64_judges_for_a_student_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let online = OnlineTeacher::network(network(2).0, &normalised(4)).unwrap();
    let of = |split| Examples::images(split, &normalised(4)).unwrap().taught_by(&online).unwrap();
    let fc = |vs: &nn::Path| nn::linear(vs / "fc", 48, 10, Default::default());
    let build = |vs: &nn::Path| Layers::new().func("flat", |x| x.flatten(1, -1)).add("fc", fc(vs));
    let mut student = Model::new("student", Device::Cpu, 1, &build).unwrap();
    let criterion = Criterion::kd(KdLoss::new(3.0, 0.5).unwrap());
    let options = FitOptions { epochs: 1, ..FitOptions::default() };
    let history = fit(&mut student, &of(&data.train), &of(&data.validation), &criterion, &options).unwrap();
    assert!(history.records[0].train.divergence.unwrap() > 0.0);
    assert!(student.state().iter().all(|(_, weights)| weights.kind() == Kind::Float));
}

#[test]
fn mixup_of_images_without_labels_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let of = |split| Examples::images(split, &normalised(4)).unwrap();
    let labels = data.train.labels().unwrap();
    let few = labels.masked_fill(&labels.eq(3), UNLABELLED);
    let mixup = Augment { mixup: Some(0.2), ..Augment::default() };
    let train = of(&data.train).with_labels(&few).unwrap().augmented(&mixup).unwrap();
    let criterion = Criterion::mixed_cross_entropy();
    let error = fit(&mut network(1).0, &train, &of(&data.validation), &criterion, &FitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("some images have none: leave mixup out"), "{error}");
}
