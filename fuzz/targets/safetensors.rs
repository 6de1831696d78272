//! A safetensors file whose header has the length that it says.
#![no_main]

use kdlab_fuzz::{read_weights, write};

libfuzzer_sys::fuzz_target!(|header: &[u8]| {
    let numbers = [1u8; 60]; // 15 numbers of f32: a weight [3, 4] and a bias [3]
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &numbers].concat();
    read_weights(&write("weights.safetensors", &bytes));
});
