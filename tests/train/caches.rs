//! Cached features and logits belong to their images and are never used for others.

use super::*;

#[test]
fn cached_logits_belong_to_their_images_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = normalised(32);
    let model = tiny_model(5);
    let plain = Examples::images(&data.train, &transform).unwrap();
    let logits = predict(&model, &plain, 7).unwrap();
    let cached = CachedTensor::new(&data.train, logits, "tiny").unwrap();
    let examples = plain.with_teacher(&cached).unwrap();
    for epoch in 1..4 {
        for indices in kdlab::data::batches(&kdlab::data::shuffled(examples.len(), 9, epoch), 6).unwrap() {
            let batch = examples.batch(&indices, Device::Cpu).unwrap();
            let direct = tch::no_grad(|| model.forward(&batch.inputs, false)).unwrap();
            assert!((batch.teacher().unwrap() - direct).abs().max().double_value(&[]) < 1e-5);
        }
    }
}

#[test]
fn a_selection_keeps_images_and_answers_together() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let logits = teacher(&data.train, 1.0);
    let rows = [7i64, 3, 40, 3];
    let (part, selected) = (data.train.select(&rows).unwrap(), logits.select(&data.train, &rows).unwrap());
    let examples = Examples::images(&part, &normalised(32)).unwrap().with_teacher(&selected).unwrap();
    for (i, &row) in rows.iter().enumerate() {
        assert_eq!(part.image(i as i64).unwrap(), data.train.image(row).unwrap());
        assert_eq!(selected.tensor.get(i as i64), logits.tensor.get(row));
    }
    assert_eq!(examples.len(), 4);
    // The key depends on the rows and on the key of the values.
    let key = |seed, rows: &[i64]| teacher(&data.train, seed).select(&data.train, rows).unwrap().key;
    assert_eq!(key(1.0, &rows), selected.key);
    assert!(key(2.0, &rows) != selected.key && key(1.0, &[7, 3, 3, 40]) != selected.key);
    assert!(logits.select(&data.validation, &[0]).is_err());
    for bad in [&[][..], &[64], &[-1]] {
        assert!(data.train.select(bad).is_err() && logits.select(&data.train, bad).is_err());
    }
}

#[test]
fn features_are_computed_once_and_never_used_for_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let cache = folder.path().join("cache");
    let passes = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&passes);
    let listener = Listener::new(move |e| {
        if let Event::Progress(p) = e
            && p.done == p.total
        {
            *counter.lock().unwrap() += 1;
        }
    });
    let resnet = |seed| Backbone::untrained(Arch::ResNet18, Device::Cpu, seed).unwrap();
    let run = |backbone: &Backbone, data: &Dataset, size| {
        backbone_features(backbone, &data.validation, &Transform::imagenet(size), 4, Some(&cache), &listener).unwrap()
    };
    let backbone = resnet(1);
    let first = run(&backbone, &data, 32);
    let second = run(&backbone, &data, 32);
    assert_eq!((first.from_disk, second.from_disk, *passes.lock().unwrap()), (false, true, 1));
    assert_eq!(first.tensor, second.tensor);
    // Features are computed again for another size, other weights, another normalisation, split seed or pixels.
    assert!(!run(&backbone, &data, 40).from_disk);
    assert!(!run(&resnet(2), &data, 32).from_disk);
    let otherwise = |transform: Transform| {
        backbone_features(&backbone, &data.validation, &transform, 4, Some(&cache), &listener).unwrap().from_disk
    };
    let [mut mean, mut std] = [Transform::imagenet(32), Transform::imagenet(32)];
    mean.mean[2] += 1e-6;
    std.std[0] += 1e-6;
    assert!(!otherwise(mean) && !otherwise(std) && otherwise(Transform::imagenet(32)));
    // These weights were changed in place after loading.
    let changed = resnet(1);
    tch::no_grad(|| drop(changed.model.state()[0].1.shallow_clone().fill_(0.5)));
    assert!(!run(&changed, &data, 32).from_disk);
    let again = tempfile::tempdir().unwrap();
    assert!(!run(&backbone, &dataset(again.path(), 1), 32).from_disk);
    let mut bytes = std::fs::read(again.path().join("data_batch_1.bin")).unwrap();
    for pixel in bytes.iter_mut().skip(1).step_by(3073) {
        *pixel ^= 1;
    }
    std::fs::write(again.path().join("data_batch_1.bin"), bytes).unwrap();
    let options = DataOptions { folder: Some(again.path().to_owned()), validation: 0.2, ..DataOptions::default() };
    assert!(!run(&backbone, &kdlab::data::open(&options).unwrap(), 32).from_disk);
    assert_eq!(*passes.lock().unwrap(), 8);
    // Logits also depend on the head's weights.
    let mut lab = kdlab::Lab::open().unwrap();
    lab.folder = folder.path().to_owned();
    let logits = |seed| {
        let head = head(Arch::ResNet18.features(), 10, Device::Cpu, seed).unwrap();
        lab.logits(&head, &data.validation, &first).unwrap().from_disk
    };
    assert_eq!([logits(1), logits(1), logits(2)], [false, true, false]);
    // A damaged file is not used.
    for file in std::fs::read_dir(&cache).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert!(!run(&backbone, &data, 32).from_disk);
}

#[test]
fn a_head_on_features_equals_the_articles_way() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let transform = Transform::imagenet(32);
    let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
    let features = |split| backbone_features(&backbone, split, &transform, 8, None, &Listener::default()).unwrap();
    let run = |train: Examples, validation: Examples| {
        let mut model = head(Arch::ResNet18.features(), 10, Device::Cpu, 3).unwrap();
        fit(
            &mut model,
            &train,
            &validation,
            &Criterion::cross_entropy(),
            &FitOptions { learning_rate: 1e-3, ..options(2) },
        )
        .unwrap();
        values(&model)
    };
    let cached = run(
        Examples::features(&data.train, &features(&data.train)).unwrap(),
        Examples::features(&data.validation, &features(&data.validation)).unwrap(),
    );
    let through = |split| Examples::through_backbone(split, &transform, &backbone).unwrap();
    let forward = run(through(&data.train), through(&data.validation));
    // Batches of another size may use other kernels, which round differently, and Adam's normalised steps keep the
    // difference.
    let largest = cached.iter().zip(&forward).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-4, "{largest}");
}

/// After a power loss a file may have its full length and still hold zeros where the disk had not written yet.
#[test]
fn rows_are_believed_by_their_sums_and_not_by_their_length() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let (cache, features) = (folder.path().join("cache"), folder.path().join("features"));
    let rows = Arc::new(Mutex::new(0));
    let heard = Arc::clone(&rows);
    let listener = Listener::new(move |e| {
        if let Event::Progress(p) = e {
            *heard.lock().unwrap() = p.total;
        }
    });
    let views = kdlab::data::Views::new(true, &[]).unwrap();
    let pass = || view_logits(&tiny_model(1), &data.train, &normalised(32), &views, 16, &cache, &listener);
    let path = pass().unwrap().path.unwrap();
    let whole = std::fs::read(&path).unwrap();
    let zeroed = |n: usize| [&whole[..whole.len() - n], &vec![0; n]].concat();
    // A row is 10 values of f16. The header has the checksums of all rows, and the last five rows are zeros.
    std::fs::write(&path, zeroed(5 * 20)).unwrap();
    let e = pass().err().unwrap().to_string();
    assert!(e.contains("is damaged: its numbers are not those that were written") && e.contains("delete it"), "{e}");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(path.with_extension("part"), zeroed(5 * 20)).unwrap();
    pass().unwrap();
    assert_eq!(*rows.lock().unwrap(), 5, "rows that were computed again");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    // One value in the middle is wrong: that row and all rows after it are computed again.
    let mut flipped = whole.clone();
    flipped[whole.len() - 40 * 20 + 3] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(path.with_extension("part"), &flipped).unwrap();
    pass().unwrap();
    assert_eq!(*rows.lock().unwrap(), 40);
    assert_eq!(std::fs::read(&path).unwrap(), whole);

    // A file of another layout, as another version of this crate may have left, is replaced.
    std::fs::write(&path, b"something else").unwrap();
    assert!(!pass().unwrap().from_disk);
    assert_eq!(std::fs::read(&path).unwrap(), whole);

    // Damaged features and logits of a head are computed again without an error.
    let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
    let run = || {
        let transform = Transform::imagenet(32);
        backbone_features(&backbone, &data.validation, &transform, 4, Some(&features), &Listener::default()).unwrap()
    };
    let (first, again) = (run(), run());
    assert!(again.from_disk && again.tensor == first.tensor);
    let numbers = first.tensor.copy();
    drop((first, again));
    let path = std::fs::read_dir(&features).unwrap().flatten().map(|e| e.path());
    let path = path.into_iter().find(|p| p.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&bytes[..bytes.len() - 1000], &vec![0; 1000]].concat()).unwrap();
    let anew = run();
    assert!(!anew.from_disk && anew.tensor == numbers);
}

/// A trace in training mode has dropout in it for good, so its logits would be others for every pass.
#[test]
fn a_script_that_was_traced_in_training_mode_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let model = tiny_model(5);
    let logits = |train: bool| {
        let mut forward = |x: &[Tensor]| vec![model.forward(&x[0], false).unwrap().detach().dropout(0.5, train)];
        let images = Tensor::zeros([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        for (_, mut weight) in model.var_store().variables() {
            let _ = weight.requires_grad_(false);
        }
        let path = folder.path().join(format!("{train}.pt"));
        let traced = tch::CModule::create_by_tracing("__torch__.Net", "forward", &[images], &mut forward).unwrap();
        traced.save(&path).unwrap();
        let preprocessing =
            kdlab::data::Preprocessing { resize: 32, size: 32, ..kdlab::data::Preprocessing::imagenet() };
        let teacher =
            kdlab::models::TorchScript::load(&path, Device::Cpu, preprocessing, kdlab::models::Outputs::Logits)
                .unwrap();
        kdlab::train::script_logits(&teacher, &data.train, 7, None, &Listener::default())
    };
    assert!(logits(false).is_ok());
    let text = logits(true).expect_err("an error").to_string();
    assert!(text.contains("true.pt judges the same image differently") && text.contains("model.eval()"), "{text}");
}
