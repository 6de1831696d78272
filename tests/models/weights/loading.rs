//! Weights that are put into a network: all of them fit or nothing changes, and what is odd is said.

use super::*;

#[test]
fn a_saved_model_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/model.safetensors");
    let build = |vs: &nn::Path| {
        Layers::new()
            .add("conv1", nn::conv2d(vs / "conv1", 3, 4, 3, Default::default()))
            .add("bn1", nn::batch_norm2d(vs / "bn1", 4, Default::default()))
    };
    let first = Model::new("m", Device::Cpu, 1, &build).unwrap();
    let _ = first.forward(&Tensor::rand([4, 3, 8, 8], (Kind::Float, Device::Cpu)), true).unwrap();
    first.save(&path).unwrap();
    let mut second = Model::new("m", Device::Cpu, 2, &build).unwrap();
    let report = second.load(&path).unwrap();
    assert_eq!((report.loaded.len(), report.to_string()), (6, "6 variables loaded".to_owned()));
    for ((name, a), (_, b)) in first.state().iter().zip(second.state()) {
        assert!(a.equal(&b), "{name}");
    }
    // The running statistics moved in training, so that they are there shows that buffers are saved.
    let mean = second.state().into_iter().find(|(n, _)| n == "bn1.running_mean").unwrap().1;
    assert!(mean.abs().max().double_value(&[]) > 0.0);
    assert_eq!(second.trainable().len(), 4, "loading must not cut the gradients");
    let again = folder.path().join("again.safetensors");
    second.save(&again).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn weights_of_another_architecture_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resnet18.safetensors");
    Backbone::untrained(Arch::ResNet18, Device::Cpu, 0).unwrap().model.save(&path).unwrap();
    let mut model = net(0);
    let before: Vec<Tensor> = model.state().iter().map(|(_, t)| t.copy()).collect();
    let text = model.load(&path).unwrap_err().to_string();
    assert!(text.contains("11 missing (conv1.bias, conv2.bias, conv2.weight ...)"), "{text}");
    assert!(text.contains("1 mis-shaped (conv1.weight [64, 3, 7, 7] instead of [64, 3, 3, 3])"), "{text}");
    assert!(text.contains("99 unexpected"), "{text}");
    assert!(!text.contains('\n'));
    for ((name, now), before) in model.state().iter().zip(before) {
        assert!(now.equal(&before), "{name} changed");
    }
    let wrong = Backbone::from_file(Arch::ResNet50, Device::Cpu, &path).unwrap_err().to_string();
    assert!(wrong.contains("resnet50") && wrong.contains("missing"), "{wrong}");
}

#[test]
fn surplus_is_reported_and_counters_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("more.pth");
    let size: &[i32] = &[1, 6];
    let entries = [
        ("fc.weight", Stored { size, stride: &[6, 1], ..WHOLE }),
        ("bn1.num_batches_tracked", Stored { size: &[], stride: &[], ..WHOLE }),
        ("old.head", WHOLE),
    ];
    std::fs::write(&path, stored(Pickle::new().state_dict(&entries).stop(), &[("0", six())])).unwrap();
    let mut model = Model::new("m", Device::Cpu, 0, &|vs| {
        let config = nn::LinearConfig { bias: false, ..Default::default() };
        Layers::new().add("fc", nn::linear(vs / "fc", 6, 1, config))
    })
    .unwrap();
    let report = model.load(&path).unwrap();
    assert_eq!(report.unexpected, ["old.head"]);
    assert_eq!(report.to_string(), "1 variables loaded, 1 unexpected (old.head)");
    assert_eq!(list(&model.state()[0].1), [0., 1., 2., 3., 4., 5.]);
}

#[test]
fn a_backbone_is_loaded_without_its_classifier() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights/resnet18.safetensors");
    Model::new("full", Device::Cpu, 5, &|vs| Arch::ResNet18.layers(vs, Some(1000))).unwrap().save(&path).unwrap();
    let (backbone, report) = Backbone::from_file(Arch::ResNet18, Device::Cpu, &path).unwrap();
    assert!(report.unexpected.is_empty() && report.loaded.len() == 100, "{report}");
    assert!(backbone.model.trainable().is_empty());
    // The same file found in the cache, by the architecture's name.
    let found = Backbone::pretrained(Arch::ResNet18, Device::Cpu, folder.path()).unwrap();
    assert!(found.model.state().iter().zip(backbone.model.state()).all(|((_, a), (_, b))| a.equal(&b)));
}

/// A teacher that was fine-tuned elsewhere brings its classifier, if it is one for these classes.
#[test]
fn a_classifier_that_fits_becomes_the_head() {
    let folder = tempfile::tempdir().unwrap();
    let x = Tensor::rand([2, 3, 64, 64], (Kind::Float, Device::Cpu));
    for arch in [Arch::ResNet18, Arch::EfficientNetLite0] {
        let path = folder.path().join(format!("{arch}.safetensors"));
        let whole = Model::new("whole", Device::Cpu, 5, &|vs| arch.layers(vs, Some(3))).unwrap();
        whole.save(&path).unwrap();
        let (backbone, _) = Backbone::from_file(arch, Device::Cpu, &path).unwrap();
        let head = backbone.head_from_file(&path, 3).unwrap().unwrap();
        let logits = head.forward(&backbone.features(&x).unwrap(), false).unwrap();
        assert!(logits.allclose(&whole.forward(&x, false).unwrap(), 1e-5, 1e-6, false), "{arch}");
        assert!(backbone.head_from_file(&path, 1000).unwrap().is_none(), "one for other classes is left out");
        backbone.model.save(&path).unwrap();
        assert!(backbone.head_from_file(&path, 3).unwrap().is_none(), "none is in the file");
    }
    assert!(Backbone::untrained(Arch::ResNet18, Device::Cpu, 0).unwrap().head_from_file(folder.path(), 3).is_err());
}

#[test]
fn an_official_file_with_other_bytes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights").join(Arch::ResNet18.weight_file());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, stored(Pickle::new().state_dict(&[("a", WHOLE)]).stop(), &[("0", six())])).unwrap();
    let text = Backbone::pretrained(Arch::ResNet18, Device::Cpu, folder.path()).unwrap_err().to_string();
    assert!(text.contains("SHA-256") && text.contains("delete it"), "{text}");
}

/// The published Lite0 on real photographs, where the weights are in the cache and CIFAR-10 in `KDLAB_DATA`: the
/// nearest class mean of its features names about two thirds of them, of an untrained one 17 %.
#[test]
fn the_published_lite0_tells_photographs_apart() {
    let arch = Arch::EfficientNetLite0;
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/kdlab"));
    let cache = std::env::var_os("KDLAB_CACHE").map(PathBuf::from).or_else(home);
    let Some(cache) = cache.filter(|c| c.join("weights").join(arch.weight_file()).is_file()) else {
        return eprintln!("skipped: no EfficientNet-Lite0 weights in the cache");
    };
    let backbone = Backbone::pretrained(arch, Device::Cpu, &cache).unwrap();
    let mut full = Model::new("full", Device::Cpu, 0, &|vs| arch.layers(vs, Some(1000))).unwrap();
    let report = full.load(cache.join("weights").join(arch.weight_file())).unwrap();
    assert!(report.unexpected.is_empty(), "{report}");

    let data = std::env::var_os("KDLAB_DATA").map(|d| PathBuf::from(d).join("test_batch.bin"));
    let Some(data) = data.filter(|p| p.is_file()) else {
        return eprintln!("skipped: KDLAB_DATA holds no test_batch.bin");
    };
    const N: i64 = 500;
    let rows = Tensor::from_slice(&std::fs::read(data).unwrap()[..3073 * N as usize]).view([N, 3073]);
    let labels = rows.select(1, 0).to_kind(Kind::Int64);
    let (mean, std) = arch.normalisation();
    let channels = |v: [f64; 3]| Tensor::from_slice(&v.map(|x| x as f32)).view([1, 3, 1, 1]);
    let images = rows.narrow(1, 1, 3072).contiguous().view([N, 3, 32, 32]).to_kind(Kind::Float) / 255.0;
    let images = (images - channels(mean)) / channels(std);
    let large = |i: i64| images.narrow(0, 50 * i, 50).upsample_bilinear2d([96, 96], false, None, None);
    let features: Vec<Tensor> = (0..N / 50).map(|i| backbone.features(&large(i)).unwrap()).collect();
    let features = Tensor::cat(&features, 0);
    assert!(bool::try_from(features.isfinite().all()).unwrap());
    let unit = &features / features.square().sum_dim_intlist(1i64, true, Kind::Float).sqrt();
    let hot = labels.narrow(0, 0, 300).one_hot(10).to_kind(Kind::Float);
    let means = hot.tr().matmul(&unit.narrow(0, 0, 300)) / hot.sum_dim_intlist(0i64, false, Kind::Float).unsqueeze(1);
    let answers = unit.narrow(0, 300, 200).matmul(&means.tr()).argmax(1, false);
    let right = answers.eq_tensor(&labels.narrow(0, 300, 200)).sum(Kind::Int64).int64_value(&[]);
    assert!(right > 100, "{right} of 200");

    // The backbone is the same network without its classifier.
    let state = full.state();
    let get = |name: &str| &state.iter().find(|(n, _)| n == name).unwrap().1;
    let logits = features.narrow(0, 0, 50).linear(get("_fc.weight"), Some(get("_fc.bias")));
    assert!(logits.allclose(&tch::no_grad(|| full.forward(&large(0), false)).unwrap(), 1e-3, 1e-3, false));
}

#[test]
fn prefixes_and_wrappers_of_training_scripts_are_seen_through() {
    for (wrapper, name) in [
        ("net", "module.fc.weight"),
        ("model_state", "fc.weight"),
        ("state_dict", "model.fc.weight"),
        ("weights", "_orig_mod.module.fc.weight"),
        ("generator", "fc.weight"),
    ] {
        let main =
            Pickle::new().op(b"}(").text(wrapper).state_dict(&[(name, ROW)]).text("epoch").int(3).op(b"u").stop();
        let (_folder, path) = file(&stored(main, &[("0", six())]));
        let mut model = tiny_head();
        let report = model.load(&path).unwrap_or_else(|e| panic!("{wrapper} {name}: {e}"));
        assert_eq!(list(&model.state()[0].1), [0., 1., 2., 3., 4., 5.], "{wrapper} {name}: {report}");
    }
    // Two networks whose names fit: the user has to choose.
    let both = Pickle::new().state_dict(&[("student.fc.weight", ROW), ("teacher.fc.weight", ROW)]).stop();
    let (_folder, path) = file(&stored(both, &[("0", six())]));
    assert!(tiny_head().load(&path).unwrap_err().to_string().contains("missing"));
}

#[test]
fn weights_that_lie_deeper_are_found_and_of_several_sets_the_user_chooses() {
    let beside = |p: Pickle| p.text("epoch").int(3).op(b"u");
    // {"checkpoint": {"model": {"state_dict": ...}, "epoch": 3}}, ({...}, 3) and [{...}]
    let deep = Pickle::new().op(b"}(").text("checkpoint").op(b"}(").text("model").op(b"}(").text("state_dict");
    let deep = beside(deep.state_dict(&[("module.fc.weight", ROW)]).op(b"u")).op(b"u").stop();
    let tuple = Pickle::new().op(b"(").state_dict(&[("fc.weight", ROW)]).int(3).op(b"t").stop();
    let listed = Pickle::new().op(b"](").state_dict(&[("fc.weight", ROW)]).op(b"e").stop();
    for main in [deep, tuple, listed] {
        let (_folder, path) = file(&stored(main, &[("0", six())]));
        let mut model = tiny_head();
        model.load(&path).unwrap();
        assert_eq!(list(&model.state()[0].1), [0., 1., 2., 3., 4., 5.]);
    }
    // Self-distillation keeps two networks of the same names; neither is "the" weights.
    let pair = |p: Pickle| {
        p.op(b"}(")
            .text("student")
            .state_dict(&[("fc.weight", ROW)])
            .text("teacher")
            .state_dict(&[("fc.weight", ROW)])
            .op(b"u")
    };
    let wrapped = pair(Pickle::new().op(b"}").text("nets")).op(b"s").stop();
    for main in [pair(Pickle::new()).stop(), wrapped] {
        let text = read(&stored(main, &[("0", six())])).unwrap_err().to_string();
        assert!(
            text.contains("several sets of weights") && text.contains("student") && text.contains("teacher"),
            "{text}"
        );
    }
    // A list that holds itself, and a dictionary that holds it.
    let own = Pickle::new().op(b"]q\x00h\x00a").stop();
    assert!(read(&stored(own, &[])).unwrap_err().to_string().contains("no named tensors"));
}

#[test]
fn what_is_odd_about_loaded_weights_is_said() {
    let said = |main: Vec<u8>, data: Vec<u8>| {
        let (_folder, path) = file(&stored(main, &[("0", data)]));
        tiny_head().load(&path).unwrap().to_string()
    };
    let plain = || Pickle::new().state_dict(&[("fc.weight", ROW)]).stop();
    assert_eq!(said(plain(), six()), "1 variables loaded");
    let text = said(plain(), f32s([0.0, f32::NAN, 2.0, 3.0, 4.0, f32::INFINITY]));
    assert!(text.contains("1 of them hold numbers that are not finite (fc.weight)"), "{text}");
    // Only the moving average is there.
    let ema = Pickle::new().op(b"}").text("ema_state_dict").state_dict(&[("fc.weight", ROW)]).op(b"s").stop();
    let text = said(ema, six());
    assert!(text.contains("the weights are the moving average under \"ema_state_dict\""), "{text}");
    // A sparse tensor among the others can't be built here.
    let sparse = Pickle::new()
        .op(b"}(")
        .text("fc.weight")
        .tensor(&ROW)
        .text("fc.mask")
        .global("torch._utils", "_rebuild_sparse_tensor")
        .op(b")R")
        .op(b"u")
        .stop();
    let text = said(sparse, six());
    assert!(text.contains("1 of its tensors are of a kind that is not read (fc.mask)"), "{text}");
}
