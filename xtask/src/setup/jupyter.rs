//! What Jupyter reads in `.kdlab/jupyter`: the kernelspec, the server's settings, an extension. Every set-up writes
//! it, so that the kernel is always the one of this source tree.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use crate::files;
use crate::paths::Paths;

/// What JupyterLab does after it saved a notebook.
pub const SERVER_CONFIG: &str = include_str!("../../jupyter_server_config.py");

/// What every program of an installation's venv reads.
const SHARED_CONFIG: &str = include_str!("../../jupyter_config.py");

/// An extension of JupyterLab that names sliders for screen readers.
const SLIDERS: [(&str, &str); 2] = [
    ("package.json", include_str!("../../labextension/package.json")),
    ("static/remoteEntry.js", include_str!("../../labextension/remoteEntry.js")),
];

/// Writes all of it.
pub fn configure(paths: &Paths) -> Result<()> {
    kernelspec(paths)?;
    files::write(&paths.jupyter().join("config/jupyter_server_config.py"), SERVER_CONFIG)?;
    let page = json!({"disabledExtensions": {
        // Rust cells have no debugger, and its button would stay grey.
        "@jupyterlab/debugger-extension": true,
        // It asks everybody at first whether to fetch news, above the figures of the page.
        "@jupyterlab/apputils-extension:announcements": true,
    }});
    files::write(&paths.jupyter().join("config/labconfig/page_config.json"), &format!("{page:#}\n"))?;
    for (file, text) in SLIDERS {
        files::write(&paths.jupyter().join("labextensions/kdlab-sliders").join(file), text)?;
    }
    Ok(())
}

/// Puts what the folder for Jupyter holds where every program of the venv looks for it.
pub fn configure_venv(paths: &Paths) -> Result<()> {
    let (jupyter, share, etc) = (paths.jupyter(), paths.venv().join("share/jupyter"), paths.venv().join("etc/jupyter"));
    for folder in ["kernels/kdlab", "labextensions/kdlab-sliders"] {
        files::copy(&jupyter.join(folder), &share.join(folder))?;
    }
    files::copy(&jupyter.join("config/labconfig"), &etc.join("labconfig"))?;
    files::write(&etc.join("jupyter_config.py"), SHARED_CONFIG)
}

fn kernelspec(paths: &Paths) -> Result<()> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    if fs::read(&this).ok() != fs::read(paths.lab()).ok() {
        files::create_dir(paths.lab().parent())?;
        let beside = paths.lab().with_extension("new");
        fs::copy(&this, &beside).with_context(|| format!("cannot copy {} to {}", this.display(), beside.display()))?;
        files::replace(&beside, &paths.lab())?;
    }
    let spec = json!({
        "argv": [paths.lab(), "kernel", "{connection_file}"],
        "display_name": "Rust (kdlab)",
        "language": "rust",
        "interrupt_mode": "message",
        "env": { "KDLAB_ROOT": paths.root },
    });
    files::write(&paths.jupyter().join("kernels/kdlab/kernel.json"), &format!("{spec:#}\n"))
}
