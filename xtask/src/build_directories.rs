//! The build directories of kernels, in `.kdlab/slots`: the folders in which evcxr compiles cells. They are warm: the
//! crates that cells depend on are compiled there already. One belongs to one running kernel, by an OS lock that ends
//! with the kernel.
//!
//! One of them is the template, which set-up has the kernel build ([`crate::template`]). The others, numbered from 1,
//! are copies of it: compiled files are hard links; what cargo or evcxr rewrites is copied with its time stamps, so
//! that cargo finds everything fresh. Users of an installation have copies in their cache, with symbolic links to the
//! template's compiled files.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

use crate::files;
use crate::paths::Paths;

/// How many copies set-up makes. Further ones are made when more kernels run at once.
pub const READY: usize = 3;

/// Bytes from which on a file of an installation is not copied for a user.
const LARGE: u64 = 32 << 10;

/// The file in the template and in its copies that says what they were built from.
pub const BUILT_FROM: &str = "built-from";

/// The file in the template and in its copies that lists the compiled files: length, time of the last change and name
/// of each. The kernel reads it, too.
const LIBRARIES: &str = "libraries";

/// Settings for cargo in all build directories, beside evcxr's own profile. They save a minute: torch-sys only forwards
/// calls, and nothing uses zstd to compress.
pub const CARGO: &str = r#"[profile.dev]
lto = "off"

[profile.dev.package]
torch-sys = { opt-level = 0 }
zstd-sys = { opt-level = 0 }
"#;

/// A build directory and the lock that makes it ours for as long as the file is open in any process.
pub struct BuildDirectory {
    pub dir: PathBuf,
    pub lock: File,
}

/// Takes the first build directory that no kernel uses, and updates it from the template if it can.
pub fn take(paths: &Paths) -> Result<BuildDirectory> {
    let mut number = 1;
    loop {
        let lock = open_lock(paths, &number.to_string())?;
        match lock.try_lock() {
            Ok(()) => {
                let dir = paths.build_directories()?.join(number.to_string());
                refresh(paths, &dir)?;
                return Ok(BuildDirectory { dir, lock });
            }
            Err(fs::TryLockError::WouldBlock) => number += 1,
            Err(fs::TryLockError::Error(error)) => return Err(error).with_context(|| no_locks(paths)),
        }
    }
}

/// Says what to do where a file system, such as some NFS, knows no locks.
fn no_locks(paths: &Paths) -> String {
    let place = paths.build_directories().unwrap_or_default();
    let what = if paths.installed { "set XDG_CACHE_HOME to a folder" } else { "move the repository to a place" };
    format!("cannot lock a build directory of the kernel in {}: {what} on a local disk", place.display())
}

/// Updates the first [`READY`] copies from the template, except those that a kernel uses.
pub fn refresh_ready(paths: &Paths) -> Result<()> {
    for number in 1..=READY {
        let lock = open_lock(paths, &number.to_string())?;
        if lock.try_lock().is_ok() {
            refresh(paths, &paths.build_directories()?.join(number.to_string()))?;
        }
    }
    Ok(())
}

/// Returns the numbers of the copies that there are.
fn copies(paths: &Paths) -> impl Iterator<Item = (usize, PathBuf)> {
    let place = paths.build_directories().unwrap_or_default();
    (1..).map(move |n| (n, place.join(n.to_string()))).take_while(|(_, dir)| dir.is_dir())
}

/// Returns how many copies there are, and how many of them kernels use.
pub fn count(paths: &Paths) -> (usize, usize) {
    copies(paths).map(|(n, _)| n).fold((0, 0), |(all, taken), n| {
        let free = open_lock(paths, &n.to_string()).is_ok_and(|lock| lock.try_lock().is_ok());
        (all + 1, taken + usize::from(!free))
    })
}

/// Opens the lock of the template: held for writing while it is built, for reading while it is copied.
pub fn template_lock(paths: &Paths) -> Result<File> {
    open_lock(paths, "template")
}

fn open_lock(paths: &Paths, name: &str) -> Result<File> {
    let path = paths.build_directories()?.join(format!("{name}.lock"));
    files::create_dir(path.parent())?;
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Copies the template to `dir`, unless `dir` already is a copy of this template.
fn refresh(paths: &Paths, dir: &Path) -> Result<()> {
    // Nobody builds the template of an installation, and this user's kernels take turns.
    let lock = template_lock(paths)?;
    let there = dir.is_dir();
    if there {
        // While set-up builds the template, an old copy is better than waiting: cargo rebuilds what it must.
        if lock.try_lock_shared().is_err() {
            return Ok(());
        }
    } else {
        lock.lock_shared().context("cannot lock the kernel's build template")?;
    }
    let template = paths.template();
    let wanted =
        fs::read_to_string(template.join(BUILT_FROM)).context("the kernel is not set up: run `cargo lab setup`")?;
    if there && fs::read_to_string(dir.join(BUILT_FROM)).is_ok_and(|found| found == wanted) {
        let Some(first) = changed(dir).into_iter().next() else {
            return Ok(());
        };
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        if !damaged(&template).is_empty() && !paths.installed {
            // Copies share files with the template and may lack the same ones. Without them cargo makes them again.
            remove_all(dir, &damaged(dir))?;
            eprintln!(
                "kernel: crates in its build directory are damaged ({first}); cargo compiles them again, which takes \
                 minutes: `cargo lab setup` repairs them for all kernels"
            );
            return Ok(());
        }
        eprintln!("kernel: {first} in build directory {name} is missing or differs from set-up's; it is copied again");
    }
    let beside = dir.with_extension("new");
    files::remove(&beside)?;
    let copied = copy(&template, &beside, if paths.installed { &link_to_installed } else { &link_to_foreign });
    copied.with_context(|| format!("cannot copy {} to {}", template.display(), beside.display()))?;
    files::replace(&beside, dir)
}

/// Writes the list of the compiled files of a template that was just built, so that later changes are noticed.
pub fn list_libraries(dir: &Path) -> Result<()> {
    let mut lines: Vec<String> = vec![];
    for folder in library_folders(dir) {
        for file in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten() {
            let path = file.path();
            let name = file.file_name().to_string_lossy().into_owned();
            let compiled =
                path.extension().is_some_and(|end| ["rlib", "rmeta", "so", "dylib"].iter().any(|e| end == *e));
            if compiled
                && !["libctx", "libcode_", "libcrates_"].iter().any(|cell| name.starts_with(cell))
                && let Some((length, time)) = length_and_time(&path)
                && let Ok(within) = path.strip_prefix(dir)
            {
                lines.push(format!("{length} {time} {}\n", within.display()));
            }
        }
    }
    lines.sort();
    files::write(&dir.join(LIBRARIES), &lines.concat())
}

/// Returns the compiled files that are missing or have another length: nothing can be compiled with these.
pub fn damaged(dir: &Path) -> Vec<String> {
    differing(dir, |listed, found| listed.0 != found.0)
}

/// Returns the damaged files and those that were compiled again in another environment.
fn changed(dir: &Path) -> Vec<String> {
    differing(dir, |listed, found| listed != found)
}

/// Returns the listed files that differ. Files of the crate itself differ only if they are missing, because it is
/// compiled again when it is edited.
fn differing(dir: &Path, differ: impl Fn((u64, u128), (u64, u128)) -> bool) -> Vec<String> {
    let text = fs::read_to_string(dir.join(LIBRARIES)).unwrap_or_default();
    let wrong = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (length, time) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let name = words.next()?;
        let fine = length_and_time(&dir.join(name))
            .is_some_and(|found| name.contains("/libkdlab") || !differ((length, time), found));
        (!fine).then(|| name.to_owned())
    };
    text.lines().filter_map(wrong).collect()
}

fn length_and_time(path: &Path) -> Option<(u64, u128)> {
    let found = fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos()))
}

/// Removes files of `dir`. Other copies keep theirs.
pub fn remove_all(dir: &Path, names: &[String]) -> Result<()> {
    names.iter().try_for_each(|name| files::remove(&dir.join(name)))
}

/// Returns the damaged copies: number, first damaged file, and whether a kernel uses the copy.
pub fn broken(paths: &Paths) -> Vec<(usize, String, bool)> {
    let broken = |(n, dir): (usize, PathBuf)| {
        let first = damaged(&dir).into_iter().next()?;
        let free = open_lock(paths, &n.to_string()).is_ok_and(|lock| lock.try_lock().is_ok());
        Some((n, first, !free))
    };
    copies(paths).filter_map(broken).collect()
}

/// Returns `target/debug/deps`, and the same below each target's own folder.
fn library_folders(dir: &Path) -> Vec<PathBuf> {
    let target = dir.join("target");
    let below = fs::read_dir(&target).into_iter().flatten().flatten().map(|entry| entry.path().join("debug/deps"));
    below.chain([target.join("debug/deps")]).filter(|folder| folder.is_dir()).collect()
}

/// Copies a build directory. `link` makes a link to a file where it may.
fn copy(from: &Path, to: &Path, link: &dyn Fn(&Path, &Path) -> bool) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !is_left_out(&source) {
                copy(&source, &target, link)?;
            }
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if !link(&source, &target) {
            fs::copy(&source, &target)?;
            let found = fs::metadata(&source)?;
            let times = FileTimes::new().set_modified(found.modified()?).set_accessed(found.accessed()?);
            File::options().write(true).open(&target)?.set_times(times)?;
        }
    }
    Ok(())
}

/// Returns whether a folder holds rustc's incremental state of the crate, 80 MB. The crate is compiled in the
/// template, so copies do not need it.
fn is_left_out(dir: &Path) -> bool {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name(dir).starts_with("kdlab") && dir.parent().is_some_and(|parent| name(parent) == "incremental")
}

/// Makes a hard link to a compiled file of another crate: these are big and written once. The crate itself and cells
/// are compiled again and again.
fn link_to_foreign(from: &Path, to: &Path) -> bool {
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    let compiled =
        from.extension().is_some_and(|ext| ["rlib", "rmeta", "so", "dylib", "a", "o"].iter().any(|e| ext == *e));
    compiled && !["kdlab", "ctx", "code_"].iter().any(|own| name.contains(own)) && fs::hard_link(from, to).is_ok()
}

/// Makes a symbolic link to any large file that does not belong to cells. In an installation no crate is compiled
/// again, and users may not make hard links to files of others.
fn link_to_installed(from: &Path, to: &Path) -> bool {
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    let large = fs::metadata(from).is_ok_and(|found| found.len() >= LARGE);
    // cargo writes `Cargo.lock` in place when a cell asks for another crate.
    large && !["Cargo.lock", "ctx", "code_"].iter().any(|own| name.contains(own)) && symlink(from, to).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_foreign_crates_and_has_its_own_of_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let (template, copied) = (folder.path().join("template"), folder.path().join("1"));
        let (foreign, own, state) =
            ("deps/libtch-1.rlib", "deps/libkdlab-1.rlib", "incremental/ctx-1/s-1/dep-graph.bin");
        for file in [foreign, own, state, "incremental/kdlab-1/s-1/dep-graph.bin"] {
            files::write(&template.join(file), file).unwrap();
        }
        copy(&template, &copied, &link_to_foreign).unwrap();
        for file in [foreign, own, state] {
            assert_eq!(fs::read_to_string(copied.join(file)).unwrap(), file);
            let modified = |dir: &Path| fs::metadata(dir.join(file)).unwrap().modified().unwrap();
            assert_eq!(modified(&copied), modified(&template), "cargo would compile {file} again");
        }
        assert!(!copied.join("incremental/kdlab-1").exists());
        fs::write(template.join(foreign), "as new").unwrap();
        assert_eq!(fs::read_to_string(copied.join(foreign)).unwrap(), "as new");
        fs::write(copied.join(own), "its own").unwrap();
        assert_eq!(fs::read_to_string(template.join(own)).unwrap(), own);
    }

    #[test]
    fn a_damaged_copy_is_seen_and_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::of(folder.path().into());
        let (foreign, other, own) = (
            "target/debug/deps/libtch-1.rlib",
            "target/x/debug/deps/libpxfm-1.rlib",
            "target/x/debug/deps/libkdlab-1.rlib",
        );
        let template = paths.template();
        for file in [foreign, other, own, "target/x/debug/deps/libcode_7.so"] {
            files::write(&template.join(file), "compiled").unwrap();
        }
        list_libraries(&template).unwrap();
        files::write(&template.join(BUILT_FROM), "one").unwrap();
        let copied = take(&paths).unwrap().dir;
        assert_eq!((damaged(&copied), changed(&copied)), (vec![], vec![]));
        // Another environment: cargo compiles in place.
        fs::remove_file(copied.join(other)).unwrap();
        fs::write(copied.join(other), "compiled").unwrap();
        fs::write(copied.join(own), "compiled after an edit").unwrap();
        assert_eq!((damaged(&copied), changed(&copied)), (vec![], vec![other.to_owned()]));
        fs::remove_file(copied.join(foreign)).unwrap();
        assert_eq!(broken(&paths), [(1, foreign.to_owned(), false)]);
        let copied = take(&paths).unwrap().dir;
        assert_eq!(changed(&copied), Vec::<String>::new());
        // A file that is shared with the template is cut short: cargo has to make it again, and only it.
        fs::write(copied.join(foreign), "comp").unwrap();
        assert_eq!(damaged(&template), [foreign]);
        let copied = take(&paths).unwrap().dir;
        assert!(!copied.join(foreign).exists() && copied.join(other).exists());
        fs::write(copied.join(foreign), "compiled").unwrap();
        let copied = take(&paths).unwrap().dir;
        assert!(copied.join(foreign).exists(), "what cargo mended is mended");
    }
}
