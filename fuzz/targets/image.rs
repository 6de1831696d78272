//! An image file of any kind that is read.
#![no_main]

use kdlab::data::{Framing, read_image};
use kdlab_fuzz::write;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let file = write("image.jpg", bytes);
    for framing in [Framing::Squeeze, Framing::CentreCrop] {
        if let Ok(image) = read_image(&file, 16, framing) {
            assert_eq!(image.size(), [3, 16, 16]);
        }
    }
});
