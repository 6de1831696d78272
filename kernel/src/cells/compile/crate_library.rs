//! One dynamic library of all crates that cells depend on.
//!
//! A cell that is linked with it is compiled in half of the time and is a tenth as large. Statics of these crates are
//! then the same in all cells, so that a logger or a runtime lives on.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use serde_json::Value;

use crate::cells::compile::store::{STORE, values};
use crate::config::Config;

/// Beginning of the library's name as a crate.
pub const NAME: &str = "crates_";

/// Number of libraries to keep, each for another set of crates.
const KEPT: usize = 3;

/// Folder beside the library, with an empty library for each that it is linked with.
const EMPTY: &str = "kernel-empty";

/// A library, and the name by which cells refer to it.
pub struct CrateLibrary {
    pub name: String,
    pub file: PathBuf,
    empty: PathBuf,
}

impl CrateLibrary {
    /// Returns the arguments for rustc before all others. The linker then finds the crates' C libraries empty: cells
    /// call them through the crates, and to read the names in libtorch takes half of a cell's linking.
    pub fn before(&self) -> Vec<String> {
        if cfg!(target_os = "linux") { vec!["-L".into(), format!("native={}", self.empty.display())] } else { vec![] }
    }

    /// Returns whether rustc's messages are about this library, not just about a place in its source.
    pub fn is_named(&self, said: &str) -> bool {
        said.replace(&format!("{}.rs", self.name), "").contains(&self.name)
    }

    /// Returns the arguments for rustc after all others.
    pub fn after(&self) -> Vec<String> {
        let mut args = vec!["--extern".into(), format!("{}={}", self.name, self.file.display())];
        // What the library lacks is to be noticed here, not when the cell is loaded.
        args.extend(cfg!(target_os = "linux").then(|| "-Clink-arg=-Wl,-z,defs".into()));
        args
    }
}

/// Returns the library for cells that are compiled by the call with these arguments, and makes it where it is missing.
/// Returns `None` where cells depend on no crate, or their crates can't be in one library.
pub fn crate_library(rustc: &str, args: &[Value], config: &Config) -> Option<CrateLibrary> {
    let place = out_dir(args)?;
    let args: Vec<&str> = args.iter().filter_map(Value::as_str).collect();
    let crates: Vec<(&str, &str)> = args
        .windows(2)
        .filter(|pair| pair[0] == "--extern")
        .filter_map(|pair| pair[1].split_once('='))
        // Others are macros.
        .filter(|(_, file)| file.ends_with(".rlib"))
        .collect();
    let mut hasher = DefaultHasher::new();
    let types: Vec<&str> = crates.iter().flat_map(|(name, _)| config.values_of(name)).map(String::as_str).collect();
    let values = values(&types);
    (STORE, &values).hash(&mut hasher);
    for (name, file) in &crates {
        let found = fs::metadata(file).ok()?;
        (name, Path::new(file).file_name(), found.len(), found.modified().ok()).hash(&mut hasher);
    }
    let name = format!("{NAME}{:016x}", hasher.finish());
    let file = place.join(format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX));
    // Beside the library stands its length, so that a truncated one is noticed; 0 for one that could not be made.
    let length_file = file.with_extension("length");
    let length = || fs::metadata(&file).map_or(0, |found| found.len());
    let known = fs::read_to_string(&length_file).ok().and_then(|text| text.parse::<u64>().ok());
    if crates.is_empty() || known == Some(0) {
        return None;
    }
    if known != Some(length()) {
        let _ = fs::remove_file(&length_file);
        let make = |values: &str| make(rustc, &args, &crates, values, &name, &file);
        // A type of the configuration may be missing, because its crate is being edited.
        let made = make(&values).or_else(|| make(""));
        fs::write(&length_file, made.map_or(0, |()| length()).to_string()).ok()?;
        made?;
    }
    Some(CrateLibrary { name, file, empty: place.join(EMPTY) })
}

/// Makes the library at its place, because rustc names other libraries by the way from there.
fn make(rustc: &str, args: &[&str], crates: &[(&str, &str)], values: &str, name: &str, file: &Path) -> Option<()> {
    remove_old(file.parent()?);
    let (source, exports) = (file.with_extension("rs"), file.with_extension("exports"));
    let crates: String = crates.iter().map(|(name, _)| format!("pub use ::{name};\n")).collect();
    fs::write(&source, format!("{crates}pub mod evcxr_internal_runtime {{\n{STORE}{values}}}\n")).ok()?;
    write_empty(args, &file.with_file_name(EMPTY)).ok()?;
    // Generic code of the crates, which is compiled in cells, calls C functions that no crate exports. Linkers that
    // take no second list of exports fail here, and cells stay as they were.
    fs::write(&exports, "{ global: *; };").ok()?;
    let mut command = Command::new(rustc);
    command.args(["--crate-name", name, "--crate-type", "dylib", "--emit", "link", "--out-dir"]).arg(file.parent()?);
    command.arg(format!("-Clink-arg=-Wl,--version-script={}", exports.display()));
    command.arg(&source).args(of_any_crate(args)).stdin(Stdio::null());
    let made = command.output().is_ok_and(|output| output.status.success());
    [source, exports].iter().for_each(|file| drop(fs::remove_file(file)));
    made.then_some(())
}

/// Writes an empty library for each one in the folders of C libraries.
fn write_empty(args: &[&str], folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for place in args.iter().filter_map(|arg| arg.strip_prefix("native=")) {
        for library in fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.file_name()) {
            if library.to_string_lossy().contains(".so") {
                // A script for the linker that names no files.
                fs::write(folder.join(library), "INPUT()")?;
            }
        }
    }
    Ok(())
}

/// Returns the folder for what rustc makes.
pub fn out_dir(args: &[Value]) -> Option<PathBuf> {
    args.windows(2).find(|pair| pair[0] == "--out-dir").and_then(|pair| pair[1].as_str()).map(PathBuf::from)
}

/// Returns those of a cell's arguments that hold for another crate, too.
fn of_any_crate<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut left = args.iter().copied().peekable();
    let mut kept = vec![];
    while let Some(arg) = left.next() {
        match arg {
            "--crate-name" | "--crate-type" | "--out-dir" => drop(left.next()),
            "-C" => {
                let value = left.next().unwrap_or_default();
                if !["metadata=", "incremental=", "opt-level="].iter().any(|start| value.starts_with(start)) {
                    kept.extend([arg, value]);
                }
            }
            "src/lib.rs" => {}
            _ if ["--emit", "--error-format", "--json"].iter().any(|start| arg.starts_with(start)) => {}
            _ => kept.push(arg),
        }
    }
    kept
}

fn remove_old(place: &Path) {
    let changed =
        |entry: &fs::DirEntry| entry.metadata().and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let start = format!("{}{NAME}", std::env::consts::DLL_PREFIX);
    let own = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&start);
    let mut found: Vec<_> = fs::read_dir(place).into_iter().flatten().flatten().filter(own).collect();
    found.sort_by_key(|entry| std::cmp::Reverse(changed(entry)));
    found.iter().skip(KEPT - 1).for_each(|entry| drop(fs::remove_file(entry.path())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_arguments_that_fit_any_crate_are_taken_over() {
        let args = [
            "--crate-name",
            "ctx",
            "--edition=2024",
            "src/lib.rs",
            "--error-format=json",
            "--json=artifacts",
            "--crate-type",
            "cdylib",
            "--emit=dep-info,link",
            "-C",
            "opt-level=2",
            "-C",
            "rpath",
            "--out-dir",
            "/deps",
            "-L",
            "dependency=/deps",
            "--extern",
            "a=/deps/liba-1.rlib",
            "-Cprefer-dynamic",
        ];
        let kept = [
            "--edition=2024",
            "-C",
            "rpath",
            "-L",
            "dependency=/deps",
            "--extern",
            "a=/deps/liba-1.rlib",
            "-Cprefer-dynamic",
        ];
        assert_eq!(of_any_crate(&args), kept);
    }

    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn a_library_is_made_with_the_types_of_the_configuration_or_without_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (source, library) = (folder.path().join("a.rs"), folder.path().join("liba.rlib"));
        fs::write(&source, "pub struct Kept(pub Vec<u8>);").expect("a file");
        let made = Command::new("rustc").arg(&source).args(["--crate-type", "rlib", "-o"]).arg(&library).status();
        assert!(made.expect("rustc starts").success());
        let given = format!("a={}", library.display());
        let folder = folder.path().to_str().expect("UTF-8");
        let args = ["--edition=2024", "--out-dir", folder, "--extern", &given, "-Cprefer-dynamic"];
        let args = args.map(Value::from);
        let name = |values: &str| {
            let config = toml::from_str(&format!("[crates.a]\nvalues = [{values}]")).expect("a configuration");
            crate_library("rustc", &args, &config).expect("a library").name
        };
        let names = [name(""), name("'a::Kept'"), name("'a::NoLonger'")];
        assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
    }

    #[test]
    fn a_set_of_crates_is_made_once_and_a_failure_is_remembered() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let deps = folder.path().join("target/deps");
        fs::create_dir_all(&deps).expect("a folder");
        let library = deps.join("liba-1.rlib");
        fs::write(&library, "this is no library").expect("a file");
        let args = |externs: &[&str]| -> Vec<Value> {
            let common = ["--out-dir", deps.to_str().expect("UTF-8")].map(Value::from);
            common.into_iter().chain(externs.iter().flat_map(|given| ["--extern".into(), (*given).into()])).collect()
        };
        let config = Config::default();
        // Without crates, or with macros alone, there is nothing to make.
        for externs in [&[][..], &["serde_derive=/deps/libserde_derive-1.so"]] {
            assert!(crate_library("rustc", &args(externs), &config).is_none());
            assert_eq!(fs::read_dir(&deps).expect("it is there").count(), 1);
        }
        let given = format!("a={}", library.display());
        assert!(crate_library("rustc", &args(&[&given]), &config).is_none());
        let is_length = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().ends_with(".length");
        let found = || fs::read_dir(&deps).expect("it is there").flatten().filter(is_length);
        let mark = found().next().expect("its length").path();
        assert_eq!(fs::read_to_string(&mark).expect("it is there"), "0");
        // Once it is made, it is used, and made again when it is not whole.
        let made = mark.with_extension(&std::env::consts::DLL_SUFFIX[1..]);
        fs::write(&made, "library").expect("a file");
        fs::write(&mark, "7").expect("a file");
        let again = || crate_library("no such program", &args(&[&given]), &config).map(|crates| crates.file);
        assert_eq!(again(), Some(made.clone()));
        fs::write(&made, "lib").expect("a file");
        assert_eq!(again(), None);
        // A changed crate makes another set.
        fs::write(&library, "another one").expect("a file");
        assert!(crate_library("rustc", &args(&[&given]), &config).is_none());
        assert_eq!(found().count(), 2);
    }
}
