//! Metrics and the report card.

use super::*;

#[test]
fn metrics_count_every_sample_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (train, validation) = examples(&data);
    let mut model = tiny_model(1);
    // 64 training images in batches of 5: the last batch is short, so a mean of batch means would be another number.
    let history = fit(
        &mut model,
        &train,
        &validation,
        &Criterion::kd(KdLoss::new(4.0, 0.9).unwrap()),
        &FitOptions { batch_size: 5, ..options(1) },
    )
    .unwrap();
    let record = history.records[0];
    let result = evaluate(&model, &validation, 3).unwrap();
    assert_eq!(result.total, data.validation.len());
    assert!((result.accuracy() - record.validation.accuracy).abs() < 1e-12);
    assert!((result.cross_entropy - record.validation.cross_entropy).abs() < 1e-5);
    let teacher = teacher(&data.validation, 1.0).tensor;
    let kl = KdLoss::new(4.0, 0.9).unwrap().divergence(&result.logits, &teacher).unwrap().double_value(&[]);
    assert!((record.validation.divergence.unwrap() - kl).abs() < 1e-5);
    let total = 0.9 * 16.0 * kl + 0.1 * result.cross_entropy;
    assert!((record.validation.loss - total).abs() < 1e-4);
    let confusion = result.confusion().unwrap();
    assert_eq!(confusion.iter().flatten().sum::<usize>(), result.total);
    assert_eq!((0..10).map(|c| confusion[c][c]).sum::<usize>(), result.correct);
}

#[test]
fn a_report_card_sums_up_what_can_be_measured_apart() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = normalised(32);
    let (a, b) = (tiny_model(1), tiny_model(2));
    let test = Examples::images(&data.test, &transform).unwrap();
    let logits = CachedTensor::new(&data.test, predict(&a, &test, 4).unwrap(), "known").unwrap();
    let graded = |name, model, logits| Candidate { name, model, transform: &transform, logits };
    let (card, evaluations) =
        report_card(&data.test, &[graded("teacher", &a, Some(&logits)), graded("pupil", &b, None)], 7).unwrap();
    assert_eq!((card.images, card.rows.len(), evaluations.len()), (20, 2, 2));
    for (row, model) in card.rows.iter().zip([&a, &b]) {
        let apart = evaluate(model, &test, 4).unwrap();
        assert_eq!((row.accuracy, row.confusion.clone()), (apart.accuracy(), apart.confusion().unwrap()));
        assert!((row.nll - apart.cross_entropy).abs() < 1e-6);
        assert_eq!((row.parameters, row.macs), (490, 480));
        let file = folder.path().join("model.safetensors");
        model.save(&file).unwrap();
        assert_eq!(row.file_bytes as u64, std::fs::metadata(&file).unwrap().len());
        assert!(row.latency_ms > 0.0 && row.latency_ms < 1e3);
    }
    let [ours, theirs] = [0, 1].map(|i: usize| evaluations[i].logits.argmax(-1, false));
    let agreement = ours.eq_tensor(&theirs).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert_eq!([card.rows[0].agreement, card.rows[1].agreement], [None, Some(agreement)]);
    let path = folder.path().join("card.json");
    card.save(&path).unwrap();
    let read: ReportCard = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(read, card);
    let e = report_card(&data.test, &[], 7).err().unwrap().to_string();
    assert!(e.contains("no models"), "{e}");
    let e = report_card(&data.validation, &[graded("teacher", &a, Some(&logits))], 7).err().unwrap().to_string();
    assert!(e.contains("computed for other data"), "{e}");
}

/// Two sure answers are right, of the next two one is wrong, and the last is a guess that is right.
#[test]
fn a_threshold_keeps_the_answers_that_are_right_often_enough() {
    let probabilities = [0.95, 0.9, 0.8, 0.7, 0.55f64];
    let logits: Vec<f64> = probabilities.iter().flat_map(|p| [(p / (1.0 - p)).ln(), 0.0]).collect();
    let labels = Tensor::from_slice(&[0i64, 0, 1, 0, 0]);
    let evaluation = Evaluation::new(&Tensor::from_slice(&logits).view([5, 2]), &labels).unwrap();
    // Of all five, 80 % are right; of the first two, all.
    for (accuracy, wanted) in [(0.0, 0.0), (0.8, 0.0), (0.81, 0.85), (1.0, 0.85)] {
        let found = evaluation.threshold(accuracy).unwrap();
        assert!((found - wanted).abs() < 1e-6, "{accuracy}: {found} instead of {wanted}");
    }
    let wrong = Evaluation::new(&evaluation.logits, &Tensor::from_slice(&[1i64; 5])).unwrap();
    assert_eq!(wrong.threshold(0.5).unwrap(), 1.0);
    assert!(evaluation.threshold(90.0).unwrap_err().to_string().contains("from 0 to 1"));
}
