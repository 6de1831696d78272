//! The step that fetches EfficientNet-Lite0's ImageNet weights.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::libtorch::UNPACK;
use super::{offline, python};
use crate::files;
use crate::paths::Paths;
use crate::steps::Step;

/// The name of the file, in the folder `weights` of the cache.
pub const FILE: &str = "efficientnet-lite0-57934424.pth";
/// The SHA-256 of the file.
pub const SHA256: &str = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db";

/// Returns where the file belongs.
pub fn file(paths: &Paths) -> Result<PathBuf> {
    Ok(paths.cache()?.join("weights").join(FILE))
}

/// Returns the step.
pub fn step(paths: &Paths) -> Step<'_> {
    let what = format!("fetching EfficientNet-Lite0's ImageNet weights from {}", offline::source(paths));
    Step { name: "weights", what, version: SHA256.into(), paths }
}

/// Fetches the file, unless a good one is there.
pub fn install(paths: &Paths) -> Result<()> {
    let step = step(paths);
    let file = file(paths)?;
    step.run(&file, || {
        let check = |file: &Path| step.command(python::script(paths, UNPACK).arg("check").arg(file).arg(SHA256));
        if file.exists() && check(&file).is_ok() {
            return Ok(());
        }
        let downloads = paths.kdlab.join("downloads");
        step.command(python::pip_download(paths, python::WEIGHTS, &downloads).arg("--no-cache-dir"))?;
        files::create_dir(file.parent())?;
        step.command(python::script(paths, UNPACK).arg("file").arg(&downloads).arg(&file).arg(SHA256))?;
        files::remove(&downloads)
    })
}
