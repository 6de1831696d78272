//! The pickle in PyTorch's files: in a zip archive, whose sums the fuzzer would never get right, and in the older
//! format.
#![no_main]

use kdlab_fuzz::{read_weights, write, zipped};

libfuzzer_sys::fuzz_target!(|pickle: &[u8]| {
    read_weights(&write("zip.pth", &zipped(pickle)));
    let magic = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    let version = [0x80, 2, b'M', 0xe9, 3, b'.'];
    let system = [0x80, 2, b'}', b'.'];
    read_weights(&write("legacy.pth", &[&magic[..], &version, &system, pickle].concat()));
});
