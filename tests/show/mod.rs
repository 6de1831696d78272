//! What cells display: figures hold their labels and legends, tables are safe HTML, bad input is refused in words. The
//! crate compiles this file as a part of itself, so that its figures are drawn on a `Recorder`.

mod curves;
mod images;
mod recorder;
mod tables;

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
        threads: vec![(0.0, 2), (1.5, 1)],
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
