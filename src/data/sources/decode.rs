//! One image file as pixels of a fixed size.

use crate::data::Framing;
use crate::{Error, Result};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage, imageops};
use std::io::Cursor;
use std::path::Path;
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_128;

/// Largest size of a decoded image in bytes: 178 megapixels, as in Python's Pillow. A file of a few bytes may claim any
/// size.
const LARGEST: u64 = (3 * 178) << 20;

/// A picture is cropped if its longer side is at most so many times its shorter one.
const LONGEST: u64 = 20;

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
pub(super) fn read(path: &Path, size: i64, framing: Framing) -> std::result::Result<Decoded, String> {
    if !std::fs::metadata(path).map_err(|e| e.to_string())?.is_file() {
        return Err("it is no file".to_owned());
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let image = decode(&bytes).map_err(|e| match e {
        ImageError::IoError(e) => e.to_string(),
        ImageError::Unsupported(e) => format!("of a kind that is not read: {e}").chars().take(120).collect(),
        _ => "not a whole picture".to_owned(),
    })?;
    if image.width() == 0 || image.height() == 0 {
        return Err("it has no pixels".to_owned());
    }
    let image = square(&on_white(image), size as u32, framing)?;
    let raw = image.as_raw();
    let pixels = (0..3).flat_map(|c| raw.iter().skip(c).step_by(3).copied()).collect();
    Ok(Decoded { pixels, digest: xxh3_128(&bytes), is_animated: is_animated(&bytes).unwrap_or(false) })
}

fn decode(bytes: &[u8]) -> image::ImageResult<DynamicImage> {
    let refuse = |why: String| Err(std::io::Error::other(why).into());
    // By content, not by name: many .jpg files are PNGs.
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    match reader.format() {
        Some(ImageFormat::Jpeg) if !is_whole_jpeg(bytes) => return refuse("the file is cut off".into()),
        None => return refuse("not a whole PNG or JPEG, or of any other kind that is read".into()),
        _ => {}
    }
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > LARGEST {
        return refuse(format!("{width} x {height} pixels are too many"));
    }
    // Cameras store rotated photographs as the sensor saw them.
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
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

/// A square with sides of `size` pixels.
fn square(image: &RgbImage, size: u32, framing: Framing) -> std::result::Result<RgbImage, String> {
    let resize = |width, height| imageops::resize(image, width, height, imageops::FilterType::Triangle);
    if framing == Framing::Squeeze {
        return Ok(resize(size, size));
    }
    let (width, height) = image.dimensions();
    let short = width.min(height);
    if u64::from(width.max(height)) > LONGEST * u64::from(short) {
        return Err(format!("of {width} x {height} pixels, of which no square shows much"));
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(size) / u64::from(short)) as u32;
    let resized = resize(scaled(width), scaled(height));
    // torchvision rounds half to even.
    let from = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as u32;
    let (left, top) = (from(resized.width()), from(resized.height()));
    Ok(imageops::crop_imm(&resized, left, top, size, size).to_image())
}

/// Whether the end marker follows the pixels. Decoders fill the missing part of a truncated file with grey, which would
/// teach the network something wrong.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    // Before the pixels come segments of 0xFF, kind and length. A thumbnail in a segment has its own end marker.
    let mut at = 2;
    while let Some(&[0xFF, kind, high, low]) = bytes.get(at..at + 4) {
        match kind {
            // Fill bytes may precede a marker.
            0xFF => at += 1,
            0xDA => return bytes[at..].windows(2).any(|pair| pair == [0xFF, 0xD9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

/// Eight-bit RGB, with transparent parts on white.
fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u16::from(from[3]);
        to.0 = [0, 1, 2].map(|c| ((u16::from(from[c]) * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    rgb
}
