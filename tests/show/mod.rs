//! What cells display: figures hold their labels and legends, tables are safe HTML, bad input is refused in words. The
//! crate compiles this file as a part of itself, so that its figures are drawn on a `Recorder`.

mod recorder;

use super::*;
use crate::data::{self, Augment, DataOptions, Dataset, Transform, Views};
use crate::models::ModelCard;
use crate::show::bars::soft_target_bars;
use crate::show::curves::{Curve, running_curves};
use crate::show::heatmap::parameter_map;
use crate::study::{Candidate, ReportCard, Verdict, report_card};
use crate::train::{
    CachedTensor, Change, EpochRecord, Evaluation, Examples, History, Hyperparameters, Metrics, Recipe, Schedule,
};
pub(super) use recorder::Recorder;
use recorder::{drawn, texts};
use std::cell::Cell;
use std::path::Path;
use tch::{Kind, Tensor};

fn dataset(folder: &Path) -> Dataset {
    let record = |i: usize| {
        let mut bytes = vec![(i % 10) as u8];
        bytes.extend((0..3072).map(|p| (p % 251) as u8 ^ i as u8));
        bytes
    };
    std::fs::write(folder.join("data_batch_1.bin"), (0..80).flat_map(record).collect::<Vec<_>>()).unwrap();
    std::fs::write(folder.join("test_batch.bin"), (0..20).flat_map(record).collect::<Vec<_>>()).unwrap();
    data::open(&DataOptions { folder: Some(folder.to_owned()), validation: 0.2, ..DataOptions::default() }).unwrap()
}

fn history(name: &str, epochs: usize) -> History {
    let metrics = |e: usize, up: f64| Metrics {
        loss: 2.0 / e as f64,
        accuracy: up + 0.05 * e as f64,
        cross_entropy: 2.0 / e as f64,
        divergence: Some(0.1),
    };
    let record = |epoch| EpochRecord {
        epoch,
        train: metrics(epoch, 0.2),
        validation: metrics(epoch, 0.1),
        hyperparameters: Hyperparameters { learning_rate: 1e-3, temperature: Some(4.0), alpha: Some(0.9) },
        seconds: 1.5,
        images_per_second: 100.0,
    };
    let records = (1..=epochs).map(record).collect();
    History {
        name: name.into(),
        criterion: "kd".into(),
        data_key: String::new(),
        epochs,
        records,
        stopped: None,
        mistake: None,
        changes: Vec::new(),
        recipe: Recipe::default(),
        augmentation: String::new(),
        steps_per_epoch: 10,
    }
}

/// Width, height and the share of pixels that are not white.
fn decoded(figure: &Figure) -> (u32, u32, f64) {
    let image = image::load_from_memory(&figure.png().unwrap()).unwrap().to_rgb8();
    let inked = image.pixels().filter(|p| p.0 != [255; 3]).count();
    (image.width(), image.height(), inked as f64 / f64::from(image.width() * image.height()))
}

/// Nothing may touch the edge of the picture: that is where text is cut off. The figure is kept for a person to look
/// at.
fn nothing_is_clipped(figure: &Figure) {
    thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });
    COUNT.set(COUNT.get() + 1);
    if let Some(folder) = std::env::var_os("KDLAB_TEST_FIGURES") {
        let test = std::thread::current().name().unwrap_or_default().rsplit("::").next().unwrap_or_default().to_owned();
        figure.save_png(Path::new(&folder).join(format!("{test}-{}.png", COUNT.get()))).unwrap();
    }
    let image = image::load_from_memory(&figure.png().unwrap()).unwrap().to_rgb8();
    let (w, h) = image.dimensions();
    for (x, y, pixel) in image.enumerate_pixels() {
        if x == 0 || y == 0 || x == w - 1 || y == h - 1 {
            assert_eq!(pixel.0, [255; 3], "ink at the edge, {x} {y} of {w} {h}");
        }
    }
}

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
fn galleries_and_bars_show_what_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let pictures = gallery(&data.train, &data.classes, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    nothing_is_clipped(&pictures);
    let (width, height, inked) = decoded(&pictures);
    assert!(width > height && inked > 0.3, "{width} {height} {inked}: eight in the first row, one in the second");
    let e = gallery(&data.train, &data.classes, &[9999]).err().unwrap().to_string();
    assert!(e.contains("9999"), "{e}");
    assert!(gallery(&data.train, &data.classes, &[]).is_err());

    let balance = class_balance(&data);
    nothing_is_clipped(&balance);
    let said = texts(&balance).join("\n");
    for text in ["train: 64 images", "validation: 16 images", "test: 20 images", "automobile"] {
        assert!(said.contains(text), "{text} is missing");
    }
    // Whole numbers, each once in a panel: the test split has two images of each class.
    for number in said.lines().filter(|text| text.parse::<f64>().is_ok()) {
        let times = said.lines().filter(|text| *text == number).count();
        assert!(number.parse::<u32>().is_ok() && times <= 3, "{number} stands {times} times at three axes: {said}");
    }

    let logits = Tensor::arange(10, (Kind::Float, tch::Device::Cpu));
    let bars = soft_target_bars(&logits, &data.classes, Some(3), &[1.0, 4.0]).unwrap();
    nothing_is_clipped(&bars);
    assert!(texts(&bars).contains(&"T = 4".to_owned()));
    assert!(
        soft_target_bars(&logits, &data.classes, None, &[0.0])
            .err()
            .unwrap()
            .to_string()
            .contains("temperature must be > 0")
    );
    assert!(soft_target_bars(&logits, &data.classes[..3], None, &[1.0]).is_err());
    refused(soft_target_bars(&logits, &data.classes, Some(10), &[1.0]), "label 10 is none of the 10 classes, 0 to 9");
}

#[test]
fn strips_show_every_class_at_every_temperature_and_the_entropy() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let n = data.train.len() as i64;
    // Image 0 has two likely classes alike, image 1 one.
    let logits = Tensor::full([n, 10], -1e4, (Kind::Float, tch::Device::Cpu));
    let _ = logits.get(0).narrow(0, 3, 2).fill_(0.0);
    let _ = logits.get(1).narrow(0, 5, 1).fill_(0.0);
    let figure = soft_target_strips(&data.train, &data, &logits, &[0, 1], &[1.0, 2.0, 1e9]).unwrap();
    nothing_is_clipped(&figure);
    let said = texts(&figure);
    for text in ["automobile", "temperature T", "entropy, bits", "50", "100", "1.0", "0.0", "3.3"] {
        assert!(said.iter().any(|there| there == text), "{text} is missing: {said:?}");
    }
    assert!(figure.alt.contains("entropy 1.0, 1.0, 3.3 bits"), "{}", figure.alt);
    // A hundred classes and one image fit, too.
    let mut many = dataset(folder.path());
    many.classes = (0..100).map(|i| format!("class {i}")).collect();
    let wide = Tensor::zeros([n, 100], (Kind::Float, tch::Device::Cpu));
    nothing_is_clipped(&soft_target_strips(&data.train, &many, &wide, &[0], &[1.0]).unwrap());
    let strips = |indices: &[i64], t: &[f64]| soft_target_strips(&data.train, &data, &logits, indices, t);
    refused(strips(&[], &[1.0]), "0 images for a figure of strips; give 1 to 4");
    refused(strips(&[0], &[]), "0 temperatures");
    refused(strips(&[0], &[0.0]), "temperature must be > 0");
    refused(strips(&[n], &[1.0]), "64");
    refused(soft_target_strips(&data.test, &data, &logits, &[0], &[1.0]), "take the teacher's logits of this split");
    let _ = logits.get(0).fill_(f64::NAN);
    refused(strips(&[0], &[1.0]), "NaN or infinite");
}

#[test]
fn answers_over_steps_have_a_strip_for_each_image() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let indices: Vec<i64> = (0..12).collect();
    let logits = |scale: f64| Tensor::eye(10, (Kind::Float, tch::Device::Cpu)).repeat([2, 1]).narrow(0, 0, 12) * scale;
    let answers: Vec<(usize, Tensor)> = (0..17).map(|i| (10 * i, logits(i as f64))).collect();
    let figure = answers_over_steps(&data.validation, &data, &indices, &answers, &logits(9.0)).unwrap();
    nothing_is_clipped(&figure);
    let said = texts(&figure);
    for text in ["training step", "0", "160", "teacher", "100 %", "the label's row"] {
        assert!(said.iter().any(|there| there == text), "{text} is missing: {said:?}");
    }
    assert!(figure.alt.starts_with("a student's answers to 12 images from step 0 to 160"), "{}", figure.alt);
    nothing_is_clipped(
        &answers_over_steps(
            &data.validation,
            &data,
            &[0],
            &[(0, logits(1.0).narrow(0, 0, 1))],
            &logits(1.0).narrow(0, 0, 1),
        )
        .unwrap(),
    );
    refused(answers_over_steps(&data.validation, &data, &indices, &[], &logits(1.0)), "0 answers");
    refused(answers_over_steps(&data.validation, &data, &[0], &answers, &logits(1.0)), "expected [1, 10]");
}

#[test]
fn a_feature_map_finds_the_main_directions() {
    // Three groups on a line, with a little noise across it: one direction holds nearly all of the variance.
    tch::manual_seed(0);
    let labels = Tensor::arange(300, (Kind::Int64, tch::Device::Cpu)).remainder(3);
    let noise = Tensor::randn([300, 20], (Kind::Float, tch::Device::Cpu));
    let line = labels.to_kind(Kind::Float).unsqueeze(1) * Tensor::ones([1, 20], (Kind::Float, tch::Device::Cpu)) * 8.0;
    let (strong, classes) = (line + &noise, names(3));
    let mirrored = -&strong;
    let panels = [("student", &strong), ("teacher", &mirrored), ("noise", &noise)];
    let figure = feature_map(&panels, &labels, &classes).unwrap();
    nothing_is_clipped(&figure);
    assert_eq!(drawn(&figure).circles, 3 * 300 + 3);
    let said = texts(&figure);
    assert!(said.iter().any(|text| text == "direction 1, 98 % of the variance"), "{said:?}");
    // Small features have numbers at their axes, too.
    let small = &strong * 1e-2;
    let zeros = texts(&feature_map(&[("small", &small)], &labels, &classes).unwrap());
    assert!(zeros.iter().filter(|text| text.trim_start_matches('-').parse() == Ok(0.0)).count() <= 2, "{zeros:?}");
    // The sign of a direction is arbitrary: the mirrored features look the same.
    let places: Vec<i32> = drawn(&figure).texts.iter().filter(|t| t.2 == classes[0]).map(|t| t.0).collect();
    let panel = 2 * 296;
    assert!((places[0] + panel - places[5]).abs() < 6, "{places:?}");
    refused(feature_map(&panels, &labels.narrow(0, 0, 2), &classes), "expected [2, D]");
    refused(feature_map(&panels, &labels, &classes[..2]), "300 labels for 2 classes");
    refused(feature_map(&[], &labels, &classes), "a map of 0 networks");
    refused(feature_map(&[("flat", &strong.zeros_like())], &labels, &classes), "are the same for all images");
    refused(feature_map(&[("odd", &(strong * f64::NAN))], &labels, &classes), "NaN");
}

#[test]
fn the_diagram_names_both_losses_and_where_the_gradient_goes() {
    let figure = distillation_diagram();
    nothing_is_clipped(&figure);
    let said = texts(&figure);
    for text in ["teacher", "student", "KL divergence", "weight α T²", "cross-entropy", "weight 1 − α", "no gradient"]
    {
        assert!(said.iter().any(|there| there == text), "{text} is missing: {said:?}");
    }
}

#[test]
fn a_forest_has_a_dot_for_each_seed() {
    let gains = Verdict::new(&[0.45, 0.46, 0.44], &[0.49, 0.49, 0.48], 1).unwrap();
    let unclear = Verdict::new(&[0.45, 0.46], &[0.47, 0.45], 3).unwrap();
    let figure = forest(&[("few labels", &gains), ("another one", &unclear)]).unwrap();
    nothing_is_clipped(&figure);
    assert_eq!(drawn(&figure).circles, 5);
    let said = texts(&figure);
    for text in ["few labels", "+3.7 (+2.2 to +5.1)  BETTER", "another one"] {
        assert!(said.iter().any(|there| there == text), "{text} is missing: {said:?}");
    }
    refused(forest(&[]), "give at least one name");
    let odd = Verdict { mean: f64::NAN, ..gains };
    refused(forest(&[("odd", &odd)]), "the verdict on odd holds NaN");
}

#[test]
fn gains_of_classes_are_dots_and_their_mean() {
    let rows = [("cat", vec![0.02, 0.03, 0.01]), ("dog", vec![-0.05, 0.01, 0.01])];
    let figure = class_gains(&rows).unwrap();
    nothing_is_clipped(&figure);
    assert_eq!(drawn(&figure).circles, 6);
    let said = texts(&figure);
    for text in ["cat", "+2.0  3 of 3 seeds above 0", "-1.0  2 of 3 seeds above 0"] {
        assert!(said.iter().any(|there| there == text), "{text} is missing: {said:?}");
    }
    assert!(figure.alt.contains("cat: +2.0  3 of 3 seeds above 0; dog: -1.0"), "{}", figure.alt);
    refused(class_gains(&[]), "no class to draw");
    refused(class_gains(&[("cat", vec![])]), "give at least one seed");
    refused(class_gains(&[("cat", vec![f64::NAN])]), "finite shares");
}

#[test]
fn confusion_and_mistakes_come_from_the_counts() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    // Every image is classified correctly but the first two, which get the class after theirs.
    let labels = data.test.labels().unwrap();
    let taken = labels.copy();
    let _ = taken.narrow(0, 0, 2).g_add_scalar_(1).remainder_(10);
    let logits = taken.one_hot(10).to_kind(Kind::Float) * 5.0;
    let evaluation = Evaluation { cross_entropy: 0.1, correct: 18, total: 20, logits, labels };
    let confusion = evaluation.confusion().unwrap();
    assert_eq!((0..10).map(|c| confusion[c][c]).sum::<usize>(), 18);
    let figure = confusion_matrix(&evaluation, &data.classes).unwrap();
    nothing_is_clipped(&figure);
    let wrong = mistakes(&data.test, &data, &evaluation, 24).unwrap();
    nothing_is_clipped(&wrong);
    let one = mistakes(&data.test, &data, &evaluation, 1).unwrap();
    assert!(decoded(&one).0 < decoded(&wrong).0, "two mistakes are wider than one");
    assert!(confusion_matrix(&evaluation, &data.classes[..4]).is_err());
    // Without a mistake it shows what it was least sure of.
    let right = data.test.labels().unwrap().one_hot(10).to_kind(Kind::Float) * 5.0;
    let evaluation = Evaluation { correct: 20, logits: right, ..evaluation };
    assert_eq!(decoded(&mistakes(&data.test, &data, &evaluation, 2).unwrap()).0, decoded(&wrong).0);
}

#[test]
fn a_figure_is_saved_as_png() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("curves.png");
    curves(&[&history("a", 3)]).unwrap().save_png(&path).unwrap();
    assert_eq!(&std::fs::read(&path).unwrap()[1..4], b"PNG");
}

#[test]
fn tables_align_numbers_and_escape_text() {
    let table =
        Table::new(&["run", "acc %"]).row(&["<b>".into(), "9.5".into()]).row(&["long name".into(), "41.0".into()]);
    assert_eq!(table.to_string(), "run        acc %\n<b>          9.5\nlong name   41.0\n");
    let html = table.html();
    assert!(html.contains("&lt;b&gt;") && !html.contains("<b>"));
    assert!(html.contains("text-align:right"));
    let rows = history("a", 2).table().to_string();
    assert!(rows.lines().count() == 3 && rows.contains("val accuracy (%)"), "{rows}");
}

#[test]
fn reliability_and_disagreements_show_what_they_compare() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let transform = crate::data::Transform::imagenet(32);
    let build = |vs: &tch::nn::Path| {
        crate::models::Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([2, 2]).flatten(1, -1) * 9.0)
            .add("fc", tch::nn::linear(vs / "fc", 12, 10, Default::default()))
    };
    let nets: Vec<_> =
        (0..4).map(|seed| crate::models::Model::new("net", tch::Device::Cpu, seed, &build).unwrap()).collect();
    let names = ["teacher", "alone", "T 4, alpha 0.9", "a fourth"];
    let graded: Vec<_> = (names.iter().zip(&nets))
        .map(|(name, model)| Candidate { name, model, transform: &transform, logits: None })
        .collect();
    let (card, evaluations) = report_card(&data.test, &graded, 8).unwrap();
    // One panel, and more than one row of panels.
    for models in [1, 4] {
        let card = ReportCard { rows: card.rows[..models].to_vec(), ..card.clone() };
        let figure = reliability_diagram(&card).unwrap();
        nothing_is_clipped(&figure);
        let said = texts(&figure).join("\n");
        for name in &names[..models] {
            assert!(said.contains(&format!("{name}: ECE ")), "{name}");
        }
        for text in ["accuracy", "confidence", "images, %"] {
            assert!(said.contains(text), "{text} is missing");
        }
    }
    assert!(reliability_diagram(&ReportCard { rows: Vec::new(), ..card.clone() }).is_err());
    let table = card.table().to_string();
    for text in ["agreement with teacher (%)", "ECE (%)", "ms per image", "T 4, alpha 0.9"] {
        assert!(table.contains(text), "{table}");
    }

    let figure = disagreements(&data.test, &data, &evaluations[0], &evaluations[1], 5).unwrap();
    nothing_is_clipped(&figure);
    let said = texts(&figure).join("\n");
    // The first image is the one with the largest KL(teacher || student): its two answers stand below it.
    let logs = [0, 1].map(|i: usize| evaluations[i].logits.log_softmax(-1, Kind::Float));
    let kl = ((&logs[0] - &logs[1]) * logs[0].exp()).sum_dim_intlist([-1].as_slice(), false, Kind::Float);
    let first = kl.argmax(0, false).int64_value(&[]);
    for log in &logs {
        let (sure, class) = log.get(first).exp().max_dim(-1, false);
        let text = format!("{} {:.0} %", data.classes[class.int64_value(&[]) as usize], 100.0 * sure.double_value(&[]));
        assert!(said.contains(&text), "{text}");
    }
    assert!(disagreements(&data.train, &data, &evaluations[0], &evaluations[1], 5).is_err());
    assert!(disagreements(&data.test, &data, &evaluations[0], &evaluations[1], 0).is_err());
    // The split has as many images, but other ones.
    let turned = data.test.select(&(0..20).rev().collect::<Vec<_>>()).unwrap();
    let e = disagreements(&turned, &data, &evaluations[0], &evaluations[1], 5).err().unwrap().to_string();
    assert!(e.contains("must both be evaluated on the test split"), "{e}");
}

fn refused<T>(made: crate::Result<T>, why: &str) {
    let e = made.err().unwrap().to_string();
    assert!(e.contains(why), "{e}");
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| ["cat", "dog", "truck", "frog"].get(i).map_or(format!("class {i}"), |&name| name.into())).collect()
}

#[test]
fn class_similarity_is_the_mean_soft_target_of_each_class() {
    let classes = names(4);
    // No image of the last class.
    let labels = Tensor::from_slice(&[0i64, 1, 0, 2, 1]);
    tch::manual_seed(3);
    let logits = Tensor::randn([5, 4], (Kind::Float, tch::Device::Cpu)) * 3.0;
    let figure = class_similarity(&logits, &labels, &classes, 2.0).unwrap();
    nothing_is_clipped(&figure);
    // softmax by hand, image by image.
    let rows = Vec::<Vec<f64>>::try_from(logits.to_kind(Kind::Double)).unwrap();
    let soft = |row: &Vec<f64>| {
        let powers: Vec<f64> = row.iter().map(|z| (z / 2.0).exp()).collect();
        powers.iter().map(|p| p / powers.iter().sum::<f64>()).collect::<Vec<_>>()
    };
    let mean = |images: &[usize], class: usize| {
        images.iter().map(|&i| soft(&rows[i])[class]).sum::<f64>() / images.len() as f64
    };
    let members = [&[0, 2][..], &[1, 4], &[3]];
    let percent = |p: f64| if p < 0.0995 { format!("{:.1}", 100.0 * p) } else { format!("{:.0}", 100.0 * p) };
    let wanted: Vec<String> = members.iter().flat_map(|m| (0..4).map(|c| percent(mean(m, c)))).collect();
    let drawn = texts(&figure);
    let numbers = drawn.windows(wanted.len()).any(|window| window == wanted.as_slice());
    assert!(numbers, "{wanted:?} in {drawn:?}");
    for text in ["Class similarity: mean soft target at T = 2, in %", "true class", "dog"] {
        assert!(drawn.iter().any(|said| said.contains(text)), "{text} is missing");
    }
    // The same numbers in words: the class with no image is left out.
    let table = likely_confusions(&logits, &labels, &classes, 2.0, 1).unwrap().to_string();
    assert_eq!(table.lines().count(), 4, "{table}");
    for (own, line) in table.lines().skip(1).enumerate() {
        let wrong = (0..4).filter(|&c| c != own).map(|c| (mean(members[own], c), c));
        let mass: f64 = wrong.clone().map(|(p, _)| p).sum();
        let (p, class) = wrong.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let images = members[own].len();
        let cells = [
            classes[own].clone(),
            images.to_string(),
            format!("{:.1}", 100.0 * mass),
            classes[class].clone(),
            format!("{:.1}", 100.0 * p),
            format!("{:.0}", 100.0 * p / mass),
        ];
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), cells);
    }
    // There are three wrong classes, though nine are asked for.
    assert_eq!(likely_confusions(&logits, &labels, &classes, 2.0, 9).unwrap().to_string().lines().count(), 10);

    // A hundred classes have no room for numbers; a sure teacher leaves nothing to wrong classes; one class has none.
    let many = names(100);
    let sure = Tensor::eye(100, (Kind::Float, tch::Device::Cpu)) * 4000.0;
    let all = Tensor::arange(100, (Kind::Int64, tch::Device::Cpu));
    let figure = class_similarity(&sure, &all, &many, 1.0).unwrap();
    nothing_is_clipped(&figure);
    likely_confusions(&sure, &all, &many, 1.0, 1).unwrap();
    nothing_is_clipped(
        &class_similarity(&sure.narrow(0, 0, 1).narrow(1, 0, 1), &all.narrow(0, 0, 1), &many[..1], 1.0).unwrap(),
    );

    // Arguments that do not fit each other.
    let (f, t) = (class_similarity, |l: &Tensor, y: &Tensor| likely_confusions(l, y, &classes, 1.0, 1));
    refused(f(&logits, &labels.narrow(0, 0, 4), &classes, 1.0), "[4]");
    refused(f(&logits, &labels, &classes[..3], 1.0), "3 class names");
    refused(f(&logits.get(0), &labels, &classes, 1.0), "logits are [4]");
    refused(f(&logits, &labels.to_kind(Kind::Float), &classes, 1.0), "labels Float");
    refused(f(&logits.narrow(0, 0, 0), &labels.narrow(0, 0, 0), &classes, 1.0), "at least one image");
    refused(f(&logits, &(&labels + 2), &classes, 1.0), "labels go from 2 to 4");
    refused(t(&logits, &(&labels - 100)), "labels go from -100");
    refused(f(&logits, &labels, &classes, 0.0), "temperature must be > 0");
    refused(t(&(&logits / 0.0), &labels), "NaN or infinite");
    refused(likely_confusions(&logits, &labels, &classes, 1.0, 0), "no wrong class asked for");
}

#[test]
fn a_parameter_map_signs_its_numbers() {
    let labels = |values: &[&str]| values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>();
    let (rows, columns) = (labels(&["1", "2", "4", "10"]), labels(&["0.1", "0.5", "0.9"]));
    let values = vec![
        vec![Some(1.31), Some(-0.04), Some(-2.6)],
        vec![Some(0.2), None, Some(f64::NAN)],
        vec![Some(12.0), Some(-7.5), Some(6.0)],
        vec![None; 3],
    ];
    let map = |values: &[Vec<Option<f64>>]| {
        parameter_map("Gain over the student alone", ("T", &rows), ("alpha", &columns), values, "points")
    };
    let figure = map(&values).unwrap();
    nothing_is_clipped(&figure);
    let drawn = texts(&figure);
    for text in
        ["Gain over the student alone", "T", "alpha", "0.9", "+1.3", "0.0", "-2.6", "+12.0 points", "-12.0 points"]
    {
        assert!(drawn.iter().any(|said| said == text), "{text} is missing in {drawn:?}");
    }
    nothing_is_clipped(&map(&vec![vec![None; 3]; 4]).unwrap());
    refused(map(&values[..3]), "4 row labels");
    refused(map(&vec![vec![None; 2]; 4]), "3 column labels");
    refused(parameter_map("", ("", &[]), ("", &columns), &[], ""), "at least one row");
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
fn a_gallery_tells_what_the_teacher_sees() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let logits = Tensor::arange(10, (Kind::Float, tch::Device::Cpu)).repeat([20, 1]);
    let figure = soft_target_gallery(&data.test, &data, &logits, &[0, 7], 2.0).unwrap();
    nothing_is_clipped(&figure);
    // e^(9/2) and e^(8/2) of the sum of all ten.
    let said = texts(&figure).join("\n");
    assert!(said.contains("truck 40 %") && said.contains("ship 24 %"), "{said}");
    let few = logits.narrow(0, 0, 19);
    refused(soft_target_gallery(&data.test, &data, &few, &[0], 2.0), "logits are [19, 10], but the test split has 20");
    refused(soft_target_gallery(&data.test, &data, &logits, &[20], 2.0), "20");
    refused(soft_target_gallery(&data.test, &data, &logits, &[0], -1.0), "temperature must be > 0");
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

#[test]
fn galleries_and_heat_maps_stay_within_a_screen() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    refused(gallery(&data.train, &data.classes, &[0; 25_000]), "a gallery of 25000 images; at most 400");
    assert!(gallery(&data.train, &data.classes, &[0; 400]).is_ok());
    for (rows, columns) in [(40, 40), (100, 12), (3, 200), (700, 700)] {
        let values = vec![vec![Some(1.0); columns]; rows];
        let map = parameter_map("gain", ("T", &names(rows)), ("alpha", &names(columns)), &values, "points").unwrap();
        let (width, height, _) = decoded(&map);
        assert!(width <= 2 * 1440 && height <= 2 * 900, "{rows} by {columns}: {width} by {height}");
        nothing_is_clipped(&map);
    }
    let values = vec![vec![Some(1.0)]; 800];
    refused(parameter_map("gain", ("T", &names(800)), ("alpha", &names(1)), &values, ""), "at most 740");
}

#[test]
fn what_is_shown_is_rounded_and_stays_in_its_line() {
    let logits = Tensor::arange(10, (Kind::Float, tch::Device::Cpu));
    let bars = soft_target_bars(&logits, &names(10), None, &[9.799999999999999]).unwrap();
    assert!(texts(&bars).contains(&"T = 9.8".to_owned()), "{:?}", texts(&bars));
    let html = Table::new(&["mean interval"]).row(&["+1.0 to +2.0".into()]).html();
    assert!(html.contains("white-space:nowrap\">+1.0 to +2.0</td>"), "{html}");
    assert!(html.contains("overflow-x:auto"), "a wide table scrolls: {html}");
    // Beside a name of this length the verdict would be out of sight.
    let name = "kd-T4-alpha0.9-teacher-of-the-same-labels-labelled0.05";
    let html = Table::new(&["setting"]).row(&[name.into()]).html();
    assert!(html.contains(&format!("white-space:normal\">{name}</td>")), "{html}");
}

#[test]
fn figures_and_tables_say_in_words_what_they_show() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let figure = curves(&[&history("alone", 6)]).unwrap();
    let alt = "cross-entropy and accuracy over epochs: alone, best 40.0 % in epoch 6 of 6";
    assert_eq!(figure.alt, alt);
    assert!(format!("{figure:?}").starts_with(&format!("figure: {alt};")), "{figure:?}");
    let label = &data.classes[data.train.label(0).unwrap() as usize];
    assert_eq!(gallery(&data.train, &data.classes, &[0]).unwrap().alt, format!("1 image: {label}"));
    let logits = Tensor::from_slice(&[0.0, 100.0]);
    let bars = soft_target_bars(&logits, &names(2), None, &[1.0]).unwrap();
    assert_eq!(bars.alt, "probability of each class: T = 1, highest (dog 1)");
    // A cell that shows a value only by `{:?}`.
    let table = Table::new(&["run", "acc %"]).row(&["a".into(), "9.5".into()]);
    assert_eq!(format!("{table:?}"), "\nrun  acc %\na      9.5\n");
    assert_eq!(format!("{data:?}"), data.to_string());
}

#[test]
fn a_model_card_says_what_it_is_how_good_and_within_which_limits() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let build = |vs: &tch::nn::Path| {
        crate::models::Layers::new()
            .add("mean", crate::models::Op::GlobalAvgPool)
            .add("fc", tch::nn::linear(vs / "fc", 3, 10, Default::default()))
    };
    let model = crate::models::Model::new("my_net", tch::Device::Cpu, 0, &build).unwrap();
    let transform = data::Transform::imagenet(16);
    let card = ModelCard {
        classes: data.classes.clone(),
        stored_size: 32,
        framing: data.framing,
        transform,
        threshold: 0.625,
    };
    // Of 20 test images, those of class 0 and 2 are taken for class 1.
    let labels = data.test.labels().unwrap();
    let said = labels.masked_fill(&labels.eq(0), 1).masked_fill(&labels.eq(2), 1);
    let test = Evaluation::new(&(said.one_hot(10).to_kind(Kind::Float) * 9.0), &labels).unwrap();
    let history = History { stopped: Some("out | of time".into()), epochs: 5, ..history("kd", 3) };
    let file = folder.path().join("net.onnx");
    std::fs::write(&file, "abc").unwrap();
    let files = [file];
    let text = CardText {
        model: &model,
        card: &card,
        data: &data,
        history: &history,
        test: &test,
        sweep: None,
        files: &files,
    };
    let path = folder.path().join("cards/README.md");
    text.save(&path).unwrap();
    let found = std::fs::read_to_string(&path).unwrap();
    for part in [
        "# my\\_net\n\nA network that tells 10 classes apart: airplane, automobile, ",
        "squeezed into a square of 32 pixels,\n  then brought to 16 x 16 pixels",
        "- Cost: 40 parameters, 0.0 million multiply-adds",
        "Below a probability of 62.5 %",
        "\n## Data\n\nCIFAR-10: 10 classes",
        "- Kept: the weights of epoch 3, the best on the validation split, with T 4, alpha 0.9, learning rate 1e-3\n",
        "- Optimizer: Adam at a constant learning rate\n",
        "- Length: 3 of 5 epochs in 5 s, stopped: out \\| of time\n", // 4.5 s
        "| 20 | 80.0 | 58.4 to 91.9 | ",
        "| airplane | 2 | 0.0 | 0.0 to 65.8 |\n| automobile | 2 | 100.0 | 34.2 to 100.0 |\n",
        "learned from another network",
        "| `net.onnx` | 3 | `ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad` |\n",
    ] {
        assert!(found.contains(part), "{part} is missing in\n{found}");
    }
    assert!(found.lines().all(|line| line.len() < 200), "{found}");
    let absent = [folder.path().join("absent.pt")];
    refused(CardText { files: &absent, ..text }.save(&path), "absent.pt");
}

#[test]
fn students_are_shown_with_what_they_cost() {
    let text = student_sizes(10).unwrap().to_string();
    let row = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    assert_eq!(text.lines().count(), 10);
    for part in ["32", "0.26 M", "1.1 MB", "96.1 M"] {
        assert!(row("Student::Medium").contains(part), "{part} is missing in\n{text}");
    }
    assert!(row("Student::Small").contains("0.07 M"), "{text}");
    refused(student_sizes(0), "students for 0 classes");
}

#[test]
fn quick_checks_ask_three_questions_and_say_a_word_on_each_answer() {
    for notebook in 0..15 {
        let checks = quick_checks(notebook).unwrap();
        for question in 1..=3 {
            let said: Vec<String> = ['a', 'b', 'c'].map(|answer| checks.answer(question, answer).unwrap()).into();
            assert_eq!(said.iter().filter(|said| said.starts_with("Right. ")).count(), 1, "{said:?}");
            assert_eq!(said.iter().filter(|said| said.starts_with("Not quite. ")).count(), 2, "{said:?}");
            assert!(said.iter().all(|said| said.len() > 20), "{said:?}");
        }
        refused(checks.answer(4, 'a'), "no answer 'a' to question 4; questions are 1 to 3");
        refused(checks.answer(0, 'a'), "to question 0");
        refused(checks.answer(1, 'd'), "no answer 'd'");
    }
    refused(quick_checks(15), "notebook 15 has no quick checks; the course has 0 to 14");
}
