//! Curves over epochs, steps and temperatures.

use super::*;

#[test]
fn curves_name_axes_units_and_every_run() {
    let (a, b) = (history("student alone", 6), history("T4 & <alpha> 0.9", 6));
    let figure = curves(&[&a, &b]).unwrap();
    let said = texts(&figure).join("\n");
    for text in [
        "Accuracy, %",
        "Cross-entropy",
        "epoch",
        "student alone: best 40.0 % in epoch 6",
        "solid validation, dashed training",
    ] {
        assert!(said.contains(text), "{text} is missing");
    }
    assert!(said.contains("T4 & <alpha> 0.9"), "{said}");
    nothing_is_clipped(&figure);
    assert!(decoded(&figure).2 > 0.01);
    // A single epoch is drawn; a history without an epoch is refused.
    nothing_is_clipped(&curves(&[&history("one", 1)]).unwrap());
    assert!(curves(&[&history("none", 0)]).err().unwrap().to_string().contains("no finished epoch"));
}

#[test]
fn a_learning_rate_that_changes_is_drawn_below_the_curves() {
    let plain = history("constant", 20);
    let mut cosine = history("cosine", 20);
    cosine.recipe = Recipe { schedule: Schedule::Cosine, warmup: 2.0, ..Recipe::default() };
    cosine.changes = vec![change(12.0, (4.0, 0.9, 1e-3), (4.0, 0.9, 2e-3))];
    let mut steps = history("steps", 20);
    steps.recipe = Recipe { schedule: Schedule::Step { epochs: 8, factor: 0.1 }, ..Recipe::default() };
    let figure = curves(&[&cosine, &plain, &steps]).unwrap();
    nothing_is_clipped(&figure);
    assert_eq!(texts(&figure).iter().filter(|said| *said == "Learning rate").count(), 2, "below each panel");
    assert!(figure.alt.starts_with("cross-entropy and accuracy over epochs, with the learning rate: cosine, best"));
    assert!(!texts(&curves(&[&plain]).unwrap()).contains(&"Learning rate".to_owned()), "a constant needs no line");
    // The same frame from the first batch on, before any epoch says what the learning rate is.
    let begun = History { records: vec![], ..history("begun", 20) };
    let begun = History { recipe: Recipe { schedule: Schedule::OneCycle, ..Recipe::default() }, ..begun };
    for running in [None, Some((0.4, plain.records[0].train))] {
        nothing_is_clipped(&running_curves(vec![Curve { history: begun.clone(), running, learning_rate: 1e-3 }]));
    }
    // Beside one that is finished, each has its own rate and its own ring at the end of its line.
    let done = Curve { history: cosine.clone(), running: None, learning_rate: f64::NAN };
    let begun = Curve { history: begun, running: Some((0.4, plain.records[0].train)), learning_rate: 1e-3 };
    let both = running_curves(vec![done, begun]);
    nothing_is_clipped(&both);
    assert!(both.alt.contains("cosine, best") && both.alt.contains("begun, no finished epoch of 20"));
    // The table has the rate of each epoch's last step: at the end of a cosine it is near 0.
    let table = cosine.table().to_string();
    assert!(table.lines().nth(2).unwrap().contains(" 9.51e-4 "), "the last step of the warm-up: {table}");
    assert_eq!((cosine.learning_rate(0.0, 0.0), cosine.learning_rate(2.0, 0.0)), (1e-5, 1e-3));
    let halfway = cosine.learning_rate(11.0, 0.0);
    assert!((halfway - 5e-4).abs() < 1e-9 && (cosine.learning_rate(12.0, 0.0) / 8.26e-4 - 1.0).abs() < 1e-3);
}

fn change(epoch: f64, before: (f64, f64, f64), after: (f64, f64, f64)) -> Change {
    let settings = |(t, a, learning_rate)| Hyperparameters { temperature: Some(t), alpha: Some(a), learning_rate };
    Change { epoch, before: settings(before), after: settings(after) }
}

/// The labels of changes: where they begin, in nominal pixels, and what they say.
fn labels_of_changes(figure: &Figure) -> Vec<(f64, f64, String)> {
    let texts = drawn(figure).texts.into_iter().filter(|(_, _, said)| said.contains("->"));
    texts.map(|(x, y, said)| (f64::from(x) / 2.0, f64::from(y) / 2.0, said)).collect()
}

#[test]
fn changes_are_marked_with_labels_that_do_not_overlap() {
    let mut one = history("sliders", 10);
    one.changes = vec![
        change(0.35, (4.0, 0.9, 1e-3), (2.0, 0.9, 1e-3)),
        // A dragged slider gives many changes and one mark.
        change(2.30, (2.0, 0.9, 1e-3), (3.0, 0.9, 1e-3)),
        change(2.32, (3.0, 0.9, 1e-3), (5.5, 0.9, 1e-3)),
        change(2.34, (5.5, 0.9, 1e-3), (8.0, 0.9, 1e-3)),
        change(2.70, (8.0, 0.9, 1e-3), (8.0, 0.25, 1e-3)),
        change(3.00, (8.0, 0.25, 1e-3), (8.0, 0.25, 3e-4)),
        change(9.95, (8.0, 0.25, 3e-4), (1.0, 0.5, 1e-5)),
    ];
    let figure = curves(&[&one]).unwrap();
    nothing_is_clipped(&figure);
    let labels = labels_of_changes(&figure);
    let said: Vec<_> = labels.iter().map(|(_, _, said)| said.as_str()).collect();
    let wanted = [
        "T 4 -> 2",
        "T 2 -> 8",
        "alpha 0.9 -> 0.25",
        "lr 1e-3 -> 3e-4",
        "T 8 -> 1, alpha 0.25 -> 0.5, lr 3e-4 -> 1e-5",
    ];
    assert_eq!(said, [wanted, wanted].concat(), "once in each panel");
    // Two runs in one figure have more changes than labels fit: some labels are left out, and no two overlap.
    let mut two = history("another", 10);
    two.changes =
        (0..40).map(|i| change(0.2 * i as f64, (i as f64 + 1.0, 0.9, 1e-3), (i as f64 + 2.0, 0.9, 1e-3))).collect();
    let figure = curves(&[&one, &two]).unwrap();
    nothing_is_clipped(&figure);
    let many = labels_of_changes(&figure);
    assert!(many.len() > 10);
    for labels in [&labels, &many] {
        for (i, (x, y, said)) in labels.iter().enumerate() {
            // A letter of this size is about 4.5 wide and less than 12 high.
            for (x2, y2, other) in &labels[i + 1..] {
                let wide = |said: &str| 4.2 * said.chars().count() as f64;
                let apart = x + wide(said) < *x2 || x2 + wide(other) < *x || (y - y2).abs() > 11.0;
                assert!(apart, "{said} at {x} {y} and {other} at {x2} {y2}");
            }
        }
    }
}

#[test]
fn soft_targets_are_followed_over_the_temperature() {
    let classes = names(12);
    let logits = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)) * 0.5;
    let figure = soft_targets_over_temperature(&logits, &classes, Some(1)).unwrap();
    nothing_is_clipped(&figure);
    let drawn = texts(&figure);
    let legend = ["class 11", "class 10", "class 9", "class 8", "class 7", "dog (label)", "6 others"];
    assert!(drawn.windows(legend.len()).any(|window| window == legend), "{drawn:?}");
    for text in ["temperature T", "0.5", "20", "Entropy, bits (dashed: all 12 alike)"] {
        assert!(drawn.iter().any(|said| said == text), "{text} is missing in {drawn:?}");
    }
    // A single class, and a teacher that gives one class all the probability.
    nothing_is_clipped(&soft_targets_over_temperature(&Tensor::from_slice(&[1.0f32]), &classes[..1], None).unwrap());
    let sure = Tensor::from_slice(&[900.0f32, 0.0, 0.0]);
    nothing_is_clipped(&soft_targets_over_temperature(&sure, &classes[..3], Some(0)).unwrap());
    refused(soft_targets_over_temperature(&logits, &classes[..3], None), "logits [12] and 3 class names");
    refused(soft_targets_over_temperature(&logits, &classes, Some(12)), "label 12");
    refused(soft_targets_over_temperature(&(logits / 0.0), &classes, None), "NaN or infinite");
}

#[test]
fn plot_draws_a_line_of_ones_own_with_axes_and_gaps() {
    let epochs: Vec<usize> = (1..=5).collect();
    let names = ["epoch", "loss"];
    let figure = plot(&epochs, &[2.5, 1.5, f64::NAN, 0.5, 0.25], names).unwrap();
    nothing_is_clipped(&figure);
    let said = texts(&figure);
    for text in ["epoch", "loss", "1.0", "5.0", "2.5"] {
        assert!(said.iter().any(|said| said == text), "{text} is missing in {said:?}");
    }
    let whole = plot(&[1, 5], &[0.25, 2.5], names).unwrap();
    assert_eq!(drawn(&figure).paths - drawn(&whole).paths, 1, "a NaN parts the line in two");
    assert_eq!(drawn(&figure).circles, 4, "a dot for each finite point");
    assert_eq!(figure.alt, "line through 4 points, epoch from 1 to 5, loss from 0.25 to 2.5");
    // Equal, huge, tiny and close values have axes too.
    for (x, y) in [([3.0, 3.0], [0.0, 0.0]), ([0.0, 1e7], [-1e280, 1e280]), ([1e16, 1e16 + 2.0], [1e-12, 3e-12])] {
        let figure = plot(&x, &y, names).unwrap();
        nothing_is_clipped(&figure);
    }
    refused(plot(&[1, 2, 3], &[0.5f32, 0.25], names), "x has 3 values and y has 2; give one y for each x");
    refused(plot::<f64, f64>(&[], &[], names), "x and y are empty; give at least one point");
    refused(plot(&[1.0, f64::NAN], &[f64::INFINITY, 2.0], names), "none of the 2 points has a finite x and a finite y");
    refused(plot(&[f64::MIN, f64::MAX], &[0, 1], names), "scale it first");
}

/// A row for each image, in eight epochs of its training.
#[test]
fn what_training_sees_is_drawn_epoch_by_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let images = || Examples::images(&data.train, &Transform::imagenet(32)).unwrap();
    let draw =
        |examples: kdlab::Result<Examples>, seed| augmented(&examples.unwrap(), &data.classes, &[3, 5], seed).unwrap();
    let augment = Augment { flip: true, shift: 4, crop: Some(0.4), cutout: 8, jitter: 0.5, ..Augment::default() };
    let mixed = Augment { mixup: Some(1.0), ..augment.clone() };
    let classes = [3, 5].map(|i| data.classes[data.train.label(i).unwrap() as usize].clone());
    for (examples, caption) in [
        (Ok(images()), classes[0].clone()),
        (images().with_views(&Views::drawn(&augment, 6, 0).unwrap()), classes[1].clone()),
        (images().augmented(&augment), classes[0].clone()),
        (images().augmented(&mixed), format!("{} ", classes[1])),
    ] {
        let figure = draw(examples, 0);
        nothing_is_clipped(&figure);
        let texts = texts(&figure);
        assert!(texts.iter().filter(|text| text.starts_with(&caption)).count() >= 8, "{caption}: {texts:?}");
        assert!(figure.alt.starts_with("16 images: "), "{}", figure.alt);
    }
    let png = |seed| draw(images().augmented(&augment), seed).png().unwrap();
    assert_eq!(png(0), png(0));
    assert_ne!(png(0), png(1));
    refused(augmented(&images(), &data.classes, &[], 0), "a gallery of no images");
    refused(augmented(&images(), &data.classes, &[0; 51], 0), "a gallery of 408 images; at most 400");
    refused(augmented(&images(), &data.classes, &[1000], 0), "outside the train split");
    let zeros = Tensor::zeros([data.train.len() as i64, 2], (Kind::Float, tch::Device::Cpu));
    let features = Examples::features(&data.train, &CachedTensor::new(&data.train, zeros, "zeros").unwrap()).unwrap();
    refused(augmented(&features, &data.classes, &[0], 0), "these examples are features, and have no images");
}
