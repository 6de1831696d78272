//! Weight files: every format read, damaged and hostile files refused, nothing changed unless all of it fits.

mod loading;

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

const ROW: Stored = Stored { size: &[1, 6], stride: &[6, 1], ..WHOLE };

fn tiny_head() -> Model {
    Model::new("m", Device::Cpu, 0, &|vs| {
        let config = nn::LinearConfig { bias: false, ..Default::default() };
        Layers::new().add("fc", nn::linear(vs / "fc", 6, 1, config))
    })
    .unwrap()
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
