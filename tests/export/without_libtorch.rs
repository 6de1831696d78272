//! `cargo lab classify` and the page, which need no libtorch.

use super::*;

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
    // Folders of synsets, with their list above them.
    let synsets = folder.path().join("imagenet/val");
    for (i, class) in CLASSES.iter().enumerate() {
        fs::create_dir_all(synsets.join(format!("n0000000{i}"))).unwrap();
        for file in fs::read_dir(labelled.join(class)).unwrap().flatten() {
            fs::copy(file.path(), synsets.join(format!("n0000000{i}")).join(file.file_name())).unwrap();
        }
    }
    let lines = CLASSES.iter().enumerate().map(|(i, class)| format!("n0000000{i} {class}, its other name\n"));
    fs::write(folder.path().join("imagenet/synset_words.txt"), lines.collect::<String>()).unwrap();
    let (status, _, told) = classified(&[synsets.as_os_str(), "--model".as_ref(), ours.as_ref()]);
    assert!(status == 0 && told.contains(&accuracy), "{accuracy}: {told}");
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
