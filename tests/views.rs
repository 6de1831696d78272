//! Augmented views of images, and the teacher's logits of each view on disk.

mod common;

use common::{dataset, normalised};
use kdlab::Error;
use kdlab::data::{Split, Transform, Views};
use kdlab::models::{Layers, Model};
use kdlab::train::*;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, nn};

fn net(vs: &nn::Path) -> Layers {
    Layers::new()
        .add("conv", nn::conv2d(vs / "conv", 3, 8, 5, Default::default()))
        .func("pool", |x| x.relu().adaptive_avg_pool2d([2, 2]).flatten(1, -1))
        .add("fc", nn::linear(vs / "fc", 32, 10, Default::default()))
}

fn teacher() -> Model {
    Model::new("teacher", Device::Cpu, 1, &net).unwrap()
}

fn logits_of(split: &Split, teacher: &Model, folder: &Path, listener: &Listener) -> kdlab::Result<CachedTensor> {
    view_logits(teacher, split, &normalised(32), &Views::cross(2).unwrap(), 16, folder, listener)
}

fn rows(logits: &CachedTensor, images: &[i64], views: &[i64]) -> Tensor {
    let pairs = [images, views].map(|numbers| Some(Tensor::from_slice(numbers)));
    logits.tensor.index(&pairs).to_kind(Kind::Float)
}

fn online(teacher: &Model, split: &Split, images: &[i64], seen: &[i64]) -> Tensor {
    let pixels = Views::cross(2).unwrap().apply(&split.batch(images).unwrap().images, seen).unwrap();
    tch::no_grad(|| teacher.forward(&normalised(32).apply(&pixels, Device::Cpu).unwrap(), false).unwrap())
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

#[test]
fn views_are_flips_and_shifts_with_repeated_borders() {
    let image = Tensor::arange(9, (Kind::Uint8, Device::Cpu)).reshape([1, 1, 3, 3]).repeat([3, 3, 1, 1]);
    let views = Views::new(true, &[(1, -1)]).unwrap();
    assert_eq!(views.count(), 4);
    let seen = |view: i64| {
        let one = views.apply(&image.narrow(0, 0, 1), &[view]).unwrap();
        Vec::<i64>::try_from(one.select(1, 2).to_kind(Kind::Int64).reshape(-1)).unwrap()
    };
    assert_eq!(seen(0), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(seen(1), [2, 1, 0, 5, 4, 3, 8, 7, 6]);
    assert_eq!(seen(2), [3, 3, 4, 6, 6, 7, 6, 6, 7]); // one to the right, one up
    assert_eq!(seen(3), [4, 3, 3, 7, 6, 6, 7, 6, 6]);
    // Each image of a batch has its own view.
    let mixed = views.apply(&image, &[2, 0, 1]).unwrap();
    for (row, view) in [(0, 2), (1, 0), (2, 1)] {
        let one = Vec::<i64>::try_from(mixed.get(row).get(0).to_kind(Kind::Int64).reshape(-1)).unwrap();
        assert_eq!(one, seen(view));
    }
    assert_eq!(Views::cross(3).unwrap().count(), 10);
    let said = |e: kdlab::Result<Tensor>| e.unwrap_err().to_string();
    assert!(said(views.apply(&image, &[0, 1])).contains("2 views for images [3, 3, 3, 3]"));
    assert!(said(views.apply(&image, &[0, 1, 4])).contains("a view of 0 to 3"));
    assert!(Views::new(true, &[(0, 0)]).unwrap_err().to_string().contains("(0, 0)"));
}

#[test]
fn logits_on_disk_are_the_teacher_s_own_and_a_pass_goes_on_where_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (train, teacher, cache) = (dataset(folder.path(), 0).train, teacher(), folder.path().join("cache"));
    let quiet = Listener::default();
    let made = logits_of(&train, &teacher, &cache, &quiet).unwrap();
    let path = made.path.clone().unwrap();
    assert!(!made.from_disk);
    let images: Vec<i64> = (0..40).map(|i| (i * 7) % train.len() as i64).collect();
    let seen: Vec<i64> = (0..40).map(|i| (i * 3) % 10).collect();
    let wanted = online(&teacher, &train, &images, &seen);
    let got = rows(&made, &images, &seen);
    // f16 has 11 significant bits.
    assert!(largest(&(&got - &wanted)) < largest(&wanted) / 2048.0);
    // PyTorch's own tools can read the file.
    let file = Tensor::read_safetensors(&path).unwrap();
    assert_eq!((file[0].0.as_str(), file[0].1.size()), ("logits", vec![train.len() as i64, 10, 10]));
    assert_eq!(file[0].1.kind(), Kind::Half);
    // The file ends in the middle of a row: only the missing rows are computed.
    let whole = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(path.with_extension("part"), &whole[..whole.len() - 16 * 20 - 7]).unwrap();
    let passed = Arc::new(Mutex::new(0));
    let heard = Arc::clone(&passed);
    let counting = Listener::new(move |event| {
        if let Event::Progress(p) = event {
            *heard.lock().unwrap() = p.total;
        }
    });
    assert!(!logits_of(&train, &teacher, &cache, &counting).unwrap().from_disk);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(*passed.lock().unwrap(), 17, "rows that were computed again");
    assert!(logits_of(&train, &teacher, &cache, &counting).unwrap().from_disk);
    // Another teacher has other logits, logits of another split are refused, and damage is detected.
    let other = Model::new("teacher", Device::Cpu, 2, &net).unwrap();
    assert_ne!(logits_of(&train, &other, &cache, &quiet).unwrap().path, made.path);
    let transform = normalised(32);
    let part = train.select(&[3, 1, 4]).unwrap();
    let refused = Examples::images(&part, &transform).unwrap().with_teacher_of_views(&made, false);
    assert!(refused.err().unwrap().to_string().contains("computed for other data"));
    let selected = made.select(&train, &[3, 1, 4]).unwrap();
    assert_eq!(selected.tensor.size(), [3, 10, 10]);
    assert_eq!(rows(&selected, &[2], &[5]), rows(&made, &[4], &[5]));
    assert!(Examples::images(&part, &transform).unwrap().with_teacher_of_views(&selected, false).is_ok());
    // Logits of views and logits of the images as they are cannot be mistaken for each other.
    let images = || Examples::images(&part, &transform).unwrap();
    assert!(images().with_teacher(&selected).err().unwrap().to_string().contains("use with_teacher_of_views"));
    let plain = CachedTensor::new(&part, Tensor::zeros([3, 10], (Kind::Float, Device::Cpu)), "zeros").unwrap();
    let refused = images().with_teacher_of_views(&plain, false).err().unwrap().to_string();
    assert!(refused.contains("use with_teacher"), "{refused}");
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(logits_of(&train, &teacher, &cache, &quiet), Err(Error::Data(why)) if why.contains("is damaged")));
}

/// In every batch of every epoch, the teacher's logits are of the very images that the student's network gets.
#[test]
fn the_student_sees_the_view_that_the_teacher_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (data, teacher) = (dataset(folder.path(), 0), teacher());
    let transform = normalised(32);
    let logits = logits_of(&data.train, &teacher, folder.path(), &Listener::default()).unwrap();
    let plain = predict(&teacher, &Examples::images(&data.validation, &transform).unwrap(), 64).unwrap();
    let plain = CachedTensor::new(&data.validation, plain, "teacher").unwrap();
    let validation = Examples::images(&data.validation, &transform).unwrap().with_teacher(&plain).unwrap();
    let differences = |apart: bool| {
        let train = Examples::images(&data.train, &transform).unwrap().with_teacher_of_views(&logits, apart).unwrap();
        let (given, judged) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&given);
        let mut student = Model::new("student", Device::Cpu, 5, &move |vs| {
            let seen = Arc::clone(&seen);
            let spy = move |x: &Tensor, train: bool| {
                if train {
                    seen.lock().unwrap().push(x.copy());
                }
                x.adaptive_avg_pool2d([1, 1]).flatten(1, -1)
            };
            Layers::new().add("spy", nn::func_t(spy)).add("fc", nn::linear(vs / "fc", 3, 10, Default::default()))
        })
        .unwrap();
        let heard = Arc::clone(&judged);
        let criterion = Criterion::soft("spy", KdLoss::new(1.0, 0.5).unwrap(), move |s, _, t, _, _| {
            if s.requires_grad() {
                heard.lock().unwrap().push(t.copy());
            }
            s.square().mean(Kind::Float)
        });
        let options = FitOptions { epochs: 3, batch_size: 16, ..FitOptions::default() };
        fit(&mut student, &train, &validation, &criterion, &options).unwrap();
        let (given, judged) = (given.lock().unwrap(), judged.lock().unwrap());
        assert_eq!((given.len(), judged.len()), (12, 12));
        let online = |x: &Tensor| tch::no_grad(|| teacher.forward(x, false).unwrap());
        given.iter().zip(judged.iter()).map(|(x, t)| largest(&(online(x) - t))).collect::<Vec<_>>()
    };
    // f16 rounds logits below 2 by up to 2^-11 = 4.9e-4. Another view changes them more, in each of 12 batches.
    let (same, apart) = (differences(false), differences(true));
    assert!(same.iter().all(|d| *d < 5e-4), "{same:?}");
    assert!(apart.iter().all(|d| *d > 1e-3), "{apart:?}");
}

#[test]
fn views_of_an_epoch_are_seeded_and_new_in_each() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = normalised(32);
    let validation = Examples::images(&data.validation, &transform).unwrap();
    // To the last digit, whatever else computes on the machine.
    tch::set_num_threads(1);
    let curve = |views: Option<&Views>, seed| {
        let train = Examples::images(&data.train, &transform).unwrap();
        let train =
            views.map_or(Ok(Examples::images(&data.train, &transform).unwrap()), |v| train.with_views(v)).unwrap();
        let options = FitOptions { epochs: 3, batch_size: 16, seed, ..FitOptions::default() };
        let done = fit(&mut teacher(), &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
        done.records.iter().map(|r| r.train.loss).collect::<Vec<_>>()
    };
    let views = Views::cross(4).unwrap();
    assert_eq!(curve(Some(&views), 1), curve(Some(&views), 1));
    assert_ne!(curve(Some(&views), 1), curve(None, 1));
    // With a single view, the images are unchanged bit for bit.
    assert_eq!(curve(Some(&Views::new(false, &[]).unwrap()), 1), curve(None, 1));
}

#[test]
fn views_that_the_teacher_did_not_judge_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let logits = logits_of(&data.train, &teacher(), folder.path(), &Listener::default()).unwrap();
    let transform = Transform::imagenet(32);
    let images = || Examples::images(&data.train, &transform).unwrap().with_teacher_of_views(&logits, false).unwrap();
    let other = Views::cross(3).unwrap();
    let error = images().with_views(&other).err().unwrap().to_string();
    assert!(error.contains("judged other views"), "{error}");
    images().with_views(&Views::cross(2).unwrap()).unwrap();
}
