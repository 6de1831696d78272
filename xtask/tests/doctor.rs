//! What `cargo lab` says at once: the doctor on a machine with made-up parts, and wrong commands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// With a driver that libtorch cannot use, everything silently runs on the CPU: the doctor has to say so.
#[test]
fn a_driver_that_libtorch_cannot_use_is_a_problem() {
    let root = tempfile::tempdir().unwrap();
    let program = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("xtask/Cargo.toml", "");
    program(".kdlab/stamps/libtorch", "2.13.0 cuda");
    program(".kdlab/venv/torch/lib/libtorch_cpu.so", "");
    std::os::unix::fs::symlink("venv/torch", root.path().join(".kdlab/libtorch")).unwrap();
    program("bin/nvidia-smi", "#!/bin/sh\necho 550.54\n");
    let path = [root.path().join("bin").to_str().unwrap(), &std::env::var("PATH").unwrap()].join(":");
    let doctor = |sees: &str| {
        program(".kdlab/venv/bin/python", &format!("#!/bin/sh\necho {sees}\n"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.arg("doctor").env("KDLAB_ROOT", root.path()).env("PATH", &path).env_remove("CUDA_VISIBLE_DEVICES");
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let old = doctor("False");
    assert!(old.contains("NO  CUDA") && old.contains("580 or newer"), "{old}");
    let new = doctor("True");
    assert!(new.contains("ok  CUDA") && new.contains("NVIDIA"), "{new}");
}

#[test]
fn a_wrong_command_is_told_the_right_ones() {
    let said = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lab")).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (fine, text) = said(&["runn"]);
    assert!(!fine && text.contains("no command `runn`; there are setup, ") && !text.contains("kernel"), "{text}");
    let (fine, text) = said(&["run", "--fast"]);
    assert!(!fine && text.contains("--fast") && !text.contains("no command"), "{text}");
}

/// A linker would fail after minutes of set-up, with a backtrace that does not name the space.
#[test]
fn a_path_that_linkers_cannot_take_is_refused_before_anything_is_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("my course");
    fs::create_dir_all(root.join("xtask")).unwrap();
    fs::write(root.join("xtask/Cargo.toml"), "").unwrap();
    for task in ["setup", "doctor"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        let output = command.arg(task).env("KDLAB_ROOT", &root).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains("path holds ' '") && said.contains("move it"), "{said}");
    }
    assert!(!root.join(".kdlab").exists());
}

/// Shells find rustup's folder through a profile; desktops and services do not.
#[test]
fn cargo_beside_path_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join(".cargo/bin");
    fs::create_dir_all(&tools).unwrap();
    fs::create_dir_all(folder.path().join("xtask")).unwrap();
    fs::write(folder.path().join("xtask/Cargo.toml"), "").unwrap();
    for tool in ["cargo", "rustc"] {
        fs::write(tools.join(tool), "#!/bin/sh\necho rustc 1.95.0 of the user\n").unwrap();
        fs::set_permissions(tools.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let said = |home: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.arg("doctor").env("KDLAB_ROOT", folder.path()).env("HOME", home).env("PATH", "/usr/bin:/bin");
        for variable in ["CARGO_HOME", "CARGO", "KDLAB_CACHE", "XDG_CACHE_HOME", "KDLAB_DATA"] {
            command.env_remove(variable);
        }
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    let found = said(folder.path());
    assert!(found.contains("rustc 1.95.0 of the user"), "{found}");
    // What set-up installs is not missing before the first set-up.
    assert!(found.contains("--  set-up") && !found.contains("not installed"), "{found}");
    assert!(found.contains("--  weights"), "{found}");
    let missing = said(&folder.path().join("nobody"));
    assert!(missing.contains("NO  Rust") && missing.contains("rustup.rs"), "{missing}");
}
