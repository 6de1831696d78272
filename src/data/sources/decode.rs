//! One image file as pixels of a fixed size.

use super::picture::square;
use crate::data::Framing;
use crate::{Error, Result};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, ImageFormat, RgbImage};
use std::io::Cursor;
use std::path::Path;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_128;

/// Largest size in bytes of an image's file.
pub(super) const LARGEST: u64 = 1 << 30;

/// A decoded file.
pub(super) struct Decoded {
    /// u8 `[3, size, size]`.
    pub pixels: Vec<u8>,
    /// XXH3 of the file's bytes.
    pub digest: u128,
    /// Whether there are more frames after the first.
    pub is_animated: bool,
}

/// Reads one image file as [`image_folder`](super::image_folder) does: u8 `[3, size, size]`, red, green, blue, 0 to
/// 255, on the CPU. Give it the `stored_size` and the `framing` of a student's card.
///
/// # Errors
/// When the file is missing or is not a whole image of a supported format, or `size` is not in 1..=4096.
pub fn read_image(path: impl AsRef<Path>, size: i64, framing: Framing) -> Result<Tensor> {
    let path = path.as_ref();
    check_size(size)?;
    let decoded = read(path, size, framing).map_err(|why| {
        Error::Data(format!("the image {} cannot be used: {why}; give a PNG or JPEG", path.display()))
    })?;
    Ok(Tensor::f_from_slice(&decoded.pixels)?.f_view([3, size, size])?)
}

/// Refuses a side length in pixels that is out of range.
pub(super) fn check_size(size: i64) -> Result<()> {
    match size {
        1..=4096 => Ok(()),
        _ => Err(Error::Input(format!("image size {size}: choose 1 to 4096 pixels (32 and 224 are usual)"))),
    }
}

/// Reads and decodes one file; the error says why it cannot be used.
fn read(path: &Path, size: i64, framing: Framing) -> std::result::Result<Decoded, String> {
    decoded(&file_bytes(path)?, size, framing)
}

/// The bytes of a file; the error says why it cannot be read.
pub(super) fn file_bytes(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let about = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !about.is_file() {
        return Err("it is no file".to_owned());
    }
    if about.len() > LARGEST {
        return Err(format!("its file has {} bytes, and {LARGEST} are the most", about.len()));
    }
    std::fs::read(path).map_err(|e| e.to_string())
}

/// Decodes the bytes of a file; the error says why they cannot be used.
pub(super) fn decoded(bytes: &[u8], size: i64, framing: Framing) -> std::result::Result<Decoded, String> {
    let pixels = planes(&square(bytes, size as u32, framing == Framing::CentreCrop)?);
    Ok(Decoded { pixels, digest: xxh3_128(bytes), is_animated: is_animated(bytes).unwrap_or(false) })
}

/// The pixels of an image as `[3, H, W]`.
pub(super) fn planes(image: &RgbImage) -> Vec<u8> {
    let raw = image.as_raw();
    (0..3).flat_map(|c| raw.iter().skip(c).step_by(3).copied()).collect()
}

fn is_animated(bytes: &[u8]) -> image::ImageResult<bool> {
    let format = image::guess_format(bytes)?;
    let bytes = Cursor::new(bytes);
    Ok(match format {
        ImageFormat::Gif => GifDecoder::new(bytes)?.into_frames().take(2).filter(|frame| frame.is_ok()).count() > 1,
        ImageFormat::WebP => WebPDecoder::new(bytes)?.has_animation(),
        ImageFormat::Png => PngDecoder::new(bytes)?.is_apng()?,
        _ => false,
    })
}
