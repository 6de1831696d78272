//! A small data set that several tests learn from.

use kdlab::data::{self, DataOptions, Dataset, Transform};
use std::path::Path;

/// Ten classes of 8 training and 2 test images each, told apart by brightness, in CIFAR-10's own layout.
pub fn dataset(folder: &Path, seed: u64) -> Dataset {
    let record = |i: usize| {
        let label = (i % 10) as u8;
        let mut bytes = vec![label];
        bytes.extend((0..3072).map(|p| 20 * label + ((p * 7 + i * 13) % 23) as u8));
        bytes
    };
    std::fs::write(folder.join("data_batch_1.bin"), (0..80).flat_map(record).collect::<Vec<_>>()).unwrap();
    std::fs::write(folder.join("test_batch.bin"), (100..120).flat_map(record).collect::<Vec<_>>()).unwrap();
    let options = DataOptions { folder: Some(folder.to_owned()), seed, validation: 0.2, ..DataOptions::default() };
    data::open(&options).unwrap()
}

/// Normalises by the mean and standard deviation of CIFAR-10's training images.
#[allow(dead_code)] // some use the data set alone
pub fn normalised(size: i64) -> Transform {
    Transform { size, mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] }
}
