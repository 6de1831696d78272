//! One of the four IDX files, plain or gzipped; the first byte says which.
#![no_main]

use kdlab::data::DataOptions;
use kdlab_fuzz::{folder, idx_files, look_at, options, write};

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    let idx = idx_files("idx/fashion-mnist");
    let name =
        ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
            [usize::from(which & 3)];
    let other = format!("{name}.gz");
    let (place, gone) = if which & 4 == 0 { (name, other.as_str()) } else { (other.as_str(), name) };
    let _ = std::fs::remove_file(idx.join(gone));
    write(&format!("idx/fashion-mnist/{place}"), bytes);
    look_at(kdlab::data::open(&options(&idx)));
    // In the cache they are taken for Fashion-MNIST.
    look_at(kdlab::data::open(&DataOptions { folder: None, cache: folder().join("idx"), ..options(&idx) }));
    let _ = std::fs::remove_file(idx.join(place));
});
