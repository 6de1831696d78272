//! A student leaves the course: what is saved, and the two programs that use it, in Python and in Rust.

#[allow(dead_code)] // others read its weights
#[path = "../oracle/mod.rs"]
mod oracle;

mod networks;
mod without_libtorch;

use image::{DynamicImage, Rgb, RgbImage, Rgba, RgbaImage};
use kdlab::data::{DataOptions, Dataset, Framing, Transform, image_folder, open, read_image};
use kdlab::models::{Arch, Layers, Model, ModelCard, Op, Precision, Student, student};
use kdlab::show::save_examples;
use kdlab::train::{CachedTensor, Criterion, Examples, FitOptions, evaluate, fit, predict};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Device, Kind, Tensor, nn};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CLASSES: [&str; 3] = ["brook", "forêt", "sea shore"];
const PARTS: [&str; 3] = ["train", "val", "test"];
const STORED: i64 = 48;

/// A smooth coloured pattern with an edge in it, another one for each `k`.
fn pattern(k: u32, width: u32, height: u32) -> DynamicImage {
    let wave = |x: u32, y: u32, c: u32| {
        let phase = (k as f32 + 1.0) * (x as f32 / width as f32 + 0.3 * c as f32) + k as f32 * y as f32 / height as f32;
        let edge = if x > y { 40.0 } else { 0.0 };
        (107.0 + 100.0 * (3.0 * phase).sin() + edge) as u8
    };
    RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| wave(x, y, c)))).into()
}

/// One picture for each class and split, so that split and label name a file: of all the kinds that people have.
fn pictures(folder: &Path) -> Vec<PathBuf> {
    let transparent = |image: DynamicImage| {
        let rgb = image.into_rgb8();
        let alpha = |x, y| if (x / 7 + y / 5) % 2 == 0 { 255 } else { 0 };
        let pixel = |x, y| Rgba([rgb[(x, y)][0], rgb[(x, y)][1], rgb[(x, y)][2], alpha(x, y)]);
        RgbaImage::from_fn(rgb.width(), rgb.height(), pixel).into()
    };
    let kinds: [(&str, DynamicImage); 9] = [
        ("small.png", pattern(0, 24, 24)),
        ("wide.png", pattern(1, 48, 12)),
        ("right.png", pattern(2, STORED as u32, STORED as u32)),
        ("grey.png", pattern(3, 24, 48).into_luma8().into()),
        ("transparent.png", transparent(pattern(4, 48, 24))),
        ("photograph.jpg", pattern(5, 128, 96)),
        ("tall.png", pattern(6, 31, 150)),
        ("large.png", pattern(7, 640, 480)),
        ("halves.png", pattern(8, 32, 32)),
    ];
    let place = |(i, (name, image)): (usize, (&str, DynamicImage))| {
        let path = folder.join(PARTS[i / 3]).join(CLASSES[i % 3]).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(&path).unwrap();
        path
    };
    kinds.into_iter().enumerate().map(place).collect()
}

/// A student that is sure enough of its classes for a wrong pixel to show.
fn opinionated() -> Model {
    let model = Model::new("student", Device::Cpu, 3, &|vs| student(vs, CLASSES.len() as i64)).unwrap();
    tch::no_grad(|| {
        for (_, mut weights) in model.state().into_iter().filter(|(name, _)| name.ends_with("weight")) {
            let _ = weights.g_mul_scalar_(2.5);
        }
    });
    model
}

fn card() -> ModelCard {
    let classes = CLASSES.map(str::to_owned).into();
    let (framing, transform) = (Framing::Squeeze, Transform::imagenet(32));
    ModelCard { classes, stored_size: STORED, framing, transform, threshold: 0.5 }
}

/// Probabilities `[3]` of every file, in the order of [`pictures`], by the crate's own loop over the data set.
fn expected(data: &Dataset, model: &Model, transform: &Transform) -> Vec<Vec<f64>> {
    assert_eq!(data.classes, CLASSES);
    let mut rows = Vec::new();
    for split in [&data.train, &data.validation, &data.test] {
        let examples = Examples::images(split, transform).unwrap();
        let probabilities = predict(model, &examples, 2).unwrap().softmax(1, Kind::Double);
        let by_label = probabilities.index_select(0, &split.labels().unwrap().argsort(0, false));
        rows.extend(Vec::<Vec<f64>>::try_from(by_label).unwrap());
    }
    rows
}

/// What a program printed: `file TAB class TAB probability`, as rows of probabilities.
fn said(program: &mut Command, student: &Path, files: &[PathBuf]) -> Vec<Vec<f64>> {
    let output = program.arg(student).args(files).output().unwrap();
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let mut rows = Vec::new();
    for file in files {
        let row = CLASSES.map(|class| {
            let (head, number) = lines.next().unwrap().rsplit_once('\t').unwrap();
            assert_eq!(head, format!("{}\t{class}", file.display()));
            number.parse().unwrap()
        });
        rows.push(row.to_vec());
    }
    assert_eq!(lines.next(), None);
    rows
}

/// `cargo test` builds it beside the tests.
fn example() -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/classify");
    assert!(path.exists(), "{} is missing: run `cargo build --example classify`", path.display());
    Command::new(path)
}

#[test]
fn both_programs_say_what_the_crate_says() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let files = pictures(&images);
    for framing in [Framing::Squeeze, Framing::CentreCrop] {
        let data = image_folder(&images, STORED, &DataOptions { framing, ..DataOptions::default() }).unwrap();
        let (model, saved) = (opinionated(), folder.path().join("student.safetensors"));
        let onnx = folder.path().join("student.onnx");
        let card = ModelCard { framing: data.framing, ..card() };
        model.save_with(&saved, &card).unwrap();
        model.save_onnx(&onnx, &card).unwrap();
        let expected = expected(&data, &model, &card.transform);
        let first: Vec<f64> = expected.iter().map(|row| row[0]).collect();
        let spread = first.iter().copied().fold(f64::MIN, f64::max) - first.iter().copied().fold(f64::MAX, f64::min);
        assert!(spread > 0.1, "a student that says the same of all images proves nothing: {first:?}");

        let rust = said(&mut example(), &saved, &files);
        let python = said(&mut oracle::python("examples/classify.py"), &onnx, &files);
        for (who, rows) in [("Rust", rust), ("Python", python)] {
            for ((file, row), wanted) in files.iter().zip(rows).zip(&expected) {
                let gap = row.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                // Six printed digits; in Python the sums are onnxruntime's. But JPEG leaves its decoders free to differ
                // by a grey level here and there, and what falls half-way between two levels, as many values from 32
                // to 48 px do, is rounded either way.
                let free = ["halves.png", "photograph.jpg"].iter().any(|name| file.ends_with(name));
                let tolerance = match who {
                    "Python" if free => 2e-3,
                    "Python" => 1e-4,
                    _ => 1e-5,
                };
                assert!(gap < tolerance, "{who}, {}: {row:?} instead of {wanted:?}", file.display());
            }
        }
    }
}

#[test]
fn the_notebook_shows_these_programs() {
    let text = fs::read_to_string(Path::new(ROOT).join("notebooks/14_bring_your_own.ipynb")).unwrap();
    let notebook: serde_json::Value = serde_json::from_str(&text).unwrap();
    let source = |cell: &serde_json::Value| -> String {
        cell["source"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect()
    };
    let cells: Vec<String> = notebook["cells"].as_array().unwrap().iter().map(source).collect();
    for (language, file) in [("python", "classify.py"), ("rust", "classify.rs")] {
        let program = fs::read_to_string(Path::new(ROOT).join("examples").join(file)).unwrap();
        let shown = format!("```{language}\n{program}```");
        assert!(cells.iter().any(|cell| cell.contains(&shown)), "notebook 14 shows another {file}");
    }
}

#[test]
fn a_card_comes_back_and_its_absence_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("student.safetensors");
    let model = opinionated();
    model.save_with(&path, &card()).unwrap();
    assert_eq!(ModelCard::read(&path).unwrap(), card());
    let mut other = Model::new("other", Device::Cpu, 9, &|vs| student(vs, 3)).unwrap();
    assert!(other.load(&path).unwrap().unexpected.is_empty());
    assert!(model.state().iter().zip(other.state()).all(|((_, a), (_, b))| a.equal(&b)));

    model.save(&path).unwrap();
    let text = ModelCard::read(&path).unwrap_err().to_string();
    assert!(text.contains("student.safetensors holds no card") && text.contains("save_with"), "{text}");
    fs::write(&path, "PK").unwrap();
    assert!(ModelCard::read(&path).unwrap_err().to_string().contains("save_with"));
    assert!(ModelCard::read(folder.path().join("absent")).unwrap_err().to_string().contains("absent"));
}

#[test]
fn an_image_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.png");
    pattern(0, 6, 4).save(&path).unwrap();
    let image: Tensor = read_image(&path, 5, Framing::Squeeze).unwrap();
    assert_eq!((image.size(), image.kind()), (vec![3, 5, 5], Kind::Uint8));
    fs::write(&path, "no picture").unwrap();
    let text = read_image(&path, 5, Framing::Squeeze).unwrap_err().to_string();
    assert!(text.contains("photo.png") && text.contains("not a whole PNG or JPEG"), "{text}");
    assert!(
        read_image(folder.path().join("absent.png"), 5, Framing::CentreCrop)
            .unwrap_err()
            .to_string()
            .contains("absent.png")
    );
    for size in [0, -3, 5000] {
        assert!(read_image(&path, size, Framing::Squeeze).unwrap_err().to_string().contains("image size"));
    }
}

/// A network whose normalisations do something, as after training.
fn normalised(name: &str, build: &dyn Fn(&nn::Path) -> Layers) -> Model {
    let model = Model::new(name, Device::Cpu, 5, build).unwrap();
    tch::manual_seed(5);
    tch::no_grad(|| {
        for (name, mut variable) in model.state() {
            let drawn = variable.rand_like();
            match name.rsplit('.').next() {
                Some("running_mean") => variable.copy_(&(drawn - 0.5)),
                Some("running_var") => variable.copy_(&(drawn + 0.5)),
                _ => {}
            }
        }
    });
    model
}
