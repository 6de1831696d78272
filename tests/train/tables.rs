//! Tables of a teacher's answers, by the names of image files.

use super::*;
use kdlab::data::image_folder;
use kdlab::models::Outputs;
use std::io::Write;

/// Two classes of 20 images each, all of different brightness, some of which share a file name.
fn pictures(folder: &Path) -> Dataset {
    for (class, first) in [("cat", 0u8), ("dog", 100)] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        for i in 0..20 {
            let name = if i == 0 { "same.png".to_owned() } else { format!("{class}{i:02}.png") };
            let grey = image::Rgb([first + 2 * i; 3]);
            image::RgbImage::from_pixel(4, 4, grey).save(folder.join(class).join(name)).unwrap();
        }
    }
    image_folder(folder, 4, &DataOptions::default()).unwrap()
}

/// The path of each image in the folder, and a logit that tells it apart.
fn answers(data: &Dataset) -> Vec<(String, f32)> {
    let of = |split: &kdlab::data::Split| {
        let one = |i| (split.file_name(i).unwrap().to_owned(), brightness(split, i));
        (0..split.len() as i64).map(one).collect::<Vec<_>>()
    };
    [&data.train, &data.validation, &data.test].map(of).concat()
}

fn brightness(split: &kdlab::data::Split, i: i64) -> f32 {
    split.image(i).unwrap().double_value(&[0, 0, 0]) as f32
}

/// Checks that each image of each split has its own row: its brightness for the cat, minus that for the dog.
fn check(table: &LogitsTable, data: &Dataset) {
    for split in [&data.train, &data.validation, &data.test] {
        let logits = table.logits(split).unwrap().tensor;
        assert_eq!(logits.size(), [split.len() as i64, 2]);
        for i in 0..split.len() as i64 {
            let expected = brightness(split, i) as f64;
            assert_eq!([0, 1].map(|c| logits.double_value(&[i, c])), [expected, -expected], "{:?}", split.file_name(i));
        }
    }
}

#[test]
fn each_image_gets_its_own_row_from_any_kind_of_table() {
    let folder = tempfile::tempdir().unwrap();
    let data = pictures(&folder.path().join("pictures"));
    let answers = answers(&data);
    let write = |name: &str, text: String| {
        std::fs::write(folder.path().join(name), text).unwrap();
        LogitsTable::read(folder.path().join(name), &data, Outputs::Logits).unwrap()
    };
    let lines = |line: &dyn Fn(usize, &str, f32) -> String| {
        answers.iter().enumerate().map(|(i, (file, x))| line(i, file, *x)).collect::<String>()
    };
    // As pandas writes it, with a byte order mark, the classes in another order, and a column that is none of them.
    let header = "\u{feff},label,dog,filename,cat\n";
    let pandas = header.to_owned() + &lines(&|i, file, x| format!("{i},\"cat, or dog\",-{x},{file},{x}\n"));
    check(&write("pandas.csv", pandas), &data);
    // As timm writes it: columns in the order of the classes, files in any order.
    let timm = "filename,logit_0,logit_1\n".to_owned() + &lines(&|_, file, x| format!("./{file},{x},{}\n", -x));
    let table = write("timm.csv", timm);
    check(&table, &data);
    assert_eq!(table.to_string(), "timm.csv: 40 rows of 2 classes, for 40 images");
    // Absolute paths, names alone where they are unique, paths of Windows; and rows of other images.
    let mixed = lines(&|i, file, x| match (i % 3, file.contains("same")) {
        (0, false) => format!("{},{x},-{x}\n", file.split('/').next_back().unwrap()),
        (1, _) => format!("/mnt/data/pictures/{file},{x},-{x}\n"),
        _ => format!("{},{x},-{x}\n", file.replace('/', "\\")),
    });
    let table = write("mixed.csv", format!("path,0,1\nelsewhere/cat01.png,7,7\nbird.png,8,8\n{mixed}"));
    check(&table, &data);
    assert!(table.to_string().contains("no image has the name of 2 rows (elsewhere/cat01.png, bird.png)"), "{table}");

    let arrays: Vec<(&String, Tensor)> = answers.iter().map(|(f, x)| (f, Tensor::from_slice(&[*x, -x]))).collect();
    let [npz, safetensors] = ["all.npz", "all.safetensors"].map(|name| folder.path().join(name));
    Tensor::write_npz(&arrays, &npz).unwrap();
    Tensor::write_safetensors(&arrays, &safetensors).unwrap();
    for path in [npz, safetensors] {
        check(&LogitsTable::read(path, &data, Outputs::Logits).unwrap(), &data);
    }
}

#[test]
fn probabilities_become_logits_if_the_user_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = pictures(&folder.path().join("pictures"));
    let path = folder.path().join("service.csv");
    let rows: String = answers(&data).iter().map(|(file, _)| format!("{file},0.75,0.25\n")).collect();
    std::fs::write(&path, format!("file,cat,dog\n{rows}").replacen("0.75,0.25", "1.000,0", 1)).unwrap();
    let logits = LogitsTable::read(&path, &data, Outputs::Probabilities).unwrap().logits(&data.train).unwrap();
    let found = Vec::<f32>::try_from(logits.tensor.softmax(1, Kind::Float).narrow(1, 0, 1).flatten(0, -1)).unwrap();
    assert!(logits.tensor.isfinite().all().int64_value(&[]) == 1 && found[0] > 0.999_999);
    assert!(found[1..].iter().all(|p| (p - 0.75).abs() < 1e-6), "{found:?}");
    let text = LogitsTable::read(&path, &data, Outputs::Logits).err().unwrap().to_string();
    assert!(text.contains("they are probabilities: give Outputs::Probabilities"), "{text}");
}

#[test]
fn a_table_that_does_not_fit_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let data = pictures(&folder.path().join("pictures"));
    let rows: String = answers(&data).iter().map(|(file, x)| format!("{file},{x},-{x}\n")).collect();
    let read = |name: &str, text: &str, outputs: Outputs| {
        std::fs::write(folder.path().join(name), text).unwrap();
        LogitsTable::read(folder.path().join(name), &data, outputs)
    };
    let says = |name: &str, text: &str, outputs: Outputs, part: &str| {
        let text = read(name, text, outputs).err().expect(part).to_string();
        assert!(text.lines().count() == 1 && text.contains(part), "{part:?}: {text}");
    };
    let head = "filename,cat,dog\n";
    for (text, part) in [
        (format!("filename,cat\n{rows}"), "1 of the 2 classes have no column (\"dog\"); it has 1 columns"),
        (
            format!("filename,a,b,c\n{rows}"),
            "it has 3 columns besides that of the file names, for 2 classes: give one for each class, in their order \
             or named like them (\"cat\", \"dog\")",
        ),
        (format!("filename,cat,dog,cat\n{rows}"), "two columns are named \"cat\""),
        (rows.clone(), "its first line must name the columns"),
        (head.to_owned(), "it holds no rows"),
        (String::new(), "it has 0 columns besides that of the file names, for 2 classes"),
        (format!("{head}{rows}cat/cat01.png,1\n"), "found record with 2 fields, but the previous record has 3 fields"),
        (
            format!("{head}{rows}cat/cat01.png,1,2\n"),
            "an image has more than one row; the second ones are 1 row (cat/cat01.png)",
        ),
        (format!("{head}{rows}cat01.png,1,2\n"), "an image has more than one row"),
        (format!("{head}same.png,1,2\n"), "several images have the name of 1 row (same.png): give the folders too"),
        (format!("{head}{rows}x.png,NaN,2\ny.png,1,inf\n"), "not finite in 2 rows (x.png, y.png)"),
        (format!("{head}{rows}x.png,-inf,2\n{}", "y.png,n/a,2\n"), "line 43, column \"cat\": \"n/a\" is no number"),
        (
            format!("{head}bird.png,1,2\n"),
            "no image has the name of 1 row (bird.png); the images are named like \"cat/",
        ),
    ] {
        says("bad.csv", &text, Outputs::Logits, part);
    }
    says("bad.csv", &format!("{head}{rows}"), Outputs::Probabilities, "is no probability: give Outputs::Logits");
    let percent = rows.replace(",-", ",");
    says("bad.csv", &format!("{head}{percent}"), Outputs::Probabilities, "sum to");
    says("bad.json", "{}", Outputs::Logits, "must end in .csv, .npz or .safetensors");
    says("bad.npz", "no archive", Outputs::Logits, "bad.npz");
    says("bad.safetensors", "no tensors", Outputs::Logits, "bad.safetensors");
    let path = folder.path().join("one.npz");
    Tensor::write_npz(&[("logits", Tensor::zeros([40, 2], (Kind::Float, Device::Cpu)))], &path).unwrap();
    let text = LogitsTable::read(&path, &data, Outputs::Logits).err().unwrap().to_string();
    assert!(
        text.contains("\"logits\" is an array [40, 2], and 2 numbers are needed")
            && text.contains("zip(names, logits)")
    );
    // The same in a way of compression that does not exist, and file names as an array of strings.
    let mut bytes = std::fs::read(&path).unwrap();
    let central = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    (bytes[8], bytes[central + 10]) = (98, 98);
    std::fs::write(&path, bytes).unwrap();
    let text = LogitsTable::read(&path, &data, Outputs::Logits).err().unwrap().to_string();
    assert!(text.contains("its archive is not one that NumPy wrote; give an array of numbers"), "{text}");
    let mut names = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    names.start_file("names.npy", zip::write::SimpleFileOptions::default()).unwrap();
    let header = "{'descr': '<U5', 'fortran_order': False, 'shape': (1,), }\n";
    names
        .write_all(&[b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat())
        .unwrap();
    names.write_all(&[0; 20]).unwrap();
    names.finish().unwrap();
    let text = LogitsTable::read(&path, &data, Outputs::Logits).err().unwrap().to_string();
    assert!(text.contains("U5") && text.contains("give an array of numbers for each image"), "{text}");
    assert!(LogitsTable::read("absent.csv", &data, Outputs::Logits).is_err());

    // A split needs all of its images, another may lack some.
    let absent = data.train.file_name(3).unwrap();
    let fewer: String = rows.lines().filter(|l| !l.starts_with(absent)).map(|line| format!("{line}\n")).collect();
    let table = read("fewer.csv", &format!("{head}{fewer}"), Outputs::Logits).unwrap();
    assert!(table.to_string().contains(&format!("1 of 40 images have no row ({absent})")), "{table}");
    assert!(table.logits(&data.test).is_ok());
    let text = table.logits(&data.train).err().unwrap().to_string();
    let expected = format!("no row for 1 of the {} train images ({absent})", data.train.len());
    assert!(text.contains(&expected), "{text}");
    let course = dataset(folder.path(), 0);
    let text = LogitsTable::read(folder.path().join("fewer.csv"), &course, Outputs::Logits).err().unwrap().to_string();
    assert!(text.contains("have no files of their own; open a folder of images"), "{text}");
}

/// Rows and columns whose owner is not certain are refused, and so are files that hold less than they announce.
#[test]
fn a_table_in_which_numbers_could_be_of_another_class_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir_all(pictures.join("eel")).unwrap();
    for i in 0..20u8 {
        image::RgbImage::from_pixel(4, 4, image::Rgb([200 + i; 3]))
            .save(pictures.join(format!("eel/eel{i:02}.png")))
            .unwrap();
    }
    let data = self::pictures(&pictures);
    let answers = answers(&data);
    let path = |name: &str| folder.path().join(name);
    let read = |text: String| {
        std::fs::write(path("t.csv"), text).unwrap();
        LogitsTable::read(path("t.csv"), &data, Outputs::Logits)
    };
    let says = |found: kdlab::Result<LogitsTable>, part: &str| {
        let text = found.err().expect(part).to_string();
        assert!(text.lines().count() == 1 && text.len() < 700 && text.contains(part), "{part:?}: {text}");
    };
    let rows =
        |row: &dyn Fn(f32) -> String| answers.iter().map(|(f, x)| format!("{f},{}\n", row(*x))).collect::<String>();
    let some = rows(&|x| format!("{x},-{x},7"));
    for header in ["prob_eel,prob_dog,prob_cat", "EEL,DOG,CAT", "logit_2,logit_1,logit_0", "label,top1_index,top1_prob"]
    {
        says(read(format!("filename,{header}\n{some}")), "nothing says whose numbers are in its columns \"");
    }
    for header in ["filename,logit_0,logit_1,logit_2", "filename,X1,X2,X3", "name,filename,eel,dog,cat"] {
        let first = if header.starts_with("name") { "no image," } else { "" };
        let lines: String = some.lines().map(|line| format!("{first}{line}\n")).collect();
        assert!(read(format!("{header}\n{lines}")).is_ok(), "{header}");
    }
    says(read(format!("filename,p_0,p_1,p_2\n{}", rows(&|_| "3,2,2".into()))), "they are sorted");
    says(read(format!("filename,cat,dog,eel\n{}", rows(&|_| "-inf,-inf,-inf".into()))), "not finite in 60 rows");
    says(read(format!("filename;cat;dog;eel\n{}", some.replace(',', ";"))), "';' separates its cells");
    says(read(format!("filename,cat,dog,eel\nx,{},1,2\n", "z".repeat(9999))), "is no number");
    says(read(format!("filename,cat,dog,eel\n\"x\ny\",1,2,3\n\"{}\",1,2,3\n", "z".repeat(9999))), "2 rows (x y, zzz");

    let array = |header: &str, values: &[u8]| {
        let mut archive = zip::ZipWriter::new(std::fs::File::create(path("t.npz")).unwrap());
        archive.start_file(format!("{}.npy", answers[0].0), zip::write::SimpleFileOptions::default()).unwrap();
        let length = (header.len() as u16).to_le_bytes();
        archive.write_all(&[b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), values].concat()).unwrap();
        archive.finish().unwrap();
        LogitsTable::read(path("t.npz"), &data, Outputs::Logits)
    };
    let header =
        |kind: &str, shape: &str| format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
    assert!(array(&header("<f2", "(1, 3)"), &[0, 60, 0, 64, 0, 66]).unwrap().to_string().contains("for 1 images"));
    says(array(&header("<f4", "(3,)"), &[0; 5]), "announces an array [3] and holds 5 bytes");
    says(array(&header("<f4", "(4000000000, 4000000000)"), &[0; 12]), "holds 12 bytes");
    says(array(&header(">f4", "(3,)"), &[0; 12]), "is an array of type \">f4\"");
}

/// A student learns from images without labels by their soft targets.
#[test]
fn images_without_labels_teach_by_their_soft_targets_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pictures");
    pictures(&path);
    for i in 0..30u8 {
        std::fs::create_dir_all(path.join("unlabelled")).unwrap();
        let grey = image::Rgb([7 * i; 3]);
        image::RgbImage::from_pixel(4, 4, grey).save(path.join(format!("unlabelled/{i}.png"))).unwrap();
    }
    let data = image_folder(&path, 4, &DataOptions::default()).unwrap();
    let all = data.transfer_set();
    // The teacher calls bright images dogs.
    let answers = |split: &kdlab::data::Split| {
        let row = |i| [1.0, brightness(split, i) / 25.0 - 2.0];
        let rows: Vec<f32> = (0..split.len() as i64).flat_map(row).collect();
        CachedTensor::new(split, Tensor::from_slice(&rows).view([-1, 2]), "bright").unwrap()
    };
    let net = |vs: &nn::Path| {
        Layers::new()
            .func("mean", |x| x.mean_dim([2, 3].as_slice(), false, Kind::Float))
            .add("fc", nn::linear(vs / "fc", 3, 2, Default::default()))
    };
    let mut model = Model::new("net", Device::Cpu, 0, &net).unwrap();
    let of = |split: &kdlab::data::Split| {
        Examples::images(split, &normalised(4)).unwrap().with_teacher(&answers(split)).unwrap()
    };
    let (train, validation) = (of(&all), of(&data.validation));
    let (kd, own) = (KdLoss::new(2.0, 0.25).unwrap(), (data.train.len() as i64..all.len() as i64).collect::<Vec<_>>());
    let options = FitOptions { batch_size: 8, epochs: 20, learning_rate: 0.05, ..FitOptions::default() };
    let history = fit(&mut model, &train, &validation, &Criterion::kd(kd), &options).unwrap();
    assert!(history.records.iter().all(|r| r.train.loss.is_finite()));
    let measured = evaluate(&model, &train, 16).unwrap();
    assert_eq!((measured.total, measured.accuracy() > 0.8), (data.train.len(), true), "{}", measured.accuracy());
    let agreed =
        predict(&model, &train, 16).unwrap().argmax(1, false).eq_tensor(&answers(&all).tensor.argmax(1, false));
    let agreed = agreed.index_select(0, &Tensor::from_slice(&own)).to_kind(Kind::Float).mean(Kind::Float);
    assert!(agreed.double_value(&[]) > 0.8, "{agreed:?}");
    let refused = Criterion::hard("mine", |logits, labels| logits.cross_entropy_for_logits(labels));
    let text = fit(&mut model, &train, &validation, &refused, &options).unwrap_err().to_string();
    assert!(text.contains("some have none"), "{text}");
}
