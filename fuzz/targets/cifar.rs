//! A batch of CIFAR-10's binary version, and the names of its classes. Of each image only the label is the fuzzer's,
//! else it would never fill one.
#![no_main]

use kdlab_fuzz::{folder, look_at, options, write};

libfuzzer_sys::fuzz_target!(|input: (&[u8], Vec<u8>, u8)| {
    let (names, labels, more) = input;
    let mut records: Vec<u8> = labels.iter().flat_map(|&label| std::iter::once(label).chain([label; 3072])).collect();
    records.extend(vec![0; usize::from(more)]);
    write("cifar/batches.meta.txt", names);
    write("cifar/data_batch_1.bin", &records);
    write("cifar/test_batch.bin", &records);
    look_at(kdlab::data::open(&options(&folder().join("cifar"))));
});
