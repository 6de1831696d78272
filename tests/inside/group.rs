//! Several ranks train one model. Here they are threads, which reach each other through c10d as processes do;
//! `tests/group.rs` starts processes.

use super::oracle::relative;
use super::{dataset, normalised, tiny};
use crate::data::{Augment, Dataset};
use crate::models::{Layers, Model, Op, student};
use crate::store::atomic::try_lock;
use crate::train::{
    CachedTensor, Control, Criterion, Examples, FeatureMethod, FitOptions, Group, History, KdLoss, Recipe, Rendezvous,
    UNLABELLED, UpdateRule, fit, layer_features,
};
use crate::{Error, Result};
use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor, nn};

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn place(rank: usize, size: usize, port: u16) -> Rendezvous {
    Rendezvous {
        rank,
        size,
        local_rank: rank,
        host: "127.0.0.1".into(),
        port,
        agent_keeps_store: false,
        prefix: "test".into(),
        interface: None,
        on_several_machines: false,
        timeout: Duration::from_secs(20),
    }
}

/// Does the work of all ranks side by side.
fn ranks<T: Send>(size: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let (port, work) = (free_port(), &work);
    std::thread::scope(|scope| {
        let start = |rank| scope.spawn(move || work(Group::at(place(rank, size, port)).unwrap()));
        let all: Vec<_> = (0..size).map(start).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A network in f64, so that roundings stay small.
fn in_double(layers: &dyn Fn(&nn::Path) -> Layers) -> Model {
    let build = |vs: &nn::Path| Layers::new().func("double", |x| x.to_kind(Kind::Double)).add("net", layers(vs));
    let model = Model::new("net", Device::Cpu, 5, &build).unwrap();
    for (_, mut variable) in model.state() {
        variable.set_data(&variable.to_kind(Kind::Double));
    }
    model
}

/// 64 training images, and a teacher with an opinion on each. Of every `labelled` images one has a label.
fn examples(data: &Dataset, labelled: usize) -> [Examples; 2] {
    let of = |split: &crate::data::Split| {
        let n = split.len() as i64;
        let logits = (Tensor::arange(n * 10, (Kind::Double, Device::Cpu)) * 7.0).sin().reshape([n, 10]) * 3.0;
        let logits = CachedTensor::new(split, logits, "opinion").unwrap();
        Examples::images(split, &normalised(8)).unwrap().with_teacher(&logits).unwrap()
    };
    let train = of(&data.train);
    let labels = Vec::<i64>::try_from(train.labels()).unwrap().into_iter().enumerate();
    let labels: Vec<i64> = labels.map(|(i, label)| if i % labelled == 0 { label } else { UNLABELLED }).collect();
    [train.with_labels(&Tensor::from_slice(&labels)).unwrap(), of(&data.validation)]
}

fn checkpoint(folder: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(folder.join("checkpoint.safetensors")).unwrap().into_iter().collect()
}

fn values(model: &Model) -> Vec<f64> {
    model
        .state()
        .iter()
        .flat_map(|(_, t)| Vec::<f64>::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap())
        .collect()
}

/// Every number of a history that does not depend on the clock.
fn numbers(history: &History) -> Vec<f64> {
    let metrics = history.records.iter().flat_map(|r| [r.train, r.validation]);
    metrics.flat_map(|m| [m.loss, m.accuracy, m.cross_entropy, m.divergence.unwrap_or(0.0)]).collect()
}

/// Trains alone and as 1, 2 and 4 ranks: weights, moments and metrics are the same up to rounding, and the same bits on
/// all ranks.
fn same_at_any_number(
    layers: &(dyn Fn(&nn::Path) -> Layers + Sync),
    options: FitOptions,
    labelled: usize,
    criterion: impl Fn() -> Criterion + Sync,
) {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let run = |group: Option<Group>, name: &str| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        let [train, validation] = examples(&data, labelled);
        let mut model = in_double(layers);
        let options = FitOptions { folder: Some(folder.path().join(name)), group, ..options.clone() };
        let history = fit(&mut model, &train, &validation, &criterion(), &options).unwrap();
        (numbers(&history), values(&model))
    };
    let (alone, best) = run(None, "alone");
    let wanted = checkpoint(&folder.path().join("alone"));
    for size in [1, 2, 4] {
        let name = format!("of {size}");
        let found = ranks(size, |group| run(Some(group), &name));
        assert!(found.iter().all(|other| *other == found[0]), "{size} ranks: they differ");
        let (metrics, weights) = &found[0];
        assert_eq!(metrics.len(), alone.len());
        for (a, b) in metrics.iter().zip(&alone).chain(weights.iter().zip(&best)) {
            assert!((a - b).abs() < 1e-9 * b.abs().max(0.1), "{size} ranks: {a} instead of {b}");
        }
        let there = checkpoint(&folder.path().join(&name));
        assert_eq!(there.len(), wanted.len());
        for (name, tensor) in &wanted {
            let gap = relative(&there[name], tensor);
            assert!(gap < 1e-9, "{size} ranks: {name} differs by {gap:e}");
        }
    }
}

/// 25 epochs of 4 batches of 16 images.
#[test]
fn a_hundred_steps_are_the_same_at_any_number_of_ranks() {
    let options = FitOptions { epochs: 25, batch_size: 16, seed: 5, ..FitOptions::default() };
    same_at_any_number(&|vs| student(vs, 10), options, 1, || Criterion::kd(KdLoss::new(4.0, 0.7).unwrap()));
}

/// Batches of 21, and a last one of a single image: parts are uneven, and three of four ranks have none of it. One
/// image in three has a label, classes weigh differently, gradients are clipped, and the weights are averaged.
#[test]
fn uneven_parts_and_missing_labels_count_as_in_one_process() {
    let recipe = Recipe {
        optimizer: UpdateRule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-2 },
        class_weights: Some((1..=10).map(|n| f64::from(n) / 5.0).collect()),
        label_smoothing: 0.1,
        clip_norm: Some(0.5),
        average: Some(0.9),
        ..Recipe::default()
    };
    for recipe in [recipe, Recipe::default()] {
        let options = FitOptions { epochs: 6, batch_size: 21, recipe, learning_rate: 1e-2, ..FitOptions::default() };
        same_at_any_number(&tiny, options.clone(), 3, || Criterion::kd(KdLoss::new(2.0, 0.5).unwrap()));
        same_at_any_number(&tiny, options, 3, Criterion::cross_entropy);
    }
}

/// A stop that reaches one rank ends all after the same batch, and a later call goes on, even with other ranks.
#[test]
fn a_stop_of_one_rank_stops_all_and_the_fit_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let run = |group: Option<Group>, name: &str, stop_at: Option<usize>| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        let [train, validation] = examples(&data, 1);
        let (control, steps) = (Control::default(), AtomicUsize::new(0));
        let stops = stop_at.filter(|_| group.as_ref().is_some_and(|group| group.rank() == 1));
        let stopper = control.clone();
        let criterion = Criterion::hard("stopping", move |logits, labels| {
            if logits.requires_grad() && Some(steps.fetch_add(1, Ordering::Relaxed)) == stops {
                stopper.stop("enough");
            }
            logits.cross_entropy_for_logits(labels)
        });
        let mut model = in_double(&tiny);
        let options = FitOptions { epochs: 4, control, folder: Some(folder.path().join(name)), group, ..quick() };
        let history = fit(&mut model, &train, &validation, &criterion, &options).unwrap();
        (history.records.len(), history.stopped, values(&model))
    };
    let stopped = ranks(2, |group| run(Some(group), "run", Some(10)));
    assert_eq!(stopped[0].0, 2, "it ended in the third epoch of four batches");
    assert_eq!((&stopped[0].0, &stopped[0].2), (&stopped[1].0, &stopped[1].2));
    assert_eq!(stopped[1].1.as_deref(), Some("enough"));
    assert_eq!(stopped[0].1.as_deref(), Some("another process of its group was stopped"));
    let (_, _, whole) = run(None, "whole", None);
    for later in ranks(3, |group| run(Some(group), "run", None)) {
        assert_eq!((later.0, later.1), (4, None));
        assert!(later.2.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-9), "it ended elsewhere");
    }
}

#[test]
fn the_values_of_rank_0_hold_for_all() {
    let histories = ranks(2, |group| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        let [train, validation] = examples(&data, 1);
        let (control, steps) = (Control::default(), AtomicUsize::new(0));
        let (knobs, rank) = (control.clone(), group.rank() as f64);
        let kd = KdLoss::new(4.0, 0.9).unwrap();
        let criterion = Criterion::soft("turning", kd, move |s, y, t, temperature, alpha| {
            if s.requires_grad() && steps.fetch_add(1, Ordering::Relaxed) == 5 {
                knobs.set_alpha(rank).unwrap(); // 0 on rank 0
                knobs.set_learning_rate(1e-4 * (rank + 1.0)).unwrap();
            }
            KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap()
        });
        let mut model = in_double(&tiny);
        let options = FitOptions { epochs: 2, control, group: Some(group), ..quick() };
        let history = fit(&mut model, &train, &validation, &criterion, &options).unwrap();
        (history.changes.clone(), numbers(&history), values(&model))
    });
    assert_eq!(histories[0], histories[1]);
    let change = histories[0].0[0];
    assert_eq!((change.epoch, change.after.alpha, change.after.learning_rate), (1.5, Some(0.0), 1e-4));
}

fn quick() -> FitOptions {
    FitOptions { epochs: 1, batch_size: 16, ..FitOptions::default() }
}

fn refused(work: impl Fn(Group, &Dataset) -> Result<History> + Sync) -> Vec<String> {
    ranks(2, |group| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        work(group, &data).unwrap_err().to_string()
    })
}

#[test]
fn what_needs_the_whole_batch_is_refused_with_a_way_out() {
    let norm = |vs: &nn::Path| {
        let pool = Layers::new().add("conv", Op::conv(vs / "conv", 3, 4, 3, Default::default()));
        pool.add("bn", Op::norm(vs / "bn", 4, Default::default()))
            .func("pool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", 4, 10, Default::default()))
    };
    let said = refused(|group, data| {
        let [train, validation] = examples(data, 1);
        let mut model = Model::new("net", Device::Cpu, 0, &norm)?;
        fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &FitOptions { group: Some(group), ..quick() })
    });
    assert!(said.iter().all(|said| said.contains("the BatchNorm bn") && said.contains("freeze_except")), "{said:?}");
    // Frozen, it is only a factor.
    let trained = ranks(2, |group| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        let [train, validation] = examples(&data, 1);
        let mut model = Model::new("net", Device::Cpu, 0, &norm).unwrap();
        model.freeze_except("fc.").unwrap();
        let options = FitOptions { group: Some(group), ..quick() };
        fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options).is_ok()
    });
    assert_eq!(trained, [true, true]);

    let said = refused(|group, data| {
        let mixed = Augment { mixup: Some(0.2), ..Augment::default() };
        let train = Examples::images(&data.train, &normalised(8))?.augmented(&mixed)?;
        let validation = Examples::images(&data.validation, &normalised(8))?;
        let (mut model, options) = (in_double(&tiny), FitOptions { group: Some(group), ..quick() });
        fit(&mut model, &train, &validation, &Criterion::mixed_cross_entropy(), &options)
    });
    assert!(said[0].contains("leave mixup out"), "{said:?}");

    let said = refused(|group, data| {
        let teacher = Model::new("teacher", Device::Cpu, 0, &|vs| student(vs, 10))?;
        let transform = normalised(8);
        let of = |split| layer_features(&teacher, "relu2", split, &transform, 8, None, &Default::default());
        let [train, validation] = examples(data, 1);
        let train = train.with_teacher_features(&of(&data.train)?)?;
        let relational = FeatureMethod::Relational { distance: 25.0, angle: 50.0 };
        let criterion = Criterion::cross_entropy().with_features(relational, "relu2")?;
        let mut model = Model::new("student", Device::Cpu, 1, &|vs| student(vs, 10))?;
        fit(&mut model, &train, &validation, &criterion, &FitOptions { group: Some(group), ..quick() })
    });
    assert!(said[0].contains("take hint or attention"), "{said:?}");
}

#[test]
fn ranks_that_would_train_different_things_are_refused() {
    let said = refused(|group, data| {
        let [train, validation] = examples(data, 1);
        let mut model = Model::new("tiny", Device::Cpu, group.rank() as u64, &tiny)?;
        fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &FitOptions { group: Some(group), ..quick() })
    });
    assert!(said.iter().all(|said| said.contains("the same model, data or options")), "{said:?}");
    // A folder that only rank 0 sees.
    let folder = tempfile::tempdir().unwrap();
    let own = |rank: usize| Some(folder.path().join(rank.to_string()));
    let run = |group: Option<Group>, rank, control: Control| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        let [train, validation] = examples(&data, 1);
        let (mut model, stops, trained) =
            (Model::new("tiny", Device::Cpu, 0, &tiny)?, control.clone(), AtomicBool::new(false));
        let criterion = Criterion::hard("hard", move |logits, labels| {
            if logits.requires_grad() {
                trained.store(true, Ordering::Relaxed);
            } else if trained.load(Ordering::Relaxed) {
                stops.stop("in the first validation");
            }
            logits.cross_entropy_for_logits(labels)
        });
        let options = FitOptions { epochs: 2, folder: own(rank), control, group, ..quick() };
        fit(&mut model, &train, &validation, &criterion, &options)
    };
    run(None, 0, Control::default()).unwrap();
    assert!(folder.path().join("0/checkpoint.safetensors").exists());
    let said = ranks(2, |group| {
        let rank = group.rank();
        run(Some(group), rank, Control::default()).unwrap_err().to_string()
    });
    assert!(said.iter().all(|said| said.contains("one folder that all see")), "{said:?}");
}

fn failed(place: Rendezvous) -> (String, Duration) {
    let begun = Instant::now();
    match Group::at(place) {
        Ok(group) => panic!("{group:?} joined"),
        Err(Error::Input(said) | Error::Network(said)) => (said, begun.elapsed()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_group_waits_for_its_folder_and_can_be_stopped_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let held = Mutex::new(try_lock(&folder.path().join(".run.lock")).unwrap());
    let run = |group: Group, control: Control| {
        let data = dataset(tempfile::tempdir().unwrap().path(), 0);
        let [train, validation] = examples(&data, 1);
        let folder = Some(folder.path().join("run"));
        let options = FitOptions { epochs: 2, folder, control, group: Some(group), ..quick() };
        fit(&mut in_double(&tiny), &train, &validation, &Criterion::cross_entropy(), &options).unwrap()
    };
    let stopped = ranks(2, |group| {
        let (control, last) = (Control::default(), group.rank() == 1);
        std::thread::scope(|scope| {
            let fit = scope.spawn(|| run(group, control.clone()));
            while last && !fit.is_finished() {
                control.stop("test");
                std::thread::sleep(Duration::from_millis(20));
            }
            fit.join().unwrap()
        })
    });
    assert!(stopped.iter().all(|history| history.stopped.is_some() && history.records.is_empty()));
    let trained = ranks(2, |group| {
        if group.rank() == 1 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(500));
                    held.lock().unwrap().take();
                });
                run(group, Control::default())
            })
        } else {
            run(group, Control::default())
        }
    });
    assert!(trained.iter().all(|history| history.records.len() == 2));
}

#[test]
fn a_group_that_does_not_come_together_says_why_in_time() {
    let soon = Duration::from_secs(2);
    let (said, took) = failed(Rendezvous { timeout: soon, ..place(1, 2, free_port()) });
    assert!(said.contains("rank 1 of 2 found no rank 0 at 127.0.0.1:") && said.contains("MASTER_ADDR"), "{said}");
    assert!(took < 4 * soon, "{took:?}");
    let (said, took) = failed(Rendezvous { timeout: soon, ..place(0, 2, free_port()) });
    assert!(said.contains("rank 0 of 2 waited 2 s for the others: start all ranks"), "{said}");
    assert!(took < 4 * soon, "{took:?}");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let (said, _) = failed(place(0, 2, busy.local_addr().unwrap().port()));
    assert!(said.contains("choose another MASTER_PORT"), "{said}");
    let (said, _) = failed(Rendezvous { on_several_machines: true, ..place(0, 2, free_port()) });
    assert!(said.contains("GLOO_SOCKET_IFNAME"), "{said}");
    let (said, _) = failed(Rendezvous { host: "no such machine".into(), ..place(1, 2, 1) });
    assert!(said.contains("names no machine"), "{said}");

    let together = |places: [Rendezvous; 2]| {
        std::thread::scope(|scope| {
            let all = places.map(|place| scope.spawn(move || failed(Rendezvous { timeout: soon, ..place }).0));
            all.map(|rank| rank.join().unwrap()).join("\n")
        })
    };
    let port = free_port();
    let said = together([place(0, 2, port), place(1, 3, port)]);
    assert!(said.contains("processes and another rank of") && said.contains("the same WORLD_SIZE"), "{said}");
}
