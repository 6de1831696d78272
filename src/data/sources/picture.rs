//! The bytes of a picture's file as a square of pixels. The program in `examples/onnx` compiles this file too, so that
//! it sees what training saw: nothing here uses the crate or tch.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage, imageops};
use std::io::Cursor;

/// Largest size of a decoded image in bytes: 178 megapixels, as in Python's Pillow. A file of a few bytes may claim any
/// size.
const LARGEST: u64 = (3 * 178) << 20;

/// A picture is cropped if its longer side is at most so many times its shorter one.
const LONGEST: u64 = 20;

/// Decodes a file, turns it upright, puts transparent parts on white, and makes a square with sides of `size` pixels:
/// squeezed, or with `crop` the centre. The error says why it cannot be used.
pub(super) fn square(bytes: &[u8], size: u32, crop: bool) -> Result<RgbImage, String> {
    let image = upright(bytes)?;
    if !crop {
        return resized(&image, size, size);
    }
    let (width, height) = image.dimensions();
    let short = width.min(height);
    if u64::from(width.max(height)) > LONGEST * u64::from(short) {
        return Err(format!("of {width} x {height} pixels: no square of it shows much"));
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(size) / u64::from(short)) as u32;
    let resized = resized(&image, scaled(width), scaled(height))?;
    // torchvision rounds half to even.
    let from = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as u32;
    let (left, top) = (from(resized.width()), from(resized.height()));
    Ok(imageops::crop_imm(&resized, left, top, size, size).to_image())
}

/// A part of a picture (left, top, right and bottom in pixels) as a square with sides of `size` pixels.
pub(super) fn part(image: &RgbImage, [left, top, right, bottom]: [u32; 4], size: u32) -> Result<RgbImage, String> {
    resized(&imageops::crop_imm(image, left, top, right - left, bottom - top).to_image(), size, size)
}

/// Decodes a file, turns it upright, and puts transparent parts on white. The error says why it cannot be used.
pub(super) fn upright(bytes: &[u8]) -> Result<RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let image = decode(bytes).map_err(|e| match e {
        ImageError::IoError(e) => e.to_string(),
        ImageError::Unsupported(e) => format!("of a kind that is not read: {e}").chars().take(120).collect(),
        _ => "not a whole picture".to_owned(),
    })?;
    if image.width() == 0 || image.height() == 0 {
        return Err("it has no pixels".to_owned());
    }
    Ok(on_white(image))
}

/// Resizes bilinearly, anti-aliased, and rounds once, as torchvision does on tensors. Integers would be faster, but
/// rounding between the two passes puts every fifth value a level off.
fn resized(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage, String> {
    let floats = |pixel: &[u8]| F32x3::new([pixel[0].into(), pixel[1].into(), pixel[2].into()]);
    let from: Vec<F32x3> = image.as_raw().chunks_exact(3).map(floats).collect();
    let from = TypedImageRef::new(image.width(), image.height(), &from).map_err(|e| e.to_string())?;
    let mut to = TypedImage::<F32x3>::new(width, height);
    let bilinear = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize_typed(&from, &mut to, &bilinear).map_err(|e| e.to_string())?;
    // A cast of a float rounds down, and keeps to 0 to 255.
    let bytes = to.pixels().iter().flat_map(|pixel| pixel.0.map(|value| (value + 0.5) as u8)).collect();
    RgbImage::from_raw(width, height, bytes).ok_or_else(|| "too large".to_owned())
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
