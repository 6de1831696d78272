//! The user's own images: one folder per class.

use super::{file_name, list, roboflow};
use crate::data::dataset::{DataOptions, Dataset, Rows, assemble, check};
use crate::data::pool::Pool;
use crate::data::split::{Purpose, reordered, stratified};
use crate::{Error, Result};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage, imageops};
use std::collections::{HashMap, HashSet};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use tch::Tensor;
use xxhash_rust::xxh3::xxh3_128;

/// Share of each class set aside for the test split where there is no `test/` folder.
const TEST: f64 = 0.1;

/// Images in one folder per class, `class_name/*.png` (jpg, webp, tiff, bmp, gif), also in folders below it, of any
/// sizes: each is resized to `size` x `size` pixels on load. Grey images get three equal channels, transparent ones a
/// white background.
///
/// A picture that is not square is squeezed into one; of an animated one the first frame is taken. A tenth of each
/// class becomes the test split; or `path` holds `train/`, `test/` and `val/` (or `valid/`, `validation/`) with the
/// class folders in them; the last two may be missing. Tiny-ImageNet's layout is read, and Roboflow's exports
/// for classification. Whatever is left out is counted and named in the notices.
///
/// # Errors
/// When there are no images, no readable ones, one class only, or too few of a class for it to be in every split.
pub fn image_folder(path: impl AsRef<Path>, size: i64, options: &DataOptions) -> Result<Dataset> {
    let path = path.as_ref();
    check(options)?;
    check_size(size)?;
    let mut parts = parts(path)?;
    let Some((_, root)) = parts.first() else {
        return Err(Error::Data(format!(
            "{} is empty: put one folder of png or jpg images per class there",
            path.display()
        )));
    };
    let mut notices = Vec::new();
    let mut classes: Vec<String> = match roboflow::has_table(root) {
        true => roboflow::table(root)?.classes,
        false => class_folders(root)?.iter().map(|p| file_name(p)).collect(),
    };
    if let Some((_, twice)) = classes.iter().enumerate().find(|(i, name)| classes[..*i].contains(name)) {
        return Err(Error::Data(format!("two classes in {} read {twice:?}: rename one", root.display())));
    }
    if classes.iter().all(|name| name.parse::<u64>().is_ok()) {
        let by_name = classes.clone();
        classes.sort_by_key(|name| name.parse::<u64>().unwrap_or_default());
        if classes != by_name {
            notices.push(format!(
                "the names of the classes are numbers, so they are in that order: {}",
                classes.join(", ")
            ));
        }
    }
    let mut files: Vec<File> = Vec::new();
    let mut found = Pictures::default();
    // Pictures that have no class, and names in tables that no picture bears.
    let (mut unlabelled, mut absent) = (Vec::new(), Vec::new());
    let roots: Vec<PathBuf> = parts.iter().map(|(_, root)| root.clone()).collect();
    parts.retain(|(part, root)| {
        let unused = *part != Part::Train && is_unlabelled(root, &classes);
        if unused {
            notices
                .push(format!("{} has no folders of classes, so its images have no labels: not used", root.display()));
        }
        !unused
    });
    let label_of = |class: &str, place: &Path| {
        let label = classes.iter().position(|known| known == class).map(|label| label as i64);
        label.ok_or_else(|| {
            let place = place.display();
            Error::Data(format!("{place} is a class that train/ does not have: add it there or remove it"))
        })
    };
    for (part, root) in &parts {
        if roboflow::has_table(root) {
            let table = roboflow::table(root)?;
            let named = |file: &PathBuf| table.labels.get(&file_name(file)).copied();
            let there = found.of(root, false)?;
            let seen: HashSet<String> = there.iter().map(|file| file_name(file)).collect();
            absent.extend(table.labels.keys().filter(|name| !seen.contains(*name)).map(|name| root.join(name)));
            for file in there {
                match named(&file).flatten() {
                    Some(class) => {
                        let class = &table.classes[class];
                        files.push((*part, file, label_of(class, &table.path.join(class))?));
                    }
                    None => unlabelled.push(file),
                }
            }
            continue;
        }
        if let Some(labels) = annotations(root)? {
            let (annotated, images) = (root.join(ANNOTATIONS), root.join("images"));
            for file in found.of(&images, true)? {
                match labels.get(&file_name(&file)) {
                    Some(class) => files.push((*part, file, label_of(class, &annotated.join(class))?)),
                    None => unlabelled.push(file),
                }
            }
            continue;
        }
        for folder in class_folders(root)? {
            let label = label_of(&file_name(&folder), &folder)?;
            let images = found.of(&folder, true)?;
            files.extend(images.into_iter().map(|file| (*part, file, label)));
        }
        unlabelled.extend(found.of(root, false)?);
    }
    if parts.iter().all(|(_, root)| root != path) {
        unlabelled.extend(found.of(path, false)?);
        for folder in class_folders(path)?.iter().filter(|folder| roots.iter().all(|root| root != *folder)) {
            // One of `val/` and `valid/`, or what nobody asked for.
            let n = Pictures::default().of(folder, true)?.len();
            if n > 0 {
                notices.push(format!("{n} images in {} are in none of the splits: not used", folder.display()));
            }
        }
    }
    if files.is_empty() {
        return Err(Error::Data(format!(
            "{} holds no images: put one folder of png or jpg images per class there",
            path.display()
        )));
    }
    if found.nested > 0 {
        let nested = found.nested;
        notices.push(format!("{nested} images lie in folders below that of a class: they are taken for that class"));
    }
    absent.sort();
    for (paths, what) in [
        (&found.unread, "of a kind that is not read"),
        (&unlabelled, "in no folder of a class and in no table, so without a label: not used"),
        (&absent, "named in a table and missing"),
    ] {
        if !paths.is_empty() {
            notices.push(format!("{} {what}: {}", pictures_are(paths.len()), named(paths)));
        }
    }
    if !found.skipped.is_empty() {
        notices.push(format!("not looked into, for they lie too deep or lead back: {}", named(&found.skipped)));
    }
    let (pool, kept) = decode(&files, size, &mut notices)?;
    notices.extend(repeated(&files, &kept));
    if kept.is_empty() {
        return Err(Error::Data(format!(
            "none of the {} images in {} could be read; {}",
            files.len(),
            path.display(),
            notices.join("")
        )));
    }
    // The files are sorted by class: mix them, so that the first n are of all classes.
    let rows = |part: Part| {
        let rows = (0..kept.len()).filter(|&i| files[kept[i].0].0 == part).map(|i| i as i64).collect();
        reordered(rows, options.seed)
    };
    let labels: Vec<i64> = kept.iter().map(|k| files[k.0].2).collect();
    let has = |part: Part| parts.iter().any(|p| p.0 == part);
    let mut train = rows(Part::Train);
    let test = if has(Part::Test) {
        rows(Part::Test)
    } else {
        let n = (train.len() as f64 * TEST).round() as usize;
        let (test, rest) = stratified(&train, &labels, n.max(1), Purpose::Test, options.seed);
        train = rest;
        notices.push(format!(
            "no test folder: {} images, a tenth of each class, are set aside for the test split",
            test.len()
        ));
        test
    };
    let validation = has(Part::Validation).then(|| rows(Part::Validation));
    let said = notices.join("; ");
    let made = assemble(file_name(path), classes, pool, Rows { train, validation, test }, notices, options);
    // A class without images is easier to understand with what was left out.
    made.map_err(|error| if said.is_empty() { error } else { Error::Data(format!("{error} ({said})")) })
}

/// One image file exactly as [`image_folder`] holds it: u8 `[3, size, size]`, red, green, blue, 0..255, on the CPU.
///
/// # Errors
/// When the file is missing or no whole PNG or JPEG, or `size` is not in 1..=4096.
pub fn read_image(path: impl AsRef<Path>, size: i64) -> Result<Tensor> {
    let path = path.as_ref();
    check_size(size)?;
    let read = read(path, size as u32).map_err(|why| {
        Error::Data(format!("the image {} cannot be used: {why}; give a PNG or JPEG", path.display()))
    })?;
    Ok(Tensor::f_from_slice(&read.pixels)?.f_view([3, size, size])?)
}

fn check_size(size: i64) -> Result<()> {
    match size {
        1..=4096 => Ok(()),
        _ => Err(Error::Input(format!("image size {size}: choose 1 to 4096 pixels (32 and 224 are usual)"))),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Train,
    Validation,
    Test,
}

/// Whether a folder looks like one of images per class.
pub(super) fn find(path: &Path) -> Result<bool> {
    for (_, root) in parts(path)? {
        if roboflow::has_table(&root) {
            return Ok(true);
        }
        for folder in class_folders(&root)? {
            if !Pictures::default().of(&folder, true)?.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The folders that hold class folders, train first: `path` itself, or `train/` and its siblings.
fn parts(path: &Path) -> Result<Vec<(Part, PathBuf)>> {
    let train = path.join("train");
    let holds_classes = |root: &Path| Ok::<_, Error>(roboflow::has_table(root) || !class_folders(root)?.is_empty());
    roboflow::refuse_others(path, train.is_dir() && holds_classes(&train)?)?;
    if !train.is_dir() || !holds_classes(&train)? {
        return Ok(if class_folders(path)?.is_empty() { vec![] } else { vec![(Part::Train, path.into())] });
    }
    let mut parts = vec![(Part::Train, train)];
    for (part, name) in
        [(Part::Validation, "val"), (Part::Validation, "valid"), (Part::Validation, "validation"), (Part::Test, "test")]
    {
        let folder = path.join(name);
        if folder.is_dir() && !parts.iter().any(|p| p.0 == part) {
            parts.push((part, folder));
        }
    }
    Ok(parts)
}

fn class_folders(root: &Path) -> Result<Vec<PathBuf>> {
    // Archives made on a Mac hold a second tree of this name, of metadata.
    let is_class = |p: &PathBuf| p.is_dir() && !file_name(p).starts_with('.') && file_name(p) != "__MACOSX";
    Ok(list(root)?.into_iter().filter(is_class).collect())
}

/// Whether a split holds its images in one folder that is no class, as Tiny-ImageNet's test split.
fn is_unlabelled(root: &Path, classes: &[String]) -> bool {
    let folders: Vec<String> = class_folders(root).unwrap_or_default().iter().map(|f| file_name(f)).collect();
    folders == ["images"] && !classes.contains(&folders[0]) && !root.join(ANNOTATIONS).is_file()
}

/// Tiny-ImageNet's classes of the images in `images/`: lines of file, class and box.
const ANNOTATIONS: &str = "val_annotations.txt";

fn annotations(root: &Path) -> Result<Option<HashMap<String, String>>> {
    let path = root.join(ANNOTATIONS);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, e))?;
    fn pair(line: &str) -> Option<(String, String)> {
        let (file, rest) = line.split_once('\t')?;
        Some((file.to_owned(), rest.split('\t').next()?.trim().to_owned()))
    }
    Ok(Some(text.lines().filter_map(pair).collect()))
}

/// What was found in folders of classes.
#[derive(Default)]
struct Pictures {
    /// Of kinds that are not decoded.
    unread: Vec<PathBuf>,
    /// Folders that were not looked into.
    skipped: Vec<PathBuf>,
    /// How many lie in folders below that of their class.
    nested: usize,
}

const READ: [&str; 9] = ["png", "jpg", "jpeg", "jfif", "webp", "tif", "tiff", "bmp", "gif"];
/// Kinds of pictures that people have and this crate does not decode.
const UNREAD: [&str; 21] = [
    "heic", "heif", "avif", "jp2", "j2k", "jxl", "ppm", "pgm", "pbm", "pnm", "tga", "dds", "ico", "svg", "psd", "exr",
    "hdr", "cr2", "nef", "arw", "dng",
];
/// Nobody's classes lie deeper.
const DEEPEST: usize = 8;

impl Pictures {
    /// The pictures in a folder that are read, sorted; with `below`, also those in folders below it. What else there is
    /// of pictures is noted.
    fn of(&mut self, class: &Path, below: bool) -> Result<Vec<PathBuf>> {
        let mut read = Vec::new();
        let mut left = vec![(class.to_owned(), 0)];
        // A link may lead back to where we are, and the same pictures would be found again and again.
        let mut seen: HashSet<PathBuf> = class.canonicalize().into_iter().collect();
        while let Some((folder, depth)) = left.pop() {
            for path in list(&folder)? {
                if path.is_dir() {
                    if !below || file_name(&path) == "__MACOSX" {
                        continue;
                    }
                    let is_new = path.canonicalize().is_ok_and(|real| seen.insert(real));
                    match is_new && depth < DEEPEST {
                        true => left.push((path, depth + 1)),
                        false => self.skipped.push(path),
                    }
                    continue;
                }
                match kind(&path) {
                    Some(true) => read.push(path),
                    Some(false) => self.unread.push(path),
                    None => {}
                }
            }
        }
        self.nested += read.iter().filter(|file| below && file.parent() != Some(class)).count();
        read.sort();
        Ok(read)
    }
}

/// Whether a file is a picture that is read, one that is not, or none; by its name, or by its first bytes where the
/// name says nothing.
fn kind(path: &Path) -> Option<bool> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if READ.contains(&extension.as_str()) {
        return Some(true);
    }
    if UNREAD.contains(&extension.as_str()) {
        return Some(false);
    }
    let mut start = Vec::new();
    // Whatever is no file, such as a pipe, would be waited for.
    let file =
        std::fs::metadata(path).ok().filter(|about| about.is_file()).and_then(|_| std::fs::File::open(path).ok())?;
    file.take(32).read_to_end(&mut start).ok()?;
    let format = image::guess_format(&start).ok()?;
    Some(format.reading_enabled())
}

fn pictures_are(count: usize) -> String {
    if count == 1 { "1 picture is".to_owned() } else { format!("{count} pictures are") }
}

/// The first five, and how many more.
fn named(paths: &[PathBuf]) -> String {
    let more = if paths.len() > 5 { format!(" and {} more", paths.len() - 5) } else { String::new() };
    let first: Vec<String> = paths.iter().take(5).map(|path| path.display().to_string()).collect();
    first.join(", ") + &more
}

/// Says which pictures are there twice: in two splits they flatter the test, in two classes one label is wrong.
fn repeated(files: &[File], kept: &[Kept]) -> Vec<String> {
    let mut first: HashMap<u128, usize> = HashMap::new();
    let (mut splits, mut classes, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for (index, digest) in kept {
        let earlier = *first.entry(*digest).or_insert(*index);
        let ((part, path, label), (other_part, _, other_label)) = (&files[*index], &files[earlier]);
        if label != other_label {
            classes.push(path.clone());
        } else if part != other_part {
            splits.push(path.clone());
        } else if earlier != *index {
            copies.push(path.clone());
        }
    }
    let whole = files.iter().all(|file| file.0 == Part::Train);
    let told = [
        (splits, "in another split as well, which flatters what is measured there; remove one of each"),
        (classes, "in another class as well, so one of the two labels is wrong; remove one of each"),
        // They may be divided among the splits, and are then in two of them.
        (
            if whole { copies } else { Vec::new() },
            "copies of others of their class, and may come into another split than those",
        ),
    ];
    let some = told.into_iter().filter(|(paths, _)| !paths.is_empty());
    some.map(|(paths, what)| format!("{} {what}: {}", pictures_are(paths.len()), named(&paths))).collect()
}

type File = (Part, PathBuf, i64);
/// The index of a file that could be read, and a digest of its bytes.
type Kept = (usize, u128);

/// Reads all images, on all cores, into a pool; gives those kept, in order.
fn decode(files: &[File], size: i64, notices: &mut Vec<String>) -> Result<(Pool, Vec<Kept>)> {
    let mut pool = Pool::new(files.len(), [3, size, size])?;
    let (mut kept, mut bad, mut moving, mut seen) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    // Only so many are decoded at a time as keep the cores busy: photographs are large.
    for piece in files.chunks(threads * 8) {
        let decoded: Vec<_> = std::thread::scope(|scope| {
            let work = |files: &'_ [File]| files.iter().map(|f| read(&f.1, size as u32)).collect::<Vec<_>>();
            let workers: Vec<_> = piece
                .chunks(piece.len().div_ceil(threads))
                .map(|share| (share, scope.spawn(move || work(share))))
                .collect();
            workers
                .into_iter()
                .flat_map(|(share, w)| {
                    w.join().unwrap_or_else(|_| share.iter().map(|_| Err("the decoder panicked".into())).collect())
                })
                .collect()
        });
        for ((_, path, label), image) in piece.iter().zip(decoded) {
            match image {
                Ok(read) => {
                    pool.push(&read.pixels, &[*label])?;
                    kept.push((seen, read.digest));
                    if read.moves {
                        moving.push(path.clone());
                    }
                }
                Err(why) => bad.push(format!("{} ({why})", path.display())),
            }
            seen += 1;
        }
    }
    if !bad.is_empty() {
        let more = if bad.len() > 5 { format!(" and {} more", bad.len() - 5) } else { String::new() };
        notices.push(format!(
            "{} of {} files skipped: {}{more}",
            bad.len(),
            files.len(),
            bad[..bad.len().min(5)].join(", ")
        ));
    }
    if !moving.is_empty() {
        notices.push(format!("{} animated; the first frame is taken: {}", pictures_are(moving.len()), named(&moving)));
    }
    Ok((pool, kept))
}

/// Bytes that a picture may take when decoded: 178 megapixels, as in Python's Pillow. A file of a few bytes may claim
/// any size.
const LARGEST: u64 = (3 * 178) << 20;

/// One file, decoded.
struct Decoded {
    /// u8 `[3, size, size]`
    pixels: Vec<u8>,
    /// Of the file's bytes.
    digest: u128,
    /// Whether there are more frames behind the first.
    moves: bool,
}

fn read(path: &Path, size: u32) -> std::result::Result<Decoded, String> {
    if !std::fs::metadata(path).map_err(|e| e.to_string())?.is_file() {
        return Err("it is no file".to_owned());
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let decode = || -> image::ImageResult<DynamicImage> {
        // By content, not by name: many a .jpg is a PNG.
        let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
        if reader.format() == Some(ImageFormat::Jpeg) && !is_whole_jpeg(&bytes) {
            return Err(std::io::Error::other("the file is cut off").into());
        }
        if reader.format().is_none() {
            return Err(std::io::Error::other("not a whole PNG or JPEG, or of any other kind that is read").into());
        }
        let mut decoder = reader.into_decoder()?;
        let (width, height) = decoder.dimensions();
        if decoder.total_bytes() > LARGEST {
            return Err(std::io::Error::other(format!("{width} x {height} pixels are too many")).into());
        }
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation); // cameras store turned photographs as they came off the sensor
        Ok(image)
    };
    let image = decode().map_err(|e| match e {
        image::ImageError::IoError(e) => e.to_string(),
        image::ImageError::Unsupported(e) => format!("of a kind that is not read: {e}").chars().take(120).collect(),
        _ => "not a whole picture".to_owned(),
    })?;
    if image.width() == 0 || image.height() == 0 {
        return Err("it has no pixels".to_owned());
    }
    let image = imageops::resize(&on_white(image), size, size, imageops::FilterType::Triangle);
    let raw = image.as_raw();
    let pixels = (0..3).flat_map(|c| raw.iter().skip(c).step_by(3).copied()).collect();
    Ok(Decoded { pixels, digest: xxh3_128(&bytes), moves: moves(&bytes) })
}

/// Whether a picture has more than one frame.
fn moves(bytes: &[u8]) -> bool {
    let more = || -> image::ImageResult<bool> {
        let bytes = Cursor::new(bytes);
        Ok(match image::guess_format(bytes.get_ref())? {
            ImageFormat::Gif => GifDecoder::new(bytes)?.into_frames().take(2).filter(|frame| frame.is_ok()).count() > 1,
            ImageFormat::WebP => WebPDecoder::new(bytes)?.has_animation(),
            ImageFormat::Png => PngDecoder::new(bytes)?.is_apng()?,
            _ => false,
        })
    };
    more().unwrap_or(false)
}

/// Whether the end marker follows the pixels. Decoders fill up a file that was cut off with grey, which is no picture
/// to learn from.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    // Segments of 0xFF, kind, length before the pixels; a thumbnail within one of them has an end marker of its own.
    let mut at = 2;
    while let Some(&[0xFF, kind, high, low]) = bytes.get(at..at + 4) {
        match kind {
            // Fill bytes may stand before a marker.
            0xFF => at += 1,
            0xDA => return bytes[at..].windows(2).any(|pair| pair == [0xFF, 0xD9]),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

/// Eight-bit RGB, transparent parts on white.
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
