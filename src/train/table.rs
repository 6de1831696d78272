//! The answers of any teacher, as a table: for each image file a number for each class.

use super::CachedTensor;
use crate::data::{Dataset, Split, shortened};
use crate::models::Outputs;
use crate::store::tensors::{digest_tensors, load_tensors, tensor_from_bytes};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use tch::{Kind, Tensor};

/// Headers of a column that holds file names, in lower case.
const FILE: [&str; 5] = ["filename", "file", "path", "image", "name"];

/// How to write a file that holds an array for each image.
const ARRAYS: &str = "give an array of numbers for each image, under the name of its file: np.savez(path, \
     **dict(zip(names, logits))), with logits in np.float32";

/// Types of numbers in NumPy's files. Others are refused: big-endian ones, and those that are no logits.
const TYPES: [(&str, Kind); 8] = [
    ("<f2", Kind::Half),
    ("<f4", Kind::Float),
    ("<f8", Kind::Double),
    ("|i1", Kind::Int8),
    ("<i2", Kind::Int16),
    ("<i4", Kind::Int),
    ("<i8", Kind::Int64),
    ("|u1", Kind::Uint8),
];

/// What a reader returns: names of files, and as many numbers for each as there are classes; or what is wrong.
type Rows = std::result::Result<(Vec<String>, Vec<f32>), String>;

/// The logits of a teacher that ran elsewhere, by the names of image files: a web service, CLIP, or a program in
/// Python.
///
/// | file | what is in it |
/// | --- | --- |
/// | `.csv` | a header, then a line for each image; its file is in the column `filename`, or else in the first |
/// | `.npz` | an array `[classes]` for each image under its file's name: `np.savez(path, **dict(zip(names, logits)))` |
/// | `.safetensors` | the same, as tensors |
///
/// If the header of a CSV file names the classes, their columns may be in any order, and others are passed over. If it
/// names none, there must be as many columns as classes, in their order and numbered, such as `logit_0`. timm's
/// `inference.py` writes such a file with `--topk 0 --output-type logit --results-separate-col --fullname`.
///
/// A file may be named with as much of its path as tells it apart from the others: `001.png`, `cat/001.png`, or an
/// absolute path.
///
/// ```no_run
/// use kdlab::data::{DataOptions, image_folder};
/// use kdlab::models::Outputs;
/// use kdlab::train::LogitsTable;
///
/// let data = image_folder("pictures", 64, &DataOptions::default())?;
/// let table = LogitsTable::read("answers.csv", &data, Outputs::Probabilities)?;
/// println!("{table}"); // how many of the images have a row, and which rows belong to no image
/// let logits = table.logits(&data.train)?; // f32 [N, C]
/// # Ok::<(), kdlab::Error>(())
/// ```
pub struct LogitsTable {
    /// Name of its file.
    name: String,
    /// f32 `[rows, classes]`
    logits: Tensor,
    /// The row of each image that has one, by the path of its file in the dataset's folder.
    row_of: HashMap<String, i64>,
    /// What the user should know, counted and named.
    notes: Vec<String>,
}

impl LogitsTable {
    /// Reads a table of `outputs` for images of a dataset that [`crate::data::image_folder`] opened.
    ///
    /// # Errors
    /// When the file cannot be read; when a number is missing, is none, or is not finite (logits of minus infinity are
    /// allowed beside finite ones); when a class has no column, or nothing says which column is whose; when two rows
    /// name the same image, or a row names several.
    pub fn read(path: impl AsRef<Path>, data: &Dataset, outputs: Outputs) -> Result<Self> {
        let path = path.as_ref();
        let bad = |why: String| Error::Data(format!("the table {}: {why}", path.display()));
        std::fs::metadata(path).map_err(|e| Error::io("reading", path, e))?;
        let images = data.train.dataset_files()?;
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let classes = &data.classes;
        let (files, values) = match extension.as_str() {
            "csv" => read_csv(path, classes),
            "npz" => read_npz(path, classes),
            "safetensors" => match load_tensors(path) {
                Ok((arrays, _)) => rows(arrays.into_iter().collect(), classes),
                Err(Error::Data(why)) => return Err(Error::Data(format!("the table {why}; write it again"))),
                Err(other) => return Err(other),
            },
            _ => Err("its name must end in .csv, .npz or .safetensors".to_owned()),
        }
        .map_err(bad)?;
        if files.is_empty() {
            return Err(bad("it holds no rows".to_owned()));
        }
        let values = Tensor::f_from_slice(&values)?.f_view([files.len() as i64, classes.len() as i64])?;
        let wrong = values.f_isnan()?.f_logical_or(&values.f_eq(f64::INFINITY)?)?.f_any_dim(1, false)?;
        // Logits that rule all classes out have no softmax.
        let wrong = wrong.f_logical_or(&values.f_eq(f64::NEG_INFINITY)?.f_all_dim(1, false)?)?;
        let wrong = Vec::<bool>::try_from(wrong)?;
        let wrong: Vec<String> = files.iter().zip(wrong).filter(|(_, wrong)| *wrong).map(|(f, _)| f.clone()).collect();
        if !wrong.is_empty() {
            return Err(bad(format!("numbers that are not finite in {}: ask the teacher again", counted(wrong))));
        }
        let logits = outputs.logits(&values).map_err(bad)?;
        let (row_of, notes) = matched(&files, images).map_err(bad)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, logits, row_of, notes })
    }

    /// Returns the logits f32 `[N, C]` of a split, on the CPU.
    ///
    /// # Errors
    /// When an image of the split has no row.
    pub fn logits(&self, split: &Split) -> Result<CachedTensor> {
        let (mut rows, mut missing) = (Vec::with_capacity(split.len()), Vec::new());
        for i in 0..split.len() as i64 {
            let file = split.file_name(i)?;
            match self.row_of.get(file) {
                Some(row) => rows.push(*row),
                None => missing.push(file.to_owned()),
            }
        }
        if !missing.is_empty() {
            let (name, split_name, of) = (&self.name, &split.name, split.len());
            return Err(Error::Data(format!(
                "the table {name} has no row for {} of the {of} {split_name} images ({}); ask the teacher about them, \
                 or remove them",
                missing.len(),
                shortened(missing)
            )));
        }
        let logits = self.logits.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
        let key = digest_tensors(&[("logits".to_owned(), logits.shallow_clone())])?;
        CachedTensor::new(split, logits, &key)
    }
}

impl fmt::Display for LogitsTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.logits.size();
        write!(f, "{}: {} rows of {} classes, for {} images", self.name, size[0], size[1], self.row_of.len())?;
        self.notes.iter().try_for_each(|note| write!(f, "\nNote: {note}"))
    }
}

fn read_csv(path: &Path, classes: &[String]) -> Rows {
    let text = |e: csv::Error| match e.kind() {
        csv::ErrorKind::Utf8 { .. } => format!("{e}; save it as UTF-8"),
        _ => e.to_string(),
    };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(text)?;
    let header: Vec<String> = reader.headers().map_err(text)?.iter().map(str::to_owned).collect();
    if let [line] = header.as_slice()
        && let Some(mark) = line.chars().find(|c| ";\t".contains(*c))
    {
        return Err(format!("{mark:?} separates its cells; separate them by commas, and write numbers with a point"));
    }
    let named = |wanted: &str| header.iter().position(|name| name.to_lowercase() == wanted && !classes.contains(name));
    let file = FILE.iter().find_map(|name| named(name)).unwrap_or(0);
    let columns = columns(&header, file, classes)?;
    let (mut files, mut values) = (Vec::new(), Vec::new());
    for row in reader.records() {
        let row = row.map_err(text)?;
        let cell = |column: usize| row.get(column).unwrap_or_default();
        files.push(plain(cell(file)));
        for &column in &columns {
            values.push(cell(column).parse().map_err(|_| {
                let (line, name) = (row.position().map_or(0, csv::Position::line), brief(&header[column]));
                format!("line {line}, column {name:?}: {:?} is no number; ask the teacher again", brief(cell(column)))
            })?);
        }
    }
    let is_numbered = !classes.iter().any(|class| header.contains(class));
    let falls = |row: &[f32]| row.is_sorted_by(|a, b| a >= b);
    // Of a few rows, or of two classes, it may be chance.
    if is_numbered && classes.len() > 2 && files.len() >= 10 && values.chunks(classes.len()).all(falls) {
        return Err("in every row the numbers fall from column to column, so they are sorted, and nothing says whose \
                    they are: write them in the order of the classes (timm: --topk 0)"
            .to_owned());
    }
    Ok((files, values))
}

/// The column of each class.
fn columns(header: &[String], file: usize, classes: &[String]) -> std::result::Result<Vec<usize>, String> {
    let of = |class: &String| header.iter().position(|name| name == class);
    let (known, missing): (Vec<_>, Vec<_>) = classes.iter().partition(|class| of(class).is_some());
    if missing.is_empty() {
        let twice = known.into_iter().find(|class| header.iter().filter(|name| name == class).count() > 1);
        return match twice {
            Some(class) => Err(format!("two columns are named {class:?}; remove one")),
            None => Ok(classes.iter().filter_map(of).collect()),
        };
    }
    // An index that pandas writes has no name.
    let others: Vec<usize> = (0..header.len()).filter(|i| *i != file && !header[*i].is_empty()).collect();
    if known.is_empty() && others.len() == classes.len() {
        // Without a header, the first image would be lost. pandas numbers columns that have no names.
        let is_name = |(number, column): (usize, &usize)| {
            header[*column].parse::<f64>().is_err() || header[*column] == number.to_string()
        };
        if !others.iter().enumerate().all(is_name) {
            return Err("its first line must name the columns: filename, then the classes".to_owned());
        }
        let number = |column: &usize| header[*column].rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
        let numbers: Vec<usize> = others.iter().filter_map(number).collect();
        // From 0 as in Python, or from 1 as in R.
        let first = numbers.first().map_or(0, |first| (*first).min(1));
        if numbers == (first..first + others.len()).collect::<Vec<_>>() {
            return Ok(others);
        }
        let quoted =
            |names: &mut dyn Iterator<Item = &String>| shortened(names.map(|n| format!("{:?}", brief(n))).collect());
        return Err(format!(
            "nothing says whose numbers are in its columns {}: name them like the classes ({}), or number them in that \
             order, such as logit_0",
            quoted(&mut others.iter().map(|column| &header[*column])),
            quoted(&mut classes.iter())
        ));
    }
    if known.is_empty() {
        return Err(format!(
            "it has {} columns besides that of the file names, for {} classes: give one for each class, in their order \
             or named like them ({})",
            others.len(),
            classes.len(),
            shortened(classes.iter().map(|class| format!("{class:?}")).collect())
        ));
    }
    let first = shortened(missing.iter().map(|class| format!("{class:?}")).collect());
    Err(format!(
        "{} of the {} classes have no column ({first}); it has {} columns besides that of the file names: give one for \
         each class, named like it",
        missing.len(),
        classes.len(),
        others.len()
    ))
}

fn read_npz(path: &Path, classes: &[String]) -> Rows {
    let odd = || format!("its archive is not one that NumPy wrote; {ARRAYS}");
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|_| odd())?;
    let mut arrays = Vec::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(|_| odd())?;
        let name = entry.name().map_err(|_| odd())?.into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|_| odd())?;
        let array = read_npy(&bytes).map_err(|why| format!("{:?} {why}; {ARRAYS}", brief(&name)))?;
        arrays.push((name.strip_suffix(".npy").unwrap_or(&name).to_owned(), array));
    }
    rows(arrays, classes)
}

/// Reads NumPy's format of one array. tch's reader copies as many values as the header announces, even from beyond the
/// end of the data.
///
/// Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
fn read_npy(bytes: &[u8]) -> std::result::Result<Tensor, String> {
    let parts = || {
        let (version, rest) = bytes.strip_prefix(b"\x93NUMPY")?.split_at_checked(2)?;
        let (length, rest) = rest.split_at_checked(if version[0] == 1 { 2 } else { 4 })?;
        let length = length.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let (header, data) = rest.split_at_checked(length)?;
        // {'descr': '<f4', 'fortran_order': False, 'shape': (3,), }
        let header = std::str::from_utf8(header).ok()?;
        let of = |key: &str| Some(header.split_once(key)?.1.trim_start());
        let kind = of("'descr':")?.split(", 'fortran_order'").next()?.trim_matches('\'').to_owned();
        let sides = of("'shape':")?.strip_prefix('(')?.split_once(')')?.0.split(',').map(str::trim);
        let sides = sides.filter(|side| !side.is_empty()).map(|side| side.parse::<u32>().map(i64::from));
        Some((kind, sides.collect::<std::result::Result<Vec<_>, _>>().ok()?, data))
    };
    let (name, size, data) = parts().ok_or("is no array of NumPy, or damaged")?;
    let kind = TYPES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let kind = kind.ok_or_else(|| format!("is an array of type {:?}", brief(&name)))?;
    let bytes = size.iter().try_fold(kind.elt_size_in_bytes(), |bytes, side| bytes.checked_mul(*side as usize));
    if bytes != Some(data.len()) {
        return Err(format!("announces an array {size:?} and holds {} bytes", data.len()));
    }
    tensor_from_bytes(data, &size, kind)
}

/// The rows of a file that holds an array for each image.
fn rows(mut arrays: Vec<(String, Tensor)>, classes: &[String]) -> Rows {
    arrays.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut files, mut values) = (Vec::new(), Vec::new());
    for (file, array) in arrays {
        let one_row = array.size().into_iter().filter(|side| *side != 1).count() <= 1;
        if array.numel() != classes.len() || !one_row {
            let file = brief(&file);
            return Err(format!(
                "{file:?} is an array {:?}, and {} numbers are needed, one for each class; {ARRAYS}",
                array.size(),
                classes.len()
            ));
        }
        let row = array.f_to_kind(Kind::Float).and_then(|row| row.f_reshape(-1)).and_then(Vec::<f32>::try_from);
        values.extend(row.map_err(|e| Error::from(e).to_string())?);
        files.push(plain(&file));
    }
    Ok((files, values))
}

/// Finds the image that each row names, and what the user should know about the others.
fn matched(files: &[String], images: &[String]) -> std::result::Result<(HashMap<String, i64>, Vec<String>), String> {
    let mut by_ending: HashMap<&str, Vec<&String>> = HashMap::new();
    for image in images {
        endings(image).for_each(|ending| by_ending.entry(ending).or_default().push(image));
    }
    let whole = |ending: &str| by_ending.get(ending)?.iter().find(|image| image.as_str() == ending).copied();
    let (mut row_of, mut doubled, mut several, mut unknown) = (HashMap::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, file) in (0..).zip(files) {
        let found = match by_ending.get(file.as_str()).map(Vec::as_slice) {
            Some(&[image]) => Some(image),
            Some(_) if whole(file).is_some() => whole(file),
            Some(_) => {
                several.push(file.clone());
                continue;
            }
            // A path that begins above the folder of the dataset.
            None => endings(file).find_map(whole),
        };
        match found {
            None => unknown.push(file.clone()),
            Some(image) => {
                if row_of.insert(image.clone(), row).is_some() {
                    doubled.push(file.clone());
                }
            }
        }
    }
    if !several.is_empty() {
        let rows = counted(several);
        return Err(format!("several images have the name of {rows}: give the folders too, such as {:?}", images[0]));
    }
    if !doubled.is_empty() {
        return Err(format!("an image has more than one row; the second ones are {}: remove them", counted(doubled)));
    }
    if row_of.is_empty() {
        return Err(format!(
            "no image has the name of {}; the images are named like {:?}, with or without the folders",
            counted(unknown),
            images[0]
        ));
    }
    let mut without: Vec<String> = images.iter().filter(|image| !row_of.contains_key(*image)).cloned().collect();
    without.sort();
    let mut notes = Vec::new();
    if !unknown.is_empty() {
        notes.push(format!("no image has the name of {}", counted(unknown)));
    }
    if !without.is_empty() {
        notes.push(format!("{} of {} images have no row ({})", without.len(), images.len(), shortened(without)));
    }
    Ok((row_of, notes))
}

/// "3 rows (a, b, c)"
fn counted(files: Vec<String>) -> String {
    let n = files.len();
    let files = files.iter().map(|file| brief(file)).collect();
    format!("{n} row{} ({})", if n == 1 { "" } else { "s" }, shortened(files))
}

/// A text of a file for a message of one line: at most 200 characters, and none that moves the cursor.
fn brief(text: &str) -> String {
    let mut short: String = text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// `a/b/c.png`, `b/c.png` and `c.png`.
fn endings(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |rest| rest.split_once('/').map(|(_, rest)| rest))
}

/// A file's name as the dataset writes it.
fn plain(name: &str) -> String {
    let name = name.replace('\\', "/");
    name.trim_start_matches("./").to_owned()
}
