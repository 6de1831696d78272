//! Reading, dividing and transforming data, against small files made here and, where `KDLAB_DATA` names one, a real
//! data set. The crate compiles this file as a part of itself, so that the images of each class can be counted.

mod augment;
mod cifar;
mod folders;
mod idx;
mod images;
mod large;
mod originals;
mod shards;
mod transform;

use flate2::{Compression, write::GzEncoder};
use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use kdlab::Error;
use kdlab::data::{self, DataOptions, Dataset, Split, Transform};
use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use tch::{Device, Kind, Tensor};

type Done = Result<(), Box<dyn std::error::Error>>;

/// Options that depend on neither the environment nor the network.
fn options(folder: &Path) -> DataOptions {
    DataOptions {
        validation: 0.1,
        seed: 0,
        train_images: None,
        validation_images: None,
        test_images: None,
        folder: Some(folder.to_owned()),
        cache: folder.join("cache"),
        download: false,
        folder_size: 8,
        framing: data::Framing::Squeeze,
        memory: None,
    }
}

/// The message of an error; panics on success.
fn message<T>(result: Result<T, Error>) -> String {
    let text = result.err().expect("an error").to_string();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

/// A record of CIFAR-10's binary version: red, green and blue planes filled with `red`, 1 and 2.
fn record(label: u8, red: u8) -> Vec<u8> {
    let mut bytes = vec![label];
    for value in [red, 1, 2] {
        bytes.extend([value; 1024]);
    }
    bytes
}

/// `n` records with labels 0, 1, .. 9, 0, .. and red from `first` on.
fn records(n: usize, first: usize) -> Vec<u8> {
    (0..n).flat_map(|i| record((i % 10) as u8, ((first + i) % 256) as u8)).collect()
}

/// Two training batches of 100 images each and 40 test images.
fn cifar(folder: &Path) -> Done {
    fs::write(folder.join("data_batch_1.bin"), records(100, 0))?;
    fs::write(folder.join("data_batch_2.bin"), records(100, 100))?;
    fs::write(folder.join("test_batch.bin"), records(40, 200))?;
    fs::write(
        folder.join("batches.meta.txt"),
        "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n",
    )?;
    Ok(())
}

/// The red value of each image's first pixel, which identifies the image in the fixture.
fn reds(split: &Split) -> Vec<i64> {
    let all: Vec<i64> = (0..split.len() as i64).collect();
    let images = split.batch(&all).unwrap().images;
    (0..split.len() as i64).map(|i| images.int64_value(&[i, 0, 0, 0])).collect()
}

fn keys(data: &Dataset) -> HashSet<&str> {
    [&data.key, &data.train.key, &data.validation.key, &data.test.key].map(String::as_str).into()
}

#[test]
fn options_out_of_range_are_refused() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let usual = options(folder.path());
    for validation in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
        let text = message(data::open(&DataOptions { validation, ..usual.clone() }));
        assert_says(&text, &[&format!("validation fraction {validation}"), "inside (0, 1)"]);
    }
    let text = message(data::open(&DataOptions { train_images: Some(0), ..usual.clone() }));
    assert_says(&text, &["train_images 0"]);
    let text = message(data::open(&DataOptions { test_images: Some(9), ..usual.clone() }));
    assert_says(&text, &["test_images 9", "10 classes"]);
    Ok(())
}

#[test]
fn indices_and_batch_sizes_are_checked() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let test = data::open(&options(folder.path()))?.test;
    for index in [-1, 40, i64::MAX, i64::MIN] {
        let text = message(test.batch(&[0, index]));
        assert_says(&text, &[&format!("sample index {index} is outside the test split"), "40 images, 0 to 39"]);
        assert!(test.image(index).is_err() && test.label(index).is_err());
    }
    assert_says(&message(test.batch(&[])), &["empty batch"]);
    assert_says(&message(test.take(41)), &["41 images of the test split", "take 1 to 40"]);
    assert!(test.take(0).is_err());
    assert_eq!(reds(&test.take(3)?), [200, 201, 202]);
    assert_says(&message(data::batches(&[0, 1], 0)), &["batch size 0"]);
    Ok(())
}

#[test]
fn order_depends_on_seed_and_epoch_alone() -> Done {
    let order = data::shuffled(1000, 7, 3);
    assert_eq!(order, data::shuffled(1000, 7, 3));
    assert_ne!(order, data::shuffled(1000, 7, 4));
    assert_ne!(order, data::shuffled(1000, 8, 3));
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1000).collect::<Vec<i64>>());
    // This order must never change: a later build that resumes a run visits the rest of the epoch in the same order.
    assert_eq!(data::shuffled(8, 0, 0), [4, 3, 1, 7, 5, 2, 0, 6]);
    assert_eq!(data::shuffled(0, 0, 0), [0; 0]);

    let batches = data::batches(&order, 64)?;
    assert_eq!(batches.len(), 16);
    assert_eq!((batches[0].len(), batches[15].len()), (64, 40));
    assert_eq!(batches.concat(), order);
    Ok(())
}

#[test]
fn fashion_mnist_stands_in_and_says_so() -> Done {
    let cache = tempfile::tempdir()?;
    let nothing = DataOptions { folder: None, cache: cache.path().to_owned(), ..options(cache.path()) };
    if !Path::new("/usr/share/datasets/fashion-mnist").exists() {
        let result = data::open(&nothing);
        assert!(matches!(result, Err(Error::Network(_))));
        assert_says(&message(result), &["CIFAR-10 is not in", "Fashion-MNIST is not in", "switched off", "KDLAB_DATA"]);
    }
    fs::create_dir(cache.path().join("fashion-mnist"))?;
    idx::idx_files(&cache.path().join("fashion-mnist"))?;
    let data = data::open(&nothing)?;
    assert_eq!(data.name, "Fashion-MNIST");
    assert_says(&data.notices[0], &["Fashion-MNIST instead of CIFAR-10, because CIFAR-10 is not in"]);

    fs::create_dir(cache.path().join("cifar-10-batches-bin"))?;
    cifar(&cache.path().join("cifar-10-batches-bin"))?;
    assert_eq!(data::open(&nothing)?.name, "CIFAR-10");

    // Damaged data is an error; other data does not replace it.
    fs::write(cache.path().join("cifar-10-batches-bin/test_batch.bin"), "cut")?;
    assert_says(&message(data::open(&nothing)), &["test_batch.bin has 3 bytes"]);
    Ok(())
}

#[test]
#[ignore = "needs apt with lists and a mirror; takes 31 MB from it where the authors' servers are out of reach"]
fn without_any_data_something_is_fetched() -> Done {
    let cache = tempfile::tempdir()?;
    let nothing = DataOptions { folder: None, download: true, ..options(cache.path()) };
    let start = std::time::Instant::now();
    let data = data::open(&nothing)?;
    eprintln!("{data}\nhad in {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(data.test.class_counts(), [1000; 10]);
    assert_eq!(data.key, data::open(&nothing)?.key);
    Ok(())
}

#[test]
fn the_python_version_is_pointed_elsewhere() -> Done {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("data_batch_1"), "a pickle")?;
    assert_says(&message(data::open(&options(folder.path()))), &["Python pickles", "cifar-10-binary.tar.gz"]);
    Ok(())
}

#[test]
fn the_data_of_the_environment_opens() -> Done {
    let options = DataOptions::default();
    if options.folder.is_none() {
        eprintln!("KDLAB_DATA is not set: nothing real to read");
        return Ok(());
    }
    let start = std::time::Instant::now();
    let data = data::open(&options)?;
    eprintln!("{data}\nread in {:.2} s", start.elapsed().as_secs_f64());
    if data.name == "CIFAR-10" {
        assert_eq!(data.test.class_counts(), [1000; 10]);
        assert_eq!(data.train.size(), (32, 32));
        let share = data.validation.len() as f64 / (data.train.len() + data.validation.len()) as f64;
        assert!((share - options.validation).abs() < 1e-3, "{share}");
        // The mean over real photographs is near the published mean of the training images.
        let some: Vec<i64> = data::shuffled(data.train.len(), 0, 0).into_iter().take(2000).collect();
        let published = Transform { size: 32, mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };
        let x = published.apply(&data.train.batch(&some)?.images, Device::Cpu)?;
        let mean = f64::try_from(x.mean(Kind::Float))?.abs();
        assert!(mean < 0.1, "{mean}");
    }
    Ok(())
}
