//! IDX files.

use super::*;

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
pub fn idx_files(folder: &Path) -> Done {
    let labels = |n: u32| -> Vec<u8> { (0..n).map(|i| (i % 10) as u8).collect() };
    let pixels = |n: u32| -> Vec<u8> { (0..6 * n).map(|i| (i % 251) as u8).collect() };
    fs::write(folder.join("train-images-idx3-ubyte.gz"), gz(&idx(&[60, 2, 3], &pixels(60))))?;
    fs::write(folder.join("train-labels-idx1-ubyte.gz"), gz(&idx(&[60], &labels(60))))?;
    fs::write(folder.join("t10k-images-idx3-ubyte"), idx(&[30, 2, 3], &pixels(30)))?;
    fs::write(folder.join("t10k-labels.idx1-ubyte"), idx(&[30], &labels(30)))?;
    Ok(())
}

/// Opens the files in the folder `fashion-mnist` of a cache, where no CIFAR-10 is.
fn from_cache(cache: &Path) -> Result<Dataset, Error> {
    data::open(&DataOptions { folder: None, cache: cache.to_owned(), ..options(cache) })
}

#[test]
fn idx_is_read_as_three_equal_channels() -> Done {
    let cache = tempfile::tempdir()?;
    let folder = cache.path().join("fashion-mnist");
    fs::create_dir(&folder)?;
    idx_files(&folder)?;
    let data = from_cache(cache.path())?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (50, 10, 30), "one of each class at least");
    assert_eq!(data.train.size(), (2, 3));
    assert_eq!(data.classes[9], "Ankle boot");
    let batch = data.test.batch(&[1, 2])?;
    assert_eq!(batch.images.size(), [2, 3, 2, 3]);
    let expected: Vec<u8> = [6u8, 12].iter().flat_map(|&a| (0..18).map(move |i| a + i % 6)).collect();
    assert_eq!(Vec::<u8>::try_from(batch.images.flatten(0, -1))?, expected);

    // The user's own data is taken for Fashion-MNIST only if it has the same test labels.
    let own = data::open(&options(&folder))?;
    assert_eq!(own.classes[9], "9");
    assert_says(&own.name, &["IDX images in"]);
    assert_eq!(own.key, data.key);
    Ok(())
}

#[test]
fn bad_idx_files_are_named() -> Done {
    let cache = tempfile::tempdir()?;
    let folder = cache.path().join("fashion-mnist");
    fs::create_dir(&folder)?;
    let damage = |name: &str, bytes: &[u8]| -> String {
        idx_files(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
        let text = message(from_cache(cache.path()));
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
    let at = flipped.len() - 6; // in gzip's own checksum
    flipped[at] ^= 1;
    assert_says(&damage(packed, &flipped), &["damaged"]);
    assert_says(&damage(packed, b"<html>not found</html>"), &["damaged"]);

    fs::remove_file(folder.join(packed))?;
    assert_says(&message(data::open(&options(&folder))), &["lacks train-images-idx3-ubyte"]);
    Ok(())
}

#[test]
fn labels_that_begin_with_1_are_named_as_they_are() -> Done {
    let folder = tempfile::tempdir()?;
    for (stem, n) in [("train", 60u32), ("t10k", 30)] {
        let labels: Vec<u8> = (0..n).map(|i| 1 + (i % 3) as u8).collect();
        fs::write(folder.path().join(format!("{stem}-images-idx3-ubyte")), idx(&[n, 2, 3], &vec![7; 6 * n as usize]))?;
        fs::write(folder.path().join(format!("{stem}-labels-idx1-ubyte")), idx(&[n], &labels))?;
    }
    let data = data::open(&options(folder.path()))?;
    assert_eq!(data.classes, ["1", "2", "3"]);
    assert_eq!(data.test.class_counts(), [10, 10, 10]);
    assert!(data.notices.iter().any(|notice| notice.contains("labels begin with 1")), "{:?}", data.notices);
    Ok(())
}
