//! WebDataset shards: tar files of images and labels.

use super::images::two_halves;
use super::*;
use std::path::PathBuf;

/// A PNG whose red tells it from others and whose green tells its class.
fn png(red: u8, class: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = RgbImage::from_pixel(8, 8, Rgb([red, 50 * class, 7]));
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A tar file of these files.
fn tar(path: &Path, files: &[(String, Vec<u8>)]) -> Done {
    fs::create_dir_all(path.parent().unwrap())?;
    let mut tar = tar::Builder::new(fs::File::create(path)?);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        match name.starts_with('/') || name.contains("..") {
            // The crate would refuse to write such a name.
            true => {
                header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                tar.append(&header, bytes.as_slice())?;
            }
            false => tar.append_data(&mut header, name, bytes.as_slice())?,
        }
    }
    Ok(tar.into_inner()?.sync_all()?)
}

/// `n` samples of classes 0, 1, 2, 0, ..., with red from `first` on.
fn samples(n: u8, first: u8) -> Vec<(String, Vec<u8>)> {
    let sample = |i: u8| {
        let label = format!(" {}\n", i % 3).into_bytes();
        [(format!("{i:04}.png"), png(first + i, i % 3)), (format!("{i:04}.cls"), label)]
    };
    (0..n).flat_map(sample).collect()
}

/// A folder with shards of training and validation, and a cache outside of it.
struct Shards {
    folder: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Shards {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let shards = Self { folder: tempfile::tempdir()?, cache: tempfile::tempdir()? };
        for (shard, first) in (0..3).zip([0, 30, 60]) {
            tar(&shards.path(&format!("my-train-{shard:06}.tar")), &samples(30, first))?;
        }
        tar(&shards.path("my-val-000000.tar"), &samples(9, 100))?;
        Ok(shards)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, memory: u64) -> DataOptions {
        DataOptions { cache: self.cache.path().to_owned(), memory: Some(memory), ..options(self.folder.path()) }
    }

    fn open(&self) -> Result<Dataset, Error> {
        data::open(&self.options(u64::MAX))
    }

    fn said(&self) -> Result<String, Error> {
        Ok(self.open()?.notices.join("\n"))
    }
}

/// The images of a split: red, and whether green tells the class of the label.
fn seen(split: &Split) -> Vec<i64> {
    let mut reds: Vec<i64> = (0..split.len() as i64)
        .map(|i| {
            let image = split.image(i).unwrap();
            assert_eq!(image.int64_value(&[1, 4, 4]), 50 * split.label(i).unwrap(), "image and label stay together");
            image.int64_value(&[0, 4, 4])
        })
        .collect();
    reds.sort_unstable();
    reds
}

#[test]
fn shards_are_read_and_divided_by_their_names() -> Done {
    let shards = Shards::new()?;
    let data = shards.open()?;
    assert_eq!((data.classes.join(" "), data.validation.len()), ("0 1 2".to_owned(), 9));
    assert_eq!(data.train.len() + data.test.len(), 90);
    let all: Vec<i64> =
        [seen(&data.train), seen(&data.test)].concat().into_iter().collect::<HashSet<_>>().into_iter().collect();
    assert_eq!((all.len(), seen(&data.validation)), (90, (100..109).collect()));
    assert!(data.validation.file_name(0)?.starts_with("my-val-000000.tar/000"), "{}", data.validation.file_name(0)?);
    assert_eq!(data.notices.len(), 1, "{:?}", data.notices);

    // The same from a file, from the list that the first call kept, and through `image_folder`.
    for _ in 0..2 {
        let file = data::image_folder(shards.folder.path(), 8, &shards.options(0))?;
        assert_eq!(file.key, data.key);
        assert_eq!(seen(&file.train), seen(&data.train));
    }

    // In folders of the splits, with names and images without labels.
    let divided = tempfile::tempdir()?;
    for (from, to) in
        [("my-train-000000", "train/0"), ("my-train-000001", "train/1"), ("my-val-000000", "validation/0")]
    {
        fs::create_dir_all(divided.path().join(to).parent().unwrap())?;
        fs::copy(shards.path(&format!("{from}.tar")), divided.path().join(format!("{to}.tar")))?;
    }
    tar(&divided.path().join("unlabelled/0.tar"), &[("x.png".to_owned(), png(200, 0))])?;
    fs::write(
        divided.path().join("classes.txt"),
        "n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02012849 crane\n",
    )?;
    let data = data::open(&DataOptions { cache: shards.cache.path().to_owned(), ..options(divided.path()) })?;
    assert_eq!(
        (data.classes.join(" "), data.transfer_set().len()),
        ("tench goldfish crane".into(), data.train.len() + 1)
    );
    assert_eq!(data.train.len() + data.test.len(), 60);
    Ok(())
}

#[test]
fn labels_are_numbers_names_and_fields_of_json() -> Done {
    let shards = Shards::new()?;
    fs::write(shards.path("classes.txt"), "n01440764 crane, bird\nn01443537 goldfish\r\n\nn02012849 crane\n")?;
    let odd = [
        ("a.json", r#"{"label": 1, "caption": "x"}"#),
        ("b.json", r#"{"cls": "goldfish"}"#),
        ("c.cls", "n01443537"),
        ("d.json", "1"),
        ("e.cls", "1"),
        ("e.json", r#"{"label": 0}"#), // .cls goes first
        ("sub.dir/f.cls", "1"),
        ("g.cls", "3"),
        ("h.cls", "-1"),
        ("i.cls", "99999999999999999999"),
        ("j.cls", "gold\nfish"),
        ("k.cls", ""),
        ("l.json", r#"{"caption": "x"}"#),
        ("m.json", "{"),
        ("n.json", r#"{"label": 1.5}"#),
    ];
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for (i, (name, text)) in (0..).zip(odd) {
        let stem = &name[..name.rfind('.').unwrap()];
        if stem != "e" || name.ends_with("cls") {
            files.push((format!("{stem}.png"), png(150 + i, 1)));
        }
        files.push((name.to_owned(), text.into()));
    }
    files.push(("o.png".to_owned(), png(180, 1)));
    tar(&shards.path("my-val-000001.tar"), &files)?;
    let data = shards.open()?;
    assert_eq!(data.classes, ["crane (n01440764)", "goldfish", "crane (n02012849)"]);
    assert_eq!(seen(&data.validation)[9..], [150, 151, 152, 153, 154, 156]);
    let said = data.notices.join("\n");
    assert_says(
        &said,
        &[
            "4 samples are without a label, KEY.cls or KEY.json: not used: my-val-000001.tar/l, ",
            "5 samples are of a label that is none of the 3 in the list of classes, 0 to 2: not used: ",
            "my-val-000001.tar/g (3), my-val-000001.tar/h (-1), my-val-000001.tar/i (\"99999999999999999999\")",
            "my-val-000001.tar/j (\"gold?fish\")",
        ],
    );
    fs::write(shards.path("classes.txt"), "a\nb\na\n")?;
    assert_says(&message(shards.open()), &["classes.txt names \"a\" twice"]);
    fs::write(shards.path("classes.txt"), "a\nb\nc\nd\n")?;
    assert_says(&message(shards.open()), &["class \"d\" has no image in the train split"]);

    // Without a list, the classes are the numbers of the training images.
    fs::remove_file(shards.path("classes.txt"))?;
    assert_says(
        &shards.said()?,
        &["of a label that is no number, or that no sample of the training split has", "/g (3)"],
    );
    Ok(())
}

#[test]
fn hostile_shards_lose_what_is_damaged_and_no_more() -> Done {
    let shards = Shards::new()?;
    let whole = fs::read(shards.path("my-train-000001.tar"))?;
    let usual = shards.open()?;

    // Cut in the middle of an image, and of a header; a header of another's bytes; nothing at all.
    for (bytes, wanted) in [
        (whole[..20 * 1024 + 600].to_vec(), "1 file is cut off or too large: not used: my-train-000001.tar/0010.png"),
        (whole[..20 * 1024 + 100].to_vec(), "my-train-000001.tar is damaged after 10 samples"),
        (whole[..20 * 1024].to_vec(), "my-train-000001.tar is damaged after 10 samples (it has no end)"),
        ([&whole[..20 * 1024], &[7; 4096][..]].concat(), "my-train-000001.tar is damaged after 10 samples"),
        (Vec::new(), "no test folder"),
    ] {
        fs::write(shards.path("my-train-000001.tar"), &bytes)?;
        let data = shards.open()?;
        assert_eq!(data.train.len() + data.test.len(), if bytes.is_empty() { 60 } else { 70 }, "{wanted}");
        assert_says(&data.notices.join("\n"), &[wanted]);
    }
    fs::write(shards.path("my-train-000001.tar"), &whole)?;
    assert_eq!(shards.open()?.key, usual.key);

    let label = || b"1".to_vec();
    let named = |name: &str| (name.to_owned(), png(240, 1));
    let files = vec![
        named("/etc/passwd.png"),
        ("/etc/passwd.cls".to_owned(), label()),
        named("../../up.png"),
        ("../../up.cls".to_owned(), label()),
        named(".hidden.png"),
        named("._mac.png"),
        named("twice.png"),
        named("twice.png"),
        named("twice.jpg"),
        ("twice.cls".to_owned(), label()),
        ("alone.cls".to_owned(), label()),
        ("photo.heic".to_owned(), vec![1]),
        ("photo.cls".to_owned(), label()),
        ("text.jpg".to_owned(), b"no image".to_vec()),
        ("text.cls".to_owned(), label()),
        ("big.png".to_owned(), png(250, 1)),
        ("big.cls".to_owned(), vec![b'1'; 2 << 20]),
        (format!("{}.png", "long".repeat(60)), png(245, 1)),
        (format!("{}.cls", "long".repeat(60)), label()),
        ("notes.txt".to_owned(), b"for people".to_vec()),
    ];
    tar(&shards.path("my-val-000001.tar"), &files)?;
    let data = shards.open()?;
    assert_eq!(seen(&data.validation)[9..], [240, 240, 240, 245]);
    assert!((0..data.validation.len() as i64).all(|i| data.validation.file_name(i).unwrap().starts_with("my-val-")));
    assert_says(
        &data.notices.join("\n"),
        &[
            "2 samples are without an image of a kind that is read: not used: my-val-000001.tar/alone, \
             my-val-000001.tar/photo",
            "2 files are a second one of its kind in its sample: not used: my-val-000001.tar/twice.png, ",
            "1 file is cut off or too large: not used: my-val-000001.tar/big.cls",
            "1 sample is without a label, KEY.cls or KEY.json: not used: my-val-000001.tar/big",
            "skipped: ",
            "my-val-000001.tar/text.jpg (",
        ],
    );
    Ok(())
}

#[test]
fn members_that_are_no_files_and_headers_that_claim_too_much_end_nothing() -> Done {
    let shards = Shards::new()?;
    let member = |kind: u8, name: &[u8], size: u64, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_cksum();
        let padding = bytes.len().next_multiple_of(512) - bytes.len();
        [header.as_bytes().as_slice(), bytes, &vec![0; padding]].concat()
    };
    let file = |name: &[u8], bytes: &[u8]| member(b'0', name, bytes.len() as u64, bytes);
    let sample = |stem: &[u8], red| {
        [file(&[stem, b".png"].concat(), &png(red, 1)), file(&[stem, b".cls"].concat(), b"1")].concat()
    };
    let label = |stem: &[u8]| file(&[stem, b".cls"].concat(), b"1");
    let pax = |size: u64, text: &[u8]| member(b'x', b"pax", size, text);
    let (gigabytes, no_image) = (3 << 30, "1 sample is without an image of a kind that is read: not used: my-val-");
    let cases = [
        // Each with whether what follows is read.
        (pax(gigabytes, b""), false, "damaged after 1 samples (a header of more than 1048576 bytes)"),
        (member(b'L', b"long", gigabytes, b""), false, "damaged after 1 samples (a header of more than 1048576 bytes)"),
        (member(b'0', b"huge.png", u64::MAX - 600, b""), false, "damaged after 1 samples (size overflow)"),
        (
            member(b'0', b"huge.png", gigabytes, b""),
            false,
            "cut off or too large: not used: my-val-000001.tar/huge.png",
        ),
        (member(b'S', b"sparse.png", 0, b""), false, "damaged after 1 samples"),
        ([member(b'1', b"hard.png", 0, b""), label(b"hard")].concat(), true, no_image),
        ([member(b'2', b"soft.png", 0, b""), label(b"soft")].concat(), true, no_image),
        ([pax(16, b"16 path=a\0b.png\n"), file(b"x", &png(201, 1)), label(b"a?b")].concat(), true, ""),
        (pax(30, b"99999999999999999999 path=a\n\0\0"), true, ""),
        // It says that the image has no bytes, so its pixels are read as headers.
        (pax(10, b"10 size=0\n"), false, "damaged after 2 samples (numeric field"),
        (sample(b"\xff\xfe", 201), true, ""),
    ];
    for (i, (odd, goes_on, wanted)) in cases.into_iter().enumerate() {
        let path = shards.path("my-val-000001.tar");
        fs::write(&path, [sample(b"first", 200), odd, sample(b"last", 202)].concat())?;
        // Holes, which take no disk.
        fs::File::options().write(true).open(&path)?.set_len(4 << 30)?;
        let data = shards.open()?;
        let (seen, said) = (seen(&data.validation), data.notices.join("\n"));
        assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "case {i}: {said:?}");
        assert_eq!(seen.contains(&202), goes_on, "case {i}: {seen:?} {said}");
        assert!(seen.contains(&200), "case {i}: {seen:?} {said}");
        assert_says(&said, &[wanted]);
    }
    Ok(())
}

#[test]
fn shards_of_no_split_and_folders_without_shards_are_named() -> Done {
    let shards = Shards::new()?;
    tar(&shards.path("more-000000.tar"), &samples(3, 200))?;
    fs::write(shards.path("my-train-000009.tar.gz"), "gzip")?;
    let said = shards.said()?;
    assert_says(&said, &["1 shard is of no split by its name", "more-000000.tar", "1 shard is compressed: not read"]);

    // Without names of splits, all shards are for training.
    let plain = tempfile::tempdir()?;
    tar(&plain.path().join("000000.tar"), &samples(30, 0))?;
    let cache = shards.cache.path().to_owned();
    let load = || data::open(&DataOptions { cache: cache.clone(), ..options(plain.path()) });
    let data = load()?;
    assert_eq!(data.train.len() + data.validation.len() + data.test.len(), 30);

    fs::rename(plain.path().join("000000.tar"), plain.path().join("val-000000.tar"))?;
    assert_says(&message(load()), &["no shard is for training", "train-000000.tar"]);
    tar(&plain.path().join("train-000000.tar"), &[("a.txt".to_owned(), vec![1]), ("a.cls".to_owned(), vec![b'1'])])?;
    fs::remove_file(plain.path().join("val-000000.tar"))?;
    assert_says(&message(load()), &["no sample has an image and a label", "1 sample is without an image"]);
    fs::remove_file(plain.path().join("train-000000.tar"))?;
    fs::write(plain.path().join("train-000000.tar.gz"), "gzip")?;
    assert_says(&message(load()), &["1 shard is compressed: not read (gunzip them): train-000000.tar.gz"]);

    // An archive beside folders of classes is not a shard.
    for class in ["a", "b"] {
        fs::create_dir(plain.path().join(class))?;
        for i in 0..4 {
            two_halves().save(plain.path().join(class).join(format!("{i}.png")))?;
        }
    }
    tar(&plain.path().join("images.tar"), &samples(30, 0))?;
    assert_eq!(load()?.classes, ["a", "b"]);
    Ok(())
}
