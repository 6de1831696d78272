//! The crate against PyTorch, live: both compute the same from the same numbers, and must agree.
//!
//! Tolerances: f64 is compared to 1e-12, some thousand roundings. In f32 both sides call the same libtorch, so what
//! differs is the order of a few operations; 1e-5 of the largest value is about a hundred roundings of 6e-8, and far
//! below what any mistake in a layer, a constant or a formula does. Where a looser bound is used, its reason stands
//! beside it.

use super::oracle::{ask, ask_in, difference, relative, weights};
use kdlab::data::{DataOptions, Dataset, Framing, Transform, read_image};
use kdlab::models::{Arch, Backbone, Model, Student, read_weights, student};
use kdlab::study::mistakes::kd_loss_over_classes;
use kdlab::train::{Evaluation, KdLoss, Method, soft_targets};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const TEMPERATURES: [f64; 5] = [0.5, 1.0, 2.0, 4.0, 20.0];
const ALPHAS: [f64; 3] = [0.0, 0.3, 1.0];

fn random(shape: [i64; 2], seed: i64, kind: Kind) -> Tensor {
    tch::manual_seed(seed);
    (Tensor::randn(shape, (Kind::Double, Device::Cpu)) * 3.0).to_kind(kind)
}

/// What `KDLAB_DATA` names, else what can be downloaded.
fn photographs() -> Dataset {
    let sizes = Some(60);
    kdlab::data::open(&DataOptions {
        train_images: sizes,
        validation_images: sizes,
        test_images: sizes,
        ..DataOptions::default()
    })
    .unwrap()
}

/// `alpha * T**2 * F.kl_div(F.log_softmax(s/T, 1), F.softmax(t/T, 1), reduction="batchmean") + (1-alpha) *
/// F.cross_entropy(s, y)`, its gradient with respect to `s`, and the article's `nn.KLDivLoss()` beside it.
#[test]
fn kd_loss_and_its_gradient_are_pytorch_s() {
    let labels = Tensor::from_slice(&[3i64, 0, 9, 1, 1, 5]);
    // In f32 log_softmax + exp against softmax differ by a few roundings of the loss's largest term.
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
        let (s, t) = (random([6, 10], 1, kind), random([6, 10], 2, kind));
        let settings = json!({"temperatures": TEMPERATURES, "alphas": ALPHAS});
        let torch = ask("kd", &[("student", &s), ("teacher", &t), ("labels", &labels)], settings);
        for temperature in TEMPERATURES {
            for alpha in ALPHAS {
                let kd = KdLoss::new(temperature, alpha).unwrap();
                for reduction in ["batchmean", "mean"] {
                    let s = s.detach().copy().set_requires_grad(true);
                    let loss = match reduction {
                        "batchmean" => kd.forward(&s, &labels, &t).unwrap(),
                        _ => kd_loss_over_classes(&s, &labels, &t, kd).unwrap(),
                    };
                    loss.backward();
                    let case = format!("{reduction} {temperature:?} {alpha:?}");
                    let (value, gradient) = (torch.get(&format!("loss {case}")), torch.get(&format!("grad {case}")));
                    assert!(relative(&loss, value) < tolerance, "{case}: {loss:?} {value:?}");
                    assert!(relative(&s.grad(), gradient) < tolerance, "gradient, {case}");
                }
                // The test can tell teacher from student: exchanged, the loss is another one.
                let swapped = kd.forward(&t, &labels, &s).unwrap();
                let loss = torch.get(&format!("loss batchmean {temperature:?} {alpha:?}"));
                assert!(relative(&swapped, loss) > 100.0 * tolerance, "T {temperature} alpha {alpha}");
            }
            // d/ds of T^2 KL(p || q) / B is T (q - p) / B.
            let q_minus_p = soft_targets(&s, temperature).unwrap() - soft_targets(&t, temperature).unwrap();
            let gradient = torch.get(&format!("grad batchmean {temperature:?} 1.0"));
            assert!(relative(&(q_minus_p * (temperature / 6.0)), gradient) < tolerance, "analytic, T {temperature}");
        }
    }
}

/// DKD with the paper's weights and logit standardisation, mixed with cross-entropy at alpha = 0.7, and their
/// gradients.
#[test]
fn other_methods_are_their_papers() {
    let labels = Tensor::from_slice(&[3i64, 0, 9, 1, 1, 5]);
    let (s, t) = (random([6, 10], 1, Kind::Double), random([6, 10], 2, Kind::Double));
    let tensors = [("student", &s), ("teacher", &t), ("labels", &labels)];
    let torch = ask("methods", &tensors, json!({"temperatures": TEMPERATURES}));
    for temperature in TEMPERATURES {
        for name in ["dkd", "standardised-kd", "argmax"] {
            let method: Method = name.parse().unwrap();
            let s = s.detach().copy().set_requires_grad(true);
            let kd = KdLoss::new(temperature, 0.7).unwrap();
            let soft = method.divergence(kd, &s, &labels, &t).unwrap() * (0.7 * temperature.powi(2));
            let hard = s.log_softmax(-1, Kind::Double).nll_loss(&labels); // `cross_entropy_for_logits` computes in f32
            let loss = soft + hard * 0.3;
            loss.backward();
            let case = format!("{name} {temperature:?}");
            // The oracle takes the logarithm of 1 - p, which loses digits that a difference of logarithms keeps.
            let (value, gradient) = (torch.get(&format!("loss {case}")), torch.get(&format!("grad {case}")));
            assert!(relative(&loss, value) < 1e-9, "{case}: {loss:?} {value:?}");
            assert!(relative(&s.grad(), gradient) < 1e-9, "gradient, {case}");
        }
    }
}

/// Zero for equal logits, never negative, finite where `softmax` has zeros; and PyTorch's value there.
#[test]
fn kd_loss_holds_at_the_extremes() {
    let labels = Tensor::from_slice(&[0i64, 1, 2, 0]);
    let s = Tensor::from_slice(&[1e4f32, -1e4, 0.0, -1e4, 1e4, 0.0, 0.0, 0.0, 0.0, 1e4, 1e4, -1e4]).reshape([4, 3]);
    let t = s.flip([1]);
    let settings = json!({"temperatures": TEMPERATURES, "alphas": ALPHAS});
    let torch = ask("kd", &[("student", &s), ("teacher", &t), ("labels", &labels)], settings);
    for temperature in TEMPERATURES {
        for alpha in ALPHAS {
            let kd = KdLoss::new(temperature, alpha).unwrap();
            let s = s.copy().set_requires_grad(true);
            let loss = kd.forward(&s, &labels, &t).unwrap();
            loss.backward();
            let case = format!("batchmean {temperature:?} {alpha:?}");
            assert!(loss.double_value(&[]).is_finite() && loss.double_value(&[]) >= 0.0, "{case}");
            assert!(bool::try_from(s.grad().isfinite().all()).unwrap(), "gradient, {case}");
            assert!(relative(&loss, torch.get(&format!("loss {case}"))) < 1e-5, "{case}");
            assert!(relative(&s.grad(), torch.get(&format!("grad {case}"))) < 1e-5, "gradient, {case}");
        }
        let kd = KdLoss::new(temperature, 1.0).unwrap();
        for seed in 0..20 {
            let (a, b) = (random([5, 10], seed, Kind::Float) * 10.0, random([5, 10], seed + 100, Kind::Float));
            assert!(kd.divergence(&a, &b).unwrap().double_value(&[]) >= 0.0);
            assert!(kd.divergence(&a, &a).unwrap().double_value(&[]).abs() < 1e-6);
        }
        assert!(kd.divergence(&s, &s).unwrap().double_value(&[]).abs() < 1e-6);
    }
}

/// `torchvision.models.resnet18/50` with weights of their own, saved in every way there is: same logits, same features.
#[test]
fn torchvision_s_resnets_load_and_give_the_same() {
    tch::manual_seed(3);
    let images = Tensor::randn([4, 3, 64, 64], (Kind::Float, Device::Cpu));
    let torch = ask("resnets", &[("images", &images)], json!({}));
    for arch in [Arch::ResNet18, Arch::ResNet50] {
        for prefix in ["", "module-"] {
            for ending in ["-zip.pth", "-legacy.pth", ".safetensors"] {
                let file = torch.folder.path().join(format!("{prefix}{arch}{ending}"));
                let build = |vs: &tch::nn::Path| arch.layers(vs, Some(10));
                let mut whole = Model::new("whole", Device::Cpu, 7, &build).unwrap();
                let report = whole.load(&file).unwrap();
                assert!(report.unexpected.is_empty(), "{}: {report}", file.display());
                // A hundred layers, each with a rounding of its own.
                let logits = tch::no_grad(|| whole.forward(&images, false)).unwrap();
                let gap = relative(&logits, torch.get(&format!("{arch} logits")));
                assert!(gap < 1e-5, "{}: logits differ by {gap:e}", file.display());
                let (backbone, _) = Backbone::from_file(arch, Device::Cpu, &file).unwrap();
                let gap = relative(&backbone.features(&images).unwrap(), torch.get(&format!("{arch} features")));
                assert!(gap < 1e-5, "{}: features differ by {gap:e}", file.display());
            }
        }
    }
}

/// A pickle whose code runs in Python when it is loaded without `weights_only` does not run here.
#[test]
fn code_in_a_file_of_torch_save_never_runs() {
    let torch = ask("hostile", &[], json!({}));
    assert_eq!(Vec::<bool>::try_from(torch.get("ran")).unwrap(), [true, true], "the files must be live");
    for name in ["zip.pth", "legacy.pth"] {
        let text = read_weights(&torch.folder.path().join(name)).unwrap_err().to_string();
        assert!(text.contains("system") && text.contains("not run"), "{text}");
        assert!(!torch.folder.path().join("witness").exists(), "{name} was executed");
    }
}

/// `efficientnet_lite_pytorch` with the published weights, at sides that pad evenly and unevenly.
#[test]
fn lite0_gives_the_features_of_its_original() {
    let arch = Arch::EfficientNetLite0;
    let weights = weights().join(arch.weight_file());
    let backbone = Backbone::from_file(arch, Device::Cpu, &weights).unwrap().0;
    let mut whole = Model::new("whole", Device::Cpu, 0, &|vs| arch.layers(vs, Some(1000))).unwrap();
    whole.load(&weights).unwrap();
    let (mean, std) = arch.normalisation();
    let batch = photographs().test.batch(&(0..8).collect::<Vec<_>>()).unwrap();
    let inputs: Vec<(String, Tensor)> = [224, 128, 97]
        .map(|size| (size.to_string(), Transform { size, mean, std }.apply(&batch.images, Device::Cpu).unwrap()))
        .into();
    let named: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, x)| (name.as_str(), x)).collect();
    let torch = ask("lite0", &named, json!({"weights": weights}));
    for (name, x) in &inputs {
        let gap = relative(&backbone.features(x).unwrap(), torch.get(name));
        assert!(gap < 1e-5, "features at {name} px differ by {gap:e}");
        let logits = tch::no_grad(|| whole.forward(x, false)).unwrap();
        let gap = relative(&logits, torch.get(&format!("{name} logits")));
        assert!(gap < 1e-5, "logits at {name} px differ by {gap:e}");
    }
}

/// Largest distance of two samples' distribution functions: Kolmogorov and Smirnov's two-sample statistic.
fn kolmogorov_smirnov(a: &Tensor, b: &Tensor) -> f64 {
    let sorted = |t: &Tensor| {
        let mut v = Vec::<f64>::try_from(t.flatten(0, -1).to_kind(Kind::Double)).unwrap();
        v.sort_by(f64::total_cmp);
        v
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j, mut largest) = (0, 0, 0f64);
    while i < a.len() && j < b.len() {
        if a[i] <= b[j] {
            i += 1;
        } else {
            j += 1;
        }
        largest = largest.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    largest
}

/// `nn.Conv2d` and `nn.Linear` as PyTorch initialises them: every layer's weight and bias, drawn several times on
/// both sides.
#[test]
fn the_student_starts_like_pytorch_s() {
    const DRAWS: u64 = 20;
    let torch = ask("student", &[], json!({"draws": DRAWS}));
    let nets: Vec<Model> =
        (0..DRAWS).map(|seed| Model::new("s", Device::Cpu, seed, &|vs| student(vs, 10)).unwrap()).collect();
    assert_eq!(nets[0].parameters(), 264_618);
    assert_eq!(torch.number("parameters"), 264_618.0);
    for (i, (name, first)) in nets[0].state().into_iter().enumerate() {
        let layer = name.rsplit_once('.').unwrap().0;
        let weight = nets[0].state().into_iter().find(|(n, _)| *n == format!("{layer}.weight")).unwrap().1.size();
        let bound = 1.0 / (weight[1..].iter().product::<i64>() as f64).sqrt();
        let ours = Tensor::cat(&nets.iter().map(|n| n.state()[i].1.flatten(0, -1)).collect::<Vec<_>>(), 0);
        let theirs = torch.get(&name);
        assert_eq!(ours.size(), theirs.size());
        for (who, drawn) in [("ours", &ours), ("PyTorch's", theirs)] {
            let top = drawn.abs().max().double_value(&[]);
            // Rounded to f32, the bound itself may be met.
            assert!(top <= bound * (1.0 + 1e-6) && top > 0.97 * bound, "{who} {name}: {top} of {bound}");
        }
        // The two-sample test at a level of 0.1 % (c = 1.95): with these fixed seeds it passes or fails for good.
        let n = ours.numel() as f64;
        let limit = 1.95 * (2.0 / n).sqrt();
        let distance = kolmogorov_smirnov(&ours, theirs);
        assert!(distance < limit, "{name}: {distance} of {limit}, {} numbers, first shape {:?}", n, first.size());
    }
}

/// Parameters, multiply-adds and logits of every student at every size of images.
#[test]
fn students_of_all_sizes_are_pytorch_s() {
    // Width, and channels of the convolutions in front.
    let twins = [
        (Student::Small, 32, [&[][..], &[16], &[8, 16]]),
        (Student::Medium, 64, [&[], &[32], &[16, 32]]),
        (Student::Large, 128, [&[], &[64], &[32, 64]]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (mut settings, mut images, mut nets) = (serde_json::Map::new(), Vec::new(), Vec::new());
    for (student, width, stems) in twins {
        for (side, stems) in [32, 64, 128].into_iter().zip(stems) {
            let name = format!("{student}-{side}");
            let net = Model::new(&name, Device::Cpu, 1, &|vs| student.layers(vs, 7, side)).unwrap();
            net.save(folder.path().join(format!("{name}.safetensors"))).unwrap();
            settings.insert(name.clone(), json!([width, stems]));
            tch::manual_seed(side);
            images.push((name, Tensor::randn([1, 3, side, side], (Kind::Float, Device::Cpu))));
            nets.push((side, net));
        }
    }
    let inputs: Vec<_> = images.iter().map(|(name, x)| (name.as_str(), x)).collect();
    let torch = ask_in(folder, "students", &inputs, json!({"students": settings}));
    for ((name, x), (side, net)) in images.iter().zip(&nets) {
        let summary = net.summary([3, *side, *side]).unwrap();
        assert_eq!(summary.parameters as f64, torch.number(&format!("{name} parameters")), "{name}");
        assert_eq!(summary.macs as f64, torch.number(&format!("{name} macs")), "{name}");
        let logits = tch::no_grad(|| net.forward(x, false)).unwrap();
        let gap = relative(&logits, torch.get(&format!("{name} logits")));
        assert!(gap < 1e-5, "{name}: {gap:e}");
    }
    // Larger images cost little more.
    let macs = |i: usize| nets[i].1.summary([3, nets[i].0, nets[i].0]).unwrap().macs as f64;
    assert!((0..3).all(|row| macs(3 * row + 2) < 1.3 * macs(3 * row)));
}

/// `transforms.Compose([Resize(size), CenterCrop(size)])` of pictures of any shape.
#[test]
fn crops_are_torchvision_s() {
    let folder = tempfile::tempdir().unwrap();
    let shapes = [(31, 150), (640, 480), (101, 100), (20, 11), (48, 48), (57, 133)];
    let sizes = [48, 33];
    let pattern =
        |k: u32, x: u32, y: u32| [0, 1, 2].map(|c| ((x * (3 + c) + y * (5 + k) + x * y / 9) % 200 + 20) as u8);
    for (k, (width, height)) in (0..).zip(shapes) {
        let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(pattern(k, x, y)));
        picture.save(folder.path().join(format!("{k}.png"))).unwrap();
    }
    let ours = |k: usize, size: i64| {
        read_image(folder.path().join(format!("{k}.png")), size, Framing::CentreCrop).unwrap().to_kind(Kind::Double)
    };
    let ours: Vec<_> = (0..shapes.len()).flat_map(|k| sizes.map(|size| (k, size, ours(k, size)))).collect();
    let torch = ask_in(folder, "crops", &[], json!({"files": shapes.len(), "sizes": sizes}));
    for (k, size, ours) in ours {
        let theirs = |how: &str| torch.get(&format!("{k} {size} {how}"));
        // Rounded to a whole level here, not rounded there; Pillow rounds after each of its two passes.
        let [exact, pil] = ["tensor", "pil"].map(|how| difference(&ours, theirs(how)));
        assert!(exact < 0.501 && pil <= 1.0, "{:?} at {size}: {exact} and {pil} levels", shapes[k]);
    }
}

/// `transforms.Compose([Resize((size, size)), ToTensor(), Normalize(mean, std)])` on real images.
///
/// On a PIL image `Resize` rounds to whole grey levels, once after each of its two passes: at most half a level each,
/// so one level (1/255) in all, and half a level more for PIL's fixed-point weights. On a tensor it does not round,
/// and there is no such difference.
#[test]
fn transforms_are_torchvision_s() {
    let images = photographs().test.batch(&(0..24).collect::<Vec<_>>()).unwrap().images;
    let sizes = [224, 128, 32, 20];
    let at = Transform::imagenet;
    let settings = json!({"sizes": sizes, "mean": at(1).mean, "std": at(1).std});
    let torch = ask("transforms", &[("images", &images)], settings);
    let level = 1.0 / 255.0 / 0.224; // of the channel with the smallest deviation
    for size in sizes {
        let ours = at(size).apply(&images, Device::Cpu).unwrap();
        let (pil, tensor) = (torch.get(&format!("pil {size}")), torch.get(&format!("tensor {size}")));
        assert!(
            difference(&ours, tensor) < 1e-5,
            "{size}: {:e} from torchvision on tensors",
            difference(&ours, tensor)
        );
        let gap = difference(&ours, pil);
        assert!(gap < 1.5 * level, "{size}: {} grey levels from torchvision on PIL images", gap / level);
        let mean = (ours - pil).abs().mean(Kind::Double).double_value(&[]);
        assert!(mean < 0.5 * level, "{size}: {} grey levels from PIL images on average", mean / level);
    }
}

/// Accuracy, NLL, ECE over 15 bins, confusion and agreement, as `torchmetrics` and `F.nll_loss` compute them.
#[test]
fn metrics_are_those_of_others() {
    for (seed, scale) in [(1, 0.3), (2, 1.0), (3, 6.0)] {
        tch::manual_seed(seed);
        let labels = Tensor::randint(10, [997], (Kind::Int64, Device::Cpu));
        let signal = labels.one_hot(10).to_kind(Kind::Float) * 2.0;
        let logits = (random([997, 10], seed, Kind::Float) * 0.5 + &signal) * scale;
        let teacher = random([997, 10], seed + 10, Kind::Float) * 0.3 + signal;
        let torch = ask("metrics", &[("logits", &logits), ("labels", &labels), ("teacher", &teacher)], json!({}));
        let (ours, other) = (Evaluation::new(&logits, &labels).unwrap(), Evaluation::new(&teacher, &labels).unwrap());
        let calibration = ours.calibration(15).unwrap();
        // torchmetrics gives counts as f32, and bins at f32 bounds; the mean of 997 f32 losses rounds in its 7th digit.
        for (name, value, tolerance) in [
            ("accuracy", ours.accuracy(), 1e-6),
            ("nll", ours.cross_entropy, 1e-6 * ours.cross_entropy.max(1.0)),
            ("ece", calibration.ece, 1e-6),
            ("agreement", ours.agreement(&other).unwrap(), 1e-6),
        ] {
            let theirs = torch.number(name);
            assert!((value - theirs).abs() < tolerance, "{name}, seed {seed}: {value} here, {theirs} there");
        }
        let confusion: Vec<Vec<i64>> = Vec::try_from(torch.get("confusion")).unwrap();
        let here: Vec<Vec<i64>> =
            ours.confusion().unwrap().iter().map(|row| row.iter().map(|&n| n as i64).collect()).collect();
        assert_eq!(here, confusion);
        assert_eq!(calibration.bins.iter().map(|b| b.samples).sum::<usize>(), 997);
        assert!(0.02 < calibration.ece && calibration.ece < 0.9, "a case that tells something: {}", calibration.ece);
    }
}
