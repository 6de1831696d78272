//! WebDataset's shards: tar files in which the files of a sample share a name, `KEY.jpg` and `KEY.cls` or `KEY.json`.
//! Only their headers and labels are read here; nothing is unpacked.
//!
//! Source: <https://github.com/webdataset/webdataset>.

use super::classes::{Classes, class_list};
use super::decode::LARGEST;
use super::files::{file_name, list};
use super::layout::{Labelled, Layout, Part, class_folders, shortened};
use super::originals::Inside;
use crate::data::UNLABELLED;
use crate::store::atomic::write_json;
use crate::store::cores::on_all_cores;
use crate::store::digest::digest;
use crate::{Error, Result};
use image::ImageFormat;
use kdlab_client::watch;
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Largest size in bytes of a sample's label.
const LABEL: u64 = 1 << 20;
/// Largest size in bytes of all headers of a member.
const HEADER: usize = 1 << 20;
/// More shards than these take so long that a line says what happens.
const MANY: usize = 20;

/// Returns the shards in folders of splits, `train/*.tar` and `val/*.tar`.
pub(super) fn in_splits(path: &Path) -> Result<Vec<(Part, PathBuf)>> {
    let mut found = Vec::new();
    for folder in list(path)?.into_iter().filter(|path| path.is_dir()) {
        if let Some(part) = part_of(&file_name(&folder))
            && class_folders(&folder)?.is_empty()
        {
            found.extend(list(&folder)?.into_iter().filter(|path| is_shard(path)).map(|shard| (part, shard)));
        }
    }
    Ok(found)
}

/// Returns the shards in one folder, whose names begin with or contain that of their split: `train-000000.tar`. Without
/// such names, all are for training. `notices` gets those that are left out.
pub(super) fn beside(path: &Path, notices: &mut Vec<String>) -> Result<Vec<(Part, PathBuf)>> {
    let files = list(path)?;
    let compressed =
        |path: &&PathBuf| [".tar.gz", ".tgz", ".tar.zst", ".tar.xz"].iter().any(|e| file_name(path).ends_with(e));
    notices.extend(those(
        files.iter().filter(compressed).map(|path| file_name(path)).collect(),
        "shard",
        "compressed: not read (gunzip them)",
    ));
    let shards: Vec<_> = files.into_iter().filter(|path| is_shard(path)).collect();
    let parts: Vec<_> = shards.iter().map(|shard| part_of(&file_name(shard))).collect();
    if parts.iter().all(Option::is_none) {
        return Ok(shards.into_iter().map(|shard| (Part::Train, shard)).collect());
    }
    let (named, others): (Vec<_>, Vec<_>) = parts.into_iter().zip(shards).partition(|(part, _)| part.is_some());
    let others = others.into_iter().map(|(_, shard)| file_name(&shard)).collect();
    notices.extend(those(others, "shard", "of no split by its name (train, val, test, unlabelled): not used"));
    Ok(named.into_iter().filter_map(|(part, shard)| Some((part?, shard))).collect())
}

/// The split that a name names: `train-000000.tar`, `imagenet-val-01.tar`, `validation`.
fn part_of(name: &str) -> Option<Part> {
    name.split(|c: char| !c.is_alphabetic()).find_map(|word| match word.to_lowercase().as_str() {
        "train" | "training" => Some(Part::Train),
        "val" | "valid" | "validation" => Some(Part::Validation),
        "test" => Some(Part::Test),
        "unlabelled" | "unlabeled" => Some(Part::Unlabelled),
        _ => None,
    })
}

fn is_shard(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "tar") && path.is_file()
}

/// Lists the samples of shards in the folder `path`. The list is kept in `cache`, so the next call does not read the
/// shards.
///
/// # Errors
/// When a shard cannot be read, or there is no sample with an image and a label.
pub(super) fn read_shards(path: &Path, shards: Vec<(Part, PathBuf)>, cache: &Path) -> Result<Layout> {
    let known = class_list(path)?;
    let stamp = |shard: &PathBuf| {
        let about = std::fs::metadata(shard).map_err(|e| Error::io("reading", shard, e))?;
        Ok(format!("{} {} {:?}", shard.display(), about.len(), about.modified().ok()))
    };
    let mut parts = shards.iter().map(|(_, shard)| stamp(shard)).collect::<Result<Vec<_>>>()?;
    parts.push(format!("shards 1 {} {:?}", path.display(), known.as_ref().map(|known| &known.names)));
    let key = digest(&parts.iter().map(String::as_bytes).collect::<Vec<_>>());
    let index = cache.join("pixels").join(format!("{}-{}.json", file_name(path), &key[..16]));
    let kept = std::fs::read(&index).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(layout) = kept {
        return Ok(layout);
    }
    if shards.len() > MANY {
        println!("Listing the samples of {} shards in {}", shards.len(), path.display());
    }
    let watch = watch("listing shards", |_| ());
    let scanned = on_all_cores(shards.iter().collect(), |(_, shard)| match watch.reason() {
        Some(reason) => Err(Error::Interrupted(format!("listing shards: {reason}; run it again"))),
        None => catch_unwind(|| scan(shard))
            .unwrap_or_else(|_| Ok(Scan { damaged: Some("the reader panicked".into()), ..Scan::default() })),
    });
    let scanned = scanned.into_iter().collect::<Result<Vec<_>>>()?;
    let layout = arranged(path, shards, scanned, known)?;
    // A shared cache may be read-only: then the shards are listed again next time.
    let _ = write_json(&index, &layout);
    Ok(layout)
}

/// What the headers of a shard say.
#[derive(Default)]
struct Scan {
    samples: Vec<(String, Sample)>,
    /// Names of files that are there twice.
    twice: Vec<String>,
    /// Names of files that are cut off or too large.
    cut: Vec<String>,
    /// Why the rest of the shard cannot be read.
    damaged: Option<String>,
}

#[derive(Default)]
struct Sample {
    /// Name, first byte and number of bytes.
    image: Option<(String, u64, u64)>,
    /// From `KEY.cls`.
    class: Option<Label>,
    /// From `KEY.json`.
    json: Option<Label>,
}

enum Label {
    Number(i64),
    Text(String),
}

/// Reads the headers of a shard, and its labels.
fn scan(shard: &Path) -> Result<Scan> {
    let io = |e| Error::io("reading", shard, e);
    let file = File::open(shard).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let (mut found, mut place_of) = (Scan::default(), HashMap::new());
    let headers = Headers { file: &file, left: Cell::new(HEADER) };
    let mut archive = tar::Archive::new(&headers);
    for entry in archive.entries_with_seek().map_err(io)? {
        headers.left.set(HEADER);
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                // It may quote the shard.
                found.damaged = Some(e.to_string().replace(char::is_control, "?").chars().take(80).collect());
                break;
            }
        };
        let name = String::from_utf8_lossy(&entry.path_bytes()).replace(char::is_control, "?");
        let start = name.rfind('/').map_or(0, |at| at + 1);
        // The key ends at the first dot of the file's name; a hidden file has none.
        let Some(dot) = name[start..].find('.').filter(|dot| *dot > 0).map(|dot| start + dot) else { continue };
        let (key, ending) = (name[..dot].to_owned(), name[dot + 1..].to_lowercase());
        let is_image = ImageFormat::from_extension(&ending).is_some_and(|format| format.reading_enabled());
        if !entry.header().entry_type().is_file() || !(is_image || ending == "cls" || ending == "json") {
            continue;
        }
        let (offset, size, most) = (entry.raw_file_position(), entry.size(), if is_image { LARGEST } else { LABEL });
        let whole = size <= most && offset.checked_add(size).is_some_and(|end| end <= length);
        let place = *place_of.entry(key.clone()).or_insert_with(|| {
            found.samples.push((key, Sample::default()));
            found.samples.len() - 1
        });
        if !whole {
            found.cut.push(name);
            continue;
        }
        let sample = &mut found.samples[place].1;
        if is_image {
            match sample.image {
                None => sample.image = Some((name, offset, size)),
                Some(_) => found.twice.push(name),
            }
            continue;
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, offset).map_err(io)?;
        let (before, label) = match ending.as_str() {
            "cls" => (&mut sample.class, in_text(&String::from_utf8_lossy(&bytes))),
            _ => (&mut sample.json, in_json(&bytes)),
        };
        match before {
            None => *before = label,
            Some(_) => found.twice.push(name),
        }
    }
    let mut last = [0; 512];
    let end = length.checked_sub(512).map(|from| file.read_exact_at(&mut last, from));
    if end.transpose().map_err(io)?.is_some() && last != [0; 512] {
        found.damaged.get_or_insert_with(|| "it has no end".into());
    }
    Ok(found)
}

/// A shard of which headers alone are read. The tar crate takes those of a member into memory, however long they say
/// they are.
struct Headers<'a> {
    file: &'a File,
    /// Bytes that may be read before the next member.
    left: Cell<usize>,
}

impl Read for &Headers<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left.get() == 0 {
            return Err(std::io::Error::other(format!("a header of more than {HEADER} bytes")));
        }
        let (mut file, most) = (self.file, into.len().min(self.left.get()));
        let read = file.read(&mut into[..most])?;
        self.left.set(self.left.get() - read);
        Ok(read)
    }
}

impl Seek for &Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let mut file = self.file;
        file.seek(to)
    }
}

fn in_text(text: &str) -> Option<Label> {
    let text = text.trim();
    Some(match text.parse() {
        Ok(number) => Label::Number(number),
        Err(_) => Label::Text(text.replace(char::is_control, "?").chars().take(60).collect()),
    })
}

/// The label in a JSON file: the value itself, or its "label", "cls" or "class".
fn in_json(bytes: &[u8]) -> Option<Label> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let value = match &value {
        serde_json::Value::Object(fields) => ["label", "cls", "class"].iter().find_map(|name| fields.get(*name))?,
        other => other,
    };
    match value.as_i64() {
        Some(number) => Some(Label::Number(number)),
        None => in_text(value.as_str()?),
    }
}

/// The samples as images of classes. Whatever is left out is counted and named.
fn arranged(path: &Path, shards: Vec<(Part, PathBuf)>, scanned: Vec<Scan>, known: Option<Classes>) -> Result<Layout> {
    let listed = known.is_some();
    let Classes { names: classes, label_of } = known.unwrap_or_else(|| numbers(&shards, &scanned));
    // A list says which label a number is; without one, the label of a number is its place among them.
    let label_in = |label: &Label| match label {
        Label::Number(number) if listed => (0..classes.len() as i64).contains(number).then_some(*number),
        Label::Number(number) => label_of.get(&number.to_string()).copied(),
        Label::Text(name) => label_of.get(name).copied(),
    };
    let mut layout = Layout { root: path.to_owned(), ..Layout::default() };
    let (mut imageless, mut unlabelled, mut unknown, mut twice, mut cut) = <[Vec<String>; 5]>::default().into();
    for (shard, ((part, shard_path), scan)) in shards.into_iter().zip(scanned).enumerate() {
        let place = shard_path.strip_prefix(path).unwrap_or(&shard_path).display().to_string();
        let named = |name: &String| format!("{place}/{name}");
        if let Some(why) = scan.damaged {
            let n = scan.samples.len();
            layout.notices.push(format!(
                "{place} is damaged after {n} samples ({why}): the rest of it is not used; get it again"
            ));
        }
        twice.extend(scan.twice.iter().map(named));
        cut.extend(scan.cut.iter().map(named));
        for (key, Sample { image, class, json }) in scan.samples {
            let label = class.or(json);
            let Some((name, offset, length)) = image else {
                imageless.push(named(&key));
                continue;
            };
            let label = match (part, &label) {
                (Part::Unlabelled, _) => UNLABELLED,
                (_, None) => {
                    unlabelled.push(named(&key));
                    continue;
                }
                (_, Some(label)) => match label_in(label) {
                    Some(label) => label,
                    None => {
                        let text = match label {
                            Label::Number(number) => number.to_string(),
                            Label::Text(text) => format!("{text:?}"),
                        };
                        unknown.push(format!("{} ({text})", named(&key)));
                        continue;
                    }
                },
            };
            // Not by `join`: a name may begin with a slash.
            let mut path = shard_path.clone().into_os_string();
            path.push(format!("/{name}"));
            let inside = Some(Inside { shard, offset, length });
            layout.images.push(Labelled { part, path: path.into(), label, inside });
        }
        if part != Part::Unlabelled && !layout.parts.contains(&part) {
            layout.parts.push(part);
        }
        layout.shards.push(shard_path);
    }
    let of = match (listed, classes.len()) {
        (true, n) => format!("of a label that is none of the {n} in the list of classes, 0 to {}", n.max(1) - 1),
        (false, _) => "of a label that is no number, or that no sample of the training split has".to_owned(),
    };
    layout.notices.extend(those(unlabelled, "sample", "without a label, KEY.cls or KEY.json: not used"));
    layout.notices.extend(those(unknown, "sample", &format!("{of}: not used")));
    layout.notices.extend(those(imageless, "sample", "without an image of a kind that is read: not used"));
    layout.notices.extend(those(twice, "file", "a second one of its kind in its sample: not used"));
    layout.notices.extend(those(cut, "file", "cut off or too large: not used"));
    if layout.images.is_empty() || !layout.parts.contains(&Part::Train) {
        let why = match layout.parts.contains(&Part::Train) {
            false => {
                "no shard is for training: name them train-000000.tar and so on, or put them into train/".to_owned()
            }
            true => format!("no sample has an image and a label; {}", layout.notices.join("; ")),
        };
        return Err(Error::Data(format!("the shards in {} cannot be used: {why}", path.display())));
    }
    layout.classes = classes;
    Ok(layout)
}

/// Without a list, the classes are the numbers that label training images, in their order.
fn numbers(shards: &[(Part, PathBuf)], scanned: &[Scan]) -> Classes {
    let train = shards.iter().zip(scanned).filter(|((part, _), _)| *part == Part::Train);
    let labels = train.flat_map(|(_, scan)| &scan.samples).filter_map(|(_, sample)| match &sample {
        Sample { image: Some(_), class: Some(Label::Number(number)), .. } => Some(*number),
        Sample { image: Some(_), class: None, json: Some(Label::Number(number)) } => Some(*number),
        _ => None,
    });
    let numbers: BTreeSet<i64> = labels.filter(|number| *number >= 0).collect();
    let names: Vec<String> = numbers.iter().map(i64::to_string).collect();
    let label_of = names.iter().cloned().zip(0..).collect();
    Classes { names, label_of }
}

/// A notice about some samples or files; `None` if there are none.
fn those(names: Vec<String>, what: &str, are: &str) -> Option<String> {
    match names.len() {
        0 => None,
        1 => Some(format!("1 {what} is {are}: {}", shortened(names))),
        n => Some(format!("{n} {what}s are {are}: {}", shortened(names))),
    }
}
