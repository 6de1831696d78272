//! Image folders: classes, splits, and what is left out.

use super::images::{ODD, two_halves};
use super::*;

/// `n` PNG images of one colour.
fn pngs(folder: &Path, n: usize, colour: [u8; 3]) -> Done {
    fs::create_dir_all(folder)?;
    for i in 0..n {
        RgbImage::from_pixel(5 + i as u32, 9, Rgb(colour)).save(folder.join(format!("{i:03}.png")))?;
    }
    Ok(())
}

#[test]
fn an_image_folder_is_read_resized_and_divided() -> Done {
    let folder = tempfile::tempdir()?;
    pngs(&folder.path().join("cat"), 20, [200, 10, 20])?;
    pngs(&folder.path().join("dog"), 40, [10, 200, 20])?;
    fs::write(folder.path().join("readme.txt"), "not a class")?;
    fs::write(folder.path().join("cat/notes.txt"), "not an image")?;
    let data = data::open(&options(folder.path()))?;
    assert_eq!(data.classes, ["cat", "dog"]);
    assert_eq!(data.train.size(), (8, 8));
    // 60 images: 6 for test (2 + 4), then 5 of 54 for validation (2 + 3), in proportion.
    assert_eq!(data.test.class_counts(), [2, 4]);
    assert_eq!(data.validation.class_counts(), [2, 3]);
    assert_eq!(data.train.class_counts(), [16, 33]);
    assert_eq!(data.notices, ["no test folder: 6 images, a tenth of each class, are set aside for the test split"]);
    for i in 0..data.train.len() as i64 {
        let (image, label) = (data.train.image(i)?, data.train.label(i)?);
        let colour = [0, 1, 2].map(|c| image.int64_value(&[c, 4, 4]));
        assert_eq!(colour, [[200, 10, 20], [10, 200, 20]][label as usize], "image and label stay together");
    }
    assert_eq!(data.train.take(12)?.class_counts().iter().filter(|&&n| n > 0).count(), 2, "classes are mixed");
    Ok(())
}

#[test]
fn images_without_labels_are_in_the_transfer_set_alone() -> Done {
    let folder = tempfile::tempdir()?;
    pngs(&folder.path().join("cat"), 20, [200, 10, 20])?;
    pngs(&folder.path().join("dog"), 20, [10, 200, 20])?;
    let without = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!(without.transfer_set().key, without.train.key);
    pngs(&folder.path().join("unlabelled"), 4, [1, 2, 3])?;
    pngs(&folder.path().join("unlabelled/more"), 3, [4, 5, 6])?;
    fs::write(folder.path().join("unlabelled/photo.heic"), "of a kind that is not read")?;
    let data = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!(data.classes, ["cat", "dog"]);
    assert_says(&data.to_string(), &["32 train, 4 validation, 4 test images, 7 without a label", "photo.heic"]);
    assert!(!data.to_string().contains("folders below that of a class"), "{data}");
    let (all, train) = (data.transfer_set(), &data.train);
    assert_eq!((all.len(), all.class_counts()), (train.len() + 7, train.class_counts()));
    for i in 0..all.len() as i64 {
        let labelled = i < train.len() as i64;
        assert_eq!(all.label(i)?, if labelled { train.label(i)? } else { -100 });
        assert_eq!(all.file_name(i)?.starts_with("unlabelled/"), !labelled);
    }
    let fewer = all.labelled_subset(0.5, 1)?;
    assert!(fewer.len() == 16 && fewer.iter().all(|&i| all.label(i).unwrap() >= 0), "{fewer:?}");
    assert_says(&message(all.noisy_labels(0.5, 1)), &["images that have none", "take the train split"]);

    // Beside the splits and in the training split, in either spelling; also an image that the test split holds.
    let folder = tempfile::tempdir()?;
    for class in ["train/a", "train/b", "val/a", "val/b", "test/a", "test/b"] {
        pngs(&folder.path().join(class), 3, [9, 9, class.len() as u8])?;
    }
    pngs(&folder.path().join("unlabeled"), 2, [1, 2, 3])?;
    pngs(&folder.path().join("train/unlabelled"), 2, [1, 2, 4])?;
    fs::copy(folder.path().join("test/a/000.png"), folder.path().join("unlabeled/seen.png"))?;
    let data = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!((data.train.len(), data.transfer_set().len()), (6, 11));
    assert_says(&data.to_string(), &["seen.png", "in another split as well"]);
    assert!(!data.to_string().contains("not used"), "{data}");
    Ok(())
}

#[test]
fn grey_transparent_deep_and_misnamed_images_are_read() -> Done {
    let folder = tempfile::tempdir()?;
    for class in ["a", "b"] {
        pngs(&folder.path().join("train").join(class), 4, [1, 2, 3])?;
        pngs(&folder.path().join("val").join(class), 1, [4, 5, 6])?;
        fs::create_dir_all(folder.path().join("test").join(class))?;
    }
    let (a, b) = (folder.path().join("test/a"), folder.path().join("test/b"));
    GrayImage::from_pixel(7, 7, Luma([90])).save(a.join("grey.png"))?;
    // Half transparent black over white is (255 * (255 - 51)) / 255 = 204.
    RgbaImage::from_pixel(7, 7, Rgba([0, 0, 0, 51])).save(b.join("alpha.png"))?;
    let deep = image::ImageBuffer::<Rgb<u16>, Vec<u16>>::from_pixel(7, 7, Rgb([0xffff, 0x8080, 0]));
    deep.save(b.join("deep.PNG"))?;
    RgbImage::from_pixel(7, 7, Rgb([9, 9, 9])).save(a.join("really.png"))?;
    fs::rename(a.join("really.png"), a.join("png_inside.jpg"))?;
    RgbImage::from_pixel(64, 64, Rgb([128, 128, 128])).save(b.join("photo.jpeg"))?;

    let data = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (8, 2, 5));
    let mut seen: Vec<(i64, [i64; 3])> = (0..5)
        .map(|i| (data.test.label(i).unwrap(), data.test.image(i).unwrap()))
        .map(|(label, image)| (label, [0, 1, 2].map(|c| image.int64_value(&[c, 3, 3]))))
        .collect();
    seen.sort_unstable();
    let expected = [(0, [9; 3]), (0, [90; 3]), (1, [128; 3]), (1, [204; 3]), (1, [255, 128, 0])];
    assert_eq!(seen, expected);
    Ok(())
}

#[test]
fn unreadable_images_are_skipped_and_named() -> Done {
    let folder = tempfile::tempdir()?;
    pngs(&folder.path().join("a"), 6, [1, 2, 3])?;
    pngs(&folder.path().join("b"), 6, [1, 2, 3])?;
    let whole = fs::read(folder.path().join("a/000.png"))?;
    fs::write(folder.path().join("a/cut.png"), &whole[..whole.len() / 2])?;
    fs::write(folder.path().join("b/text.jpg"), "this is no image")?;
    // A hole, which takes no disk.
    fs::File::create(folder.path().join("b/vast.png"))?.set_len(2 << 30)?;
    let data = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    assert_eq!(data.train.len() + data.validation.len() + data.test.len(), 12);
    let vast = "vast.png (its file has 2147483648 bytes, and 1073741824 are the most)";
    assert_says(&data.notices[0], &["3 of 15 files skipped", "cut.png", "text.jpg", vast]);
    Ok(())
}

#[test]
fn bad_image_folders_are_refused() -> Done {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let load = || message(data::image_folder(root, 8, &options(root)));
    assert_says(&load(), &["is empty", "one folder of png or jpg images per class"]);
    assert_says(&message(data::open(&options(root))), &["KDLAB_DATA", "is not usable", "data_batch_*.bin"]);
    assert_says(&message(data::image_folder(root, 0, &options(root))), &["image size 0"]);

    fs::create_dir(root.join("cat"))?;
    assert_says(&load(), &["holds no images"]);
    fs::write(root.join("cat/1.png"), "no image")?;
    assert_says(&load(), &["none of the 1 images", "1.png"]);
    pngs(&root.join("cat"), 10, [0; 3])?;
    assert_says(&load(), &["one class only (cat)"]);
    pngs(&root.join("dog"), 2, [0; 3])?;
    assert_says(&load(), &["class \"dog\" has no image in the", "split"]);
    pngs(&root.join("dog"), 3, [0; 3])?;
    let data = data::image_folder(root, 8, &options(root))?;
    assert_eq!([&data.train, &data.validation, &data.test].map(|s| s.class_counts()[1]), [1, 1, 1]);

    let text = message(data::open(&options(&root.join("nowhere"))));
    assert_says(&text, &["nowhere", "KDLAB_DATA"]);
    Ok(())
}

#[test]
fn classes_of_the_parts_have_to_agree() -> Done {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    for class in ["a", "b"] {
        pngs(&root.join("train").join(class), 4, [0; 3])?;
    }
    pngs(&root.join("test/a"), 2, [0; 3])?;
    let load = || message(data::image_folder(root, 8, &options(root)));
    assert_says(&load(), &["class \"b\" has no image in the test split"]);
    pngs(&root.join("test/z"), 2, [0; 3])?;
    assert_says(&load(), &["z is a class that train/ does not have"]);
    Ok(())
}

#[test]
fn valid_is_the_validation_split_and_no_picture_is_left_out_without_a_word() -> Done {
    let folder = tempfile::tempdir()?;
    for (part, n) in [("train", 20), ("valid", 8), ("test", 6)] {
        for class in ["cat", "dog"] {
            pngs(&folder.path().join(part).join(class), n, [200, 10, 20])?;
        }
    }
    pngs(&folder.path().join("train/cat/more"), 2, [200, 10, 20])?;
    pngs(&folder.path().join("train/.ipynb_checkpoints"), 1, [200, 10, 20])?;
    pngs(&folder.path().join("train/__MACOSX"), 1, [200, 10, 20])?;
    fs::write(folder.path().join("train/cat/a.heic"), "x")?;
    fs::write(folder.path().join("train/cat/.DS_Store"), "x")?;
    let colours = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8, y as u8, 7]));
    for name in ["a.webp", "b.tif", "c.bmp", "d.gif"] {
        colours.save(folder.path().join("train/dog").join(name))?;
    }
    let data = data::open(&options(folder.path()))?;
    assert_eq!(data.classes, ["cat", "dog"]);
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (46, 16, 12));
    assert_eq!(data.train.class_counts(), [22, 24]);
    let said = data.notices.join("\n");
    assert!(said.contains("1 picture is of a kind that is not read") && said.contains("a.heic"), "{said}");
    assert!(said.contains("2 images lie in folders below that of a class"), "{said}");
    Ok(())
}

#[test]
fn classes_that_are_numbers_are_in_their_order() -> Done {
    let folder = tempfile::tempdir()?;
    for class in 1..=12 {
        pngs(&folder.path().join(class.to_string()), 6, [10 * class, 10, 20])?;
    }
    let data = data::open(&options(folder.path()))?;
    let wanted: Vec<String> = (1..=12).map(|n: u8| n.to_string()).collect();
    assert_eq!(data.classes, wanted);
    assert!(data.notices.iter().any(|n| n.contains("1, 2, 3, 4")), "{:?}", data.notices);
    Ok(())
}

#[test]
fn a_jpeg_that_was_cut_off_is_skipped_and_named() -> Done {
    let folder = tempfile::tempdir()?;
    for class in ["cat", "dog"] {
        pngs(&folder.path().join(class), 20, [200, 10, 20])?;
    }
    let picture = RgbImage::from_fn(200, 200, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
    let whole = folder.path().join("cat/whole.jpg");
    picture.save(&whole)?;
    let bytes = fs::read(&whole)?;
    fs::write(folder.path().join("cat/half.jpg"), &bytes[..bytes.len() / 2])?;
    // Some cameras write more data after the end marker.
    fs::write(folder.path().join("cat/more.jpg"), [&bytes[..], b"trailer"].concat())?;
    let data = data::open(&options(folder.path()))?;
    assert_eq!(data.train.len() + data.validation.len() + data.test.len(), 42);
    let said = data.notices.join("\n");
    assert!(said.contains("1 of 43 files skipped") && said.contains("half.jpg (the file is cut off)"), "{said}");
    Ok(())
}

#[test]
fn tiny_imagenet_s_layout_is_read_by_its_annotations() -> Done {
    let folder = tempfile::tempdir()?;
    let classes = ["n01443537", "n01629819"];
    for (class, colour) in classes.iter().zip([[200, 10, 20], [10, 200, 20]]) {
        pngs(&folder.path().join("train").join(class).join("images"), 12, colour)?;
    }
    pngs(&folder.path().join("val/images"), 6, [10, 10, 200])?;
    let lines: String = (0..6).map(|i| format!("{i:03}.png\t{}\t0\t0\t1\t1\n", classes[i % 2])).collect();
    fs::write(folder.path().join("val/val_annotations.txt"), lines)?;
    pngs(&folder.path().join("test/images"), 6, [100, 10, 200])?;
    let data = data::open(&options(folder.path()))?;
    assert_eq!(data.classes, classes);
    assert_eq!(data.validation.class_counts(), [3, 3]);
    assert_eq!(data.train.len() + data.test.len(), 24);
    assert!(data.notices.iter().any(|n| n.contains("test has no folders of classes")), "{:?}", data.notices);
    Ok(())
}

#[test]
fn a_picture_in_two_splits_or_two_classes_is_named() -> Done {
    let folder = tempfile::tempdir()?;
    for (i, part) in (0u8..).zip(["train", "val", "test"]) {
        for (j, class) in (0u8..).zip(["a", "b"]) {
            pngs(&folder.path().join(part).join(class), 8, [40 * i, 40 * j, 90])?;
        }
    }
    let notices = || -> Result<String, Box<dyn std::error::Error>> {
        Ok(data::open(&options(folder.path()))?.notices.join("\n"))
    };
    assert_eq!(notices()?, "");
    fs::copy(folder.path().join("train/a/001.png"), folder.path().join("test/a/x.png"))?;
    fs::copy(folder.path().join("train/a/005.png"), folder.path().join("train/b/zzz.png"))?;
    let said = notices()?;
    assert!(said.contains("1 picture is in another split as well") && said.contains("x.png"), "{said}");
    assert!(said.contains("1 picture is in another class as well") && said.contains("zzz.png"), "{said}");
    Ok(())
}

#[test]
fn what_is_no_picture_by_its_name_is_judged_by_its_bytes_and_nothing_is_dropped_without_a_word() -> Done {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    for class in ["a", "b"] {
        pngs(&root.join(class), 12, [1, 2, 3])?;
    }
    let a = root.join("a");
    two_halves().save(a.join("x.png"))?;
    fs::rename(a.join("x.png"), a.join("img_0001"))?; // no extension
    two_halves().save(a.join("y.jpg"))?;
    fs::rename(a.join("y.jpg"), a.join("Y.JPG"))?;
    fs::write(a.join("sign.ppm"), b"P6 1 1 255\n\0\0\0")?;
    fs::write(a.join("sign"), b"P6\n1 1 255\n\0\0\0")?;
    for name in ["Thumbs.db", "desktop.ini", ".DS_Store", "._x.png", "notes.txt"] {
        fs::write(a.join(name), "\u{1}nothing to look at, for people")?;
    }
    // An image beside the class folders.
    two_halves().save(root.join("cover.png"))?;
    fs::copy(Path::new(ODD).join("moving.gif"), a.join("moving.gif"))?;
    let data = data::open(&options(root))?;
    assert_eq!(data.train.len() + data.validation.len() + data.test.len(), 27, "{:?}", data.notices);
    let said = data.notices.join("\n");
    assert_says(
        &said,
        &[
            "2 pictures are of a kind that is not read: ",
            "sign.ppm",
            "1 picture is in no folder of a class and in no table, so without a label: not used: ",
            "cover.png",
            "1 picture is animated; the first frame is taken: ",
            "moving.gif",
        ],
    );
    assert!(!said.contains("Thumbs") && !said.contains("notes"), "{said}");
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_that_lead_in_a_circle_multiply_nothing() -> Done {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    for class in ["a", "b"] {
        pngs(&root.join(class), 12, [1, 2, 3])?;
    }
    symlink(".", root.join("a/again"))?;
    symlink("../b", root.join("a/other"))?; // the user linked another class's images
    symlink("nowhere", root.join("a/broken.png"))?;
    fs::create_dir(root.join("a/folder.png"))?;
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png"); // Latin-1, from an old archive
    two_halves().save_with_format(root.join("b").join(name), image::ImageFormat::Png)?;
    let data = data::open(&options(root))?;
    assert_eq!(data.train.len() + data.validation.len() + data.test.len(), 12 + 13 + 13);
    let said = data.notices.join("\n");
    assert_says(&said, &["not looked into, for they lie too deep or lead back", "a/again"]);
    assert_says(&said, &["1 of 39 files skipped", "broken.png"]);
    assert_says(&said, &["13 pictures are in another class as well"]);
    // Two names that are not UTF-8 and read the same would be one class.
    for name in [b"\xe8", b"\xe9"] {
        pngs(&root.join(std::ffi::OsStr::from_bytes(name)), 4, [1, 2, 3])?;
    }
    assert_says(&message(data::open(&options(root))), &["two classes in", "rename one"]);
    Ok(())
}

#[test]
fn val_and_valid_and_strangers_beside_train_are_named() -> Done {
    let folder = tempfile::tempdir()?;
    for (part, n) in [("train", 12), ("val", 4), ("valid", 5), ("test", 4), ("extra", 3)] {
        for class in ["a", "b"] {
            pngs(&folder.path().join(part).join(class), n, [1, 2, 3])?;
        }
    }
    let data = data::open(&options(folder.path()))?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (24, 8, 8));
    let said = data.notices.join("\n");
    assert_says(
        &said,
        &["10 images in ", "valid are in none of the splits: not used", "6 images in ", "extra are in none"],
    );
    Ok(())
}

/// Roboflow's "Folder Structure": class folders in `train/`, `valid/` and `test/`, and two text files.
#[test]
fn roboflow_s_folders_are_read() -> Done {
    let folder = tempfile::tempdir()?;
    for (part, n) in [("train", 12), ("valid", 4), ("test", 3)] {
        for class in ["daisy", "rose"] {
            pngs(&folder.path().join(part).join(class), n, [1, 2, 3])?;
        }
    }
    for name in ["README.dataset.txt", "README.roboflow.txt"] {
        fs::write(folder.path().join(name), "exported")?;
    }
    let data = data::open(&options(folder.path()))?;
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (24, 8, 6));
    assert_eq!((data.classes.clone(), data.test.class_counts()), (vec!["daisy".into(), "rose".into()], vec![3, 3]));
    Ok(())
}

#[test]
fn roboflow_s_table_of_classes_is_read_where_each_image_has_one() -> Done {
    let folder = tempfile::tempdir()?;
    let root = folder.path();
    let colours = [[200u8, 10, 20], [10, 200, 20], [10, 20, 200]];
    for (part, n) in [("train", 18u32), ("valid", 9), ("test", 6)] {
        fs::create_dir(root.join(part))?;
        let mut table = "filename, sun flower, daisy, rose\n".to_owned();
        for i in 0..n {
            let class = (i as usize * 7) % 3;
            RgbImage::from_pixel(4 + i, n, Rgb(colours[class]))
                .save(root.join(part).join(format!("{i}_jpg.rf.png")))?;
            let flags: Vec<String> = (0..3).map(|k| u8::from(k == class).to_string()).collect();
            table += &format!("{i}_jpg.rf.png, {}\n", flags.join(", "));
        }
        fs::write(root.join(part).join("_classes.csv"), table)?;
    }
    let data = data::open(&options(root))?;
    assert_eq!(data.classes, ["sun flower", "daisy", "rose"]);
    assert_eq!((data.train.len(), data.validation.len(), data.test.len()), (18, 9, 6));
    assert_eq!((data.test.class_counts(), data.notices.len()), (vec![2, 2, 2], 0), "{:?}", data.notices);
    for split in [&data.train, &data.validation, &data.test] {
        for i in 0..split.len() as i64 {
            let image = split.image(i)?;
            let colour = [0, 1, 2].map(|c| image.int64_value(&[c, 4, 4]) as u8);
            assert_eq!(colour, colours[split.label(i)? as usize], "image and label stay together");
        }
    }
    let table = root.join("train/_classes.csv");
    let whole = fs::read_to_string(&table)?;
    let load = || data::open(&options(root));
    // An image without a label, an image without a line and a line without an image are each counted and named.
    let other = whole.replace("0_jpg.rf.png, 1, 0, 0", "0_jpg.rf.png, 0, 0, 0").replace("1_jpg.rf.png, 0, 1, 0\n", "");
    fs::write(&table, other + "gone.jpg, 1, 0, 0\n")?;
    let said = load()?.notices.join("\n");
    assert_says(&said, &["2 pictures are in no folder of a class and in no table", "0_jpg.rf.png", "1_jpg.rf.png"]);
    assert_says(&said, &["1 picture is named in a table and missing", "gone.jpg"]);
    // Several labels an image are a different task.
    fs::write(&table, whole.replace("0_jpg.rf.png, 1, 0, 0", "0_jpg.rf.png, 1, 1, 0"))?;
    assert_says(&message(load()), &["_classes.csv gives 1 of its 18 images more than one class", "multi-label"]);
    for (from, to, reason) in [
        ("0_jpg.rf.png, 1, 0, 0", "0_jpg.rf.png, 1, 0", "line 2 is not a name and 3 times 0 or 1"),
        ("0_jpg.rf.png, 1, 0, 0", "0_jpg.rf.png, 0.7, 0, 0", "line 2 is not a name and 3 times 0 or 1"),
        ("filename, sun", "name, sun", "expected filename"),
        ("daisy", "rose", "two classes in"),
    ] {
        fs::write(&table, whole.replacen(from, to, 1))?;
        assert_says(&message(load()), &[reason]);
    }
    fs::write(&table, whole.replace("rose", "tulip"))?;
    assert_says(&message(load()), &["rose is a class that train/ does not have"]);
    Ok(())
}

#[test]
fn data_sets_of_boxes_and_splits_without_classes_are_refused_by_name() -> Done {
    for annotations in ["_annotations.csv", "_annotations.coco.json"] {
        let folder = tempfile::tempdir()?;
        for part in ["train", "valid", "test"] {
            pngs(&folder.path().join(part), 6, [1, 2, 3])?;
        }
        // The three split folders must not become three classes.
        let e = message(data::open(&options(folder.path())));
        assert_says(&e, &["holds no folders of classes, only test, train, valid, which name splits"]);
        fs::write(folder.path().join("train").join(annotations), "filename,width,height,class,xmin,ymin,xmax,ymax\n")?;
        assert_says(&message(data::open(&options(folder.path()))), &[annotations, "boxes", "Folder Structure"]);
    }
    let folder = tempfile::tempdir()?;
    for part in ["train", "valid"] {
        pngs(&folder.path().join(part).join("images"), 6, [1, 2, 3])?;
        fs::create_dir(folder.path().join(part).join("labels"))?;
        fs::write(folder.path().join(part).join("labels/000.txt"), "0 0.5 0.5 0.1 0.1\n")?;
    }
    fs::write(folder.path().join("data.yaml"), "names: [a, b]\n")?;
    assert_says(&message(data::open(&options(folder.path()))), &["labels", "boxes", "Folder Structure"]);
    Ok(())
}

/// Pictures of three stripes, of which a crop shows the one in the middle.
#[test]
fn pictures_are_cropped_around_their_centre_where_asked() -> Done {
    let folder = tempfile::tempdir()?;
    let of = |stripe: u32| Rgb([[200u8, 0, 0], [0, 200, 0], [0, 0, 200]][stripe.min(2) as usize]);
    for class in ["a", "b"] {
        fs::create_dir(folder.path().join(class))?;
        for i in 0..6 {
            let side = 20 + i;
            let stripes = |long: u32| of(long / side);
            let picture = match class {
                "a" => RgbImage::from_fn(3 * side, side, |x, _| stripes(x)),
                _ => RgbImage::from_fn(side, 3 * side, |_, y| stripes(y)),
            };
            picture.save(folder.path().join(class).join(format!("{i}.png")))?;
        }
    }
    let squeezed = data::image_folder(folder.path(), 8, &options(folder.path()))?;
    let cropping = DataOptions { framing: data::Framing::CentreCrop, ..options(folder.path()) };
    let cropped = data::image_folder(folder.path(), 8, &cropping)?;
    assert_eq!((squeezed.framing, cropped.framing), (data::Framing::Squeeze, data::Framing::CentreCrop));
    assert_ne!(squeezed.key, cropped.key);
    assert_says(&cropped.to_string(), &["8x8 pixels cropped from the centre, "]);
    assert!(!squeezed.to_string().contains("cropped"));
    for i in 0..cropped.train.len() as i64 {
        let colour = |image: &Tensor, y, x| [0, 1, 2].map(|c| image.int64_value(&[c, y, x]));
        let (crop, all) = (cropped.train.image(i)?, squeezed.train.image(i)?);
        // All but the border is of the stripe in the middle; squeezed, the corners are of the other two.
        assert!((1..7).all(|y| (1..7).all(|x| colour(&crop, y, x) == [0, 200, 0])), "{i}");
        assert_eq!((colour(&all, 0, 0), colour(&all, 7, 7)), ([200, 0, 0], [0, 0, 200]));
    }
    // A picture that is a strip, and a square, which is the same either way.
    RgbImage::from_pixel(100, 4, Rgb([1, 2, 3])).save(folder.path().join("a/strip.png"))?;
    let said = data::image_folder(folder.path(), 8, &cropping)?.to_string();
    assert_says(&said, &["1 of 13 files skipped", "strip.png", "of 100 x 4 pixels: no square of it shows much"]);
    let square = folder.path().join("square.png");
    RgbImage::from_fn(50, 50, |x, y| Rgb([x as u8, y as u8, 7])).save(&square)?;
    let [a, b] =
        [data::Framing::Squeeze, data::Framing::CentreCrop].map(|framing| data::read_image(&square, 8, framing));
    assert!(a?.equal(&b?));
    Ok(())
}

/// ImageNet as Kaggle's archive has it, as torchvision arranges it, and with the tables that others made.
#[test]
fn imagenet_s_layouts_are_read_with_the_names_of_its_classes() -> Done {
    let folder = tempfile::tempdir()?;
    let inner = folder.path().join("ILSVRC/Data/CLS-LOC");
    let synsets = ["n01440764", "n02012849", "n03126707"];
    for (synset, colour) in synsets.iter().zip([[200, 10, 20], [10, 200, 20], [10, 20, 200]]) {
        pngs(&inner.join("train").join(synset), 12, colour)?;
    }
    for (i, name) in (1u8..=6).flat_map(|i| [("val", i), ("test", i)]).map(|(part, i)| (i, part)) {
        fs::create_dir_all(inner.join(name))?;
        let picture = RgbImage::from_pixel(9, 9, Rgb([i, if name == "val" { 1 } else { 2 }, 0]));
        picture.save_with_format(
            inner.join(name).join(format!("ILSVRC2012_{name}_{i:08}.JPEG")),
            image::ImageFormat::Png,
        )?;
    }
    let load = || data::open(&options(folder.path()));
    // Without a table, the images of the validation split have no labels, and a part of the training split stands in.
    let data = load()?;
    assert_eq!((data.classes.join(" "), data.validation.class_counts()), (synsets.join(" "), vec![1, 1, 1]));
    assert_says(&data.notices.join("\n"), &["val has no folders of classes", "test has no folders of classes"]);

    let names = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn99999999 other\n";
    fs::write(folder.path().join("LOC_synset_mapping.txt"), names)?;
    let of = |i: usize| (i * 2) % 3;
    let lines = |line: &dyn Fn(usize) -> String| (1..=6).map(line).collect::<Vec<_>>().join("\n");
    let kaggle = format!(
        "ImageId,PredictionString\n{}\n",
        lines(&|i| format!("ILSVRC2012_val_{i:08},{} 1 2 3 4 {} 5 6 7 8 ", synsets[of(i)], synsets[of(i)]))
    );
    let tables = [
        (folder.path().join("LOC_val_solution.csv"), kaggle),
        (inner.join("val.txt"), lines(&|i| format!("ILSVRC2012_val_{i:08}.JPEG {}", of(i)))),
        (inner.join("val.txt"), lines(&|i| format!("ILSVRC2012_val_{i:08}.JPEG {}", synsets[of(i)]))),
        (inner.join("imagenet_2012_validation_synset_labels.txt"), lines(&|i| synsets[of(i)].to_owned())),
    ];
    for (path, table) in tables {
        fs::write(&path, table)?;
        let data = load()?;
        assert_eq!(data.classes, ["tench", "crane (n02012849)", "crane (n03126707)"]);
        assert_eq!(data.validation.class_counts(), [2, 2, 2], "{}: {:?}", path.display(), data.notices);
        for i in 0..6 {
            let (image, label) = (data.validation.image(i)?, data.validation.label(i)?);
            assert_eq!(of(image.int64_value(&[0, 4, 4]) as usize) as i64, label);
        }
        assert!(data.validation.file_name(0)?.starts_with("ILSVRC/Data/CLS-LOC/val/"));
        let from_inside = data::open(&options(&inner))?;
        assert_eq!(from_inside.key, data.key);
        fs::remove_file(path)?;
    }
    Ok(())
}
