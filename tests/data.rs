//! Reading, dividing and transforming data, against small files made here and, where `KDLAB_DATA` names one, a real
//! data set.

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

/// Options that look at nothing outside the test: neither environment nor network.
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

// ---- CIFAR-10 ------------------------------------------------------------------------------------------------------

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

/// The red value of the first pixel of every image: in the fixture it tells the images apart.
fn reds(split: &Split) -> Vec<i64> {
    let all: Vec<i64> = (0..split.len() as i64).collect();
    let images = split.batch(&all).unwrap().images;
    (0..split.len() as i64).map(|i| images.int64_value(&[i, 0, 0, 0])).collect()
}

fn keys(data: &Dataset) -> HashSet<&str> {
    [&data.key, &data.train.key, &data.validation.key, &data.test.key].map(String::as_str).into()
}

#[test]
fn cifar_is_read_and_divided() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let data = data::cifar10(&options(folder.path()))?;
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
    assert_says(&text, &["CIFAR-10: 10 classes (airplane, ", "180 train / 20 validation / 40 test", "32x32"]);
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
    assert_eq!(data::open(&options(folder.path()))?.key, data::cifar10(&options(&inner))?.key);
    Ok(())
}

#[test]
fn keys_differ_with_whatever_changes_the_images() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let usual = options(folder.path());
    let first = data::cifar10(&usual)?;
    assert_eq!(keys(&first).len(), 4, "each split has a key of its own");
    assert_eq!(keys(&first), keys(&data::cifar10(&usual)?), "the same data has the same keys");

    let seed = data::cifar10(&DataOptions { seed: 1, ..usual.clone() })?;
    let fraction = data::cifar10(&DataOptions { validation: 0.2, ..usual.clone() })?;
    let subset = data::cifar10(&DataOptions { train_images: Some(50), ..usual.clone() })?;
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
    let pixel = data::cifar10(&usual)?;
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
    let data = data::cifar10(&wanted)?;
    assert_eq!(data.train.class_counts(), [3; 10]);
    assert_eq!(data.test.class_counts(), [2; 10]);
    assert_eq!(data.validation.len(), 20);
    assert!(data.notices.iter().any(|n| n == "99 validation images were asked for; all 20 there are used"));
    let all: HashSet<i64> = reds(&data::cifar10(&options(folder.path()))?.train).into_iter().collect();
    assert!(reds(&data.train).iter().all(|r| all.contains(r)), "drawn after the hold-out");
    Ok(())
}

#[test]
fn bad_cifar_files_are_named() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let path = folder.path().join("data_batch_2.bin");
    let load = || message(data::cifar10(&options(folder.path())));

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
    assert_says(&data::cifar10(&options(folder.path()))?.to_string(), &["batches.meta.txt is missing"]);

    fs::remove_file(folder.path().join("test_batch.bin"))?;
    assert_says(&load(), &["test_batch.bin not found in"]);
    Ok(())
}

// ---- options, indices, order ---------------------------------------------------------------------------------------

#[test]
fn options_out_of_range_are_refused() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let usual = options(folder.path());
    for validation in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
        let text = message(data::cifar10(&DataOptions { validation, ..usual.clone() }));
        assert_says(&text, &[&format!("validation fraction {validation}"), "inside (0, 1)"]);
    }
    let text = message(data::cifar10(&DataOptions { train_images: Some(0), ..usual.clone() }));
    assert_says(&text, &["train_images 0"]);
    let text = message(data::cifar10(&DataOptions { test_images: Some(9), ..usual.clone() }));
    assert_says(&text, &["test_images 9", "10 classes"]);
    Ok(())
}

#[test]
fn indices_and_batch_sizes_are_checked() -> Done {
    let folder = tempfile::tempdir()?;
    cifar(folder.path())?;
    let test = data::cifar10(&options(folder.path()))?.test;
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
    // Fixed for good: a run that is resumed by a later build must visit the rest of its epoch in the same order.
    assert_eq!(data::shuffled(8, 0, 0), [4, 3, 1, 7, 5, 2, 0, 6]);
    assert_eq!(data::shuffled(0, 0, 0), [0; 0]);

    let batches = data::batches(&order, 64)?;
    assert_eq!(batches.len(), 16);
    assert_eq!((batches[0].len(), batches[15].len()), (64, 40));
    assert_eq!(batches.concat(), order);
    Ok(())
}

// ---- IDX -----------------------------------------------------------------------------------------------------------

fn idx(shape: &[u32], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|n| bytes.extend(n.to_be_bytes()));
    bytes.extend(body);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// 60 training and 30 test images of 2x3 pixels in 10 classes; the training files gzipped, the test files plain.
fn idx_files(folder: &Path) -> Done {
    let labels = |n: u32| -> Vec<u8> { (0..n).map(|i| (i % 10) as u8).collect() };
    let pixels = |n: u32| -> Vec<u8> { (0..6 * n).map(|i| (i % 251) as u8).collect() };
    fs::write(folder.join("train-images-idx3-ubyte.gz"), gz(&idx(&[60, 2, 3], &pixels(60))))?;
    fs::write(folder.join("train-labels-idx1-ubyte.gz"), gz(&idx(&[60], &labels(60))))?;
    fs::write(folder.join("t10k-images-idx3-ubyte"), idx(&[30, 2, 3], &pixels(30)))?;
    fs::write(folder.join("t10k-labels.idx1-ubyte"), idx(&[30], &labels(30)))?;
    Ok(())
}

#[test]
fn idx_is_read_as_three_equal_channels() -> Done {
    let folder = tempfile::tempdir()?;
    idx_files(folder.path())?;
    let data = data::fashion_mnist(&options(folder.path()))?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (50, 10, 30), "one of each class at least");
    assert_eq!(data.train.size(), (2, 3));
    assert_eq!(data.classes[9], "Ankle boot");
    let batch = data.test.batch(&[1, 2])?;
    assert_eq!(batch.images.size(), [2, 3, 2, 3]);
    let expected: Vec<u8> = [6u8, 12].iter().flat_map(|&a| (0..18).map(move |i| a + i % 6)).collect();
    assert_eq!(Vec::<u8>::try_from(batch.images.flatten(0, -1))?, expected);

    // Through `open` the same files are only what they say: labels without names.
    let own = data::open(&options(folder.path()))?;
    assert_eq!(own.classes[9], "9");
    assert_says(&own.name, &["IDX images in"]);
    assert_eq!(own.key, data.key);
    Ok(())
}

#[test]
fn bad_idx_files_are_named() -> Done {
    let folder = tempfile::tempdir()?;
    let load = || message(data::fashion_mnist(&options(folder.path())));
    let damage = |name: &str, bytes: &[u8]| -> String {
        idx_files(folder.path()).unwrap();
        fs::write(folder.path().join(name), bytes).unwrap();
        let text = load();
        assert!(text.contains(name), "{name} is not named in: {text}");
        text
    };
    let (images, labels, packed) = ("t10k-images-idx3-ubyte", "t10k-labels.idx1-ubyte", "train-images-idx3-ubyte.gz");
    assert_says(&damage(images, &idx(&[30, 2, 3], &[0; 179])), &["truncated", "[30, 2, 3]"]);
    assert_says(&damage(images, &idx(&[30, 2, 3], &[0; 181])), &["oversized"]);
    assert_says(&damage(images, &idx(&[31, 2, 3], &[0; 186])), &["31 images", "30 labels", "do not belong together"]);
    assert_says(&damage(images, &idx(&[30], &[0; 30])), &["starts with [0, 0, 8, 1], expected [0, 0, 8, 3]"]);
    assert_says(&damage(images, b"\0"), &["truncated"]);
    assert_says(&damage(images, &idx(&[30, 3, 2], &[0; 180])), &["[3, 2]", "[2, 3]", "same size"]);
    assert_says(&damage(images, &idx(&[u32::MAX, u32::MAX, u32::MAX], &[])), &["cannot hold"]);
    assert_says(
        &damage(labels, &idx(&[30], &[&[0; 4][..], &[11; 26]].concat())),
        &["record 4 has label 11, expected 0 to 9"],
    );
    let whole = gz(&idx(&[60, 2, 3], &(0..360).map(|i| (i % 251) as u8).collect::<Vec<_>>()));
    assert_says(&damage(packed, &whole[..whole.len() - 30]), &["truncated"]);
    let mut flipped = whole.clone();
    let at = flipped.len() - 6; // in gzip's own sum
    flipped[at] ^= 1;
    assert_says(&damage(packed, &flipped), &["damaged"]);
    assert_says(&damage(packed, b"<html>not found</html>"), &["damaged"]);

    fs::remove_file(folder.path().join(packed))?;
    assert_says(&load(), &["lacks train-images-idx3-ubyte"]);
    Ok(())
}

// ---- image folders -------------------------------------------------------------------------------------------------

/// `n` PNG images of one colour.
fn pngs(folder: &Path, n: usize, colour: [u8; 3]) -> Done {
    fs::create_dir_all(folder)?;
    for i in 0..n {
        RgbImage::from_pixel(5 + i as u32, 9, Rgb(colour)).save(folder.join(format!("{i:03}.png")))?;
    }
    Ok(())
}

#[test]
fn an_image_folder_is_read_resized_and_divided() -> Done {
    let folder = tempfile::tempdir()?;
    pngs(&folder.path().join("cat"), 20, [200, 10, 20])?;
    pngs(&folder.path().join("dog"), 40, [10, 200, 20])?;
    fs::write(folder.path().join("readme.txt"), "not a class")?;
    fs::write(folder.path().join("cat/notes.txt"), "not an image")?;
    let data = data::open(&options(folder.path()))?;
    assert_eq!(data.classes, ["cat", "dog"]);
    assert_eq!(data.train.size(), (8, 8));
    // 60 images: 6 for test (2 + 4), then 5 of 54 for validation (2 + 3), in proportion.
    assert_eq!(data.test.class_counts(), [2, 4]);
    assert_eq!(data.validation.class_counts(), [2, 3]);
    assert_eq!(data.train.class_counts(), [16, 33]);
    assert_eq!(data.notices, ["no test folder: 6 images, a tenth of each class, are set aside for the test split"]);
    for i in 0..data.train.len() as i64 {
        let (image, label) = (data.train.image(i)?, data.train.label(i)?);
        let colour = [0, 1, 2].map(|c| image.int64_value(&[c, 4, 4]));
        assert_eq!(colour, [[200, 10, 20], [10, 200, 20]][label as usize], "image and label stay together");
    }
    assert_eq!(data.train.take(12)?.class_counts().iter().filter(|&&n| n > 0).count(), 2, "classes are mixed");
    Ok(())
}

#[test]
fn grey_transparent_deep_and_misnamed_images_are_read() -> Done {
    let folder = tempfile::tempdir()?;
    for class in ["a", "b"] {
        pngs(&folder.path().join("train").join(class), 4, [1, 2, 3])?;
        pngs(&folder.path().join("val").join(class), 1, [4, 5, 6])?;
        fs::create_dir_all(folder.path().join("test").join(class))?;
    }
    let (a, b) = (folder.path().join("test/a"), folder.path().join("test/b"));
    GrayImage::from_pixel(7, 7, Luma([90])).save(a.join("grey.png"))?;
    // Half transparent black over white is (255 * (255 - 51)) / 255 = 204.
    RgbaImage::from_pixel(7, 7, Rgba([0, 0, 0, 51])).save(b.join("alpha.png"))?;
    let deep = image::ImageBuffer::<Rgb<u16>, Vec<u16>>::from_pixel(7, 7, Rgb([0xffff, 0x8080, 0]));
    deep.save(b.join("deep.PNG"))?;
    RgbImage::from_pixel(7, 7, Rgb([9, 9, 9])).save(a.join("really.png"))?;
    fs::rename(a.join("really.png"), a.join("png_inside.jpg"))?;
    RgbImage::from_pixel(64, 64, Rgb([128, 128, 128])).save(b.join("photo.jpeg"))?;

    let data = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (8, 2, 5));
    let mut seen: Vec<(i64, [i64; 3])> = (0..5)
        .map(|i| (data.test.label(i).unwrap(), data.test.image(i).unwrap()))
        .map(|(label, image)| (label, [0, 1, 2].map(|c| image.int64_value(&[c, 3, 3]))))
        .collect();
    seen.sort_unstable();
    let expected = [(0, [9; 3]), (0, [90; 3]), (1, [128; 3]), (1, [204; 3]), (1, [255, 128, 0])];
    assert_eq!(seen, expected);
    Ok(())
}

#[test]
fn unreadable_images_are_skipped_and_named() -> Done {
    let folder = tempfile::tempdir()?;
    pngs(&folder.path().join("a"), 6, [1, 2, 3])?;
    pngs(&folder.path().join("b"), 6, [1, 2, 3])?;
    let whole = fs::read(folder.path().join("a/000.png"))?;
    fs::write(folder.path().join("a/cut.png"), &whole[..whole.len() / 2])?;
    fs::write(folder.path().join("b/text.jpg"), "this is no image")?;
    let data = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!(data.train.len() + data.validation.len() + data.test.len(), 12);
    assert_says(&data.notices[0], &["2 of 14 files skipped", "cut.png", "text.jpg"]);
    Ok(())
}

#[test]
fn bad_image_folders_are_refused() -> Done {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let load = || message(data::image_folder(root, 8, &options(root)));
    assert_says(&load(), &["is empty", "one folder of png or jpg images per class"]);
    assert_says(&message(data::open(&options(root))), &["KDLAB_DATA", "is not usable", "data_batch_*.bin"]);
    assert_says(&message(data::image_folder(root, 0, &options(root))), &["image size 0"]);

    fs::create_dir(root.join("cat"))?;
    assert_says(&load(), &["holds no images"]);
    fs::write(root.join("cat/1.png"), "no image")?;
    assert_says(&load(), &["none of the 1 images", "1.png"]);
    pngs(&root.join("cat"), 10, [0; 3])?;
    assert_says(&load(), &["one class only (cat)"]);
    pngs(&root.join("dog"), 2, [0; 3])?;
    assert_says(&load(), &["class \"dog\" has no image in the", "split"]);
    pngs(&root.join("dog"), 3, [0; 3])?;
    let data = data::image_folder(root, 8, &options(root))?;
    assert_eq!([&data.train, &data.validation, &data.test].map(|s| s.class_counts()[1]), [1, 1, 1]);

    let text = message(data::open(&options(&root.join("nowhere"))));
    assert_says(&text, &["nowhere", "KDLAB_DATA"]);
    Ok(())
}

#[test]
fn classes_of_the_parts_have_to_agree() -> Done {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    for class in ["a", "b"] {
        pngs(&root.join("train").join(class), 4, [0; 3])?;
    }
    pngs(&root.join("test/a"), 2, [0; 3])?;
    let load = || message(data::image_folder(root, 8, &options(root)));
    assert_says(&load(), &["class \"b\" has no image in the test split"]);
    pngs(&root.join("test/z"), 2, [0; 3])?;
    assert_says(&load(), &["z is a class that train/ does not have"]);
    Ok(())
}

// ---- open ----------------------------------------------------------------------------------------------------------

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
    idx_files(&cache.path().join("fashion-mnist"))?;
    let data = data::open(&nothing)?;
    assert_eq!(data.name, "Fashion-MNIST");
    assert_says(&data.notices[0], &["Fashion-MNIST instead of CIFAR-10, because CIFAR-10 is not in"]);

    fs::create_dir(cache.path().join("cifar-10-batches-bin"))?;
    cifar(&cache.path().join("cifar-10-batches-bin"))?;
    assert_eq!(data::open(&nothing)?.name, "CIFAR-10");

    // Damaged data is an error, not a reason to take other data.
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

// ---- transform -----------------------------------------------------------------------------------------------------

fn plain(size: i64) -> Transform {
    Transform { size, mean: [0.0; 3], std: [1.0; 3] }
}

/// One image u8 `[1, 3, side, side]` with these values in every channel.
fn image(side: i64, values: &[u8]) -> Tensor {
    Tensor::from_slice(values).view([1, 1, side, side]).repeat([1, 3, 1, 1])
}

fn close(got: &Tensor, expected: &[f32]) {
    let got = Vec::<f32>::try_from(got.flatten(0, -1)).unwrap();
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() < 1e-5, "value {i}: {g}, expected {e}");
    }
}

#[test]
fn enlarging_is_bilinear_with_half_pixel_centres() -> Done {
    let x = plain(4).apply(&image(2, &[0, 80, 160, 240]), Device::Cpu)?;
    assert_eq!((x.size(), x.kind()), (vec![1, 3, 4, 4], Kind::Float));
    // Output centres fall at -0.25, 0.25, 0.75 and 1.25 of the input: weights 0, 1/4, 3/4, 1.
    #[rustfmt::skip]
    let expected = [
          0.,  20.,  60.,  80.,
         40.,  60., 100., 120.,
        120., 140., 180., 200.,
        160., 180., 220., 240.,
    ];
    close(&x.select(1, 2), &expected.map(|v| v / 255.0));
    Ok(())
}

#[test]
fn shrinking_is_anti_aliased() -> Done {
    let row = [0, 70, 140, 210];
    let x = plain(2).apply(&image(4, &row.repeat(4)), Device::Cpu)?;
    // A triangle as wide as two output pixels: weights 3/7, 3/7, 1/7. Plain bilinear would give 35 and 175.
    close(&x.select(1, 0), &[50.0, 160.0, 50.0, 160.0].map(|v| v / 255.0));
    Ok(())
}

#[test]
fn normalising_is_per_channel_and_exact_in_size() -> Done {
    let images = image(2, &[0, 51, 102, 255]);
    let before = images.copy();
    let transform = Transform { size: 2, mean: [0.0, 0.5, 0.2], std: [1.0, 0.5, 2.0] };
    let x = transform.apply(&images, Device::Cpu)?;
    close(&x.select(1, 0), &[0.0, 0.2, 0.4, 1.0]);
    close(&x.select(1, 1), &[-1.0, -0.6, -0.2, 1.0]);
    close(&x.select(1, 2), &[-0.1, 0.0, 0.1, 0.4]);
    assert!(images.equal(&before), "the stored bytes stay as they are");
    let black = Transform::imagenet(2).apply(&image(2, &[0; 4]), Device::Cpu)?;
    close(&black.select(1, 0), &[-0.485 / 0.229; 4]);
    Ok(())
}

#[test]
fn transforms_refuse_what_they_cannot_take() {
    let images = image(2, &[0; 4]);
    let says = |t: &Transform, x: &Tensor, parts: &[&str]| assert_says(&message(t.apply(x, Device::Cpu)), parts);
    says(&plain(2), &images.to_kind(Kind::Float), &["u8", "Float"]);
    says(&plain(2), &images.select(0, 0), &["[B, 3, H, W]", "[3, 2, 2]"]);
    says(&plain(2), &images.narrow(1, 0, 1), &["[1, 1, 2, 2]"]);
    says(&plain(0), &images, &["transform size 0"]);
    says(&Transform { std: [1.0, 0.0, 1.0], ..plain(2) }, &images, &["std 0"]);
    let keys = [plain(2), plain(3), Transform::imagenet(2), Transform::cifar10(2)].map(|t| t.key());
    assert_eq!(HashSet::from(keys).len(), 4);
}

// ---- the real thing ------------------------------------------------------------------------------------------------

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
        // Mean over real photographs, near the published mean of the training images.
        let some: Vec<i64> = data::shuffled(data.train.len(), 0, 0).into_iter().take(2000).collect();
        let x = Transform::cifar10(32).apply(&data.train.batch(&some)?.images, Device::Cpu)?;
        let mean = f64::try_from(x.mean(Kind::Float))?.abs();
        assert!(mean < 0.1, "{mean}");
    }
    Ok(())
}
