//! An image file of any kind that is read.
#![no_main]

use kdlab_fuzz::write;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = kdlab::data::read_image(write("image.jpg", bytes), 16) {
        assert_eq!(image.size(), [3, 16, 16]);
    }
});
