//! Bundles: unpacking gives what was packed. A bundle that is damaged, or was made for another machine or another
//! version of the repository, is refused. No test uses the network; `.ci/offline` sets a machine up from a real
//! bundle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bundle.py");

/// A folder that looks like the repository, and a bundle of two parts made from it.
struct Scene {
    _folder: TempDir,
    root: PathBuf,
    bundle: PathBuf,
}

fn scene() -> Scene {
    let folder = TempDir::new().expect("the temporary folder can be written");
    let root = folder.path().join("repository");
    let data = folder.path().join("data");
    for dir in [root.join("xtask"), data.join("deep")] {
        fs::create_dir_all(dir).expect("it can be made");
    }
    write(&root.join("xtask/Cargo.toml"), "");
    write(&root.join("Cargo.lock"), "version = 4\n");
    fs::copy(SCRIPT, root.join("xtask/bundle.py")).expect("it can be copied");
    write(&data.join("deep/one.bin"), &"one".repeat(100_000));
    write(&data.join("two.part"), "half a download");
    write(&data.join(".two.lock"), "");
    let bundle = folder.path().join("bundle.tar");
    let manifest = r#"{"commit": "abc1234", "steps": {"venv": "jupyterlab==1"}}"#;
    let contents = ["data/mine", "cache/x"].map(|place| format!("{place}={}", data.display()));
    let [data, cache] = contents.each_ref().map(String::as_str);
    let packed = python(&[SCRIPT, "--pack", text(&root), text(&bundle), manifest, data, cache]);
    assert!(packed.status.success(), "{packed:?}");
    Scene { _folder: folder, root, bundle }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("it can be written");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary folder's name is text")
}

fn python<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new("python3").args(args).output().expect("Python is there")
}

fn unpack(scene: &Scene) -> Output {
    python(&[SCRIPT, "--unpack", text(&scene.root), text(&scene.bundle)])
}

/// Asserts that `lab setup --bundle` fails with all texts of `wanted` in its message, and leaves nothing: no
/// incomplete bundle, and no cargo configuration that names one.
fn refused(scene: &Scene, wanted: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["setup", "--bundle"])
        .arg(&scene.bundle)
        .env("KDLAB_ROOT", &scene.root)
        .env("KDLAB_CACHE", scene.root.join("cache"))
        .output()
        .expect("lab starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for part in wanted {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    for name in ["bundle.new", "bundle", "offline.toml"] {
        assert!(!scene.root.join(".kdlab").join(name).exists(), "{name} was left");
    }
}

/// Writes the bundle again after a Python script changed it. The script finds the old parts by name in `old`, the
/// manifest in `manifest`, and can replace the part `data` by `inner(name)`.
fn forge(scene: &Scene, script: &str) {
    let frame = "
import gzip, hashlib, io, json, sys, tarfile
path = sys.argv[1]
with tarfile.open(path) as archive:
    old = {info.name: archive.extractfile(info).read() for info in archive}
manifest = json.loads(old.pop('manifest.json'))
def inner(name, kind=tarfile.REGTYPE, link=''):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w:gz') as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info, io.BytesIO())
    old['data'] = packed.getvalue()
    manifest['parts']['data'] = {'bytes': len(old['data']), 'sha256': hashlib.sha256(old['data']).hexdigest()}
SCRIPT
with tarfile.open(path, 'w') as archive:
    for name, data in {'manifest.json': json.dumps(manifest).encode(), **old}.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
";
    let output = python(&["-c", &frame.replace("SCRIPT", script), text(&scene.bundle)]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_was_packed_comes_out() {
    let scene = scene();
    let output = unpack(&scene);
    assert!(output.status.success(), "{output:?}");
    let kdlab = scene.root.join(".kdlab");
    let one = fs::read_to_string(kdlab.join("bundle/data/mine/deep/one.bin")).expect("it was unpacked");
    assert_eq!(one, "one".repeat(100_000));
    assert!(kdlab.join("bundle/cache/x/deep/one.bin").is_file());
    assert!(!kdlab.join("bundle/data/mine/two.part").exists(), "an incomplete download is no data");
    assert!(!kdlab.join("bundle/data/mine/.two.lock").exists());
    assert!(fs::read_to_string(kdlab.join("offline.toml")).expect("cargo is told").contains(".kdlab/bundle/crates"));
    assert!(!kdlab.join("bundle.parts").exists() && !kdlab.join("bundle.new").exists());
}

#[test]
fn one_flipped_byte_is_found_in_its_part() {
    let scene = scene();
    forge(&scene, "data = bytearray(old['data']); data[50] ^= 1; old['data'] = bytes(data)");
    refused(&scene, &["its part `data` is damaged", "Copy the file anew"]);
}

#[test]
fn a_copy_that_broke_off_is_refused() {
    let scene = scene();
    let bytes = fs::read(&scene.bundle).expect("it is there");
    // Cut within the first part, at its end, and before the manifest ends.
    for length in [bytes.len() / 2, 2048, 700, 0] {
        fs::write(&scene.bundle, &bytes[..length]).expect("it can be written");
        refused(&scene, &["bundle.tar"]);
    }
    fs::remove_file(&scene.bundle).expect("it is there");
    refused(&scene, &["there is no file"]);
}

#[test]
fn a_bundle_of_another_machine_is_refused() {
    let scene = scene();
    forge(&scene, "manifest['machine'] = 'Darwin arm64'");
    refused(&scene, &["made on Darwin arm64 and this is", "cargo lab bundle"]);
}

#[test]
fn a_bundle_of_another_version_is_refused() {
    let scene = scene();
    write(&scene.root.join("Cargo.lock"), "version = 4\n\n[[package]]\n");
    refused(&scene, &["another version of the repository", "commit abc1234"]);
    forge(&scene, "manifest['format'] = 99");
    refused(&scene, &["format 99"]);
}

#[test]
fn nothing_lands_outside() {
    let scene = scene();
    for name in ["../outside", "data/../../outside", "/tmp/kdlab-outside", "other/place"] {
        forge(&scene, &format!("inner({name:?})"));
        refused(&scene, &[name, "does not belong"]);
    }
    forge(&scene, "inner('data/link', tarfile.SYMTYPE, '/etc')");
    refused(&scene, &["data/link", "does not belong"]);
    forge(&scene, "inner('data/pipe', tarfile.FIFOTYPE)");
    refused(&scene, &["data/pipe", "does not belong"]);
}

#[test]
fn an_old_bundle_stays_until_the_new_one_is_whole() {
    let scene = scene();
    assert!(unpack(&scene).status.success());
    forge(&scene, "old['data'] = old['data'][:-1]");
    let output = unpack(&scene);
    assert!(!output.status.success());
    assert!(scene.root.join(".kdlab/bundle/data/mine/deep/one.bin").is_file());
    assert!(scene.root.join(".kdlab/offline.toml").is_file());
}
