//! Networks: counts against the published ones, initialisation, errors that name the layer. The crate compiles this
//! file as a part of itself, so that the rows of a summary can be compared.

mod weights;

use crate::tests::{dataset, normalised};
use kdlab::models::{Arch, Backbone, Layers, Model, Op, Precision, head, student};
use kdlab::train::{Examples, predict};
use tch::{Device, Kind, Tensor, nn};

fn net(seed: u64) -> Model {
    Model::new("student", Device::Cpu, seed, &|vs| student(vs, 10)).unwrap()
}

fn is_send(_: &impl Send) {}

#[test]
fn the_student_is_the_article_s() {
    let model = net(0);
    is_send(&model);
    assert_eq!(model.parameters(), 264_618);
    let names: Vec<String> = model.state().into_iter().map(|(name, _)| name).collect();
    let expected: Vec<String> = ["conv1", "conv2", "conv3", "conv4", "fc1", "fc2"]
        .iter()
        .flat_map(|l| [format!("{l}.bias"), format!("{l}.weight")])
        .collect();
    assert_eq!(names, expected);
    for side in [224, 32, 7] {
        let y = model.forward(&Tensor::zeros([2, 3, side, side], (Kind::Float, Device::Cpu)), false).unwrap();
        assert_eq!(y.size(), [2, 10]);
    }
}

#[test]
fn the_student_s_summary_counts_multiply_adds() {
    // Per 32 px image: 1024*(1728 + 36864) + 256*(73728 + 147456) + 4096 + 320.
    let small = net(0).summary([3, 32, 32]).unwrap();
    assert_eq!(small.macs, 1024 * (1728 + 36864) + 256 * (73728 + 147_456) + 4096 + 320);
    assert_eq!(small.parameters, 264_618);
    assert_eq!(small.rows.iter().map(|r| r.parameters).sum::<i64>(), 264_618);
    let conv4 = small.rows.iter().find(|r| r.layer == "conv4").unwrap();
    assert_eq!((conv4.output.clone(), conv4.parameters), (vec![1, 128, 16, 16], 128 * 128 * 9 + 128));
    let large = net(0).summary([3, 224, 224]).unwrap();
    assert!((4.7e9..4.8e9).contains(&(large.macs as f64)), "{}", large.macs);
    let text = small.to_string();
    assert!(text.contains("264,618 parameters, 96.15 million MACs"), "{text}");
}

#[test]
fn weights_are_pytorch_s_defaults_and_reproduce() {
    let (a, b, c) = (net(7), net(7), net(8));
    for ((name, x), (_, y)) in a.state().iter().zip(b.state()) {
        assert!(x.equal(&y), "{name} differs under one seed");
    }
    assert!(a.state().iter().zip(c.state()).all(|((_, x), (_, y))| !x.equal(&y)));
    // torch.nn.Conv2d(64, 64, 3): U(+-1/sqrt(576)), weight and bias; torch.nn.Linear(128, 32): U(+-1/sqrt(128)).
    let state = a.state();
    for (layer, fan_in) in [("conv1", 27.0), ("conv2", 576.0), ("conv4", 1152.0), ("fc1", 128.0), ("fc2", 32.0)] {
        let bound: f64 = 1.0 / f64::sqrt(fan_in);
        let get = |kind: &str| state.iter().find(|(n, _)| *n == format!("{layer}.{kind}")).unwrap().1.shallow_clone();
        let weight = get("weight");
        let (top, std) = (weight.abs().max().double_value(&[]), weight.std(true).double_value(&[]));
        assert!(top <= bound && top > 0.95 * bound, "{layer}: {top} for {bound}");
        assert!((std / (bound / 3f64.sqrt()) - 1.0).abs() < 0.06, "{layer}: std {std}");
        assert!(weight.mean(Kind::Float).double_value(&[]).abs() < 0.1 * bound);
        let bias = get("bias").abs().max().double_value(&[]);
        assert!(bias <= bound && bias > 0.5 * bound, "{layer} bias {bias}");
    }
}

#[test]
fn building_a_student_leaves_normalisation_at_one() {
    let model = Model::new("norm", Device::Cpu, 0, &|vs| {
        Layers::new().add("bn1", nn::batch_norm2d(vs / "bn1", 4, Default::default()))
    })
    .unwrap();
    let sum = |name: &str| model.state().iter().find(|(n, _)| n == name).unwrap().1.sum(Kind::Float).double_value(&[]);
    assert_eq!((sum("bn1.weight"), sum("bn1.bias")), (4.0, 0.0));
    assert_eq!((sum("bn1.running_mean"), sum("bn1.running_var")), (0.0, 4.0));
    assert_eq!(model.parameters(), 8);
}

#[test]
fn a_refused_input_names_layer_shape_and_reason() {
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let error = |x: &Tensor| {
        let text = net(0).forward(x, false).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let grey = error(&zeros(&[2, 1, 32, 32]));
    assert!(grey.contains("conv1") && grey.contains("[2, 1, 32, 32]") && grey.contains("1 channels"), "{grey}");
    let six = error(&zeros(&[2, 6, 32, 32]));
    assert!(six.contains("conv1") && six.contains("6 channels, but its weight [64, 3, 3, 3] takes 3"), "{six}");
    assert!(error(&zeros(&[3, 32])).contains("[N, C, H, W]"));
    let tiny = error(&zeros(&[1, 3, 2, 2]));
    assert!(tiny.contains("images of 2x2 pixels are too small") && tiny.contains("4x4"), "{tiny}");
    let bytes = error(&Tensor::zeros([1, 3, 8, 8], (Kind::Uint8, Device::Cpu)));
    assert!(bytes.contains("conv1"), "{bytes}");
}

#[test]
fn a_head_is_one_linear_layer() {
    let head = head(1280, 10, Device::Cpu, 3).unwrap();
    assert_eq!(head.parameters(), 12_810);
    assert!(kdlab::models::head(0, 10, Device::Cpu, 3).is_err());
    assert!(kdlab::models::head(8, 1, Device::Cpu, 3).is_err());
}

#[test]
fn one_name_for_two_layers_is_refused() {
    let double = Model::new("twice", Device::Cpu, 0, &|vs| {
        Layers::new()
            .add("a", nn::linear(vs / "a", 4, 4, Default::default()))
            .add("b", nn::linear(vs / "a", 4, 4, Default::default()))
    });
    let text = double.unwrap_err().to_string();
    assert!(text.contains("share the variable a."), "{text}");
}

#[test]
fn cuda_that_is_absent_is_an_error() {
    if !tch::Cuda::is_available() {
        let text = Model::new("s", Device::Cuda(0), 0, &|vs| student(vs, 10)).unwrap_err().to_string();
        assert!(text.contains("CUDA"), "{text}");
    }
}

#[test]
fn freezing_stops_gradients_and_keeps_the_count() {
    let mut model = net(0);
    assert_eq!(model.trainable().len(), 12);
    model.freeze();
    assert_eq!((model.trainable().len(), model.parameters()), (0, 264_618));
    model.unfreeze();
    assert_eq!(model.trainable().len(), 12);
}

#[test]
fn a_residual_adds_its_input() {
    let model = Model::new("r", Device::Cpu, 0, &|_| {
        Layers::new().add("block", Op::Residual { body: Layers::new().func("double", |x| x * 2.0), shortcut: None })
    })
    .unwrap();
    let y = model.forward(&Tensor::from_slice(&[1f32, -2.0]), false).unwrap();
    assert_eq!(Vec::<f32>::try_from(y).unwrap(), [3.0, -6.0]);
}

fn teacher(arch: Arch, classes: Option<i64>) -> Model {
    Model::new(&arch.to_string(), Device::Cpu, 0, &|vs| arch.layers(vs, classes)).unwrap()
}

/// Counts published by torchvision (25,557,032 and 11,689,512 parameters, 4.09 and 1.81 GMAC) and, for Lite0, counted
/// in the package the weights come from (4,652,008).
#[test]
fn teachers_have_the_published_sizes() {
    for (arch, full, gmac) in [
        (Arch::ResNet50, 25_557_032, 4.09),
        (Arch::ResNet18, 11_689_512, 1.81),
        (Arch::EfficientNetLite0, 4_652_008, 0.385),
    ] {
        let model = teacher(arch, Some(1000));
        assert_eq!(model.parameters(), full, "{arch}");
        let summary = model.summary([3, 224, 224]).unwrap();
        assert!((summary.macs as f64 / 1e9 / gmac - 1.0).abs() < 0.01, "{arch}: {} MACs", summary.macs);
        assert_eq!(summary.rows.iter().map(|r| r.parameters).sum::<i64>(), full);
        let backbone = Backbone::untrained(arch, Device::Cpu, 1).unwrap();
        assert_eq!(backbone.model.parameters(), full - arch.features() * 1000 - 1000);
    }
}

#[test]
fn backbones_give_features_without_gradients_or_drift() {
    for arch in Arch::ALL {
        let backbone = Backbone::untrained(arch, Device::Cpu, 0).unwrap();
        assert!(backbone.model.trainable().is_empty());
        let before: Vec<Tensor> = backbone.model.state().iter().map(|(_, t)| t.copy()).collect();
        // Odd sides too: "SAME" padding and the poolings must cope with them.
        for side in [64, 33] {
            let x = Tensor::rand([2, 3, side, side], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let y = backbone.features(&x).unwrap();
            assert_eq!(y.size(), [2, arch.features()]);
            assert!(!y.requires_grad());
        }
        for ((name, now), before) in backbone.model.state().iter().zip(before) {
            assert!(now.equal(&before), "{arch}: {name} changed");
        }
    }
}

/// A frozen network runs a convolution and its normalisation as one. In f64, where nothing but a mistake differs by
/// 1e-10.
#[test]
fn freezing_changes_no_output() {
    for arch in [Arch::ResNet18, Arch::EfficientNetLite0] {
        let mut model = teacher(arch, None);
        trained(&model);
        tch::no_grad(|| {
            for (_, mut variable) in model.state() {
                variable.set_data(&variable.to_kind(Kind::Double));
            }
            let x = Tensor::rand([2, 3, 33, 33], (Kind::Double, Device::Cpu));
            let apart = model.forward(&x, false).unwrap();
            model.freeze();
            let as_one = model.forward(&x, false).unwrap();
            let far = gap(&as_one, &apart);
            assert!(far < 1e-10, "{arch}: {far:e}");
            assert!(!as_one.equal(&apart), "{arch}: it took the same way twice");
        });
    }
}

/// Statistics, factors and summands as training leaves them, instead of 0 and 1.
fn trained(model: &Model) {
    tch::no_grad(|| {
        for (name, mut variable) in model.state().into_iter().filter(|(_, v)| v.dim() == 1) {
            let low = if name.ends_with("mean") || name.ends_with("bias") { -0.5 } else { 0.5 };
            let number = Tensor::arange(variable.numel() as i64, (Kind::Float, Device::Cpu));
            let between = ((number * 12.9898).sin() * 43758.547).frac().abs();
            variable.copy_(&(between * (1.5 - low) + low));
        }
    });
}

/// `forward` over batches of 3 and what `predict` gives, which runs convolutions with what follows them.
fn both_ways(model: &Model, side: i64) -> [Tensor; 2] {
    let folder = tempfile::tempdir().unwrap();
    let images = Examples::images(&dataset(folder.path(), 0).test, &normalised(side)).unwrap();
    let plain = |from: i64| {
        let rows: Vec<i64> = (from..(from + 3).min(images.len() as i64)).collect();
        tch::no_grad(|| model.forward(&images.batch(&rows, Device::Cpu).unwrap().inputs, false).unwrap())
    };
    let plain: Vec<Tensor> = (0..images.len() as i64).step_by(3).map(plain).collect();
    [Tensor::cat(&plain, 0), predict(model, &images, 3).unwrap()]
}

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm()).double_value(&[])
}

#[test]
fn predictions_are_those_of_the_layers_one_by_one() {
    for arch in Arch::ALL {
        let mut model = teacher(arch, Some(10));
        trained(&model);
        let [exact, fused] = both_ways(&model, 40);
        let far = gap(&fused, &exact);
        assert!(far < 1e-5, "{arch}: {far:e}");
        assert!(!fused.equal(&exact), "{arch}: it took the same way twice");
        // What bf16 rounds in a layer less is none the worse.
        model.precision = Precision::Bf16;
        let [plain, fused] = both_ways(&model, 40).map(|logits| gap(&logits, &exact));
        assert!(fused < 1.5 * plain && fused > 1e-5, "{arch} in bf16: {fused:e}, layer by layer {plain:e}");
    }
}

/// Sums whose terms must be left alone, sizes and settings that oneDNN has another way for.
#[test]
fn predictions_of_odd_networks_are_those_of_their_layers() {
    let conv = |vs: nn::Path, from, to, config: nn::ConvConfig| Op::conv(vs, from, to, 3, config);
    let same = nn::ConvConfig { padding: 1, ..Default::default() };
    let pool = |x: &Tensor| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1);
    type Build = fn(&nn::Path, &dyn Fn(nn::Path, i64, i64, nn::ConvConfig) -> Op, nn::ConvConfig) -> Layers;
    let networks: [(&str, Build); 10] = [
        ("a sum with ReLU6", |vs, conv, same| {
            let body = Layers::new().add("b", conv(vs / "b", 8, 8, same)).add("c", conv(vs / "c", 8, 8, same));
            let bright = Layers::new().func("bright", |x| x * 20.0);
            bright
                .add("a", conv(vs / "a", 3, 8, same))
                .add("block", Op::Residual { body, shortcut: None })
                .add("relu6", Op::ReLU6)
        }),
        ("a side that lies row by row", |vs, conv, same| {
            let body = Layers::new().add("b", conv(vs / "b", 8, 8, same)).add("c", conv(vs / "c", 8, 8, same));
            let one = Op::conv(vs / "a", 3, 8, 1, Default::default());
            Layers::new()
                .func("rows", |x| x.contiguous())
                .add("a", one)
                .add("block", Op::Residual { body, shortcut: None })
                .add("relu", Op::ReLU)
        }),
        ("a block first", |vs, conv, same| {
            Layers::new()
                .add("block", Op::Residual { body: Layers::new().add("a", conv(vs / "a", 3, 3, same)), shortcut: None })
                .add("relu", Op::ReLU)
        }),
        ("a body that hands on its input", |vs, conv, same| {
            let body = Layers::new().func("same", |x| x.shallow_clone()).add("b", conv(vs / "b", 8, 8, same));
            Layers::new().add("a", conv(vs / "a", 3, 8, same)).add("block", Op::Residual { body, shortcut: None })
        }),
        ("a side that is used twice", |vs, conv, same| {
            let inner = Layers::new().add("c", conv(vs / "c", 8, 8, same)).add("d", conv(vs / "d", 8, 8, same));
            let body = Layers::new()
                .add("inner", Op::Residual { body: inner, shortcut: None })
                .add("b", conv(vs / "b", 8, 8, same));
            Layers::new()
                .add("a", conv(vs / "a", 3, 8, same))
                .add("outer", Op::Residual { body, shortcut: None })
                .add("relu6", Op::ReLU6)
        }),
        ("a shortcut that is a view", |vs, conv, same| {
            let inner = Layers::new().add("c", conv(vs / "c", 8, 8, same));
            let shortcut = Layers::new().func("turned", |x| x.transpose(2, 3));
            let body = Layers::new()
                .add("inner", Op::Residual { body: inner, shortcut: Some(shortcut) })
                .add("b", conv(vs / "b", 8, 8, same));
            Layers::new()
                .add("a", conv(vs / "a", 3, 8, same))
                .add("outer", Op::Residual { body, shortcut: None })
                .add("relu", Op::ReLU)
        }),
        ("a sum over fewer pixels", |vs, conv, same| {
            let body = Layers::new().add("b", conv(vs / "b", 8, 8, same));
            let shortcut = Layers::new().func("mean", |x| x.mean_dim([2, 3].as_slice(), true, None));
            let shortcut = shortcut.add("c", conv(vs / "c", 8, 8, same));
            Layers::new()
                .add("a", conv(vs / "a", 3, 8, same))
                .add("block", Op::Residual { body, shortcut: Some(shortcut) })
        }),
        ("groups, stride, dilation and no padding", |vs, conv, _| {
            let config = nn::ConvConfig { groups: 3, stride: 2, dilation: 2, ..Default::default() };
            Layers::new().func("bright", |x| x * 30.0).add("a", conv(vs / "a", 3, 6, config)).add("relu6", Op::ReLU6)
        }),
        ("padding with the image", |vs, conv, same| {
            let around = nn::ConvConfig { padding_mode: nn::PaddingMode::Circular, ..same };
            Layers::new().add("a", conv(vs / "a", 3, 6, around)).add("relu", Op::ReLU)
        }),
        ("in f64", |vs, conv, same| {
            let double = |x: &Tensor| x.to_kind(Kind::Double);
            let body = Layers::new().add("b", conv(vs / "b", 8, 8, same));
            let layers =
                Layers::new().func("double", double).add("a", conv(vs / "a", 3, 8, same)).add("relu", Op::ReLU);
            layers.add("block", Op::Residual { body, shortcut: None })
        }),
    ];
    for (name, build) in networks {
        let mut model = Model::new(name, Device::Cpu, 1, &|vs| build(vs, &conv, same).func("pool", pool)).unwrap();
        if name == "in f64" {
            model.state().iter_mut().for_each(|(_, v)| v.set_data(&v.to_kind(Kind::Double)));
        }
        let [exact, fused] = both_ways(&model, 16);
        assert!(gap(&fused, &exact) < 1e-5, "{name}: {:e}", gap(&fused, &exact));
        assert!(exact.std(true).double_value(&[]) > 0.0, "{name}: nothing to see");
        model.precision = Precision::Bf16;
        let far = gap(&both_ways(&model, 16)[1], &exact);
        assert!(far < 0.03, "{name} in bf16: {far:e}");
    }
}

/// oneDNN's ReLU makes 0 of NaN: a teacher that has diverged would look like one that has not.
#[test]
fn a_network_that_has_diverged_predicts_nothing() {
    for (variable, value) in
        [("layer1.0.conv1.weight", f64::NAN), ("bn1.bias", f64::INFINITY), ("bn1.running_var", -1.0)]
    {
        let model = teacher(Arch::ResNet18, Some(10));
        tch::no_grad(|| {
            let (_, mut first) = model.state().into_iter().find(|(name, _)| name == variable).unwrap();
            while first.dim() > 0 {
                first = first.get(0);
            }
            let _ = first.fill_(value);
        });
        for logits in both_ways(&model, 40) {
            assert!(bool::try_from(logits.isnan().all()).unwrap(), "{variable} = {value}");
        }
    }
}

#[test]
fn predictions_that_cannot_be_say_why() {
    let wide = |vs: &nn::Path| Layers::new().add("wide", Op::conv(vs / "wide", 4, 8, 3, Default::default()));
    let large = |vs: &nn::Path| Layers::new().add("large", Op::conv(vs / "large", 3, 8, 9, Default::default()));
    let folder = tempfile::tempdir().unwrap();
    let images = Examples::images(&dataset(folder.path(), 0).test, &normalised(8)).unwrap();
    let says = |build: &dyn Fn(&nn::Path) -> Layers| {
        predict(&Model::new("odd", Device::Cpu, 0, build).unwrap(), &images, 4).unwrap_err().to_string()
    };
    let (wide, large) = (says(&wide), says(&large));
    // What libtorch refuses in a pass by layers must not end the process here.
    let still = nn::ConvConfig { stride: 0, ..Default::default() };
    let still = says(&|vs| Layers::new().add("still", Op::conv(vs / "still", 3, 8, 3, still)));
    assert!(still.contains("`still`"), "{still}");
    let torn = nn::ConvConfig { groups: 4, bias: false, ..Default::default() };
    let torn = says(&|vs| {
        let first = Op::conv(vs / "first", 3, 4, 1, Default::default());
        Layers::new().add("first", first).add("torn", Op::conv(vs / "torn", 4, 6, 3, torn))
    });
    assert!(torn.contains("`torn`"), "{torn}");
    let apart = nn::ConvConfig { stride: 2, padding: 1, ..Default::default() };
    let apart = says(&|vs| {
        let body = Layers::new().add("b", Op::conv(vs / "b", 8, 8, 3, apart));
        Layers::new()
            .add("a", Op::conv(vs / "a", 3, 8, 1, Default::default()))
            .add("block", Op::Residual { body, shortcut: None })
    });
    assert!(apart.contains("`block` refused its input of shape [4, 8, 4, 4]"), "{apart}");
    assert!(wide.contains("`wide` refused its input of shape [4, 3, 8, 8]") && wide.contains("3 channels"), "{wide}");
    assert_eq!(
        large,
        "odd: images of 8x8 pixels are too small for its layers; give images of 9x9, the smallest that they take"
    );
}

#[test]
fn bf16_is_inside_a_pass_only() {
    let build = |vs: &nn::Path| {
        Layers::new()
            .add("conv", nn::conv2d(vs / "conv", 3, 8, 3, Default::default()))
            .add("norm", nn::batch_norm2d(vs / "norm", 8, Default::default()))
            .func("check", |x| {
                assert_eq!(x.kind(), Kind::BFloat16);
                x.relu().mean_dim([2, 3].as_slice(), false, None)
            })
            .add("fc", nn::linear(vs / "fc", 8, 4, Default::default()))
    };
    let mut model = Model::new("normalised", Device::Cpu, 0, &build).unwrap();
    model.precision = Precision::Bf16;
    let x = Tensor::rand([4, 3, 9, 9], (Kind::Float, Device::Cpu));
    let logits = model.forward(&x, true).unwrap();
    logits.square().sum(None).backward();
    assert_eq!(logits.kind(), Kind::Float);
    for (name, variable) in model.state() {
        assert_eq!(variable.kind(), Kind::Float, "{name}");
        assert!(!variable.requires_grad() || variable.grad().abs().sum(None).double_value(&[]) > 0.0, "{name}");
    }
    // It ends with the pass, also where one fails.
    assert!(model.forward(&Tensor::zeros([1, 5, 9, 9], (Kind::Float, Device::Cpu)), false).is_err());
    assert_eq!(
        x.conv2d(&Tensor::zeros([1, 3, 1, 1], (Kind::Float, Device::Cpu)), None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1)
            .kind(),
        Kind::Float
    );
    assert_eq!("bf16".parse::<Precision>().unwrap(), Precision::Bf16);
    assert!("f16".parse::<Precision>().unwrap_err().to_string().contains("choose f32 or bf16"));
}

#[test]
fn teacher_variables_bear_the_published_names() {
    let has = |arch, names: &[&str]| {
        let state = teacher(arch, Some(10)).state();
        for name in names {
            assert!(state.iter().any(|(n, _)| n == name), "{arch} has no {name}");
        }
    };
    has(
        Arch::ResNet50,
        &[
            "conv1.weight",
            "layer1.0.downsample.0.weight",
            "layer4.2.bn3.running_var",
            "layer2.0.conv2.weight",
            "fc.bias",
        ],
    );
    has(Arch::ResNet18, &["bn1.weight", "layer2.0.downsample.1.running_mean", "layer4.1.conv2.weight", "fc.weight"]);
    has(
        Arch::EfficientNetLite0,
        &[
            "_conv_stem.weight",
            "_bn0.bias",
            "_blocks.1._expand_conv.weight",
            "_blocks.15._project_conv.weight",
            "_fc.bias",
        ],
    );
}

#[test]
fn architectures_are_found_by_name() {
    for arch in Arch::ALL {
        assert_eq!(arch.to_string().parse::<Arch>().unwrap(), arch);
    }
    assert_eq!("EfficientNet_Lite0".parse::<Arch>().unwrap(), Arch::EfficientNetLite0);
    assert!("vgg16".parse::<Arch>().unwrap_err().to_string().contains("resnet50, resnet18, efficientnet-lite0"));
}

/// Backbones may be trained whole; in-place activations must not break that.
#[test]
fn gradients_reach_every_variable_of_a_teacher() {
    for arch in Arch::ALL {
        let model = teacher(arch, Some(10));
        let x = Tensor::rand([4, 3, 64, 64], (Kind::Float, Device::Cpu));
        model.forward(&x, true).unwrap().square().sum(Kind::Float).backward();
        for (name, variable) in model.trainable() {
            let grad = variable.grad();
            assert!(grad.defined() && bool::try_from(grad.isfinite().all()).unwrap(), "{arch}: {name}");
        }
    }
}
