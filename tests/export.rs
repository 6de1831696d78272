//! A student leaves the course: what is saved, and the two programs that use it, in Python and in Rust.

#[allow(dead_code)] // others read its weights
mod oracle;

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

/// Bytes `[1, H, W, 3]` of a picture.
fn bytes(image: DynamicImage) -> Tensor {
    let rgb = image.into_rgb8();
    Tensor::from_slice(rgb.as_raw()).view([1, rgb.height() as i64, rgb.width() as i64, 3])
}

/// onnxruntime and PyTorch compute from the files what the crate computes: for images as they are stored, several at
/// once, and for pictures of other sizes, which the graph has to squeeze as `read_image` does.
#[test]
fn saved_networks_say_what_the_crate_says() {
    let folder = tempfile::tempdir().unwrap();
    // The student sees images as they are stored, smaller and larger; the odd side pads unevenly.
    let nets: [(&str, i64, i64, Model); 7] = [
        ("student-as-stored", 32, 32, normalised("student", &|vs| student(vs, 3))),
        ("student-smaller", 48, 32, normalised("student", &|vs| student(vs, 3))),
        ("student-cropped", 48, 32, normalised("student", &|vs| student(vs, 3))),
        ("student-larger", 24, 32, normalised("student", &|vs| student(vs, 3))),
        ("student-64", 64, 64, normalised("student", &|vs| Student::Small.layers(vs, 3, 64))),
        ("resnet18", 64, 64, normalised("resnet18", &|vs| Arch::ResNet18.layers(vs, Some(3)))),
        ("lite0", 64, 97, normalised("lite0", &|vs| Arch::EfficientNetLite0.layers(vs, Some(3)))),
    ];
    let (mut inputs, mut expected) = (Vec::new(), Vec::new());
    for (name, stored_size, size, model) in &nets {
        let (mean, std) = Arch::EfficientNetLite0.normalisation();
        let card = ModelCard {
            classes: CLASSES.map(str::to_owned).into(),
            stored_size: *stored_size,
            framing: if *name == "student-cropped" { Framing::CentreCrop } else { Framing::Squeeze },
            transform: Transform { size: *size, mean, std },
            threshold: 0.5,
        };
        model.save_onnx(folder.path().join(format!("{name}.onnx")), &card).unwrap();
        model.save_torchscript(folder.path().join(format!("{name}.pt")), &card).unwrap();
        assert!(model.trainable().len() > 3, "recording a pass froze the network");
        let square = |k| pattern(k, *stored_size as u32, *stored_size as u32);
        let stored = Tensor::cat(&[0, 1, 2].map(|k| bytes(square(k))), 0);
        let resized = ["student-smaller", "student-cropped"].contains(name);
        let sizes: &[(u32, u32)] = if resized { &[(31, 150), (640, 480), (20, 11)] } else { &[] };
        let others = sizes.iter().map(|&(width, height)| pattern(width, width, height)).map(|picture| {
            let file = folder.path().join("picture.png");
            picture.save(&file).unwrap();
            (bytes(picture), read_image(&file, *stored_size, card.framing).unwrap().unsqueeze(0))
        });
        for (images, pixels) in [(stored.shallow_clone(), stored.permute([0, 3, 1, 2]))].into_iter().chain(others) {
            let x = card.transform.apply(&pixels, Device::Cpu).unwrap();
            let logits = tch::no_grad(|| model.forward(&x, false)).unwrap();
            expected.push((format!("{name}/{}", inputs.len()), card.clone(), logits));
            inputs.push(images);
        }
    }
    let named: Vec<(&str, &Tensor)> = expected.iter().map(|(name, ..)| name.as_str()).zip(&inputs).collect();
    let answer = oracle::ask_in(folder, "exported", &named, serde_json::json!({}));
    let cards = fs::read(answer.folder.path().join("cards.json")).unwrap();
    let cards: serde_json::Value = serde_json::from_slice(&cards).unwrap();
    for (name, card, logits) in expected {
        let spread = (logits.max() - logits.min()).double_value(&[]);
        assert!(spread > 1e-3, "{name}: logits that are all the same prove nothing: {spread}");
        for (output, wanted) in
            [("logits", &logits), ("script", &logits), ("probabilities", &logits.softmax(1, Kind::Float))]
        {
            let gap = oracle::relative(answer.get(&format!("{name} {output}")), wanted);
            println!("{name} {output}: {gap:e}");
            assert!(gap < 1e-4, "{name}: {output} differ by {gap:e}");
        }
        for kind in ["onnx", "torchscript"] {
            let found = cards[name.split('/').next().unwrap()][kind].clone();
            assert_eq!(serde_json::from_value::<ModelCard>(found).unwrap(), card, "{name}, {kind}");
        }
    }
}

/// The error names the layer and what to write instead, and leaves no file.
#[test]
fn what_cannot_be_exported_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    let refused = |build: &dyn Fn(&nn::Path) -> Layers| {
        let text = Model::new("net", Device::Cpu, 0, build).unwrap().save_onnx(&path, &card()).unwrap_err().to_string();
        assert!(!path.exists() && !text.contains('\n'), "{text}");
        text
    };
    let end = |vs: &nn::Path, layers: Layers, classes| {
        layers.add("mean", Op::GlobalAvgPool).add("fc", nn::linear(vs / "fc", 3, classes, Default::default()))
    };
    let text = refused(&|vs| end(vs, Layers::new().func("bright", |x| x * 2.0), 3));
    assert!(text.contains("`bright`") && text.contains("Op::ReLU"), "{text}");
    let text = refused(&|vs| {
        let body = Layers::new().add("conv", nn::conv2d(vs / "conv", 3, 3, 1, Default::default()));
        end(vs, Layers::new().add("block", Op::Residual { body, shortcut: None }), 3)
    });
    assert!(text.contains("`block.conv`") && text.contains("Op::conv"), "{text}");
    let text = refused(&|vs| {
        let padding_mode = nn::PaddingMode::Reflect;
        let config = nn::ConvConfig { padding: 1, padding_mode, ..Default::default() };
        end(vs, Layers::new().add("conv", Op::conv(vs / "conv", 3, 3, 3, config)), 3)
    });
    assert!(text.contains("`conv`") && text.contains("zeros"), "{text}");
    let text = refused(&|vs| end(vs, Layers::new(), 4));
    assert!(text.contains("[4]") && text.contains("3 classes"), "{text}");

    let says = |model: &Model, card: &ModelCard| {
        let [onnx, script] = [model.save_onnx(&path, card), model.save_torchscript(&path, card)];
        [onnx, script].map(|saved| saved.unwrap_err().to_string())
    };
    for text in says(&opinionated(), &ModelCard { stored_size: 0, ..card() }) {
        assert!(text.contains("stored_size is 0") && text.contains("at least 1 pixel"), "{text}");
    }
    for text in says(&opinionated(), &ModelCard { transform: Transform::imagenet(3), ..card() }) {
        assert!(text.contains("images of 3x3 pixels are too small") && text.contains("give images of 4x4"), "{text}");
    }
    let exact = opinionated();
    exact.state().iter_mut().for_each(|(_, variable)| variable.set_data(&variable.to_kind(Kind::Double)));
    let [onnx, script] = says(&exact, &card());
    assert!(onnx.contains("weights of kind Double, and an ONNX file holds Float"), "{onnx}");
    assert!(script.contains("its values are Float and the weights Double; convert one"), "{script}");

    let pixels = |side| {
        let place = folder.path().join(format!("data{side}"));
        pictures(&place);
        image_folder(&place, side, &DataOptions::default()).unwrap().train
    };
    let int8 = |model: Model, side| model.save_onnx_int8(&path, &card(), &pixels(side)).unwrap_err().to_string();
    let closure = |vs: &nn::Path| end(vs, Layers::new().func("bright", |x| x * 2.0), 3);
    let text = int8(Model::new("net", Device::Cpu, 0, &closure).unwrap(), STORED);
    assert!(text.contains("`bright`") && text.contains("Op::ReLU"), "{text}");
    let text = int8(opinionated(), 24);
    assert!(text.contains("24x24") && text.contains("stored_size is 48"), "{text}");
    let broken = opinionated();
    let _ = tch::no_grad(|| broken.state()[0].1.shallow_clone().fill_(f64::NAN));
    let text = int8(broken, STORED);
    assert!(text.contains("conv1") && text.contains("not finite"), "{text}");
    // A split without images, which nothing can be calibrated on, cannot be made.
    assert!(pixels(STORED).take(0).err().unwrap().to_string().contains("take 1 to 3"));
    assert!(!path.exists());

    let model = opinionated();
    for target in [folder.path().to_owned(), Path::new("/proc/net.onnx").to_owned()] {
        for saved in [model.save_onnx(&target, &card()), model.save_onnx_int8(&target, &card(), &pixels(STORED))] {
            let text = saved.unwrap_err().to_string();
            assert!(text.contains(target.to_str().unwrap()) && !text.contains('\n'), "{text}");
        }
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for target in [folder.path().to_owned(), file.join("net.pt")] {
        let text = model.save_torchscript(target, &card()).unwrap_err().to_string();
        assert!(text.contains("give the path of a file in a folder"), "{text}");
    }
}

/// The bytes of a student's file whose card says that pictures have no pixels, as other programs may write it.
fn without_pixels(student: &Path) -> Vec<u8> {
    let (mut bytes, entry) = (fs::read(student).unwrap(), b"stored_size\x12\x0248");
    let at = bytes.windows(entry.len()).position(|part| part == entry).unwrap();
    bytes[at + entry.len() - 2..at + entry.len()].copy_from_slice(b" 0");
    bytes
}

/// What `cargo lab classify` prints: its exit status, the rows of its table, and the rest.
fn classified(arguments: &[&OsStr]) -> (i32, Vec<Vec<String>>, String) {
    let mut command = Command::new("cargo");
    // Without optimisation tract compiles in two minutes instead of many.
    command.args(["lab", "classify"]).args(arguments).env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").current_dir(ROOT);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| line.split(',').map(str::to_owned).collect();
    (output.status.code().unwrap(), text.lines().map(row).collect(), String::from_utf8(output.stderr).unwrap())
}

/// The program without libtorch, with tract: each picture's class, probability and margin are the crate's.
#[test]
fn the_program_without_libtorch_says_what_the_crate_says() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let files = pictures(&images);
    let lite0 = normalised("lite0", &|vs| Arch::EfficientNetLite0.layers(vs, Some(3)));
    let resnet18 = normalised("resnet18", &|vs| Arch::ResNet18.layers(vs, Some(3)));
    let nets: [(&str, Framing, Transform, Model); 3] = [
        ("student.onnx", Framing::Squeeze, card().transform, opinionated()),
        ("lite0.onnx", Framing::CentreCrop, Transform::imagenet(65), lite0),
        ("resnet18.onnx", Framing::Squeeze, Transform::imagenet(64), resnet18),
    ];
    let mut rows_of = Vec::new();
    for (name, framing, transform, model) in &nets {
        let path = folder.path().join(name);
        let data = image_folder(&images, STORED, &DataOptions { framing: *framing, ..DataOptions::default() }).unwrap();
        let card = ModelCard { framing: *framing, transform: transform.clone(), ..card() };
        model.save_onnx(&path, &card).unwrap();
        rows_of.push((*name, path, expected(&data, model, transform)));
    }
    let best = |row: &[f64]| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        (order[0], row[order[0]], row[order[0]] - row[order[1]])
    };
    let broken = images.join("test/torn.png");
    fs::write(&broken, "no picture").unwrap();
    for (name, path, expected) in &rows_of {
        let (status, rows, told) = classified(&[images.as_ref(), "--model".as_ref(), path.as_ref()]);
        assert_eq!(status, 3, "{told}");
        assert!(
            told.contains("torn.png: not a whole PNG or JPEG") && told.contains("10 pictures, 1 of them"),
            "{told}"
        );
        assert!(told.contains("p50") && told.contains("p95") && told.contains("peak memory"), "{told}");
        assert_eq!(rows[0], ["file", "class", "probability", "margin"]);
        assert_eq!(rows.len(), 1 + files.len());
        let mut largest: f64 = 0.0;
        for row in &rows[1..] {
            let at = files.iter().position(|file| file.strip_prefix(&images).unwrap() == Path::new(&row[0])).unwrap();
            let (class, probability, margin) = best(&expected[at]);
            for (text, wanted) in [(&row[2], probability), (&row[3], margin)] {
                largest = largest.max((text.parse::<f64>().unwrap() - wanted).abs());
            }
            assert_eq!(row[1], if probability < card().threshold { "" } else { CLASSES[class] }, "{name}: {row:?}");
        }
        println!("{name}: largest difference {largest:e}");
        assert!(largest < 1e-5, "{name}: probabilities differ by {largest:e}");
    }

    // Where subfolders have the names of classes, answers can be right. A second student is compared with the first.
    fs::remove_file(broken).unwrap();
    let (_, ours, expected) = &rows_of[0];
    let other = folder.path().join("other.onnx");
    normalised("other", &|vs| student(vs, 3)).save_onnx(&other, &card()).unwrap();
    let (labelled, out) = (images.join("train"), folder.path().join("answers.csv"));
    let mut arguments = vec![labelled.as_os_str(), "--model".as_ref(), ours.as_ref(), "--out".as_ref(), out.as_ref()];
    let (status, rows, told) = classified(&arguments);
    assert_eq!((status, rows.len()), (0, 0), "{told}");
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 4);
    let right = (0..3).filter(|&label| best(&expected[label]).0 == label).count();
    let accuracy = format!("accuracy {:.2} % of the 3 with a label", 100.0 * right as f64 / 3.0);
    assert!(told.contains(&accuracy), "{accuracy}: {told}");
    arguments.truncate(3);
    arguments.extend::<[&OsStr; 4]>(["--model".as_ref(), other.as_ref(), "--threshold".as_ref(), "1".as_ref()]);
    let (status, rows, told) = classified(&arguments);
    assert_eq!((status, rows.len()), (0, 7), "{told}");
    assert_eq!(rows[0][0], "model");
    assert!(rows[1..].iter().all(|row| row[2].is_empty()), "nobody is as sure as 1: {rows:?}");
    assert!(told.contains("abstained from 3 of 3"), "{told}");
    assert!(told.contains("agrees with student.onnx on") && told.contains("95 % interval"), "{told}");

    let [empty, torn, pointless] = ["empty", "torn.onnx", "pointless.onnx"].map(|name| folder.path().join(name));
    fs::create_dir(&empty).unwrap();
    fs::write(&torn, "no network").unwrap();
    fs::write(&pointless, without_pixels(ours)).unwrap();
    let model = OsStr::new("--model");
    for (arguments, wanted) in [
        (vec![labelled.as_os_str(), model, pointless.as_ref()], "0 pixels a side (stored_size)"),
        (vec![empty.as_os_str(), model, ours.as_ref()], "has no picture"),
        (vec![torn.as_os_str(), model, ours.as_ref()], "is no folder"),
        (vec![labelled.as_os_str(), model, torn.as_ref()], "is no ONNX file"),
        (vec![labelled.as_os_str(), model, empty.as_ref()], "there is no file"),
        (vec![labelled.as_os_str(), model, ours.as_ref(), "--threshold".as_ref(), "2".as_ref()], "give 0 to 1"),
        (vec![labelled.as_os_str(), model, ours.as_ref(), "--out".as_ref(), empty.as_ref()], "the path of a file"),
    ] {
        let (status, rows, told) = classified(&arguments);
        assert_eq!((status, rows.len(), told.lines().count()), (1, 0, 1), "{wanted}: {told}");
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
}

/// In integers the files are a quarter as large, onnxruntime computes them with its integer layers, and a trained
/// student hardly changes its mind.
#[test]
fn int8_files_say_nearly_what_the_network_says() {
    let folder = tempfile::tempdir().unwrap();
    let options = DataOptions {
        train_images: Some(2560),
        validation_images: Some(100),
        test_images: Some(500),
        ..DataOptions::default()
    };
    let data = open(&options).unwrap();
    let (mean, std) = Arch::EfficientNetLite0.normalisation();
    let card = |size| ModelCard {
        classes: data.classes.clone(),
        stored_size: data.train.size().0,
        framing: Framing::Squeeze,
        transform: Transform { size, mean, std },
        threshold: 0.0,
    };
    let mut trained = Model::new("student", Device::Cpu, 1, &|vs| student(vs, 10)).unwrap();
    let of = |split| Examples::images(split, &card(16).transform).unwrap();
    let (train, validation, test) = (of(&data.train), of(&data.validation), of(&data.test));
    let precision = Precision::of(Device::Cpu, 16);
    let options = FitOptions { epochs: 5, learning_rate: 2e-3, precision, ..FitOptions::default() };
    fit(&mut trained, &train, &validation, &Criterion::cross_entropy(), &options).unwrap();
    let accuracy = evaluate(&trained, &test, 100).unwrap().accuracy();
    println!("accuracy of the student: {accuracy:.3}");
    assert!(accuracy > 0.2, "a student that has learned nothing proves nothing: {accuracy}");

    let nets = [
        ("student", 16, trained),
        ("resnet18", 32, normalised("resnet18", &|vs| Arch::ResNet18.layers(vs, Some(10)))),
        ("lite0", 33, normalised("lite0", &|vs| Arch::EfficientNetLite0.layers(vs, Some(10)))),
    ];
    let all: Vec<i64> = (0..data.test.len() as i64).collect();
    let images = data.test.batch(&all).unwrap().images.permute([0, 2, 3, 1]).contiguous();
    let mut named = Vec::new();
    for (name, size, model) in &nets {
        let file = |end: &str| folder.path().join(format!("{name}-{end}.onnx"));
        model.save_onnx(file("f32"), &card(*size)).unwrap();
        model.save_onnx_int8(file("int8"), &card(*size), &data.train).unwrap();
        let bytes = |end| fs::metadata(file(end)).unwrap().len() as f64;
        let share = bytes("int8") / bytes("f32");
        println!("{name}: {share:.3} of the bytes");
        assert!(share < 0.35, "{name} in integers has {share} of the bytes");
        named.push((*name, if *name == "student" { images.shallow_clone() } else { images.narrow(0, 0, 50) }));
    }
    let named: Vec<(&str, &Tensor)> = named.iter().map(|(name, images)| (*name, images)).collect();
    let answer = oracle::ask_in(folder, "quantised", &named, serde_json::json!({}));
    for (name, ..) in &nets {
        let [exact, rounded] = ["f32", "int8"].map(|end| answer.get(&format!("{name} {end}")));
        let same = exact.argmax(1, false).eq_tensor(&rounded.argmax(1, false)).to_kind(Kind::Double).mean(Kind::Double);
        let (agreement, mean) = (same.double_value(&[]), |t: Tensor| t.abs().mean(Kind::Double).double_value(&[]));
        let gap = mean(rounded - exact) / mean(exact.shallow_clone());
        println!("{name}: agreement {agreement:.3}, mean difference of the logits {gap:.3} of the mean logit");
        assert!(gap < 0.1, "{name}: the logits differ by {gap}");
        assert!(agreement >= 0.97 || *name != "student", "{name} agrees on {agreement}");
    }
}

/// The page in Chromium: the student's and the teacher's probabilities for 50 images, a file, the camera, the keyboard
/// (tests/oracle/page.py names what it looks at).
#[test]
fn the_page_says_what_the_crate_says() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    for i in 0..150u32 {
        let path = images.join("test").join(CLASSES[i as usize % 3]).join(format!("{i}.png"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        pattern(i, 20 + i % 40, 20 + i % 30).save(path).unwrap();
    }
    for part in ["train", "val"] {
        CLASSES.iter().for_each(|class| {
            let path = images.join(part).join(class);
            fs::create_dir_all(&path).unwrap();
            pattern(part.len() as u32, 9, 9).save(path.join(format!("{part} {class}.png"))).unwrap();
        });
    }
    let data = image_folder(&images, STORED, &DataOptions::default()).unwrap();
    let (model, student) = (opinionated(), folder.path().join("student.onnx"));
    model.save_onnx(&student, &card()).unwrap();
    let split = data.test.take(50).unwrap();
    let logits = predict(&model, &Examples::images(&split, &card().transform).unwrap(), 50).unwrap();
    let teacher = CachedTensor::new(&split, &logits * 2.0, "a surer student").unwrap();
    let pictures = folder.path().join("examples.json");
    save_examples(&pictures, &split, &data.classes, &teacher, 50).unwrap();

    let page = |model: &Path, out: &Path, pictures: &Path| {
        let mut command = Command::new("cargo");
        command.args(["lab", "page"]).arg(model).arg("--out").arg(out).arg("--examples").arg(pictures);
        let output = command.current_dir(ROOT).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let out = folder.path().join("page");
    for _again in 0..2 {
        let (done, told) = page(&student, &out, &pictures);
        assert!(done, "{told}");
    }
    let (broken, pointless) = (folder.path().join("broken.json"), folder.path().join("pointless.onnx"));
    fs::write(&broken, "{}").unwrap();
    fs::write(&pointless, without_pixels(&student)).unwrap();
    for (model, out, pictures, wanted) in [
        (&pointless, &out, &pictures, "0 pixels a side (stored_size)"),
        (&broken, &out, &pictures, "is no student as ONNX"),
        (&folder.path().join("absent"), &out, &pictures, "there is no file"),
        (&student, &images, &pictures, "something else than a page"),
        (&student, &student, &pictures, "something else than a page"),
        (&student, &out, &broken, "save_examples"),
    ] {
        let (done, told) = page(model, out, pictures);
        assert!(!done && told.contains(wanted) && told.lines().count() == 1, "{wanted}: {told}");
    }

    let wide = folder.path().join("wide.png");
    pattern(3, 300, 100).save(&wide).unwrap();
    let output = oracle::python("tests/oracle/page.py").arg(&out).arg(&wide).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("median time of an image: {} ms", found["milliseconds"]);
    let rows = |field: &str| serde_json::from_value::<Vec<Vec<f64>>>(found[field].clone()).unwrap();
    let softmax = |logits: &Tensor| Vec::<Vec<f64>>::try_from(logits.softmax(1, Kind::Double)).unwrap();
    let x = card()
        .transform
        .apply(&read_image(&wide, STORED, Framing::Squeeze).unwrap().unsqueeze(0), Device::Cpu)
        .unwrap();
    let file = softmax(&tch::no_grad(|| model.forward(&x, false)).unwrap());
    for (what, expected, images) in
        [("student", softmax(&logits), 50), ("teacher", softmax(&teacher.tensor), 50), ("file", file, 1)]
    {
        let rows = rows(what);
        assert_eq!((rows.len(), expected.len()), (images, images));
        for (row, wanted) in rows.iter().zip(&expected) {
            let gap = row.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(gap < 1e-3, "{what}: {row:?} instead of {wanted:?}");
        }
    }
}
