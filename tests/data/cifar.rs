//! CIFAR-10's binary files.

use super::*;

#[test]
fn cifar_is_read_and_divided() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let data = data::open(&options(folder.path()))?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (180, 20, 40));
    assert_eq!(data.train.size(), (32, 32));
    assert_eq!(data.classes[0], "airplane");
    assert_eq!(data.train.class_counts(), [18; 10]);
    assert_eq!(data.validation.class_counts(), [2; 10]);
    assert_eq!(data.test.class_counts(), [4; 10]);

    // Every training image is in exactly one of the two splits, in the order of the files; test is as in its file.
    let (train, validation) = (reds(&data.train), reds(&data.validation));
    let both: HashSet<i64> = train.iter().chain(&validation).copied().collect();
    assert_eq!(both, (0..200).collect());
    assert!(train.is_sorted() && validation.is_sorted());
    assert_eq!(reds(&data.test), (200..240).collect::<Vec<i64>>());

    let batch = data.test.batch(&[3, 0, 3])?;
    assert_eq!(batch.images.size(), [3, 3, 32, 32]);
    assert_eq!(batch.images.kind(), Kind::Uint8);
    assert_eq!(Vec::<i64>::try_from(&batch.labels)?, [3, 0, 3]);
    assert_eq!(batch.indices, [3, 0, 3]);
    assert_eq!(batch.to_string(), "images u8 [3, 3, 32, 32] (1..=203), labels i64 [3] (0..=3)");
    let image = data.test.image(3)?; // [3, 32, 32]
    assert_eq!([0, 1, 2].map(|c| image.int64_value(&[c, 31, 31])), [203, 1, 2]);
    assert_eq!(data.test.label(3)?, 3);
    assert_eq!(Vec::<i64>::try_from(data.test.labels()?)?[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);

    let text = data.to_string();
    assert_says(
        &text,
        &["CIFAR-10: 10 classes (airplane, ", "\n32x32 pixels, 180 train, 20 validation, 40 test images\n"],
    );
    assert_says(&text, &["Note: 2 of 5 training batches found: data_batch_1.bin, data_batch_2.bin"]);
    assert_says(&text, &["data_batch_2.bin holds 100 of the official 10000 images"]);
    Ok(())
}

#[test]
fn the_archive_folder_is_found_inside() -> Done {
    let folder = tempfile::tempdir()?;
    let inner = folder.path().join("cifar-10-batches-bin");
    fs::create_dir(&inner)?;
    cifar(&inner)?;
    assert_eq!(data::open(&options(folder.path()))?.key, data::open(&options(&inner))?.key);
    Ok(())
}

#[test]
fn keys_differ_with_whatever_changes_the_images() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let usual = options(folder.path());
    let first = data::open(&usual)?;
    assert_eq!(keys(&first).len(), 4, "each split has a key of its own");
    assert_eq!(keys(&first), keys(&data::open(&usual)?), "the same data has the same keys");

    let seed = data::open(&DataOptions { seed: 1, ..usual.clone() })?;
    let fraction = data::open(&DataOptions { validation: 0.2, ..usual.clone() })?;
    let subset = data::open(&DataOptions { train_images: Some(50), ..usual.clone() })?;
    for (what, other) in [("seed", &seed), ("fraction", &fraction), ("subset", &subset)] {
        assert_ne!(first.key, other.key, "{what}");
        assert_ne!(first.train.key, other.train.key, "{what}");
        assert_eq!(first.test.key, other.test.key, "{what} leaves the test split alone");
    }
    assert_ne!(first.validation.key, seed.validation.key);
    assert_eq!(first.validation.key, subset.validation.key);
    assert_ne!(first.train.key, first.train.take(10)?.key);

    let mut bytes = fs::read(folder.path().join("test_batch.bin"))?;
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(folder.path().join("test_batch.bin"), bytes)?;
    let pixel = data::open(&usual)?;
    assert!(keys(&first).is_disjoint(&keys(&pixel)), "one bit of one pixel");
    Ok(())
}

#[test]
fn subsets_are_stratified_and_clamped_with_a_notice() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let wanted = DataOptions {
        train_images: Some(30),
        validation_images: Some(99),
        test_images: Some(20),
        ..options(folder.path())
    };
    let data = data::open(&wanted)?;
    assert_eq!(data.train.class_counts(), [3; 10]);
    assert_eq!(data.test.class_counts(), [2; 10]);
    assert_eq!(data.validation.len(), 20);
    assert!(data.notices.iter().any(|n| n == "99 validation images were asked for; all 20 there are used"));
    let all: HashSet<i64> = reds(&data::open(&options(folder.path()))?.train).into_iter().collect();
    assert!(reds(&data.train).iter().all(|r| all.contains(r)), "drawn after the hold-out");
    Ok(())
}

#[test]
fn bad_cifar_files_are_named() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let path = folder.path().join("data_batch_2.bin");
    let load = || message(data::open(&options(folder.path())));

    fs::write(&path, &records(100, 0)[..307_299])?;
    assert_says(&load(), &["data_batch_2.bin has 307299 bytes", "a multiple of 3073", "truncated"]);
    fs::write(&path, b"")?;
    assert_says(&load(), &["data_batch_2.bin has 0 bytes", "truncated"]);
    fs::write(&path, vec![0; 30_730_001])?;
    assert_says(&load(), &["data_batch_2.bin has 30730001 bytes", "oversized"]);
    fs::write(&path, vec![0; 30_733_073])?;
    assert_says(&load(), &["data_batch_2.bin has 30733073 bytes", "up to 30730000", "oversized"]);

    let mut bytes = records(100, 0);
    bytes[3073 * 57] = 10;
    fs::write(&path, bytes)?;
    assert_says(&load(), &["data_batch_2.bin record 57 has label 10, expected 0 to 9"]);

    fs::write(&path, records(100, 0))?;
    fs::write(folder.path().join("batches.meta.txt"), "airplane\n")?;
    assert_says(&load(), &["batches.meta.txt names 1 classes, CIFAR-10 has 10"]);
    fs::remove_file(folder.path().join("batches.meta.txt"))?;
    assert_says(&data::open(&options(folder.path()))?.to_string(), &["batches.meta.txt is missing"]);

    fs::remove_file(folder.path().join("test_batch.bin"))?;
    assert_says(&load(), &["test_batch.bin not found in"]);
    Ok(())
}
