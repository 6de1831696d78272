//! The answers of any teacher, as a table: for each image file a number for each class.

use super::CachedTensor;
use crate::data::{Dataset, Split, shortened};
use crate::models::Outputs;
use crate::store::tensors::{digest_tensors, load_tensors};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::panic::catch_unwind;
use std::path::Path;
use tch::{Kind, Tensor};

/// Headers of a column that holds file names, in lower case.
const FILE: [&str; 5] = ["filename", "file", "path", "image", "name"];

/// How to write a file that holds an array for each image.
const ARRAYS: &str =
    "give an array of numbers for each image, under the name of its file: np.savez(path, **dict(zip(names, logits)))";

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
/// names none, there must be as many columns as classes, in their order. timm's `inference.py` writes such a file with
/// `--topk 0 --output-type logit --results-separate-col --fullname`.
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
    /// allowed); when a class has no column; when two rows name the same image, or a row names several.
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
            "safetensors" => rows(load_tensors(path)?.0.into_iter().collect(), classes),
            _ => Err("its name must end in .csv, .npz or .safetensors".to_owned()),
        }
        .map_err(bad)?;
        if files.is_empty() {
            return Err(bad("it holds no rows".to_owned()));
        }
        let values = Tensor::f_from_slice(&values)?.f_view([files.len() as i64, classes.len() as i64])?;
        let wrong = values.f_isnan()?.f_logical_or(&values.f_eq(f64::INFINITY)?)?.f_any_dim(1, false)?;
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
    let text = |e: csv::Error| e.to_string();
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(text)?;
    let header: Vec<String> = reader.headers().map_err(text)?.iter().map(str::to_owned).collect();
    let is_file = |name: &&String| FILE.contains(&name.to_lowercase().as_str()) && !classes.contains(name);
    let file = header.iter().position(|name| is_file(&name)).unwrap_or(0);
    let columns = columns(&header, file, classes)?;
    let (mut files, mut values) = (Vec::new(), Vec::new());
    for row in reader.records() {
        let row = row.map_err(text)?;
        let cell = |column: usize| row.get(column).unwrap_or_default();
        files.push(plain(cell(file)));
        for &column in &columns {
            values.push(cell(column).parse().map_err(|_| {
                let (line, name) = (row.position().map_or(0, csv::Position::line), &header[column]);
                format!("line {line}, column {name:?}: {:?} is no number; ask the teacher again", cell(column))
            })?);
        }
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
        return match others.iter().enumerate().all(is_name) {
            true => Ok(others),
            false => Err("its first line must name the columns: filename, then the classes".to_owned()),
        };
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
    // tch panics at an entry that is encrypted, or compressed in a way that NumPy does not write.
    match catch_unwind(|| Tensor::read_npz(path)) {
        Ok(Ok(arrays)) => rows(arrays, classes),
        Ok(Err(e)) => Err(format!("{}; {ARRAYS}", e.to_string().lines().next().unwrap_or_default())),
        Err(_) => Err(format!("its archive is not one that NumPy wrote; {ARRAYS}")),
    }
}

/// The rows of a file that holds an array for each image.
fn rows(mut arrays: Vec<(String, Tensor)>, classes: &[String]) -> Rows {
    arrays.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut files, mut values) = (Vec::new(), Vec::new());
    for (file, array) in arrays {
        if array.numel() != classes.len() {
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
    format!("{n} row{} ({})", if n == 1 { "" } else { "s" }, shortened(files))
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
