//! `kdlab-kernel install`: tells Jupyter of this kernel.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

/// What the command takes.
pub const USAGE: &str = "\
kdlab-kernel CONNECTION_FILE                   the kernel, as Jupyter starts it
kdlab-kernel --control_file CONNECTION_FILE    evcxr_jupyter as it is
kdlab-kernel install [--user | --prefix FOLDER] [--name NAME] [--display-name TEXT] [--config FOLDER]
  --user          for this user, which is the default
  --prefix        for the environment in this folder, such as a Python venv
  --name          the name in notebooks and on the command line [default: rust-live]
  --display-name  the name that people see [default: Rust (live)]
  --config        a folder with prelude.rs and kernel.toml [default: evcxr's own]";

/// Writes the kernelspec, and says where.
///
/// # Errors
/// On an unknown option, or where the file cannot be written.
pub fn install(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut folder = None;
    let (mut name, mut display, mut environment) = ("rust-live".to_owned(), "Rust (live)".to_owned(), json!({}));
    while let Some(option) = arguments.next() {
        let option = option.to_string_lossy().into_owned();
        if option == "--user" {
            continue;
        }
        let value = arguments.next().with_context(|| format!("{option} is no option, or lacks its value\n{USAGE}"))?;
        let text = value.to_string_lossy().into_owned();
        match option.as_str() {
            "--prefix" => folder = Some(std::path::absolute(value)?.join("share/jupyter")),
            "--name" => name = text,
            "--display-name" => display = text,
            "--config" => environment["EVCXR_CONFIG_DIR"] = json!(std::path::absolute(value)?),
            _ => bail!("unknown option {option}\n{USAGE}"),
        }
    }
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        bail!("a kernel's name holds letters, digits, `-`, `_` and `.`, got `{name}`");
    }
    let folder = folder.map_or_else(of_user, Ok)?.join("kernels").join(&name);
    let spec = json!({
        "argv": [std::env::current_exe().context("cannot find this program's own file")?, "{connection_file}"],
        "display_name": display,
        "language": "rust",
        // Interrupt is a message: a signal would reach only one of the kernel's processes.
        "interrupt_mode": "message",
        "env": environment,
    });
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join("kernel.json");
    fs::write(&file, format!("{spec:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    println!("`{display}` is installed as {}", file.display());
    Ok(())
}

/// Where Jupyter looks for what belongs to the user.
fn of_user() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("JUPYTER_DATA_DIR") {
        return Ok(folder);
    }
    let home = set("HOME").context("HOME is not set: name a folder with --prefix");
    match set("XDG_DATA_HOME") {
        _ if cfg!(target_os = "macos") => Ok(home?.join("Library/Jupyter")),
        Some(folder) => Ok(folder.join("jupyter")),
        None => Ok(home?.join(".local/share/jupyter")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<()> {
        install(arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_kernelspec_names_this_program_and_its_configuration() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let prefix = folder.path().to_str().expect("a path in UTF-8");
        run(&["--prefix", prefix, "--name", "mine", "--config", prefix]).expect("it is written");
        let text = fs::read(folder.path().join("share/jupyter/kernels/mine/kernel.json")).expect("it is there");
        let spec: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(spec["argv"][1], "{connection_file}");
        assert_eq!(spec["env"]["EVCXR_CONFIG_DIR"], prefix);
        for wrong in [&["--name", "a/b"][..], &["--nam", "a"], &["--name"], &["mine"]] {
            assert!(run(wrong).is_err(), "{wrong:?}");
        }
    }
}
