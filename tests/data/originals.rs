//! Crops that are decoded out of the images' own files, for every batch.

use super::super::sampling::{Purpose, generator};
use super::super::sources::Crops;
use super::*;
use crate::tests::oracle::ask;
use kdlab::data::{Augment, Views};
use kdlab::train::Examples;
use serde_json::json;

/// Side of the data's squares.
const SIZE: i64 = 24;

fn cropped(least: f64) -> Augment {
    Augment { crop: Some(least), original: true, ..Augment::default() }
}

/// A picture without two equal parts, width and height by its number.
fn picture(i: u32) -> RgbImage {
    let (width, height) = [(90, 60), (40, 77), (64, 64), (130, 12)][i as usize % 4];
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3 + i * 5) as u8, (y * 4) as u8 ^ (x as u8 >> 1), (x * y) as u8]))
}

/// A folder of two classes, and options that keep its squares in memory or in a file.
fn pictures(n: u32, memory: u64) -> Result<(tempfile::TempDir, DataOptions), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    for i in 0..n {
        let class = folder.path().join("images").join(["a", "b"][i as usize % 2]);
        fs::create_dir_all(&class)?;
        picture(i).save(class.join(format!("{i:03}.png")))?;
    }
    let cache = folder.path().join("cache");
    let options = DataOptions { cache, memory: Some(memory), ..options(&folder.path().join("images")) };
    Ok((folder, options))
}

/// What the first batch of an epoch sees.
fn seen(split: &Split, augment: &Augment, indices: &[i64], epoch: usize) -> Tensor {
    let examples = Examples::images(split, &Transform::imagenet(SIZE)).unwrap().augmented(augment).unwrap();
    examples.pictures(indices, Some((&examples.draw(3, epoch), 0))).unwrap().0
}

/// `F.resized_crop` of the whole picture, in the box that is drawn for its size.
#[test]
fn crops_are_those_that_torchvision_cuts_out_of_the_file() -> Done {
    let (folder, options) = pictures(24, u64::MAX)?;
    let train = data::image_folder(folder.path().join("images"), SIZE, &options)?.train;
    let (augment, indices) = (cropped(0.1), (0..train.len() as i64).collect::<Vec<_>>());
    let ours = seen(&train, &augment, &indices, 2);
    assert_eq!((ours.size(), ours.kind()), (vec![train.len() as i64, 3, SIZE, SIZE], Kind::Uint8));
    let files = indices.iter().map(|&i| {
        let path = folder.path().join("images").join(train.file_name(i).unwrap());
        let (width, height) = image::image_dimensions(&path).unwrap();
        let size = (i64::from(height), i64::from(width));
        let view = augment.draw(size, &mut generator(Purpose::FreshView, 3, 2, i as u64));
        json!({"path": path, "crop": view.crop})
    });
    let torch = ask("resized_crops", &[], json!({"size": SIZE, "files": files.collect::<Vec<_>>()}));
    let gap = (ours.to_kind(Kind::Double) - torch.get("crops")).abs().max().double_value(&[]);
    // Rounded to whole values, of numbers that are computed in f32.
    assert!(gap < 0.5 + 1e-3, "{gap}");
    Ok(())
}

/// Moments of 20,000 boxes, for pictures of usual shapes and for one so long that most draws stick out.
#[test]
fn boxes_have_the_distribution_of_torchvision_s() {
    let n = 20_000u64;
    let cases = [(500, 375, 0.08), (375, 500, 0.5), (64, 64, 0.08), (600, 60, 0.3)];
    let torch = ask("crop_boxes", &[], json!({"count": n, "cases": cases}));
    for (case, (width, height, least)) in cases.into_iter().enumerate() {
        let augment = cropped(least);
        let boxes = (0..n).flat_map(|i| {
            let view = augment.draw((height, width), &mut generator(Purpose::FreshView, 0, 1, i));
            let [left, top, right, bottom] = view.crop.unwrap();
            assert!(0 <= left && left < right && right <= width && 0 <= top && top < bottom && bottom <= height);
            [left, top, right - left, bottom - top]
        });
        let ours = Tensor::from_slice(&boxes.collect::<Vec<i64>>()).view([-1, 4]).to_kind(Kind::Double);
        let theirs = torch.get(&case.to_string()).to_kind(Kind::Double);
        let of = |boxes: &Tensor| {
            let (w, h) = (boxes.select(1, 2), boxes.select(1, 3));
            let area = (&w * &h / (width * height) as f64).unsqueeze(1);
            Tensor::cat(&[boxes, &area, &(w / h).log().unsqueeze(1)], 1)
        };
        let (ours, theirs) = (of(&ours), of(&theirs));
        for power in [1, 2] {
            let (a, b) = (ours.pow_tensor_scalar(power), theirs.pow_tensor_scalar(power));
            let mean = |t: &Tensor| t.mean_dim(0, false, None);
            // Standard error of the difference of two means.
            let error = ((a.var_dim(0, true, false) + b.var_dim(0, true, false)) / n as f64).sqrt();
            let gap = Vec::<f64>::try_from((mean(&a) - mean(&b)).abs() / (error + 1e-9)).unwrap();
            assert!(gap.iter().all(|gap| *gap < 4.5), "{width} x {height}, power {power}: {gap:?} standard errors");
        }
    }
}

#[test]
fn crops_do_not_depend_on_threads_memory_or_what_was_decoded_ahead() -> Done {
    let (folder, options) = pictures(40, u64::MAX)?;
    let open =
        |memory| data::image_folder(folder.path().join("images"), SIZE, &DataOptions { memory, ..options.clone() });
    let train = open(Some(u64::MAX))?.train;
    let (augment, indices) = (cropped(0.3), data::shuffled(train.len(), 1, 1));
    let originals = train.pool.originals.clone().expect("a folder has files");
    let images = indices.iter().map(|&i| (train.rows[i as usize], i)).collect();
    let crops = Crops { images, augment: augment.clone(), seed: 3, epoch: 1, size: SIZE as u32 };
    let one = originals.decode(&crops, 1)?;
    assert!([2, 3, 64].iter().all(|threads| originals.decode(&crops, *threads).unwrap() == one));
    let first = seen(&train, &augment, &indices, 1);
    assert!(Vec::<u8>::try_from(first.flatten(0, -1))? == one);
    originals.read_ahead(crops.clone());
    originals.read_ahead(Crops { epoch: 2, ..crops.clone() });
    originals.read_ahead(Crops { epoch: 3, ..crops.clone() });
    assert!(originals.read(&crops)?.equal(&first), "of which there were two others");
    assert!(originals.read(&Crops { epoch: 3, ..crops.clone() })?.equal(&seen(&train, &augment, &indices, 3)));
    assert!(!seen(&train, &augment, &indices, 2).equal(&first));
    // A sample of a batch is what it is in another batch.
    assert!(seen(&train, &augment, &indices[5..6], 1).get(0).equal(&first.get(5)));
    // Squares in a file, and other augmentations behind the crop.
    assert!(seen(&open(Some(0))?.train, &augment, &indices, 1).equal(&first));
    let flipped = Augment { flip: true, ..augment };
    let both = seen(&train, &flipped, &indices, 1);
    let mirrored = first.flip([3]);
    let found: Vec<bool> = (0..indices.len() as i64).map(|i| both.get(i).equal(&mirrored.get(i))).collect();
    assert!((0..).zip(&found).all(|(i, mirrored)| *mirrored || both.get(i).equal(&first.get(i))));
    assert!(found.contains(&true) && found.contains(&false));
    Ok(())
}

#[test]
fn crops_come_out_of_shards_too() -> Done {
    let (folder, options) = pictures(30, u64::MAX)?;
    let shards = tempfile::tempdir()?;
    let mut tar = tar::Builder::new(fs::File::create(shards.path().join("train-0.tar"))?);
    // In the order of the folder, whose classes come one after the other.
    for (class, i) in (0..2).flat_map(|class| (0..15).map(move |i| (class, 2 * i + class))) {
        let name = format!("{class}-{i:03}");
        tar.append_path_with_name(
            folder.path().join(format!("images/{}/{i:03}.png", ["a", "b"][class])),
            name.clone() + ".png",
        )?;
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, name + ".cls", class.to_string().as_bytes())?;
    }
    tar.finish()?;
    let open = |path: &Path| data::image_folder(path, SIZE, &options);
    let [in_files, in_shards] = [open(&folder.path().join("images"))?.train, open(shards.path())?.train];
    let indices: Vec<i64> = (0..in_files.len() as i64).collect();
    assert!(seen(&in_shards, &cropped(0.2), &indices, 1).equal(&seen(&in_files, &cropped(0.2), &indices, 1)));
    // The shard is cut between two epochs.
    fs::File::options().write(true).open(shards.path().join("train-0.tar"))?.set_len(700)?;
    let images = Examples::images(&in_shards, &Transform::imagenet(SIZE))?.augmented(&cropped(0.2))?;
    let said = message(images.pictures(&indices, Some((&images.draw(0, 2), 0))).map(drop));
    assert_says(
        &said,
        &["train-0.tar/", ".png is not what it was when the data were opened: ", "; open the data again"],
    );
    Ok(())
}

#[test]
fn files_that_changed_or_are_none_are_named() -> Done {
    let (folder, options) = pictures(12, u64::MAX)?;
    let train = data::image_folder(folder.path().join("images"), SIZE, &options)?.train;
    let images = Examples::images(&train, &Transform::imagenet(SIZE))?.augmented(&cropped(0.2))?;
    let draws = images.draw(0, 1);
    let at_0 = || message(images.pictures(&[1, 0], Some((&draws, 0))).map(drop));
    let path = folder.path().join("images").join(train.file_name(0)?);
    picture(99).save(&path)?;
    assert_says(&at_0(), &[&path.display().to_string(), "its file was changed; open the data again"]);
    fs::remove_file(&path)?;
    assert_says(&at_0(), &["No such file"]);
    assert!(images.batch(&[0], Device::Cpu).is_ok(), "its square is there");

    let alone = Augment { crop: None, ..cropped(0.2) };
    assert_says(&message(alone.check((SIZE, SIZE))), &["give crop too"]);
    assert_says(&message(Views::drawn(&cropped(0.2), 4, 0).map(drop)), &["originals differ in size"]);
    let folder = tempfile::tempdir()?;
    let of_cifar = crate::tests::dataset(folder.path(), 0).train;
    let refused = Examples::images(&of_cifar, &Transform::imagenet(SIZE))?.augmented(&cropped(0.2));
    assert_says(&message(refused.map(drop)), &["have no files of their own"]);
    assert_eq!(cropped(0.2).to_string(), "crop 0.2 of the original");
    Ok(())
}

/// `cargo test -p kdlab --lib -- --ignored --nocapture photographs_are_cropped`: images a second, and the memory that
/// the process takes over time.
#[test]
#[ignore = "measures"]
fn photographs_are_cropped_at_an_even_speed() -> Done {
    let (folder, n) = (tempfile::tempdir()?, 512u32);
    for i in 0..n {
        let class = folder.path().join("images").join(["a", "b"][i as usize % 2]);
        fs::create_dir_all(&class)?;
        // Noise on slopes takes as many bytes as a photograph.
        let noise = |x: u32, y: u32| ((x ^ y << 9 ^ i).wrapping_mul(2_654_435_761) >> 27) as u8;
        let pixel =
            |x: u32, y: u32| Rgb([(x / 2) as u8 ^ noise(x, y), (y / 2) as u8 ^ noise(y, x), (x / 4 + y / 3) as u8]);
        RgbImage::from_fn(500, 375, pixel).save(class.join(format!("{i}.jpg")))?;
    }
    let train = data::image_folder(folder.path().join("images"), 224, &options(&folder.path().join("images")))?.train;
    let images = Examples::images(&train, &Transform::imagenet(224))?.augmented(&cropped(0.08))?;
    for epoch in 1..=8 {
        let (begun, draws) = (std::time::Instant::now(), images.draw(0, epoch));
        for batch in data::batches(&data::shuffled(train.len(), 0, epoch as u64), 64)? {
            let _ = images.pictures(&batch, Some((&draws, 0)))?;
        }
        let memory = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let memory = memory.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned();
        println!(
            "{:.0} images/s on {} threads, {memory}",
            train.len() as f64 / begun.elapsed().as_secs_f64(),
            tch::get_num_threads()
        );
    }
    Ok(())
}
