//! Teachers that were trained elsewhere.

use super::dataset;
use super::oracle::{ask, relative};
use kdlab::data::{Channels, Dataset, Preprocessing, Transform};
use kdlab::models::{Outputs, TorchScript};
use kdlab::train::{CachedTensor, Examples, Listener, OnlineTeacher, script_logits};
use serde_json::json;
use std::path::Path;
use tch::{Device, Tensor};

fn preprocessing() -> Preprocessing {
    Preprocessing { resize: 72, size: 64, ..Preprocessing::imagenet() }
}

fn load(path: &Path, outputs: Outputs) -> kdlab::Result<TorchScript> {
    TorchScript::load(path, Device::Cpu, preprocessing(), outputs)
}

fn logits(teacher: &TorchScript, data: &Dataset, cache: Option<&Path>) -> kdlab::Result<CachedTensor> {
    script_logits(teacher, &data.validation, 7, cache, &Listener::default())
}

/// A ResNet of torchvision, in images that torchvision prepared; and files that no teacher can be made of.
#[test]
fn a_torch_script_teacher_says_in_rust_what_it_says_in_python() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0);
    let all: Vec<i64> = (0..data.validation.len() as i64).collect();
    let torch = ask("scripts", &[("images", &data.validation.batch(&all).unwrap().images)], json!({}));
    let file = |name: &str| torch.folder.path().join(format!("{name}.pt"));
    // The images are equal to 1e-5 (see the parity of transforms), and 18 layers of f32 add their rounding.
    let same = |ours: &CachedTensor, name: &str| {
        let gap = relative(&ours.tensor, torch.get(name));
        assert!(gap < 1e-4, "{name}: {gap:e}");
    };

    let mut teacher = load(&file("traced"), Outputs::Logits).unwrap();
    let cache = folder.path().join("cache");
    let first = logits(&teacher, &data, Some(&cache)).unwrap();
    same(&first, "imagenet");
    same(&logits(&load(&file("scripted"), Outputs::Logits).unwrap(), &data, None).unwrap(), "small");
    let probable = logits(&load(&file("probabilities"), Outputs::Probabilities).unwrap(), &data, None).unwrap();
    let of = |x: &Tensor| x.softmax(1, tch::Kind::Float);
    assert!(relative(&of(&probable.tensor), &of(torch.get("small"))) < 1e-4);

    // It judges batches as they come, prepared in its own way: the student's images have 32 pixels.
    let images = || Examples::images(&data.validation, &Transform::imagenet(32)).unwrap();
    let online = OnlineTeacher::script(load(&file("traced"), Outputs::Logits).unwrap());
    let batch = images().taught_by(&online).unwrap().batch(&all, Device::Cpu).unwrap();
    assert!(relative(batch.teacher().unwrap(), &first.tensor) < 1e-5);
    let few = OnlineTeacher::script(load(&file("few"), Outputs::Logits).unwrap());
    let refused = images().taught_by(&few).err().unwrap().to_string();
    assert!(refused.contains("few.pt gives 9 outputs and the dataset has 10 classes"), "{refused}");

    // Found again by what the file holds, and not for another preprocessing.
    assert!(!first.from_disk);
    std::fs::rename(file("traced"), file("renamed")).unwrap();
    assert!(logits(&load(&file("renamed"), Outputs::Logits).unwrap(), &data, Some(&cache)).unwrap().from_disk);
    teacher.preprocessing.mean = [103.939, 116.779, 123.68];
    teacher.preprocessing.std = [64.0; 3];
    (teacher.preprocessing.channels, teacher.preprocessing.largest) = (Channels::Bgr, 255.0);
    let caffe = logits(&teacher, &data, Some(&cache)).unwrap();
    assert!(!caffe.from_disk && caffe.key != first.key);
    same(&caffe, "caffe");

    let says = |result: kdlab::Result<CachedTensor>, parts: &[&str]| {
        let text = result.expect_err("an error").to_string();
        assert!(text.lines().count() == 1 && parts.iter().all(|part| text.contains(part)), "{parts:?}: {text}");
    };
    std::fs::write(file("text"), "no archive").unwrap();
    for (name, parts) in [
        ("weights", &["weights.pt is no TorchScript file: it holds weights", "torch.jit.trace"][..]),
        ("text", &["text.pt is no TorchScript file", "torch.jit.trace"]),
        ("absent", &["absent.pt", "No such file"]),
        ("gpu", &["gpu.pt refuses images of shape [2, 3, 64, 64]", "traced on a GPU", "model.cpu()"]),
        ("several", &["several.pt", "wrap the network", "the logits alone"]),
        ("fixed", &["fixed.pt gives [1, 10] for 2 images", "batch of 2"]),
        ("images", &["images.pt gives [2, 3, 64, 64]", "[images, classes] is needed"]),
        ("few", &["few.pt gives 9 outputs and the dataset has 10 classes", "train its last layer"]),
        ("nan", &["nan.pt gives numbers that are not finite", "preprocessing"]),
        ("probabilities", &["probabilities.pt", "give Outputs::Probabilities"]),
    ] {
        says(load(&file(name), Outputs::Logits).and_then(|t| logits(&t, &data, None)), parts);
    }
    let not_so = load(&file("renamed"), Outputs::Probabilities).unwrap();
    says(logits(&not_so, &data, None), &["is no probability", "give Outputs::Logits"]);
    let mut flat = load(&file("flat"), Outputs::Logits).unwrap();
    assert_eq!(logits(&flat, &data, None).unwrap().tensor.size(), [16, 10]);
    flat.preprocessing.size = 56;
    says(logits(&flat, &data, None), &["[2, 3, 56, 56]", "shapes cannot be multiplied", "check the size"]);
    flat.preprocessing.size = 73;
    says(logits(&flat, &data, None), &["crops 73 pixels from images of 72"]);
    flat.preprocessing = Preprocessing { largest: 0.0, ..preprocessing() };
    says(logits(&flat, &data, None), &["give 1 or 255"]);
}
