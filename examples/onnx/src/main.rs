//! Classifies the pictures of a folder with a student that `Model::save_onnx` wrote, without libtorch:
//!
//!     classify FOLDER --model STUDENT.onnx [--threshold P] [--out ANSWERS.csv]
//!
//! Where the student's largest probability is below the threshold, it abstains: the class stays empty. Without a
//! threshold, the one in the file counts. Where subfolders have the names of classes, or of ImageNet's synsets with
//! their list beside or above them, it also says how many answers are right. A second `--model` compares.
//!
//! The exit status is 0, or 1 after an error, or 3 if some pictures could not be read.

mod measure;
#[allow(dead_code)] // the rest is for training
#[path = "../../../src/data/sources/picture.rs"]
mod picture;
mod student;
#[allow(dead_code)] // the rest is for data
#[path = "../../../src/data/sources/synsets.rs"]
mod synsets;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use measure::{Answer, difference, peak_memory, percentiles};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use student::Student;

const USAGE: &str = "classify FOLDER --model STUDENT.onnx [--model OTHER.onnx] [--threshold P] [--out ANSWERS.csv]";
const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "gif"];

fn main() -> ExitCode {
    match classify() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the number of pictures that could not be read.
fn classify() -> Result<usize> {
    let (mut folder, mut models, mut threshold, mut out) = (None, Vec::new(), None, None);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("model") => models.push(PathBuf::from(arguments.value()?)),
            Long("threshold") => threshold = Some(arguments.value()?.parse::<f64>()?),
            Long("out") => out = Some(PathBuf::from(arguments.value()?)),
            Value(path) if folder.is_none() => folder = Some(PathBuf::from(path)),
            _ => bail!("{}; {USAGE}", argument.unexpected()),
        }
    }
    let folder = folder.filter(|_| !models.is_empty()).context(USAGE)?;
    let mut students = models.iter().map(|file| Student::load(file)).collect::<Result<Vec<_>>>()?;
    let classes = students[0].classes.clone();
    for student in &mut students {
        let (first, other) = (models[0].display(), student.file.display());
        ensure!(student.classes == classes, "{first} and {other} know other classes; compare students of one task");
        student.threshold = threshold.unwrap_or(student.threshold);
        ensure!((0.0..=1.0).contains(&student.threshold), "threshold {}: give 0 to 1", student.threshold);
    }

    let label_of = labels(&folder, &classes);
    let mut unreadable = Vec::new();
    let paths = pictures(&folder, &mut unreadable);
    let all = paths.len() + unreadable.len();
    ensure!(all > 0, "{} has no picture ({}); give another folder", folder.display(), ENDINGS.join(", "));
    let target: Box<dyn Write> = match &out {
        Some(path) => Box::new(std::fs::File::create(path).with_context(|| {
            format!("cannot write {}; give the path of a file in a folder that exists", path.display())
        })?),
        None => Box::new(std::io::stdout().lock()),
    };
    let mut table = csv::Writer::from_writer(target);
    let several = students.len() > 1;
    let first = several.then(|| "model".to_owned());
    table.write_record(first.iter().map(String::as_str).chain(["file", "class", "probability", "margin"]))?;
    let (mut decoding, mut known) = (Vec::new(), Vec::new());
    let mut answers: Vec<Vec<Answer>> = students.iter().map(|_| Vec::new()).collect();
    for path in paths {
        let within = path.strip_prefix(&folder).unwrap_or(&path);
        let images = match squares(&path, &students, &mut decoding) {
            Ok(images) => images,
            Err(why) => {
                unreadable.push(format!("{}: {why}", path.display()));
                continue;
            }
        };
        let top = within.components().next().map(|part| part.as_os_str());
        known.push(top.and_then(|top| label_of.get(top.to_str()?).copied()));
        for ((student, pixels), answers) in students.iter().zip(images).zip(&mut answers) {
            let begin = Instant::now();
            let probabilities = student.probabilities(&pixels)?;
            let answer = Answer::new(&probabilities, begin.elapsed());
            let class: &str = if answer.probability >= student.threshold { &classes[answer.class] } else { "" };
            let name = several.then(|| student.name());
            let [probability, margin] = [answer.probability, answer.margin].map(|number| format!("{number:.6}"));
            let row: [&str; 4] = [&within.to_string_lossy(), class, &probability, &margin];
            table.write_record(name.iter().map(String::as_str).chain(row))?;
            answers.push(answer);
        }
    }
    table.flush()?;
    for line in &unreadable {
        eprintln!("unreadable: {line}");
    }
    eprintln!("{all} pictures, {} of them unreadable", unreadable.len());
    for (student, own) in students.iter().zip(&answers) {
        describe(student, own, &known)?;
        if !std::ptr::eq(own, &answers[0]) {
            compare(&students[0].name(), &answers[0], own, &known);
        }
    }
    eprintln!("decode and resize: {} a picture", percentiles(decoding.into_iter()));
    if let Some(peak) = peak_memory() {
        eprintln!("peak memory: {peak:.0} MB");
    }
    Ok(unreadable.len())
}

/// The label of each subfolder that has the name of a class, or of its synset by a list that lies there or above.
fn labels(folder: &Path, classes: &[String]) -> HashMap<String, usize> {
    let label = |name: &str| classes.iter().position(|class| class == name);
    let mut found: HashMap<String, usize> = classes.iter().cloned().zip(0..).collect();
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let inside = std::fs::read_dir(&whole).into_iter().flatten().flatten();
    let ids: Vec<String> = inside.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    for name_of in synsets::lists(&whole) {
        let named: Vec<(&String, &String)> = ids.iter().filter_map(|id| Some((id, name_of.get(id)?))).collect();
        for (id, name) in &named {
            // A name that several of them have tells none of them.
            let alone = named.iter().filter(|(_, other)| other == name).count() == 1;
            let of_name = || label(name).filter(|_| alone);
            if let Some(label) = label(&synsets::distinct(id, name)).or_else(of_name) {
                found.entry((*id).clone()).or_insert(label);
            }
        }
    }
    found
}

/// The pictures below a folder by their names' endings, sorted; folders that cannot be listed join the unreadable.
fn pictures(folder: &Path, unreadable: &mut Vec<String>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name() {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                let end = entry.path().extension().and_then(OsStr::to_str).unwrap_or_default().to_lowercase();
                if ENDINGS.contains(&end.as_str()) {
                    found.push(entry.into_path());
                }
            }
            Ok(_) => {}
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    found
}

/// The picture in the square of each student, which is decoded as for training.
fn squares(path: &Path, students: &[Student], decoding: &mut Vec<Duration>) -> Result<Vec<Vec<u8>>, String> {
    let begin = Instant::now();
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let image = |student: &Student| picture::square(&bytes, student.size, student.crop).map(|image| image.into_raw());
    let images = students.iter().map(image).collect::<Result<Vec<_>, _>>()?;
    decoding.push(begin.elapsed() / students.len() as u32);
    Ok(images)
}

/// Prints size, time, abstentions and, where labels are known, accuracy.
fn describe(student: &Student, answers: &[Answer], labels: &[Option<usize>]) -> Result<()> {
    let megabytes = std::fs::metadata(&student.file)?.len() as f64 / 1e6;
    let time = percentiles(answers.iter().map(|answer| answer.time));
    eprintln!("{} ({megabytes:.2} MB): {time} an image", student.name());
    let sure = |answer: &Answer| answer.probability >= student.threshold;
    let (all, answered) = (answers.len(), answers.iter().filter(|answer| sure(answer)).count());
    eprintln!("  abstained from {} of {all} pictures, below probability {}", all - answered, student.threshold);
    let labelled: Vec<_> = answers.iter().zip(labels).filter_map(|(answer, label)| Some((answer, (*label)?))).collect();
    let accuracy = |among: &[&(&Answer, usize)]| {
        let right = among.iter().filter(|(answer, label)| answer.class == *label).count();
        100.0 * right as f64 / among.len().max(1) as f64
    };
    if !labelled.is_empty() {
        let [every, sure] = [0.0, student.threshold]
            .map(|least| labelled.iter().filter(|l| l.0.probability >= least).collect::<Vec<_>>());
        eprintln!(
            "  accuracy {:.2} % of the {} with a label, {:.2} % of the {} answered ({:.2} % abstained)",
            accuracy(&every),
            every.len(),
            accuracy(&sure),
            sure.len(),
            100.0 - 100.0 * sure.len() as f64 / every.len() as f64
        );
    }
    Ok(())
}

/// Prints the agreement with the first student and the difference of the accuracies.
fn compare(first: &str, theirs: &[Answer], own: &[Answer], labels: &[Option<usize>]) {
    let same = theirs.iter().zip(own).filter(|(a, b)| a.class == b.class).count();
    eprintln!("  agrees with {first} on {:.2} %", 100.0 * same as f64 / own.len().max(1) as f64);
    let pairs = theirs.iter().zip(own).zip(labels);
    let right: Vec<_> = pairs.filter_map(|((a, b), l)| l.map(|label| (a.class == label, b.class == label))).collect();
    if !right.is_empty() {
        let (points, [least, most]) = difference(&right);
        eprintln!("  accuracy {points:+.2} points from {first} (95 % interval {least:+.2} to {most:+.2})");
    }
}
