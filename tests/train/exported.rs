//! The records of fits and sweeps for other programs.

use super::*;

/// Two of four epochs, as a killed fit leaves them.
fn cut_short() -> History {
    let epoch = |epoch: usize| {
        let of =
            |x: f64| serde_json::json!({"loss": x, "accuracy": x / 4.0, "cross_entropy": 2.0 * x, "divergence": 0.0});
        let (train, validation) = (of(1.0 / epoch as f64), of(1.5 / epoch as f64));
        serde_json::json!({"epoch": epoch, "train": train, "validation": validation, "temperature": 4.0,
            "alpha": 0.25 * epoch as f64, "learning_rate": 0.1, "seconds": 10.0 * epoch as f64,
            "images_per_second": 50.0})
    };
    let history = serde_json::json!({"name": "cut, short", "criterion": "kd", "data_key": "", "epochs": 4,
        "records": [epoch(1), epoch(2)], "stopped": null, "steps_per_epoch": 3,
        "recipe": {"schedule": {"Step": {"epochs": 1, "factor": 0.5}}}});
    serde_json::from_value(history).unwrap()
}

/// The rows of a CSV file as maps from column to cell.
fn rows(path: &Path) -> Vec<std::collections::HashMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn a_history_is_written_as_csv_with_all_digits() {
    let folder = tempfile::tempdir().unwrap();
    let (path, history) = (folder.path().join("new/history.csv"), cut_short());
    history.save_csv(&path).unwrap();
    let found = rows(&path);
    assert_eq!((found.len(), found[0].len()), (2, 14));
    for (row, record) in found.iter().zip(&history.records) {
        let number = |column: &str| row[column].parse::<f64>().unwrap();
        assert_eq!(number("epoch"), record.epoch as f64);
        assert_eq!(number("validation_loss"), record.validation.loss);
        assert_eq!(number("train_accuracy"), record.train.accuracy);
        assert_eq!(number("alpha"), 0.25 * record.epoch as f64);
        assert_eq!(number("learning_rate"), 0.1 * 0.5f64.powi(record.epoch as i32 - 1));
    }
    let mut alone = history.clone();
    alone.records[1].hyperparameters.temperature = None;
    alone.save_csv(&path).unwrap();
    assert_eq!([&rows(&path)[0]["temperature"], &rows(&path)[1]["temperature"]], ["4", ""]);
    History { records: vec![], ..history }.save_csv(&path).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("epoch,train_loss,"));
    let text = cut_short().save_csv("/proc/history.csv").unwrap_err().to_string();
    assert!(text.contains("/proc/history.csv") && !text.contains('\n'), "{text}");
}

/// TensorBoard's own reader finds every value at its step, and the epochs' lengths between them.
#[test]
fn tensorboard_reads_a_history() {
    let folder = tempfile::tempdir().unwrap();
    let history = cut_short();
    history.save_tensorboard(folder.path()).unwrap();
    history.save_tensorboard(folder.path()).unwrap(); // replaces the first one
    let answer = oracle::ask_in(folder, "tensorboard", &[], serde_json::json!({}));
    assert_eq!(answer.tensors.len(), 13);
    let curve = |tag: &str| Vec::<Vec<f64>>::try_from(answer.get(tag)).unwrap(); // wall time, step, value
    let values = |tag: &str| curve(tag).iter().map(|point| (point[1], point[2] as f32)).collect::<Vec<_>>();
    assert_eq!(values("loss/train"), [(1.0, 1.0), (2.0, 0.5)]);
    assert_eq!(values("accuracy/validation"), [(1.0, 0.375), (2.0, 0.1875)]);
    assert_eq!(values("divergence/train"), [(1.0, 0.0), (2.0, 0.0)]);
    assert_eq!(values("temperature"), [(1.0, 4.0), (2.0, 4.0)]);
    assert_eq!(values("alpha"), [(1.0, 0.25), (2.0, 0.5)]);
    assert_eq!(values("learning_rate"), [(1.0, 0.1), (2.0, 0.05)]);
    let times: Vec<f64> = curve("loss/train").iter().map(|point| point[0]).collect();
    assert!((times[1] - times[0] - 20.0).abs() < 1e-3, "{times:?}");
}
