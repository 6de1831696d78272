//! What a fit, or a pass of a teacher, left on disk and goes on with; the first byte says which file.
#![no_main]

use kdlab_fuzz::Left;

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (which, bytes) = input;
    Left::get().put(which, bytes);
    Left::get().go_on(which);
});
