//! Images with what the teacher and the students say of them.

use super::*;

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
