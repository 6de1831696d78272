//! Networks of every kind as TorchScript, ONNX and int8, and what cannot be exported.

use super::*;

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
