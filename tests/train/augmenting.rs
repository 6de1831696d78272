//! What a fit promises about augmentation and about a teacher that judges each batch.

use super::recipes::stopping_after;
use super::*;
use kdlab::data::{Augment, Split, Views};

fn everything() -> Augment {
    Augment {
        flip: true,
        shift: 3,
        crop: Some(0.4),
        original: false,
        cutout: 8,
        jitter: 0.4,
        hue: 0.1,
        mixup: Some(0.5),
    }
}

fn images(split: &Split) -> Examples {
    Examples::images(split, &normalised(32)).unwrap()
}

fn online(teacher: Model) -> OnlineTeacher {
    OnlineTeacher::network(teacher, &normalised(32)).unwrap()
}

fn kd() -> Criterion {
    Criterion::kd(KdLoss::new(4.0, 0.5).unwrap())
}

#[test]
fn online_teaching_is_cached_teaching_where_the_images_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let logits = |split: &Split| {
        CachedTensor::new(split, predict(&tiny_model(7), &images(split), 8).unwrap(), "teacher").unwrap()
    };
    let run = |of: &dyn Fn(&Split) -> Examples| {
        let mut model = tiny_model(1);
        let history = fit(&mut model, &of(&data.train), &of(&data.validation), &kd(), &options(3)).unwrap();
        (curve(&history), values(&model))
    };
    let teacher = online(tiny_model(7));
    let taught = run(&|split| images(split).taught_by(&teacher).unwrap());
    assert_eq!(taught, run(&|split| images(split).with_teacher(&logits(split)).unwrap()));

    // In numbered views, whose logits are kept as f16.
    let views = Views::drawn(&Augment { mixup: None, ..everything() }, 6, 3).unwrap();
    let cache = folder.path().join("cache");
    let of_views =
        view_logits(&tiny_model(7), &data.train, &normalised(32), &views, 16, &cache, &Listener::default()).unwrap();
    let validation = images(&data.validation).taught_by(&teacher).unwrap();
    let [seen, known] = [
        images(&data.train).with_views(&views).unwrap().taught_by(&teacher).unwrap(),
        images(&data.train).with_teacher_of_views(&of_views, false).unwrap(),
    ]
    .map(|train| {
        let history = fit(&mut tiny_model(1), &train, &validation, &kd(), &options(3)).unwrap();
        assert_eq!(history.augmentation, "6 views: flip, shift 3, crop 0.4, cutout 8, jitter 0.4, hue 0.1");
        history.records.iter().map(|r| (r.train.cross_entropy, r.train.divergence.unwrap())).collect::<Vec<_>>()
    });
    for ((a, b), (c, d)) in seen.into_iter().zip(known) {
        assert!((a - c).abs() < 1e-3 * a && (b - d).abs() < 1e-3 * b.max(0.1), "{a} {c}, {b} {d}");
    }
}

/// The teacher gets the pixels that the student gets, in evaluation mode and without gradients, once for each batch of
/// training and validation; and it does not run where nobody asks it.
#[test]
fn the_teacher_judges_the_very_batch_and_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let spying = |wanted: bool, seed| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let spy = Arc::clone(&seen);
        let model = Model::new("spy", Device::Cpu, seed, &move |vs| {
            let spy = Arc::clone(&spy);
            let look = move |x: &Tensor, train: bool| {
                if train == wanted {
                    spy.lock().unwrap().push(x.copy());
                }
                x.adaptive_avg_pool2d([4, 4]).flatten(1, -1)
            };
            Layers::new().add("look", nn::func_t(look)).add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
        });
        (model.unwrap(), seen)
    };
    let ((mut student, given), (teacher, judged)) = (spying(true, 1), spying(false, 2));
    let teacher = online(teacher);
    let of = |split| images(split).taught_by(&teacher).unwrap();
    let (train, validation) = (of(&data.train).augmented(&everything()).unwrap(), of(&data.validation));
    judged.lock().unwrap().clear();
    let asked = |criterion: &Criterion, train: &Examples, student: &mut Model| {
        fit(student, train, &validation, criterion, &options(2)).unwrap();
        std::mem::take(&mut *judged.lock().unwrap())
    };
    let judged_in_kd = asked(&kd(), &train, &mut student);
    let given = given.lock().unwrap();
    assert_eq!((given.len(), judged_in_kd.len()), (16, 20), "8 batches of training and 2 of validation an epoch");
    for epoch in 0..2 {
        for step in 0..8 {
            let (ours, its) = (&given[8 * epoch + step], &judged_in_kd[10 * epoch + step]);
            assert!(ours.equal(its) && !its.requires_grad());
        }
    }
    assert!(!given[0].equal(&given[8]), "every epoch draws anew");
    assert!(asked(&Criterion::mixed_cross_entropy(), &train, &mut tiny_model(1)).is_empty());
    evaluate(&tiny_model(1), &validation, 8).unwrap();
    assert!(judged.lock().unwrap().is_empty());

    // It prepares the images in its own way: here at half the size.
    let (small, judged) = spying(false, 2);
    let small = OnlineTeacher::network(small, &normalised(16)).unwrap();
    let batch = images(&data.train).taught_by(&small).unwrap().batch(&[3, 5], Device::Cpu).unwrap();
    let logits = batch.teacher().unwrap();
    assert_eq!((logits.size(), logits.requires_grad()), (vec![2, 10], false));
    let last = judged.lock().unwrap().pop().unwrap();
    assert!(last.equal(&normalised(16).apply(&data.train.batch(&[3, 5]).unwrap().images, Device::Cpu).unwrap()));
}

#[test]
fn an_interrupted_fit_goes_on_with_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let teacher = online(tiny_model(7));
    let validation = images(&data.validation).taught_by(&teacher).unwrap();
    let run = |name: &str, augment: &Augment, seed, (control, listener): (Control, Listener)| {
        let train = images(&data.train).augmented(augment).unwrap().taught_by(&teacher).unwrap();
        let mut model = tiny_model(1);
        let folder = Some(folder.path().join(name));
        let options = FitOptions { seed, folder, control, listener, ..options(4) };
        let history = fit(&mut model, &train, &validation, &kd(), &options).unwrap();
        (history, values(&model))
    };
    let whole = run("whole", &everything(), 0, Default::default());
    assert_eq!(whole.0.augmentation, "flip, shift 3, crop 0.4, cutout 8, jitter 0.4, hue 0.1, mixup 0.5");
    assert_eq!(History::load(folder.path().join("whole/history.json")).unwrap(), whole.0);
    let again = run("again", &everything(), 0, Default::default());
    assert_eq!((curve(&again.0), &again.1), (curve(&whole.0), &whole.1));
    assert_ne!(run("seed", &everything(), 1, Default::default()).1, whole.1);

    assert_eq!(run("broken", &everything(), 0, stopping_after(2)).0.records.len(), 2);
    let resumed = run("broken", &everything(), 0, Default::default());
    assert_eq!((curve(&resumed.0), resumed.1), (curve(&whole.0), whole.1));

    // A fit of another augmentation does not take it up.
    let others = [
        Augment { flip: false, ..everything() },
        Augment { shift: 2, ..everything() },
        Augment { crop: None, ..everything() },
        Augment { cutout: 7, ..everything() },
        Augment { jitter: 0.3, ..everything() },
        Augment { mixup: Some(0.6), ..everything() },
    ];
    for other in others {
        run("other", &everything(), 0, stopping_after(1));
        assert_eq!(run("other", &other, 0, stopping_after(1)).0.records.len(), 1, "{other}");
    }
}

fn refused<T>(result: kdlab::Result<T>, says: &[&str]) {
    let text = result.err().expect("an error").to_string();
    assert!(text.lines().count() == 1 && says.iter().all(|part| text.contains(part)), "{says:?}: {text}");
}

#[test]
fn a_teacher_that_saw_other_images_is_refused_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let plain = teacher(&data.train, 1.0);
    let views = Views::cross(2).unwrap();
    let cache = folder.path().join("cache");
    let of_views =
        view_logits(&tiny_model(7), &data.train, &normalised(32), &views, 16, &cache, &Listener::default()).unwrap();
    let images = || images(&data.train);
    let augment = Augment { flip: true, ..Augment::default() };
    let mixup = Augment { mixup: Some(0.2), ..Augment::default() };

    let other = ["augmentation shows the student others", "taught_by", "with_teacher_of_views", "with_fixed_teacher"];
    refused(images().with_teacher(&plain).unwrap().with_views(&views), &other);
    refused(images().with_teacher(&plain).unwrap().augmented(&augment), &other);
    refused(images().with_views(&views).unwrap().with_teacher(&plain), &other);
    refused(images().augmented(&augment).unwrap().with_teacher(&plain), &other);
    let already = ["augmented already (10 views: flips and shifts)", "begin with Examples::images"];
    refused(images().with_teacher_of_views(&of_views, false).unwrap().augmented(&augment), &already);
    refused(images().with_views(&views).unwrap().augmented(&augment), &already);
    refused(images().augmented(&augment).unwrap().with_views(&views), &["augmented already (flip)"]);
    refused(
        images().augmented(&augment).unwrap().with_teacher_of_views(&of_views, false),
        &["augmented already (flip)"],
    );
    refused(images().augmented(&mixup).unwrap().with_fixed_teacher(&plain), &["mixed images", "taught_by"]);
    // Asked for by its name, it trains.
    let validation = Examples::images(&data.validation, &normalised(32)).unwrap();
    let validation = validation.with_teacher(&teacher(&data.validation, 1.0)).unwrap();
    for train in [images().with_views(&views), images().augmented(&augment)] {
        let train = train.unwrap().with_fixed_teacher(&plain).unwrap();
        fit(&mut tiny_model(1), &train, &validation, &kd(), &options(1)).unwrap();
    }

    let values = Tensor::zeros([data.train.len() as i64, 48], (Kind::Float, Device::Cpu));
    let features = CachedTensor::new(&data.train, values, "zeros").unwrap();
    let of_features = || Examples::features(&data.train, &features).unwrap();
    refused(of_features().taught_by(&online(tiny_model(7))), &["features have no images", "Examples::images"]);
    refused(of_features().augmented(&augment), &["features have no views"]);
    refused(
        images().with_teacher_features(&features).unwrap().augmented(&augment),
        &["augmentation shows the student other views"],
    );
    refused(images().augmented(&Augment { cutout: 32, ..augment }), &["less than the image's 32 pixels, got 32"]);

    let build = |vs: &nn::Path| {
        Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", 48, 9, Default::default()))
    };
    let nine = online(Model::new("nine", Device::Cpu, 1, &build).unwrap());
    refused(images().taught_by(&nine), &["gives [2, 9] for 2 images and the dataset has 10 classes", "give it a head"]);
    let wide = Model::new("wide", Device::Cpu, 1, &|vs| {
        Layers::new().func("flat", |x| x.flatten(1, -1)).add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
    });
    refused(images().taught_by(&online(wide.unwrap())), &["fc", "[2, 3072]"]);
}

#[test]
fn mixup_with_hard_labels_alone_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let teacher = online(tiny_model(7));
    let of = |split| images(split).taught_by(&teacher).unwrap();
    let validation = of(&data.validation);
    let train = || of(&data.train).augmented(&Augment { mixup: Some(0.2), ..Augment::default() }).unwrap();
    let run = |train: &Examples, criterion: &Criterion, batch_size| {
        fit(&mut tiny_model(1), train, &validation, criterion, &FitOptions { batch_size, ..options(1) })
    };
    let own = Criterion::hard("mine", |logits, labels| logits.cross_entropy_for_logits(labels));
    for (criterion, name) in [(Criterion::cross_entropy(), "cross-entropy"), (own, "mine")] {
        let says = [
            &format!("mixup gives every image two labels, and criterion {name} takes one hard label")[..],
            "Criterion::kd",
            "Criterion::mixed_cross_entropy()",
        ];
        refused(run(&train(), &criterion, 8), &says);
    }
    refused(run(&train(), &kd(), 1), &["a batch has 1 image: take a batch size of 2 or more"]);
    // A loss of one's own and DKD are taken of both labels.
    let soft = Criterion::soft("own", KdLoss::new(4.0, 0.5).unwrap(), |s, y, t, temperature, alpha| {
        KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap()
    });
    let losses = [&kd(), &soft].map(|criterion| run(&train(), criterion, 8).unwrap().records[0].train.loss);
    assert!((losses[0] - losses[1]).abs() < 1e-5 * losses[0], "{losses:?}");
    run(&train(), &Criterion::distil("dkd".parse().unwrap(), KdLoss::new(4.0, 0.5).unwrap()), 8).unwrap();
    // The mistake of the article needs logits that were computed once.
    let mistaken = kdlab::study::mistakes::fit_with_mistake(
        kdlab::study::mistakes::Mistake::MismatchedTeacher,
        &mut tiny_model(1),
        &train(),
        &validation,
        &kd(),
        &options(1),
    );
    refused(mistaken, &["the run needs logits that were computed once"]);
}
