//! A weight file of any kind, as it lies on disk.
#![no_main]

use kdlab_fuzz::{read_weights, write};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| read_weights(&write("weights.pth", bytes)));
