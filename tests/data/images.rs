//! Decoding of single images.

use super::*;

/// Red on the left, blue on the right; 16 pixels square.
pub fn two_halves() -> RgbImage {
    RgbImage::from_fn(16, 16, |x, _| if x < 8 { Rgb([200, 40, 40]) } else { Rgb([40, 40, 200]) })
}

/// The pixels of an image near its corners: top left, top right, bottom left.
fn corners(path: &Path) -> Result<[[i64; 3]; 3], Box<dyn std::error::Error>> {
    let image = data::read_image(path, 8, data::Framing::Squeeze)?;
    Ok([(1, 1), (1, 6), (6, 1)].map(|(y, x)| [0, 1, 2].map(|c| image.int64_value(&[c, y, x]))))
}

fn near(found: [[i64; 3]; 3], wanted: [[i64; 3]; 3]) -> bool {
    found.iter().flatten().zip(wanted.iter().flatten()).all(|(a, b)| (a - b).abs() <= 3)
}

const RED: [i64; 3] = [200, 40, 40];
const BLUE: [i64; 3] = [40, 40, 200];
pub const ODD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/odd");

#[test]
fn sixteen_bits_are_scaled_and_not_cut() -> Done {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("deep.png");
    // 900 of 65,535 is 3.5 of 255. The low byte of 900 would be 132.
    for (value, wanted) in [(900u16, 4), (0x8080, 128), (0xff00, 254), (0xffff, 255), (0x00ff, 1)] {
        image::ImageBuffer::<Luma<u16>, Vec<u16>>::from_pixel(9, 9, Luma([value])).save(&path)?;
        assert_eq!(corners(&path)?, [[wanted; 3]; 3], "grey {value:#x}");
        image::ImageBuffer::<Rgb<u16>, Vec<u16>>::from_pixel(9, 9, Rgb([value, 0, 0xffff])).save(&path)?;
        assert_eq!(corners(&path)?, [[wanted, 0, 255]; 3], "colour {value:#x}");
    }
    // Half transparent black of 16 bits on white.
    image::ImageBuffer::<image::LumaA<u16>, Vec<u16>>::from_pixel(9, 9, image::LumaA([0, 0x3333])).save(&path)?;
    assert_eq!(corners(&path)?, [[204; 3]; 3]);
    Ok(())
}

/// Exif in a JPEG: one entry, the orientation.
fn turned_jpeg(image: &RgbImage, orientation: u8) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image)?;
    let exif =
        [b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0]]
            .concat();
    let bytes = bytes.into_inner();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    Ok([&bytes[..2], &[0xff, 0xe1], &length, &exif, &bytes[2..]].concat())
}

#[test]
fn turned_photographs_stand_upright() -> Done {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("photo.jpg");
    // Where a viewer shows red and blue for each value of Exif's orientation, 1 to 8.
    let wanted = [
        [RED, BLUE, RED],
        [BLUE, RED, BLUE],
        [BLUE, RED, BLUE],
        [RED, BLUE, RED],
        [RED, RED, BLUE],
        [RED, RED, BLUE],
        [BLUE, BLUE, RED],
        [BLUE, BLUE, RED],
    ];
    for (orientation, wanted) in (1..).zip(wanted) {
        fs::write(&path, turned_jpeg(&two_halves(), orientation)?)?;
        let found = corners(&path)?;
        assert!(near(found, wanted), "{orientation}: {found:?}");
    }
    for name in ["turned.png", "turned.webp"] {
        let found = corners(&Path::new(ODD).join(name))?;
        assert!(near(found, wanted[5]), "{name}: {found:?}");
    }
    Ok(())
}

#[test]
fn pictures_in_odd_colours_are_read_right() -> Done {
    let odd = |name: &str| corners(&Path::new(ODD).join(name));
    assert!(near(odd("cmyk.jpg")?, [RED, BLUE, RED]), "{:?}", odd("cmyk.jpg")?);
    // Its red is transparent.
    assert_eq!(odd("palette_alpha.png")?, [[255; 3], BLUE, [255; 3]]);
    for name in ["moving.gif", "moving.webp"] {
        assert!(near(odd(name)?, [RED, BLUE, RED]), "{name}: the first frame: {:?}", odd(name)?);
    }
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("x.png");
    image::GrayAlphaImage::from_pixel(5, 5, image::LumaA([0, 51])).save(&path)?;
    assert_eq!(corners(&path)?, [[204; 3]; 3]);
    for name in ["one.png", "one.gif", "one.bmp", "one.tiff", "one.webp"] {
        let path = folder.path().join(name);
        RgbImage::from_pixel(1, 1, Rgb([9, 8, 7])).save(&path)?;
        assert_eq!(corners(&path)?, [[9, 8, 7]; 3], "{name}");
    }
    Ok(())
}

#[test]
fn cut_and_empty_pictures_of_every_kind_are_skipped_with_a_reason() -> Done {
    let folder = tempfile::tempdir()?;
    let noise = RgbImage::from_fn(90, 90, |x, y| {
        Rgb([0, 7, 13].map(|k| (x.wrapping_mul(2_654_435_761) ^ (y + k).wrapping_mul(40_503_001) >> 7) as u8))
    });
    let said = |path: &Path| message(data::read_image(path, 8, data::Framing::Squeeze));
    for kind in ["png", "jpg", "webp", "gif", "bmp", "tiff"] {
        let path = folder.path().join(format!("cut.{kind}"));
        noise.save(&path)?;
        let _ = data::read_image(&path, 8, data::Framing::Squeeze)?;
        let bytes = fs::read(&path)?;
        for part in [bytes.len() / 2, bytes.len() / 10, 20, 3] {
            fs::write(&path, &bytes[..part])?;
            assert_says(&said(&path), &[&format!("cut.{kind} cannot be used")]);
        }
        fs::write(&path, "")?;
        assert_says(&said(&path), &["the file is empty"]);
    }
    Ok(())
}

/// A file of a few kilobytes may claim any number of pixels and exhaust the memory of the machine.
#[test]
fn a_picture_that_claims_too_many_pixels_is_refused() -> Done {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bomb.png");
    let small = GrayImage::from_pixel(1, 1, Luma([0]));
    small.save(&path)?;
    let mut bytes = fs::read(&path)?;
    // Width and height in the header, then the header's checksum.
    bytes[16..24].copy_from_slice(&[0, 0, 0xc0, 0, 0, 0, 0xc0, 0]);
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    fs::write(&path, bytes)?;
    assert_says(&message(data::read_image(&path, 8, data::Framing::Squeeze)), &["49152 x 49152 pixels are too many"]);
    Ok(())
}
