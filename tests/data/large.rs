//! Data sets that are larger than the memory they may take: their images lie in a file.

use super::images::{ODD, two_halves};
use super::*;
use std::path::PathBuf;

/// Two folders: images of two classes, and a cache outside of them.
struct Large {
    images: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Large {
    fn new(n: u32) -> Result<Self, Box<dyn std::error::Error>> {
        let large = Self { images: tempfile::tempdir()?, cache: tempfile::tempdir()? };
        for class in ["a", "b"] {
            fs::create_dir(large.images.path().join(class))?;
            for i in 0..n {
                let pixel = |x, y| Rgb([(i * 7 + x) as u8, (i * 3 + y) as u8, class.as_bytes()[0]]);
                RgbImage::from_fn(9 + i % 5, 8, pixel)
                    .save(large.images.path().join(class).join(format!("{i:03}.png")))?;
            }
        }
        Ok(large)
    }

    fn options(&self, memory: u64) -> DataOptions {
        let cache = self.cache.path().to_owned();
        DataOptions { cache, memory: Some(memory), ..options(self.images.path()) }
    }

    fn open(&self, memory: u64) -> Result<Dataset, Error> {
        data::open(&self.options(memory))
    }

    /// The files beside the cache whose names end so.
    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.cache.path().join("pixels")).into_iter().flatten();
        files.map(|file| file.unwrap().path()).filter(|path| path.to_string_lossy().ends_with(ending)).collect()
    }

    /// The one finished file.
    fn file(&self) -> PathBuf {
        let [file] = self.files(".pixels").try_into().expect("one file");
        file
    }
}

/// The same images, labels, names and keys.
fn assert_same(file: &Dataset, memory: &Dataset) {
    assert_eq!((&file.key, &file.classes), (&memory.key, &memory.classes));
    for (file, memory) in
        [&file.train, &file.validation, &file.test].into_iter().zip([&memory.train, &memory.validation, &memory.test])
    {
        assert_eq!((&file.key, file.size(), file.len()), (&memory.key, memory.size(), memory.len()));
        let mut order = data::shuffled(file.len(), 1, 1);
        order.extend([0, 0, file.len() as i64 - 1]); // a sample may occur more than once
        for part in [&order[..], &order[..1], &(0..file.len() as i64).collect::<Vec<_>>()] {
            let (a, b) = (file.batch(part).unwrap(), memory.batch(part).unwrap());
            assert!(a.images.equal(&b.images) && a.labels.equal(&b.labels));
            file.read_ahead(part);
            file.read_ahead(&order[1..]);
            assert!(file.batch(part).unwrap().images.equal(&b.images), "read ahead");
        }
        assert_eq!(file.file_name(0).unwrap(), memory.file_name(0).unwrap());
        // As a fit moves a small data set to its device.
        let (moved, all) = (file.on(Device::Cpu).unwrap(), &order[..]);
        assert_eq!((&moved.key, moved.pool_bytes()), (&memory.key, memory.pool_bytes()));
        assert!(moved.batch(all).unwrap().images.equal(&memory.batch(all).unwrap().images));
    }
}

#[test]
fn batches_from_a_file_are_those_from_memory() -> Done {
    let large = Large::new(60)?;
    let a = large.images.path().join("a");
    // What is left out, repeated or animated is told either way.
    fs::write(a.join("text.jpg"), "this is no image")?;
    fs::copy(large.images.path().join("b/003.png"), a.join("twice.png"))?;
    fs::copy(Path::new(ODD).join("moving.gif"), a.join("moving.gif"))?;
    let memory = large.open(u64::MAX)?;
    assert!(large.files("").is_empty(), "nothing is written where memory suffices");
    let made = large.open(0)?;
    let found = large.open(0)?;
    for file in [&made, &found] {
        assert_same(file, &memory);
        let said = file.notices.join("\n");
        assert_says(&said, &["the decoded images (23.4 kB) would take more than 0.0 kB of memory", ".pixels"]);
        let without: Vec<_> = file.notices.iter().filter(|notice| !notice.contains(".pixels")).collect();
        assert_eq!(without, memory.notices.iter().collect::<Vec<_>>());
    }
    assert_eq!(large.files("").len(), 2, "the file and its lock: {:?}", large.files(""));
    // The images in memory may take exactly their size.
    let exact = large.open(123 * 3 * 8 * 8)?;
    assert!(!exact.to_string().contains(".pixels"), "{exact}");
    Ok(())
}

#[test]
fn the_file_is_found_by_what_it_was_made_of() -> Done {
    let large = Large::new(12)?;
    let first = large.open(0)?;
    let (path, made) = (large.file(), fs::metadata(large.file())?.modified()?);
    large.open(0)?;
    assert_eq!(fs::metadata(&path)?.modified()?, made, "it is read, not written");
    // The same folder at another size, framing or with another image needs other files.
    data::image_folder(large.images.path(), 10, &large.options(0))?;
    data::open(&DataOptions { framing: data::Framing::CentreCrop, ..large.options(0) })?;
    two_halves().save(large.images.path().join("a/005.png"))?;
    let changed = large.open(0)?;
    assert_ne!(changed.key, first.key);
    assert_same(&changed, &large.open(u64::MAX)?);
    assert_eq!(large.files(".pixels").len(), 4);
    // A folder that moved holds the same images.
    let moved = large.images.path().with_extension("moved");
    fs::rename(large.images.path(), &moved)?;
    let again = data::open(&DataOptions { folder: Some(moved.clone()), ..large.options(0) });
    fs::rename(&moved, large.images.path())?;
    assert_eq!(again?.key, changed.key);
    Ok(())
}

#[test]
fn a_damaged_file_is_noticed_and_made_again() -> Done {
    let large = Large::new(20)?;
    let memory = large.open(u64::MAX)?;
    large.open(0)?;
    let (path, whole) = (large.file(), fs::read(large.file())?);
    let mut other = whole.clone();
    other[100] ^= 1; // a pixel
    let mut record = whole.clone();
    let end = record.len() - 30;
    record[end] ^= 1;
    for damaged in [&whole[..whole.len() - 1], &whole[..5], &[], &[whole.as_slice(), b"more"].concat(), &other, &record]
    {
        fs::write(&path, damaged)?;
        assert_same(&large.open(0)?, &memory);
        assert!(fs::read(&path)? == whole, "the same bytes again");
    }
    // Damage behind the back of an open data set.
    let open = large.open(0)?;
    fs::write(&path, &other)?;
    let all: Vec<i64> = (0..open.train.len() as i64).collect();
    let rest: Vec<i64> = (0..open.test.len() as i64).collect();
    let valid: Vec<i64> = (0..open.validation.len() as i64).collect();
    let read = [open.train.batch(&all), open.test.batch(&rest), open.validation.batch(&valid)];
    let failed: Vec<String> = read.into_iter().filter(Result::is_err).map(message).collect();
    let [failed] = failed.as_slice() else { panic!("one split has the image: {failed:?}") };
    assert_says(failed, &["was damaged and is deleted; open the data again", ".pixels"]);
    assert_same(&large.open(0)?, &memory);
    Ok(())
}

#[test]
fn a_pass_that_was_killed_goes_on_where_it_ended() -> Done {
    let large = Large::new(40)?;
    fs::write(large.images.path().join("a/000.png"), "no image")?;
    let memory = large.open(u64::MAX)?;
    large.open(0)?;
    let (path, whole, row) = (large.file(), fs::read(large.file())?, 3 * 8 * 8);
    let record = &whole[79 * row..whole.len() - 16];
    let lines: Vec<&[u8]> = record.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 1 + 80 + 1, "the key, the images, the key of the pool");
    let (part, journal) = (path.with_extension("part"), path.with_extension("journal"));
    // (lines of the journal, bytes of the rows): killed between the two, in a line, before the file was renamed, or
    // with rows that a power loss took.
    let zeros = [&whole[..20 * row], &vec![0; 60 * row][..]].concat();
    let states: [(usize, &[u8], &[u8]); 6] = [
        (41, &[], &whole[..40 * row]),
        (41, b"{\"Kept\"", &whole[..39 * row + 7]),
        (81, &[], &whole[..79 * row + 40]),
        (61, &[], &zeros),
        (1, &[], &[]),
        (0, b"\"another key\"\n", &whole[..40 * row]),
    ];
    for (n, rest, rows) in states {
        fs::remove_file(&path)?;
        fs::write(&part, rows)?;
        fs::write(&journal, [&lines[..n].concat(), rest].concat())?;
        assert_same(&large.open(0)?, &memory);
        assert!(fs::read(&path)? == whole, "{n} lines");
        assert!(!part.exists() && !journal.exists());
    }
    Ok(())
}

/// Run by `a_pass_that_got_sigkill_goes_on` in a process of its own; by itself it does nothing.
#[test]
fn child_pass() -> Done {
    let Some(folder) = std::env::var_os("KDLAB_TEST_CHILD") else { return Ok(()) };
    let folder = Path::new(&folder);
    let options = DataOptions { cache: folder.join("cache"), memory: Some(0), ..options(&folder.join("images")) };
    data::image_folder(folder.join("images"), 1024, &options)?;
    Ok(())
}

/// Pieces of 21 images are written one after the other. The process is killed after each of the first three.
#[test]
fn a_pass_that_got_sigkill_goes_on() -> Done {
    let folder = tempfile::tempdir()?;
    for i in 0..90u8 {
        let class = folder.path().join("images").join(["a", "b"][usize::from(i % 2)]);
        fs::create_dir_all(&class)?;
        RgbImage::from_fn(24, 18, |x, y| Rgb([i, (x * 9) as u8, (y * 13) as u8]))
            .save(class.join(format!("{i}.png")))?;
    }
    let pass = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "data::tests::large::child_pass"]).env("KDLAB_TEST_CHILD", folder.path());
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let pixels = folder.path().join("cache/pixels");
    let made = |ending: &str| {
        let files = fs::read_dir(&pixels).into_iter().flatten().flatten().map(|file| file.path());
        files.into_iter().find(|path| path.to_string_lossy().ends_with(ending))
    };
    let lines = || made(".journal").map_or(0, |path| fs::read(path).unwrap().iter().filter(|b| **b == b'\n').count());
    for kills in 0..3 {
        let (before, begun) = (lines(), std::time::Instant::now());
        let mut child = pass();
        while lines() <= before.max(1) {
            assert!(
                begun.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(),
                "no piece after {kills} kills"
            );
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        assert!(made(".pixels").is_none() && lines() > before.max(1), "it went on, and was not finished");
    }
    assert!(pass().wait()?.success());
    let broken = fs::read(made(".pixels").expect("the file"))?;
    assert!(made(".part").is_none() && made(".journal").is_none());
    fs::remove_dir_all(folder.path().join("cache"))?;
    assert!(pass().wait()?.success());
    assert!(fs::read(made(".pixels").expect("the file"))? == broken, "other bytes than those of an unbroken pass");
    Ok(())
}

#[test]
fn a_pass_waits_for_the_one_that_another_process_makes() -> Done {
    let large = Large::new(12)?;
    large.open(0)?;
    let (path, whole) = (large.file(), fs::read(large.file())?);
    fs::remove_file(&path)?;
    let lock = fs::File::create(path.with_extension("lock"))?;
    lock.lock()?;
    let data = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| large.open(0));
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!waiting.is_finished());
        fs::write(&path, &whole).unwrap();
        waiting.join().unwrap()
    })?;
    assert_same(&data, &large.open(u64::MAX)?);
    drop(lock);
    Ok(())
}

#[test]
fn a_fit_on_a_file_is_the_fit_in_memory() -> Done {
    use kdlab::models::{Model, student};
    use kdlab::train::{Criterion, Examples, FitOptions, fit, predict};
    let large = Large::new(30)?;
    // To the last digit, whatever else computes on the machine.
    tch::set_num_threads(1);
    let results = [0, u64::MAX].map(|memory| -> Result<(Vec<f64>, Tensor), Error> {
        let data = large.open(memory)?;
        let transform = Transform::imagenet(8);
        let (train, validation) =
            (Examples::images(&data.train, &transform)?, Examples::images(&data.validation, &transform)?);
        let mut model = Model::new("student", Device::Cpu, 3, &|vs| student(vs, 2))?;
        let options = FitOptions { epochs: 2, batch_size: 7, folder: None, ..FitOptions::default() };
        let history = fit(&mut model, &train, &validation, &Criterion::cross_entropy(), &options)?;
        Ok((history.records.iter().map(|record| record.train.loss).collect(), predict(&model, &train, 5)?))
    });
    let [file, memory] = results;
    let (file, memory) = (file?, memory?);
    assert_eq!(file.0, memory.0);
    assert!(file.1.equal(&memory.1));
    Ok(())
}

/// A value of `/proc/self/status` in MB.
fn status(name: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse().ok()).unwrap_or(f64::NAN) / 1e3
}

/// Run it where 400 MB of memory may be used, such as in a cgroup: the images take ten times as much.
#[test]
#[ignore = "decodes 4 GB, which takes minutes and is meant for a process that may use little memory"]
fn ten_times_the_memory_is_read_at_an_even_speed() -> Done {
    let large = Large::new(0)?;
    for i in 0..27_000u32 {
        let path = large.images.path().join(["a", "b"][i as usize % 2]).join(format!("{i}.png"));
        RgbImage::from_fn(16, 16, |x, y| Rgb([(x * 9) as u8 ^ i as u8, (i >> 8) as u8, (y * 5) as u8])).save(path)?;
    }
    let before = status("VmRSS:");
    let begun = std::time::Instant::now();
    let usual = DataOptions { memory: None, folder_size: 224, ..large.options(0) };
    let data = data::open(&usual)?;
    let made = begun.elapsed().as_secs_f64();
    println!("{before:.0} MB before; made in {made:.0} s, peak {:.0} MB\n{data}", status("VmHWM:"));
    assert_says(&data.to_string(), &["would take more than"]);
    let begun = std::time::Instant::now();
    assert_eq!(data::open(&usual)?.key, data.key);
    println!("found again in {:.1} s", begun.elapsed().as_secs_f64());

    let batches = data::batches(&data::shuffled(data.train.len(), 0, 0), 64)?;
    let (mut speeds, mut most) = (Vec::new(), 0.0f64);
    for tenth in batches.chunks(batches.len().div_ceil(10)) {
        let begun = std::time::Instant::now();
        for (i, batch) in tenth.iter().enumerate() {
            tenth.get(i + 1).into_iter().for_each(|next| data.train.read_ahead(next));
            let _ = Transform::imagenet(32).apply(&data.train.batch(batch)?.images, Device::Cpu)?;
            most = most.max(status("VmRSS:"));
        }
        speeds.push((tenth.concat().len() as f64 / begun.elapsed().as_secs_f64()).round());
    }
    println!("images a second in each tenth {speeds:?}, at most {most:.0} MB");
    assert!(speeds[speeds.len() - 1] > 0.5 * speeds[0], "{speeds:?}");
    assert!(most < before + 400.0);
    Ok(())
}
