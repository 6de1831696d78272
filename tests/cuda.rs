//! On a CUDA GPU as on the CPU, up to rounding: cuDNN multiplies f32 as TF32, of 11 bits, and adds up in an order of
//! its own. Without a GPU these tests say so and end; the first is for a libtorch with a part for CUDA, GPU or not.

mod common;

use kdlab::data::{Split, Transform, Views, batches, shuffled};
use kdlab::models::{Arch, Backbone, Model, Precision, student};
use kdlab::train::*;
use std::sync::Mutex;
use tch::{Cuda, Device, Kind, Tensor};

/// Two fits at once would share one GPU's generator.
static ALONE: Mutex<()> = Mutex::new(());

fn gpu() -> Option<Device> {
    let device = Some(Device::Cuda(0)).filter(|_| Cuda::is_available());
    if device.is_none() {
        println!("no CUDA GPU: nothing was tested");
    }
    device
}

/// The largest difference, as a share of the largest number.
fn off(here: &Tensor, there: &Tensor) -> f64 {
    let (here, there) = (here.to_device(Device::Cpu), there.to_device(Device::Cpu));
    ((&here - &there).abs().max() / there.abs().max()).double_value(&[])
}

fn teacher(split: &Split) -> CachedTensor {
    let rows = split.labels().unwrap().one_hot(10).to_kind(Kind::Float) * 5.0;
    CachedTensor::new(split, rows, "knows the classes").unwrap()
}

/// A GPU is seen only where this part is loaded, and nothing else asks the linker for it.
#[test]
#[cfg(target_os = "linux")]
fn libtorch_is_loaded_with_its_part_for_cuda() {
    let _ = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let loaded = std::fs::read_to_string("/proc/self/maps").unwrap();
    let cpu =
        loaded.lines().find_map(|line| line.find('/').map(|at| &line[at..]).filter(|f| f.ends_with("libtorch_cpu.so")));
    let cuda = std::path::Path::new(cpu.expect("libtorch is loaded")).with_file_name("libtorch_cuda.so");
    assert_eq!(loaded.contains("libtorch_cuda.so"), cuda.exists(), "{}", cuda.display());
}

#[test]
fn a_student_learns_the_same() {
    let Some(device) = gpu() else { return };
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let data = common::dataset(folder.path(), 0);
    let of = |split| {
        let examples = Examples::images(split, &common::normalised(32)).unwrap().with_teacher(&teacher(split)).unwrap();
        examples.with_views(&Views::cross(2).unwrap()).unwrap()
    };
    let run = |device, precision| {
        let mut model = Model::new("student", device, 1, &|vs| student(vs, 10)).unwrap();
        let options = FitOptions { epochs: 3, batch_size: 8, precision, ..FitOptions::default() };
        let criterion = Criterion::kd(KdLoss::new(4.0, 0.5).unwrap());
        let history = fit(&mut model, &of(&data.train), &of(&data.validation), &criterion, &options).unwrap();
        let losses: Vec<_> = history.records.iter().flat_map(|r| [r.train.loss, r.validation.loss]).collect();
        println!("{device:?} {precision}: {losses:?}");
        Tensor::from_slice(&losses)
    };
    let exact = run(Device::Cpu, Precision::F32);
    assert!(off(&run(device, Precision::F32), &exact) < 0.01);
    assert!(off(&run(device, Precision::Bf16), &exact) < 0.05);
}

/// Convolutions with sums and activations inside, in several copies to the host.
#[test]
fn a_backbone_gives_the_same_features() {
    let Some(device) = gpu() else { return };
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let data = common::dataset(folder.path(), 0);
    for arch in [Arch::ResNet18, Arch::ResNet50, Arch::EfficientNetLite0] {
        let features = |device: Device, precision| {
            // What a pass might read before it is written is no number.
            drop((8..28).map(|n| Tensor::full([1 << n], f64::NAN, (Kind::Float, device))).collect::<Vec<_>>());
            let mut backbone = Backbone::untrained(arch, device, 3).unwrap();
            backbone.model.precision = precision;
            let transform = Transform::imagenet(64);
            backbone_features(&backbone, &data.train, &transform, 3, None, &Listener::default()).unwrap().tensor
        };
        let exact = features(Device::Cpu, Precision::F32);
        for (precision, most) in [(Precision::F32, 0.01), (Precision::Bf16, 0.05)] {
            let off = off(&features(device, precision), &exact);
            println!("{arch} {precision}: off by {off:.1e}");
            assert!(off < most, "{arch} {precision}: off by {off}");
        }
    }
}

/// Labels, teacher and views belong to their images where all of them lie on the GPU.
#[test]
fn batches_are_the_same() {
    let Some(device) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = common::dataset(folder.path(), 0);
    let examples = Examples::images(&data.train, &Transform::imagenet(48)).unwrap();
    let examples = examples.with_teacher(&teacher(&data.train)).unwrap();
    for indices in batches(&shuffled(examples.len(), 1, 1), 7).unwrap() {
        let [here, there] = [Device::Cpu, device].map(|device| examples.batch(&indices, device).unwrap());
        assert!(off(&there.inputs, &here.inputs) < 1e-6 && there.inputs.device() == device);
        assert!(there.labels.to_device(Device::Cpu).equal(&here.labels));
        assert!(there.teacher().unwrap().to_device(Device::Cpu).equal(here.teacher().unwrap()));
    }
}

#[test]
fn a_fit_that_was_stopped_goes_on() {
    let Some(device) = gpu() else { return };
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let folder = tempfile::tempdir().unwrap();
    let data = common::dataset(folder.path(), 0);
    let of = |split| Examples::images(split, &common::normalised(32)).unwrap();
    let run = |name: &str, stop_after: usize| {
        let mut model = Model::new("student", device, 1, &|vs| student(vs, 10)).unwrap();
        let control = Control::default();
        let stop = control.clone();
        let listener = Listener::new(move |event| match event {
            Event::Epoch { record, .. } if record.epoch == stop_after => stop.stop("enough"),
            _ => {}
        });
        let folder = Some(folder.path().join(name));
        let options = FitOptions { epochs: 4, batch_size: 8, folder, control, listener, ..FitOptions::default() };
        fit(&mut model, &of(&data.train), &of(&data.validation), &Criterion::cross_entropy(), &options).unwrap()
    };
    assert_eq!(run("broken", 2).records.len(), 2);
    let losses = |history: History| history.records.iter().map(|r| r.train.loss).collect::<Vec<_>>();
    let (resumed, whole) = (losses(run("broken", 0)), losses(run("whole", 0)));
    assert_eq!(resumed.len(), 4);
    assert!(off(&Tensor::from_slice(&resumed), &Tensor::from_slice(&whole)) < 0.01, "{resumed:?} {whole:?}");
}
