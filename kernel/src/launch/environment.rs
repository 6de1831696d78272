//! The environment in which evcxr works: its build directory, its configuration, its cargo, and Rust's library.
//!
//! rust-analyzer, which is part of evcxr, reads and analyses every crate that it hears of before the first cell's
//! variables have types. So it is shown Rust's library in outline, and a cargo that names only what cells can name.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::cells::syntax;
use crate::launch::outline;
use crate::private::{CARGO_HOME, LOCK, hidden_library, shown_library};

/// Names the folder for what kernels keep; without it they use one in the user's cache folder.
const CACHE: &str = "LIVE_KERNEL_CACHE";

/// Names a folder of the same kind that somebody else has filled. The kernel looks there first, and does not write.
const SHARED: &str = "LIVE_KERNEL_SHARED";

/// Macros by which the kernel knows what ended a cell, and sees lines without an end.
const MACROS: &str = include_str!("macros.rs");

/// The parts of Rust's library that cells need. Its own dependencies and the vendors' instructions in `core::arch` are
/// three times as much.
const LIBRARY: [&str; 3] = ["alloc", "core", "std"];

/// The file in an outline that says how many files and bytes it has. If that is no longer so, as after a tidied cache
/// or a power failure, the outline is written again.
const EXTENT: &str = "extent";

/// Names the library that rust-analyzer reads.
const LIBRARY_VARIABLE: &str = "RUST_SRC_PATH";

/// Variables for evcxr.
pub type Variables = Vec<(&'static str, OsString)>;

/// Makes what a kernel with this private folder needs. Returns the variables, and the build directory.
pub fn prepare(private: &Path) -> Result<(Variables, PathBuf)> {
    let cache = cache()?;
    let (mut variables, tools) = shared(&cache)?;
    let (configuration, crates) = configuration(private)?;
    // With the crates of the prelude, rust-analyzer reads the library again.
    if let Some((_, library)) = variables.iter_mut().find(|(name, _)| crates && *name == LIBRARY_VARIABLE) {
        *library = hidden(Path::new(library), private)?.into();
    }
    let build = match std::env::var_os("EVCXR_TMPDIR").map(PathBuf::from) {
        Some(given) => given,
        None => {
            let (build, lock) = build_directory(&cache.join("cells"))?;
            // The lock lives on in the process that builds there, and ends with it, however it ends.
            variables.push((LOCK, lock.as_raw_fd().to_string().into()));
            fcntl_setfd(&lock, FdFlags::empty()).context("cannot hand the lock of the build directory on")?;
            std::mem::forget(lock);
            build
        }
    };
    remove_old_cells(&build);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path))).context("PATH")?;
    variables.push(("PATH", path));
    variables.push(("EVCXR_CONFIG_DIR", configuration.into()));
    variables.push(("EVCXR_TMPDIR", build.clone().into()));
    Ok((variables, build))
}

/// Makes what evcxr_jupyter needs where it stands alone.
pub fn prepare_alone() -> Result<Variables> {
    if let Some(build) = std::env::var_os("EVCXR_TMPDIR") {
        remove_old_cells(Path::new(&build));
    }
    Ok(shared(&cache()?)?.0)
}

/// What both kinds of kernel need, and the folder with this program under the names of tools.
fn shared(cache: &Path) -> Result<(Variables, PathBuf)> {
    let mut variables = vec![];
    if let Some(library) = rust_library() {
        variables.push((LIBRARY_VARIABLE, outlined(&library, cache)?.into()));
    }
    // rust-analyzer prefers the cargo below `CARGO_HOME` to all others.
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let home = cache.join(format!("cargo-{:016x}", hash(&program)));
    let tools = home.join("bin");
    for name in ["cargo", "rustup"] {
        link(&program, &tools.join(name))?;
    }
    variables.push((CARGO_HOME, own_cargo_home().into()));
    variables.push(("CARGO_HOME", home.into()));
    Ok((variables, tools))
}

pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || set("HOME").with_context(|| format!("HOME is not set: set {CACHE} to a folder for compiled crates"));
    match (set(CACHE), set("XDG_CACHE_HOME")) {
        (Some(folder), _) => Ok(folder),
        _ if cfg!(target_os = "macos") => Ok(home()?.join("Library/Caches/kdlab-kernel")),
        (None, Some(folder)) => Ok(folder.join("kdlab-kernel")),
        (None, None) => Ok(home()?.join(".cache/kdlab-kernel")),
    }
}

/// Where cargo keeps crates for the user.
fn own_cargo_home() -> PathBuf {
    let default = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

/// Takes the first build directory below `folder` that no other kernel uses. It keeps the crates that were compiled
/// there. Two kernels may not share one.
fn build_directory(folder: &Path) -> Result<(PathBuf, File)> {
    let mut number = 1;
    loop {
        let build = folder.join(number.to_string());
        fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
        let lock = File::create(build.with_extension("lock")).context("cannot make the lock of a build directory")?;
        match lock.try_lock() {
            Ok(()) => return Ok((build, lock)),
            Err(fs::TryLockError::WouldBlock) => number += 1,
            Err(fs::TryLockError::Error(error)) => return Err(error).context("cannot lock a build directory"),
        }
    }
}

/// Every cell leaves a library behind; those of the kernel that had the build directory before are of no use.
fn remove_old_cells(build: &Path) {
    let targets = fs::read_dir(build.join("target")).into_iter().flatten().flatten();
    // cargo puts the library into the first, rustc into the second.
    for folder in targets.flat_map(|target| ["debug", "debug/deps"].map(|name| target.path().join(name))) {
        for file in fs::read_dir(folder).into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().starts_with("libcode_") {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

/// evcxr's configuration, the user's own with the kernel's macros in the prelude, in a folder below `private`. Returns
/// it, and whether the prelude names crates.
fn configuration(private: &Path) -> Result<(PathBuf, bool)> {
    let folder = private.join("config");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let own = evcxr::config_dir();
    for entry in own.iter().flat_map(fs::read_dir).flatten().flatten() {
        if entry.file_name() != "prelude.rs" {
            symlink(std::path::absolute(entry.path())?, folder.join(entry.file_name()))
                .context("cannot link to evcxr's configuration")?;
        }
    }
    let file = own.unwrap_or_default().join("prelude.rs");
    let prelude = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    fs::write(folder.join("prelude.rs"), with_macros(&prelude)).context("cannot write the prelude")?;
    Ok((folder, syntax::parted(&prelude).0.lines().any(|line| line.trim_start().starts_with(":dep"))))
}

/// `prelude` with the kernel's macros, behind its commands, which evcxr understands only above all code.
fn with_macros(prelude: &str) -> String {
    let (commands, code) = syntax::parted(prelude);
    // In one piece with all else: evcxr compiles and analyses each piece on its own.
    format!(":build_env CARGO_HOME={}\n{commands}{MACROS}\n{code}", own_cargo_home().display())
}

/// The sources of Rust's library. Where they are missing, rust-analyzer has rustup fetch them.
fn rust_library() -> Option<PathBuf> {
    let of_toolchain = || {
        let output = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
        Some(Path::new(String::from_utf8(output.stdout).ok()?.trim()).join("lib/rustlib/src/rust/library"))
    };
    std::env::var_os(LIBRARY_VARIABLE)
        .map(PathBuf::from)
        .or_else(of_toolchain)
        .filter(|library| library.join("core").is_dir())
}

/// The library in `found` without what its functions do, written when a toolchain or this program is new, or when some
/// of it has gone: cells would then not know the types of their variables.
fn outlined(found: &Path, cache: &Path) -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let changed = |file: &Path| {
        let time = fs::metadata(file).and_then(|found| found.modified());
        time.with_context(|| format!("cannot read {}", file.display()))
    };
    let version = (found, changed(&found.join("core/src/lib.rs"))?, changed(&program)?);
    let name = format!("outline/{:016x}", hash(&version));
    let shared = std::env::var_os(SHARED).map(|shared| Path::new(&shared).join(&name));
    if let Some(library) = shared.filter(|library| is_whole(library)) {
        return Ok(library);
    }
    let (folder, library) = (cache.join("outline"), cache.join(name));
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // Several kernels may start at once.
    let lock = File::create(folder.with_extension("lock"));
    let lock = lock.with_context(|| format!("cannot write in {}", cache.display()))?;
    lock.lock().context("cannot lock the outline of Rust's library")?;
    if !is_whole(&library) {
        // Kernels that run have read theirs.
        let _ = fs::remove_dir_all(&folder);
        let beside = folder.join(std::process::id().to_string());
        for name in LIBRARY.map(|name| format!("{name}/src")) {
            outline::write(&found.join(&name), &beside.join(&name))?;
        }
        fs::write(beside.join(EXTENT), extent(&beside))
            .with_context(|| format!("cannot write {}", beside.display()))?;
        fs::rename(&beside, &library).with_context(|| format!("cannot write {}", library.display()))?;
    }
    Ok(library)
}

fn is_whole(outline: &Path) -> bool {
    fs::read_to_string(outline.join(EXTENT)).is_ok_and(|noted| noted == extent(outline))
}

/// Returns how many files of the library an outline has, and of how many bytes.
fn extent(outline: &Path) -> String {
    fn add(folder: &Path, sum: &mut (u64, u64)) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => add(&entry.path(), sum),
                Ok(found) => *sum = (sum.0 + 1, sum.1 + found.len()),
                Err(_) => {}
            }
        }
    }
    let mut sum = (0, 0);
    LIBRARY.iter().for_each(|name| add(&outline.join(name), &mut sum));
    format!("{} files, {} bytes", sum.0, sum.1)
}

/// A link below `private` to a library without code, until `show_library` lets it point to `library`. Before anything
/// else, evcxr runs a cell of its own, for which rust-analyzer need not read all of it.
fn hidden(library: &Path, private: &Path) -> Result<PathBuf> {
    let link = shown_library(private);
    let make = || {
        let empty = private.join("empty");
        for name in LIBRARY {
            fs::create_dir_all(empty.join(name).join("src"))?;
            fs::write(empty.join(name).join("src/lib.rs"), "")?;
        }
        symlink(library, hidden_library(private))?;
        symlink(&empty, &link)
    };
    make().context("cannot write in the kernel's private folder")?;
    Ok(link)
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Makes `link` point to `target`; another kernel may do so at the same time.
fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let made = || {
        fs::create_dir_all(link.parent().unwrap_or(link))?;
        let beside = link.with_extension(std::process::id().to_string());
        symlink(target, &beside)?;
        fs::rename(&beside, link)
    };
    made().with_context(|| format!("cannot link {} to {}", link.display(), target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macros_stand_behind_the_commands_of_a_prelude() {
        let text = with_macros("// mine\n:dep serde = \"1\"\n\nuse serde::Serialize;\n");
        let place = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words} in {text}"));
        assert!(text.starts_with(":build_env CARGO_HOME="));
        assert!(place(":dep serde") < place("macro_rules!") && place("macro_rules!") < place("use serde"));
        assert!(with_macros("").contains("macro_rules!"));
    }

    #[test]
    fn the_library_is_shown_after_the_first_build() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (library, private) = (folder.path().join("outlined"), folder.path().join("private"));
        fs::create_dir_all(library.join("core/src")).expect("a folder");
        fs::write(library.join("core/src/lib.rs"), "pub mod option;").expect("a file");
        let link = hidden(&library, &private).expect("a link");
        let read = || fs::read_to_string(link.join("core/src/lib.rs")).expect("it is there");
        assert_eq!(read(), "");
        for _ in 0..2 {
            crate::private::show_library(&private);
            assert_eq!(read(), "pub mod option;");
        }
    }

    #[test]
    fn an_outline_that_is_no_longer_whole_is_written_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (found, cache) = (folder.path().join("library"), folder.path().join("cache"));
        for name in LIBRARY {
            fs::create_dir_all(found.join(name).join("src/below")).expect("a folder");
            for file in ["lib.rs", "below/more.rs"] {
                fs::write(found.join(name).join("src").join(file), "pub fn f() { 1 }\n").expect("a file");
            }
        }
        let outline = outlined(&found, &cache).expect("an outline");
        let file = outline.join("std/src/below/more.rs");
        let is_new = || fs::read_to_string(&file).is_ok_and(|text| text == "pub fn f() { loop {} }\n");
        assert!(is_new());
        let untouched = outline.join("std/src/untouched");
        fs::create_dir(&untouched).expect("a folder");
        assert!(
            outlined(&found, &cache).is_ok_and(|again| again == outline) && untouched.is_dir(),
            "whole: left alone"
        );
        let damages: [(&str, &dyn Fn() -> std::io::Result<()>); 4] = [
            ("a file is gone", &|| fs::remove_file(&file)),
            ("a file is empty", &|| fs::write(&file, "")),
            ("a folder is gone", &|| fs::remove_dir_all(outline.join("alloc"))),
            ("its extent is gone", &|| fs::remove_file(outline.join(EXTENT))),
        ];
        for (what, damage) in damages {
            damage().expect(what);
            assert!(outlined(&found, &cache).is_ok_and(|again| again == outline) && is_new(), "{what}");
            assert!(outline.join("alloc/src/lib.rs").is_file(), "{what}");
        }
    }

    #[test]
    fn each_kernel_has_a_build_directory_of_its_own() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (first, lock) = build_directory(folder.path()).expect("a directory");
        assert_eq!(build_directory(folder.path()).expect("another one").0, folder.path().join("2"));
        drop(lock);
        assert_eq!(build_directory(folder.path()).expect("the first, free again").0, first);
    }
}
