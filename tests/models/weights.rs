//! Weight files: every format read, damaged and hostile files refused, nothing changed unless all of it fits.

use kdlab::models::{Arch, Backbone, Layers, Model, head, read_weights, student};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor, nn};

fn net(seed: u64) -> Model {
    Model::new("student", Device::Cpu, seed, &|vs| student(vs, 10)).unwrap()
}

/// A file in a folder that lives as long as the result.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pth");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(bytes: &[u8]) -> kdlab::Result<Vec<(String, Tensor)>> {
    let (_folder, path) = file(bytes);
    read_weights(&path)
}

/// What `torch.save` writes, by hand: pickle protocol 2 from opcodes.
#[derive(Default, Clone)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Pickle(vec![0x80, 2])
    }
    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn text(self, s: &str) -> Self {
        self.op(b"X").op(&(s.len() as u32).to_le_bytes()).op(s.as_bytes())
    }
    fn int(self, n: i32) -> Self {
        self.op(b"J").op(&n.to_le_bytes())
    }
    fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }
    fn ints(self, items: &[i32]) -> Self {
        items.iter().fold(self.op(b"("), |p, &n| p.int(n)).op(b"t")
    }
    fn ordered_dict(self) -> Self {
        self.global("collections", "OrderedDict").op(b")R")
    }
    fn tensor(self, t: &Stored) -> Self {
        let view = if t.legacy_view { b"N".as_slice() } else { b"" };
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .text("storage")
            .global("torch", t.class)
            .text(t.key)
            .text("cpu")
            .int(t.numel)
            .op(view)
            .op(b"tQ")
            .int(t.offset)
            .ints(t.size)
            .ints(t.stride)
            .op(&[0x89])
            .ordered_dict()
            .op(b"tR")
    }
    /// An OrderedDict of the tensors, with the `_metadata` attribute that `state_dict()` carries.
    fn state_dict(self, tensors: &[(&str, Stored)]) -> Self {
        let mut p = self.ordered_dict().op(b"q\x00(");
        for (name, t) in tensors {
            p = p.text(name).tensor(t);
        }
        p.op(b"u}").text("_metadata").op(b"}sb")
    }
    fn stop(self) -> Vec<u8> {
        self.op(b".").0
    }
}

#[derive(Clone, Copy)]
struct Stored {
    class: &'static str,
    key: &'static str,
    numel: i32,
    offset: i32,
    size: &'static [i32],
    stride: &'static [i32],
    legacy_view: bool,
}

const WHOLE: Stored =
    Stored { class: "FloatStorage", key: "0", numel: 6, offset: 0, size: &[2, 3], stride: &[3, 1], legacy_view: false };

fn legacy(main: Vec<u8>, storages: &[(&str, u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0x80, 2, 0x8a, 10];
    out.extend([0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.']);
    out.extend(Pickle::new().op(b"M").op(&1001u16.to_le_bytes()).stop());
    out.extend(Pickle::new().op(b"}(").text("little_endian").op(&[0x88, b'u']).stop());
    out.extend(main);
    let keys = storages.iter().fold(Pickle::new().op(b"]("), |p, (key, ..)| p.text(key));
    out.extend(keys.op(b"e").stop());
    for (_, numel, data) in storages {
        out.extend(numel.to_le_bytes());
        out.extend(data);
    }
    out
}

fn zipped(main: Vec<u8>, storages: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    let mut add = |name: String, data: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(data).unwrap();
    };
    add("archive/data.pkl".to_owned(), &main);
    add("archive/byteorder".to_owned(), b"little");
    for (key, data) in storages {
        add(format!("archive/data/{key}"), data);
    }
    zip.finish().unwrap().into_inner()
}

fn stored(main: Vec<u8>, storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    zipped(main, storages, zip::CompressionMethod::Stored)
}

fn f32s(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn six() -> Vec<u8> {
    f32s((0..6).map(|i| i as f32))
}

fn list(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t.to_kind(Kind::Double).contiguous().view(-1)).unwrap()
}

#[test]
fn both_pytorch_formats_and_strided_views_are_read() {
    let turned = Stored { size: &[3, 2], stride: &[1, 3], ..WHOLE };
    let tail = Stored { offset: 4, size: &[2], stride: &[1], ..WHOLE };
    let scalar = Stored { offset: 5, size: &[], stride: &[], ..WHOLE };
    let entries = [("a", WHOLE), ("turned", turned), ("tail", tail), ("scalar", scalar)];
    let zip = stored(Pickle::new().state_dict(&entries).stop(), &[("0", six())]);
    let old = entries.map(|(name, t)| (name, Stored { legacy_view: true, ..t }));
    let old = legacy(Pickle::new().state_dict(&old).stop(), &[("0", 6, six())]);
    for bytes in [zip, old] {
        let tensors = read(&bytes).unwrap();
        let names: Vec<&str> = tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["a", "turned", "tail", "scalar"]);
        assert_eq!((tensors[0].1.size(), list(&tensors[0].1)), (vec![2, 3], vec![0., 1., 2., 3., 4., 5.]));
        assert_eq!((tensors[1].1.size(), list(&tensors[1].1)), (vec![3, 2], vec![0., 3., 1., 4., 2., 5.]));
        assert_eq!(list(&tensors[2].1), [4., 5.]);
        assert_eq!((tensors[3].1.size(), list(&tensors[3].1)), (vec![], vec![5.]));
    }
}

#[test]
fn every_number_type_is_read() {
    let one = Stored { numel: 2, size: &[2], stride: &[1], ..WHOLE };
    let cases: [(&'static str, Kind, Vec<u8>, [f64; 2]); 7] = [
        ("HalfStorage", Kind::Half, vec![0x00, 0x3c, 0x00, 0xc0], [1.0, -2.0]),
        ("BFloat16Storage", Kind::BFloat16, vec![0x80, 0x3f, 0x00, 0xc0], [1.0, -2.0]),
        ("FloatStorage", Kind::Float, f32s([1.5, -2.5]), [1.5, -2.5]),
        ("DoubleStorage", Kind::Double, [0.1f64, -7.0].iter().flat_map(|x| x.to_le_bytes()).collect(), [0.1, -7.0]),
        (
            "LongStorage",
            Kind::Int64,
            [1i64 << 40, -3].iter().flat_map(|x| x.to_le_bytes()).collect(),
            [1.099511627776e12, -3.0],
        ),
        ("ByteStorage", Kind::Uint8, vec![255, 7], [255.0, 7.0]),
        ("BoolStorage", Kind::Bool, vec![1, 0], [1.0, 0.0]),
    ];
    for (class, kind, data, expected) in cases {
        let main = Pickle::new().state_dict(&[("x", Stored { class, ..one })]).stop();
        let tensors = read(&stored(main, &[("0", data)])).unwrap();
        assert_eq!((tensors[0].1.kind(), list(&tensors[0].1)), (kind, expected.to_vec()), "{class}");
    }
}

#[test]
fn wrapped_and_parallel_checkpoints_are_unwrapped() {
    // {"epoch": 3, "loss": 0.5, "state_dict": {"module.a": ..., "module.b": ...}, "optimizer": {0: None}}
    let main = Pickle::new()
        .op(b"}(")
        .text("epoch")
        .int(3)
        .text("loss")
        .op(b"G\x3f\xe0\x00\x00\x00\x00\x00\x00")
        .text("state_dict")
        .state_dict(&[("module.a", WHOLE), ("module.b", WHOLE)])
        .text("optimizer")
        .op(b"}K\x00Ns")
        .op(b"u")
        .stop();
    let names: Vec<String> = read(&stored(main, &[("0", six())])).unwrap().into_iter().map(|(n, _)| n).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_parameter_is_read_as_its_tensor() {
    let main = Pickle::new()
        .op(b"}")
        .text("p")
        .global("torch._utils", "_rebuild_parameter")
        .op(b"(")
        .tensor(&WHOLE)
        .op(&[0x88])
        .ordered_dict()
        .op(b"tRs")
        .stop();
    assert_eq!(list(&read(&stored(main, &[("0", six())])).unwrap()[0].1).len(), 6);
}

#[test]
fn code_in_a_pickle_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("touch {}", witness.display());
    for (module, name) in [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")] {
        let main = Pickle::new().global(module, name).op(b"(").text(&command).op(b"tR").stop();
        for bytes in [stored(main.clone(), &[]), legacy(main, &[])] {
            let text = read(&bytes).unwrap_err().to_string();
            assert!(text.contains(&format!("`{module}.{name}`")), "{text}");
        }
    }
    assert!(!witness.exists());
}

#[test]
fn damaged_views_and_storages_are_refused() {
    let cases = [
        ("beyond the end", Stored { offset: 1, ..WHOLE }, 6),
        ("a negative offset", Stored { offset: -1, ..WHOLE }, 6),
        ("a negative stride", Stored { stride: &[-3, 1], ..WHOLE }, 6),
        ("an expanded bomb", Stored { size: &[i32::MAX, i32::MAX], stride: &[0, 0], ..WHOLE }, 6),
        ("an overflow", Stored { size: &[i32::MAX; 3], stride: &[i32::MAX; 3], ..WHOLE }, 6),
        ("too few strides", Stored { stride: &[1], ..WHOLE }, 6),
        ("a short storage", WHOLE, 5),
        ("a huge storage", Stored { numel: i32::MAX, ..WHOLE }, 6),
        ("a negative storage", Stored { numel: -1, ..WHOLE }, 6),
        ("an unknown class", Stored { class: "QInt8Storage", ..WHOLE }, 6),
    ];
    for (what, tensor, held) in cases {
        let data = f32s((0..held).map(|i| i as f32));
        let main = Pickle::new().state_dict(&[("w", tensor)]).stop();
        for bytes in [stored(main.clone(), &[("0", data.clone())]), legacy(main, &[("0", held, data)])] {
            let text = read(&bytes).unwrap_err().to_string();
            assert!(!text.contains('\n') && text.len() < 400, "{what}: {text}");
        }
    }
}

/// A storage that deflate shrinks a thousandfold would unpack to more than the file: refused before it is unpacked.
#[test]
fn a_compression_bomb_is_refused() {
    let numel = 16 << 20;
    let main = Pickle::new().state_dict(&[("w", Stored { numel, ..WHOLE })]).stop();
    let bytes = zipped(main, &[("0", vec![0; 4 * numel as usize])], zip::CompressionMethod::Deflated);
    assert!(bytes.len() < 1 << 20);
    let text = read(&bytes).unwrap_err().to_string();
    assert!(text.contains("more numbers than it holds"), "{text}");
}

#[test]
fn deep_and_wide_pickles_neither_overflow_nor_hang() {
    let mut deep = Pickle::new().op(b"N").0;
    deep.extend(std::iter::repeat_n(0x85, 1 << 20)); // a tuple in a tuple in a tuple ...
    deep.push(b'.');
    assert!(read(&stored(deep.clone(), &[])).is_err());
    let mut marks = vec![0x80, 2];
    marks.extend(std::iter::repeat_n(b'(', 1 << 20));
    assert!(read(&stored(marks, &[])).is_err());
    // A dictionary that holds itself.
    let own = Pickle::new().op(b"}q\x00").text("state_dict").op(b"h\x00s").stop();
    assert!(read(&stored(own, &[])).is_err());
}

#[test]
fn cut_or_changed_files_never_panic() {
    let entries = [("a", WHOLE), ("b", Stored { key: "1", ..WHOLE })];
    let zip = stored(Pickle::new().state_dict(&entries).stop(), &[("0", six()), ("1", six())]);
    let old = legacy(Pickle::new().state_dict(&entries).stop(), &[("0", 6, six()), ("1", 6, six())]);
    let (_folder, path) = file(&[]);
    head(6, 2, Device::Cpu, 0).unwrap().save(&path).unwrap();
    let safe = std::fs::read(&path).unwrap();
    for (name, bytes) in [("zip", &zip), ("legacy", &old), ("safetensors", &safe)] {
        read(bytes).unwrap();
        let step = (bytes.len() / 700).max(1);
        for cut in (0..bytes.len()).step_by(step) {
            let Err(error) = read(&bytes[..cut]) else { panic!("{name} cut at {cut} was accepted") };
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains("weights.pth"), "{name} at {cut}: {text}");
        }
        // A changed byte may still be a valid file; it must not panic, and must not take the memory.
        let head = bytes.len().min(3000);
        for at in 0..head {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                let _ = read(&changed);
            }
        }
    }
}

/// A safetensors file begins with the length of its header, whose bytes may look like the start of any other format.
#[test]
fn a_safetensors_header_of_any_length_is_read() {
    for start in [[0x80, 2], *b"PK", [b'<', 1]] {
        let mut header = br#"{"w":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}"#.to_vec();
        header.resize(u16::from_le_bytes(start).into(), b' ');
        let bytes = [(header.len() as u64).to_le_bytes().as_slice(), &header, &six()].concat();
        assert_eq!(list(&read(&bytes).unwrap()[0].1), [0., 1., 2., 3., 4., 5.]);
    }
}

#[test]
fn other_files_are_refused_with_a_reason() {
    for (bytes, reason) in [
        (b"".as_slice(), "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"hello, this is no weight file at all", "neither safetensors nor .pth"),
        (&[0x80, 3, b'}', b'.'], "magic number"),
    ] {
        let text = read(bytes).unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
    }
    assert!(read_weights(Path::new("absent.pth")).unwrap_err().to_string().contains("absent.pth"));
}

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

fn tiny_head() -> Model {
    Model::new("m", Device::Cpu, 0, &|vs| {
        let config = nn::LinearConfig { bias: false, ..Default::default() };
        Layers::new().add("fc", nn::linear(vs / "fc", 6, 1, config))
    })
    .unwrap()
}

const ROW: Stored = Stored { size: &[1, 6], stride: &[6, 1], ..WHOLE };

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
fn what_lies_beside_the_weights_is_passed_over_and_not_run() {
    // {"model": ..., "args": Namespace(lr=...), "best": numpy.float64, "state_dict_ema": ...}
    let main = Pickle::new()
        .op(b"}(")
        .text("model")
        .state_dict(&[("fc.weight", ROW)])
        .text("args")
        .global("argparse", "Namespace")
        .op(b")\x81}")
        .text("lr")
        .int(1)
        .op(b"sb")
        .text("best")
        .global("numpy.core.multiarray", "scalar")
        .op(b"(C\x02abK\x01tR")
        .text("state_dict_ema")
        .state_dict(&[("fc.weight", ROW)])
        .op(b"u")
        .stop();
    let (_folder, path) = file(&stored(main, &[("0", six())]));
    let mut model = tiny_head();
    let report = model.load(&path).unwrap().to_string();
    assert!(report.contains("not their moving average under \"state_dict_ema\""), "{report}");
    assert_eq!(list(&model.state()[0].1), [0., 1., 2., 3., 4., 5.]);
}

#[test]
fn files_that_are_no_state_dict_say_what_they_are() {
    let whole = Pickle::new()
        .global("torch.nn.modules.linear", "Linear")
        .op(b")\x81}")
        .text("_buffers")
        .global("__builtin__", "set")
        .op(b"]\x85Rs")
        .text("weight")
        .tensor(&ROW)
        .op(b"sb")
        .stop();
    let text = read(&stored(whole, &[("0", six())])).unwrap_err().to_string();
    assert!(text.contains("whole pickled model") && text.contains("model.state_dict()"), "{text}");
    let pointer = read(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 19332096\n").unwrap_err();
    assert!(pointer.to_string().contains("git lfs pull"), "{pointer}");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in ["net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    }
    let script = read(&archive.finish().unwrap().into_inner()).unwrap_err().to_string();
    assert!(script.contains("TorchScript") && script.contains("torch.jit.load"), "{script}");
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
