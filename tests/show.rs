//! What cells display: figures hold their labels and legends, tables are safe HTML, bad input is refused in words.

use kdlab::data::{DataOptions, Dataset, cifar10};
use kdlab::distill::{Change, EpochRecord, Evaluation, Graded, History, Metrics, ReportCard, Settings, report_card};
use kdlab::show::*;
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
    cifar10(&DataOptions { folder: Some(folder.to_owned()), validation: 0.2, ..DataOptions::default() }).unwrap()
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
        learning_rate: 1e-3,
        temperature: Some(4.0),
        alpha: Some(0.9),
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
        defect: None,
        changes: Vec::new(),
    }
}

/// Width, height and the share of pixels that are not white.
fn decoded(figure: &Figure) -> (u32, u32, f64) {
    let image = image::load_from_memory(&figure.png().unwrap()).unwrap().to_rgb8();
    let inked = image.pixels().filter(|p| p.0 != [255; 3]).count();
    (image.width(), image.height(), inked as f64 / f64::from(image.width() * image.height()))
}

/// Nothing may touch the edge of the picture: that is where text is cut off.
fn nothing_is_clipped(figure: &Figure) {
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
    let svg = figure.svg().unwrap();
    for text in [
        "Accuracy, %",
        "Cross-entropy",
        "epoch",
        "student alone: best 40.0 % in epoch 6",
        "solid validation, dashed training",
    ] {
        assert!(svg.contains(text), "{text} is missing");
    }
    assert!(svg.contains("T4 &amp; &lt;alpha&gt; 0.9"), "names are escaped");
    assert!(svg.contains("viewBox"), "without a view box it cannot shrink to the column");
    nothing_is_clipped(&figure);
    assert!(decoded(&figure).2 > 0.01);
    // One epoch is drawn too; none is refused.
    nothing_is_clipped(&curves(&[&history("one", 1)]).unwrap());
    assert!(curves(&[&history("none", 0)]).err().unwrap().to_string().contains("no finished epoch"));
}

fn change(epoch: f64, before: (f64, f64, f64), after: (f64, f64, f64)) -> Change {
    let settings = |(t, a, learning_rate)| Settings { temperature: Some(t), alpha: Some(a), learning_rate };
    Change { epoch, before: settings(before), after: settings(after) }
}

/// Every text of this size in an SVG: where it begins, and what it says.
fn small_texts(svg: &str) -> Vec<(f64, f64, String)> {
    let attribute = |tag: &str, name: &str| -> Option<f64> {
        tag.split_once(&format!("{name}=\""))?.1.split('"').next()?.parse().ok()
    };
    let text = |part: &str| {
        let (tag, rest) = part.split_once('>')?;
        let said = rest.split('<').next()?.trim().replace("&gt;", ">");
        Some((attribute(tag, "x")?, attribute(tag, "y")?, said)).filter(|(_, _, said)| said.contains("->"))
    };
    svg.split("<text").skip(1).filter_map(text).collect()
}

#[test]
fn changes_are_marked_with_labels_that_do_not_overlap() {
    let mut one = history("sliders", 10);
    one.changes = vec![
        change(0.35, (4.0, 0.9, 1e-3), (2.0, 0.9, 1e-3)),
        // A drag: many values, one mark.
        change(2.30, (2.0, 0.9, 1e-3), (3.0, 0.9, 1e-3)),
        change(2.32, (3.0, 0.9, 1e-3), (5.5, 0.9, 1e-3)),
        change(2.34, (5.5, 0.9, 1e-3), (8.0, 0.9, 1e-3)),
        change(2.70, (8.0, 0.9, 1e-3), (8.0, 0.25, 1e-3)),
        change(3.00, (8.0, 0.25, 1e-3), (8.0, 0.25, 3e-4)),
        change(9.95, (8.0, 0.25, 3e-4), (1.0, 0.5, 1e-5)),
    ];
    let figure = curves(&[&one]).unwrap();
    nothing_is_clipped(&figure);
    let labels = small_texts(&figure.svg().unwrap());
    let said: Vec<_> = labels.iter().map(|(_, _, said)| said.as_str()).collect();
    let wanted = [
        "T 4 -> 2",
        "T 2 -> 8",
        "alpha 0.9 -> 0.25",
        "lr 1e-3 -> 3e-4",
        "T 8 -> 1, alpha 0.25 -> 0.5, lr 3e-4 -> 1e-5",
    ];
    assert_eq!(said, [wanted, wanted].concat(), "once in each panel");
    // Two runs in one figure, with more changes than have room: some labels go, none overlap.
    let mut two = history("another", 10);
    two.changes =
        (0..40).map(|i| change(0.2 * i as f64, (i as f64 + 1.0, 0.9, 1e-3), (i as f64 + 2.0, 0.9, 1e-3))).collect();
    let figure = curves(&[&one, &two]).unwrap();
    nothing_is_clipped(&figure);
    let many = small_texts(&figure.svg().unwrap());
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
    if let Some(folder) = std::env::var_os("KDLAB_TEST_FIGURES") {
        curves(&[&one]).unwrap().save_png(Path::new(&folder).join("changes.png")).unwrap();
        figure.save_png(Path::new(&folder).join("changes-two.png")).unwrap();
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

    let balance = class_balance(&data).unwrap();
    nothing_is_clipped(&balance);
    let svg = balance.svg().unwrap();
    for text in ["train: 64 images", "validation: 16 images", "test: 20 images", "automobile"] {
        assert!(svg.contains(text), "{text} is missing");
    }

    let logits = Tensor::arange(10, (Kind::Float, tch::Device::Cpu));
    let bars = soft_target_bars(&logits, &data.classes, Some(3), &[1.0, 4.0]).unwrap();
    nothing_is_clipped(&bars);
    assert!(bars.svg().unwrap().contains("T = 4"));
    assert!(
        soft_target_bars(&logits, &data.classes, None, &[0.0])
            .err()
            .unwrap()
            .to_string()
            .contains("temperature must be > 0")
    );
    assert!(soft_target_bars(&logits, &data.classes[..3], None, &[1.0]).is_err());
}

#[test]
fn confusion_and_mistakes_come_from_the_counts() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    // Always right but for the first two test images, which are taken for the class after theirs.
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
    assert!(rows.lines().count() == 3 && rows.contains("val acc %"), "{rows}");
}

#[test]
fn reliability_and_disagreements_show_what_they_compare() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path());
    let transform = kdlab::data::Transform::cifar10(32);
    let build = |vs: &tch::nn::Path| {
        kdlab::models::Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([2, 2]).flatten(1, -1) * 9.0)
            .add("fc", tch::nn::linear(vs / "fc", 12, 10, Default::default()))
    };
    let nets: Vec<_> =
        (0..4).map(|seed| kdlab::models::Model::new("net", tch::Device::Cpu, seed, &build).unwrap()).collect();
    let names = ["teacher", "alone", "T 4, alpha 0.9", "a fourth"];
    let graded: Vec<_> = (names.iter().zip(&nets))
        .map(|(name, model)| Graded { name, model, transform: &transform, logits: None })
        .collect();
    let (card, evaluations) = report_card(&data.test, &graded, 8).unwrap();
    // One panel, and more than one row of panels.
    for models in [1, 4] {
        let card = ReportCard { rows: card.rows[..models].to_vec(), ..card.clone() };
        let figure = reliability_diagram(&card).unwrap();
        nothing_is_clipped(&figure);
        let svg = figure.svg().unwrap();
        for name in &names[..models] {
            assert!(svg.contains(&format!("{name}: ECE ")), "{name}");
        }
        for text in ["accuracy", "confidence", "images, %"] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }
    assert!(reliability_diagram(&ReportCard { rows: Vec::new(), ..card.clone() }).is_err());
    let table = card.table().to_string();
    for text in ["agrees with teacher %", "ECE %", "ms an image", "T 4, alpha 0.9"] {
        assert!(table.contains(text), "{table}");
    }

    let figure = disagreements(&data.test, &data, &evaluations[0], &evaluations[1], 5).unwrap();
    nothing_is_clipped(&figure);
    let svg = figure.svg().unwrap();
    // The first image is the one with the largest KL(teacher || student): its two answers stand below it.
    let logs = [0, 1].map(|i: usize| evaluations[i].logits.log_softmax(-1, Kind::Float));
    let kl = ((&logs[0] - &logs[1]) * logs[0].exp()).sum_dim_intlist([-1].as_slice(), false, Kind::Float);
    let first = kl.argmax(0, false).int64_value(&[]);
    for log in &logs {
        let (sure, class) = log.get(first).exp().max_dim(-1, false);
        let text = format!("{} {:.0} %", data.classes[class.int64_value(&[]) as usize], 100.0 * sure.double_value(&[]));
        assert!(svg.contains(&text), "{text}");
    }
    assert!(disagreements(&data.train, &data, &evaluations[0], &evaluations[1], 5).is_err());
    assert!(disagreements(&data.test, &data, &evaluations[0], &evaluations[1], 0).is_err());
    // As many images, but others.
    let turned = data.test.select(&(0..20).rev().collect::<Vec<_>>()).unwrap();
    let e = disagreements(&turned, &data, &evaluations[0], &evaluations[1], 5).err().unwrap().to_string();
    assert!(e.contains("must both be evaluated on the test split"), "{e}");
}
