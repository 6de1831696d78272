//! The call of rustc that compiles a cell: recorded while cargo makes it, and repeated without cargo.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cells::compile::crate_library::{CrateLibrary, crate_library, out_dir};
use crate::cells::compile::damaged::{LIBRARIES, names_unread_crate};
use crate::cells::compile::environment::environment;
use crate::cells::compile::impls::Latest;
use crate::cells::compile::kept::{Kept, copy, write_private};
use crate::cells::compile::loops::loops;
use crate::cells::compile::stops;
use crate::cells::compile::store;
use crate::cells::replaced;
use crate::config::Config;
use crate::private;

/// Set where this program is cargo's wrapper around rustc; names the file for the call.
pub const CALL_FILE: &str = "LIVE_KERNEL_RUSTC_CALL";

/// Variables that concern one run of cargo only: its server of job tokens, and this program as the wrapper.
const OF_ITS_RUN: [&str; 4] = ["CARGO_MAKEFLAGS", "MAKEFLAGS", "MFLAGS", "RUSTC_WRAPPER"];

/// As cargo's wrapper around rustc: records the call that compiles a cell, and becomes rustc.
pub fn record_call(path: &OsStr) -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let config = Config::load().unwrap_or_default();
    let (rustc, rest) = args.split_first().context("cargo named no rustc")?;
    if rest.windows(2).any(|pair| pair == ["--crate-name", "ctx"]) {
        let call = json!({"args": args, "environment": environment(&config)});
        write_private(Path::new(path), &call.to_string())
            .with_context(|| format!("cannot write {}", Path::new(path).display()))?;
    }
    Err(Command::new(rustc).args(rest).exec()).with_context(|| format!("cannot start {rustc}"))
}

/// Returns the source that evcxr made of the cell.
pub fn cell_source(folder: &Path) -> String {
    fs::read_to_string(folder.join("src/lib.rs")).unwrap_or_default()
}

pub fn read_call(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Returns the files on which a compilation depends: rustc, the sources and manifests of crates in folders of the
/// user's, and the libraries with which a cell is linked.
pub fn inputs(folder: &Path, call: &Value) -> Option<BTreeSet<PathBuf>> {
    let args = call["args"].as_array()?;
    let mut files: BTreeSet<PathBuf> = args.first()?.as_str().map(PathBuf::from).into_iter().collect();
    for pair in args.windows(2).filter(|pair| pair[0] == "--extern") {
        files.extend(pair[1].as_str()?.split_once('=').map(|(_, path)| PathBuf::from(path)));
    }
    let registry = call["environment"]["CARGO_HOME"].as_str().map(|home| Path::new(home).join("registry"));
    for listed in fs::read_dir(out_dir(args)?).ok()?.flatten().map(|entry| entry.path()) {
        let name = listed.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let compiled = LIBRARIES.iter().any(|end| listed.extension().is_some_and(|found| found == *end));
        // rustc also reads crates that no argument names, through the crates that use them. Without one of them,
        // every cell would fail until somebody runs cargo.
        if compiled && !["libctx", "libcode_", "libcrates_"].iter().any(|cell| name.starts_with(cell)) {
            files.insert(listed);
            continue;
        }
        if listed.extension().is_none_or(|extension| extension != "d") {
            continue;
        }
        let text = fs::read_to_string(&listed).ok()?;
        let sources = text.lines().filter_map(|line| line.strip_suffix(':')).map(|path| path.replace("\\ ", " "));
        for source in sources.map(PathBuf::from).filter(|path| path.is_absolute()) {
            if source.starts_with(folder) || registry.as_ref().is_some_and(|registry| source.starts_with(registry)) {
                continue;
            }
            let package = source.ancestors().find(|folder| folder.join("Cargo.toml").is_file());
            files.extend(package.iter().flat_map(|folder| ["Cargo.toml", "build.rs"].map(|name| folder.join(name))));
            files.insert(source);
        }
    }
    Some(files)
}

/// Returns the library that rustc makes of a cell.
pub fn cell_library(args: &[Value]) -> Option<PathBuf> {
    let library = format!("{}ctx{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    out_dir(args).map(|folder| folder.join(library))
}

/// Repeats the kept call for the present cell, at the user's optimisation level. Returns the exit status. `None` means
/// that cargo has to run instead: rustc failed without a reason, or could not read a crate.
pub fn repeat(kept: &Kept, call: &Value, level: Option<&str>, config: &Config) -> Result<Option<i32>> {
    let Some((rustc, args)) = call["args"].as_array().and_then(|args| args.split_first()) else { return Ok(None) };
    let Some(made) = cell_library(args) else { return Ok(None) };
    let code = cell_source(&kept.folder);
    // The kept library of a prelude may need it, too.
    let crates = crate_library(rustc.as_str().unwrap_or_default(), args, config);
    let name = crates.as_ref().map(|crates| crates.name.clone());
    if kept.library(&code, name.as_deref()).is_some_and(|library| copy(&library, &made).is_ok()) {
        report_library(&made);
        return Ok(Some(0));
    }
    let level = level.or((!loops(&code)).then_some("0"));
    let command = |crates: Option<&CrateLibrary>| {
        let mut command = Command::new(rustc.as_str().unwrap_or_default());
        command.args(crates.iter().flat_map(|crates| crates.before()));
        for arg in args.iter().filter_map(Value::as_str) {
            // To compare a cell with the one before takes longer than to compile it.
            command.arg(if arg.starts_with("incremental=") { "codegen-units=2" } else { arg });
        }
        // The library is used once, so the linker need not make it small.
        command.arg("-Clink-arg=-Wl,-O0").args(level.map(|level| format!("-Copt-level={}", level.trim_matches('"'))));
        command.args(crates.iter().flat_map(|crates| crates.after())).stdin(Stdio::null());
        for name in OF_ITS_RUN {
            command.env_remove(name);
        }
        for (name, value) in call["environment"].as_object().into_iter().flatten() {
            if let Some(value) = value.as_str().filter(|_| !OF_ITS_RUN.contains(&name.as_str())) {
                command.env(name, value);
            }
        }
        command
    };
    let Output { status, stderr, .. } = compile(&command, &kept.folder.join("src/lib.rs"), &code, crates)?;
    let mut errors = 0;
    let said = String::from_utf8_lossy(&stderr);
    if !status.success()
        && said.lines().filter_map(|line| serde_json::from_str(line).ok()).any(|m| names_unread_crate(&m))
    {
        let _ = fs::remove_file(&kept.file);
        return Ok(None);
    }
    for line in said.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(message) if message["$message_type"] == "diagnostic" => {
                errors += usize::from(message["level"] == "error");
                println!("{}", json!({"reason": "compiler-message", "message": message}));
            }
            Ok(_) => {}
            Err(_) => eprintln!("{line}"),
        }
    }
    if status.success() {
        kept.keep_library(&code, name.as_deref(), &made);
        report_library(&made);
    }
    Ok((status.success() || errors > 0).then(|| status.code().unwrap_or(1)))
}

/// Compiles `code` without what it defines again, and with what the kernel adds to it: checks for Interrupt, lines that
/// put replaced variables back, and the library of all crates. What does not compile with an addition, is compiled
/// without it. So an addition costs no cell, and the errors are about the code that evcxr wrote. `source`, from which
/// rustc reads, holds this code again afterwards.
fn compile(
    rustc: &dyn Fn(Option<&CrateLibrary>) -> Command,
    source: &Path,
    code: &str,
    mut crates: Option<CrateLibrary>,
) -> Result<Output> {
    let run = |crates: Option<&CrateLibrary>| rustc(crates).output().context("cannot start rustc");
    let Some(private) = std::env::var_os(private::FOLDER).map(PathBuf::from) else { return run(None) };
    let latest = Latest::of(&private, code);
    let plain = latest.text.as_str();
    let (mut left_out, mut puts_back) = (BTreeSet::new(), true);
    let mut stops = stops::add(plain, &left_out);
    let output = loop {
        let stoppable = stops.as_ref().map_or_else(|| plain.to_owned(), |stops| stops.text.clone());
        let text = replaced::put_back(&private, &stoppable).filter(|_| puts_back);
        puts_back = text.is_some();
        let mut text = store::unused_stay(&text.unwrap_or(stoppable));
        if let Some(CrateLibrary { name, .. }) = &crates {
            text = store::shared(&text, name).unwrap_or(text) + &format!("\nextern crate {name} as _;\n");
        }
        fs::write(source, text).context("cannot write the cell's source")?;
        let output = run(crates.as_ref())?;
        let said = String::from_utf8_lossy(&output.stderr);
        let messages: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if output.status.success() {
            break output;
        } else if puts_back && said.contains(replaced::PUT_BACK) {
            puts_back = false;
        } else if crates.take_if(|crates| crates.is_named(&said)).is_some() {
            // It lacks something that this cell needs.
        } else if let Some(refused) = stops.as_ref().map(|stops| stops.refused(&messages))
            && !refused.is_empty()
            && !refused.is_subset(&left_out)
        {
            left_out.extend(refused);
            stops = stops::add(plain, &left_out);
        } else if stops.as_ref().is_some_and(|stops| messages.iter().any(|message| stops.shifts(message))) {
            stops = None;
        } else {
            break output;
        }
    };
    if output.status.success() {
        latest.keep(&private);
    }
    fs::write(source, code).context("cannot write the cell's source")?;
    replaced::set_put_back(&private, puts_back);
    stops::announce(&private, stops.as_ref());
    Ok(output)
}

/// Reports the library as cargo would.
fn report_library(library: &Path) {
    println!("{}", json!({"reason": "compiler-artifact", "target": {"name": "ctx"}, "filenames": [library]}));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compilation_depends_on_all_crates_beside_it_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let deps = folder.path().join("deps");
        fs::create_dir(&deps).expect("it can be made");
        for name in ["libpxfm-1.rlib", "libctx.so", "libcode_3.so", "libctx-1.rmeta"] {
            fs::write(deps.join(name), name).expect("it can be written");
        }
        let call = json!({"args": ["rustc", "--out-dir", deps], "environment": {}});
        let found = inputs(folder.path(), &call).expect("arguments name a folder");
        assert!(found.contains(&deps.join("libpxfm-1.rlib")) && found.len() == 2, "{found:?}");
        let kept = Kept::of(folder.path(), &[], &Config::default());
        kept.keep("result".into(), [deps.join("libpxfm-1.rlib")].into()).expect("it can be kept");
        assert_eq!(kept.find(), Some("result".into()));
        let mode = fs::metadata(&kept.file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(deps.join("libpxfm-1.rlib")).expect("it is there");
        assert_eq!(kept.find(), None);
    }
}
