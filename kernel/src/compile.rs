//! Cells by rustc alone. To see that nothing but the cell changed, cargo looks at a hundred crates, which takes longer
//! than rustc does for the cell. So the first compilation goes through cargo and is kept; where since then nothing
//! changed that cargo would have looked at, the same rustc is run with the same words. What cargo says of a cell's
//! dependencies is kept likewise, and the library that is made of the prelude, which every kernel compiles.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::iter::once;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use ra_ap_syntax::{AstNode, Edition, SourceFile, SyntaxKind, SyntaxNode, ast, ast::HasArgList};
use serde_json::{Map, Value, json};

use crate::{inner, replaced, slow};

/// Set where this program is cargo's wrapper around rustc: where it notes what it was told.
pub const NOTE: &str = "KDLAB_RUSTC_NOTE";

/// What cargo would hand on to a rustc of its own run alone: a server of job tokens that is gone by then, and this
/// program.
const OF_ITS_RUN: [&str; 4] = ["CARGO_MAKEFLAGS", "MAKEFLAGS", "MFLAGS", "RUSTC_WRAPPER"];

/// How variables begin that are new for each kernel, terminal, login or command, and of no concern to compilers.
const OF_A_SESSION: &str = "_ COLORTERM DBUS_ DESKTOP_ DISPLAY EVCXR_EXECUTION_SO_PATH \
    GNOME_ INVOCATION_ID JOURNAL_STREAM JPY_ KDLAB_ LESS LS_COLORS MIMALLOC_ OLDPWD PWD RUST_RECURSION_COUNT \
    RUST_SRC_PATH SESSION_ SHLVL SSH_ STY SYSTEMD_ TERM TMUX VSCODE_ WAYLAND_ WINDOWID XDG_ \
    CARGO_RESOLVER_LOCKFILE_PATH"; // the last names a copy that rust-analyzer makes

/// Where programs and libraries are found, at which cargo does not look either: `RUSTC` names the compiler. What
/// started the kernel adds to these, `cargo lab` or another front end.
const OF_THE_WAY: &str = "LD_LIBRARY_PATH PATH RUSTUP_";

/// How variables begin that cargo, rustc, build scripts, compilers and linkers go by. All others, and so the secrets of
/// whoever started the kernel, are neither looked at nor written down.
const OF_COMPILERS: &str = "AR CARGO CC CFLAGS CPATH CPLUS CPP CXX C_INCLUDE DYLD_ HOME LDFLAGS LD_ LIBRARY_PATH LIBTORCH \
    MACOSX_ OUT_DIR PATH PKG_CONFIG RUST SDKROOT";

/// Nanoseconds by which the time of a change may be behind.
const CLOCK: u128 = 20_000_000;

/// Stands in the manifest before the optimisation level of cells, where that is the user's.
const FOR_CELLS: &str = " # for cells ";

/// How names of libraries end that rustc reads.
const LIBRARIES: [&str; 4] = ["rlib", "rmeta", "so", "dylib"];

/// In kept files for the folder of the cells: set-up's files serve in copies of its folder.
const CELLS: &str = "{cells}";

/// Something that cargo did, kept in a file below the folder of the cells, and all that it depends on.
struct Kept {
    folder: PathBuf,
    file: PathBuf,
    settings: Value,
    begun: SystemTime,
}

impl Kept {
    /// For `cargo ARGS` in `folder`, where cells are built.
    fn of(folder: &Path, args: &[OsString]) -> Self {
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        // evcxr writes dependencies in any order.
        let (manifest, config) = (text("Cargo.toml"), text(".cargo/config.toml"));
        let without_level = |line: &'_ str| line.split(FOR_CELLS).next().unwrap_or_default().to_owned();
        let manifest: BTreeSet<String> = manifest.lines().map(without_level).collect();
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let mut environment = environment();
        environment.retain(|name, _| !begins(name, OF_THE_WAY));
        // Values may be secret: a sum of them tells whether they are the same.
        let mut hasher = DefaultHasher::new();
        Value::Object(environment).to_string().replace(&*folder.to_string_lossy(), CELLS).hash(&mut hasher);
        let settings = json!([manifest, config, args, format!("{:016x}", hasher.finish())]);
        let mut hasher = DefaultHasher::new();
        settings.to_string().replace(&*folder.to_string_lossy(), CELLS).hash(&mut hasher);
        let file = folder.join(format!("target/kdlab-kept/{:016x}.json", hasher.finish()));
        Self { folder: folder.to_owned(), file, settings, begun: SystemTime::now() }
    }

    fn find(&self) -> Option<Value> {
        let text = fs::read_to_string(&self.file).ok()?.replace(CELLS, &self.folder.to_string_lossy());
        let mut found: Value = serde_json::from_str(&text).ok()?;
        let same =
            |input: &Value| input[0].as_str().is_some_and(|path| input[1] == changed(Path::new(path)).to_string());
        let current = found["settings"] == self.settings && found["inputs"].as_array()?.iter().all(same);
        current.then(|| found["answer"].take())
    }

    /// Where the library lies, or may lie, that was made of `code` under these very circumstances. None for a cell of
    /// the user's, which hardly comes again.
    fn library(&self, code: &str) -> Option<PathBuf> {
        // As evcxr writes a piece with nothing to run, the second that it compiles.
        if !code.contains("run_user_code_1(\nmut x:") || code.contains("include") {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        fs::read(&self.file).ok()?.hash(&mut hasher);
        items(code).hash(&mut hasher);
        Some(self.file.with_extension(format!("{:016x}.so", hasher.finish())))
    }

    /// Keeps the library `made` of `code`. Without it, the next kernel compiles it again.
    fn keep_library(&self, code: &str, made: &Path) {
        let _ = self.library(code).map(|library| copy(made, &library));
    }

    /// Keeps `answer` until one of `inputs` changes.
    fn keep(&self, answer: Value, inputs: BTreeSet<PathBuf>) -> Result<()> {
        let times: Vec<(PathBuf, u128)> = inputs.into_iter().map(|path| (path.clone(), changed(&path))).collect();
        let begun = self.begun.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        // What changed meanwhile may have come too late. Libraries that cargo made are of now.
        let late = |time: u128| time + CLOCK >= begun;
        if times.iter().any(|(path, time)| late(*time) && !path.starts_with(&self.folder)) {
            return Ok(());
        }
        let times: Vec<_> = times.iter().map(|(path, time)| json!([path, time.to_string()])).collect();
        fs::create_dir_all(self.file.parent().unwrap_or(&self.file))?;
        let whole = json!({"settings": self.settings, "inputs": times, "answer": answer}).to_string();
        write_private(&self.file, &whole.replace(&*self.folder.to_string_lossy(), CELLS))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// As cargo's wrapper around rustc: notes the compilation of a cell, and becomes rustc.
pub fn note(path: &OsStr) -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (rustc, rest) = args.split_first().context("cargo named no rustc")?;
    if rest.windows(2).any(|pair| pair == ["--crate-name", "ctx"]) {
        let call = json!({"args": args, "environment": environment()});
        write_private(Path::new(path), &call.to_string())
            .with_context(|| format!("cannot write {}", Path::new(path).display()))?;
    }
    Err(Command::new(rustc).args(rest).exec()).with_context(|| format!("cannot start {rustc}"))
}

/// What `cargo metadata` says of the package in `folder`; the exit status where it failed.
pub fn metadata(folder: &Path, cargo: &mut Command, args: &[OsString]) -> Result<Result<String, i32>> {
    let kept = Kept::of(folder, args);
    if let Some(Value::String(found)) = kept.find() {
        return Ok(Ok(found));
    }
    let Output { status, stdout, .. } = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        print!("{text}");
        return Ok(Err(status.code().unwrap_or(1)));
    }
    let found: Value = serde_json::from_str(&text).unwrap_or_default();
    // Packages that lie in folders of the user's.
    let own = found["packages"].as_array().into_iter().flatten().filter(|package| package["source"].is_null());
    let manifests = own.filter_map(|package| package["manifest_path"].as_str().map(PathBuf::from));
    // What can't be kept is asked for again.
    let _ = kept.keep(text.clone().into(), manifests.filter(|path| !path.starts_with(folder)).collect());
    Ok(Ok(text))
}

/// Does what `cargo build` of the package in `folder`, the current one, would; gives its exit status.
pub fn build(folder: &Path, cargo: &mut Command, args: &[OsString]) -> Result<i32> {
    if std::env::var_os("RUSTC_WRAPPER").is_some() {
        return Ok(cargo.status().context("cannot start cargo")?.code().unwrap_or(1));
    }
    if let Some(private) = std::env::var_os(inner::FOLDER) {
        // A cell that fails then loses more than it has to, which is better than a cell that does not run.
        let _ = replaced::leave_in_store(Path::new(&private), &folder.join("src/lib.rs"));
    }
    let _ = flush_at_end(&folder.join("src/lib.rs"));
    let level = level_of_cells(folder);
    let kept = Kept::of(folder, args);
    if let Some(status) = kept.find().map(|call| again(&kept, &call, level.as_deref())).transpose()?.flatten() {
        return Ok(status);
    }
    let note = folder.join("target/kdlab-note");
    let _ = fs::remove_file(&note);
    let status = through_cargo(folder, cargo.env(NOTE, &note).env("RUSTC_WRAPPER", std::env::current_exe()?))?;
    if status.success()
        && let Some(call) = read(&note)
        && let Some(inputs) = inputs(folder, &call)
        && let Some(made) = call["args"].as_array().and_then(|args| made(args))
    {
        // On a full disk the cell runs all the same, and the next one goes through cargo.
        if kept.keep(call, inputs).is_ok() {
            kept.keep_library(&code(folder), &made);
        }
    }
    Ok(status.code().unwrap_or(1))
}

/// `cargo build`. It takes damaged libraries for good ones, so they are taken away where rustc stumbles over them, and
/// it makes them again.
fn through_cargo(folder: &Path, cargo: &mut Command) -> Result<ExitStatus> {
    for _ in 0..4 {
        let (status, said) = slow::run(cargo)?;
        let removed = if status.success() { 0 } else { remove_damaged(folder, &said) };
        if removed == 0 {
            print!("{said}");
            return Ok(status);
        }
        eprintln!("kernel: {removed} compiled files in {} were damaged; cargo makes them again", folder.display());
    }
    let (status, said) = slow::run(cargo)?;
    print!("{said}");
    Ok(status)
}

/// Takes away the libraries below `folder` that rustc could not read, and those that set-up noted with another length.
/// Gives their number, 0 where libraries are no part of what is wrong.
fn remove_damaged(folder: &Path, said: &str) -> usize {
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let unread: Vec<String> =
        messages.map(|line| line["message"].clone()).filter(names_unread_crate).map(text).collect();
    if unread.is_empty() {
        return 0;
    }
    let mut files = BTreeSet::new();
    // A linker's words hold all libraries.
    for message in unread.iter().filter(|message| !message.starts_with(LINKING)) {
        if let Some(name) = message.split('`').nth(1).filter(|_| message.contains(UNAVAILABLE)) {
            files.extend(beside_cells(folder).filter(|path| is_library_of(path, name)));
        }
        // rustc names the file in quotes or at the end of a line.
        let words = message.split(['\n', ' ', '\'', '`', '"', ',', '(', ')']).map(Path::new);
        let library =
            |path: &&Path| path.extension().is_some_and(|end| LIBRARIES.iter().any(|library| end == *library));
        files.extend(words.filter(library).filter(|path| path.starts_with(folder)).map(Path::to_path_buf));
    }
    let noted = fs::read_to_string(folder.join("libraries")).unwrap_or_default();
    for line in noted.lines() {
        let mut words = line.splitn(3, ' ');
        let (length, name) = (words.next().and_then(|length| length.parse::<u64>().ok()), words.nth(1));
        let file = folder.join(name.unwrap_or_default());
        let found = fs::metadata(&file).ok().filter(|found| found.is_file()).map(|found| found.len());
        if found.is_some() && found != length && !line.contains("/libkdlab") {
            files.insert(file);
        }
    }
    files.iter().filter(|file| fs::remove_file(file).is_ok()).count()
}

/// All files in the folders of libraries.
fn beside_cells(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let targets = fs::read_dir(folder.join("target")).into_iter().flatten().flatten();
    let folders = targets.map(|target| target.path().join("debug/deps")).chain([folder.join("target/debug/deps")]);
    folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()).map(|file| file.path())
}

fn is_library_of(path: &Path, name: &str) -> bool {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.starts_with(&format!("lib{name}-")) && (file.ends_with(".rlib") || file.ends_with(".rmeta"))
}

/// Whether rustc says that it could not find or read a crate: E0460 to E0464, a library of another compiler, damaged
/// metadata, and, without a code, a file cut short, which linkers tell, too.
fn names_unread_crate(message: &Value) -> bool {
    let code = message["code"]["code"].as_str().unwrap_or_default();
    let text = message["message"].as_str().unwrap_or_default();
    ["E0460", "E0461", "E0462", "E0463", "E0464", "E0514", "E0786"].contains(&code)
        || code.is_empty() && message["level"] == "error" && (text.contains(UNAVAILABLE) || text.starts_with(LINKING))
}

/// Of rustc's messages about libraries that are cut short, and of linkers.
const UNAVAILABLE: &str = "required to be available in";
const LINKING: &str = "linking with";

/// A message of rustc with all its notes.
fn text(message: Value) -> String {
    let notes = message["children"].as_array().into_iter().flatten().filter_map(|note| note["message"].as_str());
    once(message["message"].as_str().unwrap_or_default()).chain(notes).collect::<Vec<_>>().join("\n")
}

/// The level that the user gave by `:opt`, for cells alone: evcxr writes it into the profile of all crates, and at
/// another level than set-up's, cargo would compile all of them again. None for evcxr's own, 2.
fn level_of_cells(folder: &Path) -> Option<String> {
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).ok()?;
    let line = text.lines().find(|line| line.starts_with("opt-level = "))?;
    if let Some((_, level)) = line.split_once(FOR_CELLS) {
        return Some(level.to_owned());
    }
    let level = line.strip_prefix("opt-level = ").filter(|level| *level != "2")?.to_owned();
    let changed = text.replacen(line, &format!("opt-level = 2{FOR_CELLS}{level}"), 1);
    let beside = manifest.with_extension("new");
    fs::write(&beside, changed).and_then(|()| fs::rename(&beside, &manifest)).ok()?;
    Some(level)
}

/// Says what is wrong with the cell in `folder`, for which evcxr runs `cargo check` where a variable's type cannot be
/// named: a closure's, say. cargo would first check all that cells depend on, which takes a minute. None where no
/// compilation was kept.
pub fn check(folder: &Path, args: &[OsString]) -> Result<Option<i32>> {
    let args: Vec<OsString> = once("build".into()).chain(args.iter().skip(1).cloned()).collect();
    let kept = Kept::of(folder, &args);
    Ok(kept.find().map(|call| again(&kept, &call, None)).transpose()?.flatten())
}

/// Makes a cell that writes to stdout itself show, when it ends, what has no line end: nobody else would.
fn flush_at_end(source: &Path) -> std::io::Result<()> {
    let text = fs::read_to_string(source)?;
    const END: &str = "\nevcxr_variable_store\n}";
    match text.rfind(END).filter(|_| text.contains("stdout()")) {
        Some(at) => {
            let flush = "\nlet _ = ::std::io::Write::flush(&mut ::std::io::stdout()); evcxr_variable_store\n}";
            fs::write(source, format!("{}{flush}{}", &text[..at], &text[at + END.len()..]))
        }
        None => Ok(()),
    }
}

/// The cell as evcxr wrote it.
fn code(folder: &Path) -> String {
    fs::read_to_string(folder.join("src/lib.rs")).unwrap_or_default()
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn environment() -> Map<String, Value> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let found = std::env::vars_os().filter_map(text).filter(|(name, _)| !begins(name, OF_A_SESSION));
    // A registry's token is of no use to a compilation.
    let found = found.filter(|(name, _)| begins(name, OF_COMPILERS) && !name.contains("TOKEN"));
    found.map(|(name, value)| (name, value.into())).collect()
}

/// For the user's eyes alone.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // The mode holds for new files only.
    let _ = fs::remove_file(path);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn begins(name: &str, with: &str) -> bool {
    with.split(' ').any(|start| name.starts_with(start))
}

/// The files that may change while a kernel runs, or before the next one does: rustc, sources and manifests of crates
/// that lie in folders of the user's, and the libraries that a cell is linked with.
fn inputs(folder: &Path, call: &Value) -> Option<BTreeSet<PathBuf>> {
    let args = call["args"].as_array()?;
    let mut files: BTreeSet<PathBuf> = args.first()?.as_str().map(PathBuf::from).into_iter().collect();
    for pair in args.windows(2).filter(|pair| pair[0] == "--extern") {
        files.extend(pair[1].as_str()?.split_once('=').map(|(_, path)| PathBuf::from(path)));
    }
    let registry = call["environment"]["CARGO_HOME"].as_str().map(|home| Path::new(home).join("registry"));
    for listed in fs::read_dir(out_dir(args)?).ok()?.flatten().map(|entry| entry.path()) {
        let name = listed.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let compiled = LIBRARIES.iter().any(|end| listed.extension().is_some_and(|found| found == *end));
        // rustc reads crates that no argument names, through the crates that use them. Without one of them, every cell
        // would fail until somebody runs cargo.
        if compiled && !["libctx", "libcode_"].iter().any(|cell| name.starts_with(cell)) {
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

fn out_dir(args: &[Value]) -> Option<PathBuf> {
    args.windows(2).find(|pair| pair[0] == "--out-dir").and_then(|pair| pair[1].as_str()).map(PathBuf::from)
}

/// The library that rustc makes of a cell.
fn made(args: &[Value]) -> Option<PathBuf> {
    let library = format!("{}ctx{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    out_dir(args).map(|folder| folder.join(library))
}

/// Nanoseconds since 1970; 0 for a file that is not there.
fn changed(path: &Path) -> u128 {
    let time = fs::metadata(path).and_then(|found| found.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_nanos())
}

/// The compilation that was kept, of the cell as it is now, at an optimisation level of the user's. None where rustc
/// failed for no reason that it gave, or could not read a crate: cargo will know.
fn again(kept: &Kept, call: &Value, level: Option<&str>) -> Result<Option<i32>> {
    let Some((rustc, args)) = call["args"].as_array().and_then(|args| args.split_first()) else { return Ok(None) };
    let Some(made) = made(args) else { return Ok(None) };
    let code = code(&kept.folder);
    if kept.library(&code).is_some_and(|library| copy(&library, &made).is_ok()) {
        tell_made(&made);
        return Ok(Some(0));
    }
    let mut command = Command::new(rustc.as_str().unwrap_or_default());
    let level = level.or((!loops(&code)).then_some("0"));
    for arg in args.iter().filter_map(Value::as_str) {
        match arg.strip_prefix("incremental=").zip(level) {
            // What was compiled with other options is of no use to rustc.
            Some((folder, level)) => command.arg(format!("incremental={folder}-at-{}", level.trim_matches('"'))),
            None => command.arg(arg),
        };
    }
    // A library that is used once: the linker need not make it small.
    command.arg("-Clink-arg=-Wl,-O0").args(level.map(|level| format!("-Copt-level={}", level.trim_matches('"'))));
    command.stdin(Stdio::null());
    for name in OF_ITS_RUN {
        command.env_remove(name);
    }
    for (name, value) in call["environment"].as_object().into_iter().flatten() {
        if let Some(value) = value.as_str().filter(|_| !OF_ITS_RUN.contains(&name.as_str())) {
            command.env(name, value);
        }
    }
    let (private, source) = (std::env::var_os(inner::FOLDER).map(PathBuf::from), kept.folder.join("src/lib.rs"));
    let mut plain = private.as_ref().and_then(|private| replaced::put_back(private, &source).ok().flatten());
    let mut output = command.output().context("cannot start rustc")?;
    if !output.status.success()
        && String::from_utf8_lossy(&output.stderr).contains(replaced::PUT_BACK)
        && let Some(text) = plain.take()
    {
        fs::write(&source, text)?;
        output = command.output().context("cannot start rustc")?;
    }
    private.iter().for_each(|private| replaced::set_put_back(private, plain.is_some()));
    let Output { status, stderr, .. } = output;
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
        kept.keep_library(&code, &made);
        tell_made(&made);
    }
    Ok((status.success() || errors > 0).then(|| status.code().unwrap_or(1)))
}

/// As cargo would.
fn tell_made(library: &Path) {
    println!("{}", json!({"reason": "compiler-artifact", "target": {"name": "ctx"}, "filenames": [library]}));
}

/// In one step: a library that was there may be loaded, and is not written over.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).and_then(|_| fs::rename(&beside, to))
}

/// The items of a file in one order: evcxr writes imports and macros in any.
fn items(code: &str) -> BTreeSet<String> {
    let file = SourceFile::parse(code, Edition::CURRENT).tree();
    file.syntax().children().map(|item| item.to_string()).collect()
}

/// Whether code may run long by itself: by a loop, by a chain of iterators or by recursion. What another cell takes
/// time for is done in crates, which are optimised.
fn loops(code: &str) -> bool {
    repeats(SourceFile::parse(code, Edition::CURRENT).tree().syntax(), 4)
}

/// Methods of iterators alone, and of collections, that call what they are given once for each element.
const REPEATING: &str = " all any chunk_by cmp_by dedup_by dedup_by_key filter_map find_map flat_map fold for_each is_sorted_by \
    map_while max_by max_by_key min_by min_by_key partition position reduce retain rposition scan skip_while sort_by \
    sort_by_cached_key sort_by_key sort_unstable_by sort_unstable_by_key take_while try_fold try_for_each ";

/// Methods that go through an iterator, which other types have too: `Option`'s `map`, a tensor's `sum`.
const OF_MANY: &str = " collect count cycle filter find inspect last map max min nth product step_by sum unzip ";

/// Methods that make an iterator.
const SOURCES: &str =
    " bytes chars chunks chunks_exact drain into_iter iter iter_mut lines split split_whitespace windows zip ";

/// Functions that make one by calling what they are given.
const MAKERS: &str = " from_fn repeat_with successors ";

/// Looks into the arguments of macros, down to a depth. They are tokens, so this parses them as expressions first.
fn repeats(node: &SyntaxNode, depth: u8) -> bool {
    let is_in = |name: &str, list: &str| list.contains(&format!(" {name} "));
    node.descendants().any(|node| {
        let found = match node.kind() {
            SyntaxKind::FOR_EXPR | SyntaxKind::WHILE_EXPR | SyntaxKind::LOOP_EXPR => true,
            SyntaxKind::METHOD_CALL_EXPR => ast::MethodCallExpr::cast(node.clone()).is_some_and(|call| {
                let name = call.name_ref().map(|name| name.text().to_string()).unwrap_or_default();
                let closure = call.arg_list().is_some_and(|list| list.syntax().children().any(|arg| is_function(&arg)));
                closure && is_in(&name, REPEATING) || is_in(&name, OF_MANY) && call.receiver().is_some_and(iterates)
            }),
            SyntaxKind::CALL_EXPR => called(&node).is_some_and(|name| is_in(&name, MAKERS)),
            SyntaxKind::FN => ast::Fn::cast(node.clone()).is_some_and(|function| calls_itself(&function)),
            SyntaxKind::MACRO_CALL if depth > 0 => ast::MacroCall::cast(node.clone())
                .and_then(|call| call.token_tree())
                .map(|tokens| tokens.to_string())
                .and_then(|text| Some(text.get(1..text.len().checked_sub(1)?)?.to_owned()))
                .is_some_and(|inner| {
                    // As arguments, or as the body of a function.
                    [format!("fn f() {{ g({inner}); }}"), format!("fn f() {{ {inner} }}")]
                        .iter()
                        .any(|code| repeats(SourceFile::parse(code, Edition::CURRENT).tree().syntax(), depth - 1))
                }),
            _ => false,
        };
        found && !node.ancestors().any(|node| is_evcxr_s_own(&node))
    })
}

fn is_evcxr_s_own(node: &SyntaxNode) -> bool {
    let module = ast::Module::cast(node.clone()).and_then(|module| ast::HasName::name(&module));
    module.is_some_and(|name| name.text() == "evcxr_internal_runtime")
}

fn is_function(argument: &SyntaxNode) -> bool {
    argument.kind() == SyntaxKind::CLOSURE_EXPR || argument.kind() == SyntaxKind::PATH_EXPR
}

/// Whether a chain of methods begins with a range or has one that makes an iterator.
fn iterates(chain: ast::Expr) -> bool {
    match chain {
        ast::Expr::RangeExpr(_) => true,
        ast::Expr::ParenExpr(inner) => inner.expr().is_some_and(iterates),
        ast::Expr::CallExpr(call) => called(call.syntax()).is_some_and(|name| MAKERS.contains(&format!(" {name} "))),
        ast::Expr::MethodCallExpr(call) => {
            let name = call.name_ref().map(|name| name.text().to_string()).unwrap_or_default();
            SOURCES.contains(&format!(" {name} ")) || call.receiver().is_some_and(iterates)
        }
        _ => false,
    }
}

/// The last name in the path of a function that is called.
fn called(call: &SyntaxNode) -> Option<String> {
    let ast::Expr::PathExpr(path) = ast::CallExpr::cast(call.clone())?.expr()? else { return None };
    Some(path.path()?.segment()?.name_ref()?.text().to_string())
}

fn calls_itself(function: &ast::Fn) -> bool {
    let Some(own) = ast::HasName::name(function).map(|name| name.text().to_string()) else { return false };
    let body = function.body().map(|body| body.syntax().clone());
    body.into_iter().flat_map(|body| body.descendants()).any(|node| {
        let method = || ast::MethodCallExpr::cast(node.clone()).filter(|call| is_self(call.receiver()))?.name_ref();
        called(&node).or_else(|| method().map(|name| name.text().to_string())).is_some_and(|name| name == own)
    })
}

/// A method may well call another type's of its name: `forward` those of its layers.
fn is_self(receiver: Option<ast::Expr>) -> bool {
    receiver.is_some_and(|receiver| receiver.syntax().text() == "self")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_in_what_people_wrote() {
        let generated = "mod evcxr_internal_runtime { fn f() { loop {} } }\nimpl<T> From<T> for E { }\n";
        let once = [
            "let x = y.map(|z| z + 1);",
            "let s = t.sum(Kind::Float).max().min();",
            "let s = t.size().first().map(|n| n + 1);",
            "let y = net.forward(&x).relu().view([-1, 10]);",
            "let y = tch::no_grad(|| net.forward(&x)); println!(\"{y} {:?}\", y.size());",
            "fn forward(&self, x: &Tensor) -> Tensor { self.fc.forward(&forward_of(x)) }",
        ];
        for body in once {
            assert!(!loops(&format!("{generated}fn run() {{ {body} }}")), "{body}");
        }
        let again = [
            "for i in 0..3 {}",
            "while true {}",
            "let n = loop { break 1 };",
            "let f = || { for x in y {} };",
            "let s = (0..n).map(|x| x * x).sum::<u64>();",
            "let s: f64 = (1..=n).map(f64::from).sum();",
            "let n = v.iter().filter(|x| **x > 0).count();",
            "let s = y.fold(0, |a, b| a + b);",
            "v.sort_by(|a, b| a.total_cmp(b));",
            "let n = std::iter::successors(Some(1u64), |x| x.checked_mul(3)).last();",
            "println!(\"{}\", (0..n).map(|x| x ^ 1).max().unwrap_or(0));",
            "assert!(v.iter().all(|x| x.is_finite()));",
            "let s = vec![xs.iter().sum::<f64>(); 3];",
            "fn fib(n: u64) -> u64 { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }",
            "impl T { fn depth(&self) -> u64 { Self::depth(&self.0) } }",
        ];
        for body in again {
            assert!(loops(&format!("{generated}fn run() {{ {body} }}")), "{body}");
        }
    }

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
        let kept = Kept::of(folder.path(), &[]);
        kept.keep("answer".into(), [deps.join("libpxfm-1.rlib")].into()).expect("it can be kept");
        assert_eq!(kept.find(), Some("answer".into()));
        let mode = fs::metadata(&kept.file).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(deps.join("libpxfm-1.rlib")).expect("it is there");
        assert_eq!(kept.find(), None);
    }

    #[test]
    fn libraries_that_rustc_cannot_read_are_taken_away() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let deps = folder.path().join("target/deps");
        fs::create_dir_all(&deps).expect("it can be made");
        for name in ["libmine-1.rlib", "libpxfm-1.rlib", "libtch-1.rlib"] {
            fs::write(deps.join(name), "12345678").expect("it can be written");
        }
        let noted = "9 0 target/deps/libpxfm-1.rlib\n8 0 target/deps/libtch-1.rlib\n9 0 target/deps/libgone-1.rlib\n";
        fs::write(folder.path().join("libraries"), noted).expect("it can be written");
        let said = |code: &str| {
            let note = format!("failed to mmap file '{}'", deps.join("libmine-1.rlib").display());
            let message =
                json!({"message": "found invalid metadata", "code": {"code": code}, "children": [{"message": note}]});
            json!({"reason": "compiler-message", "message": message}).to_string()
        };
        assert_eq!(remove_damaged(folder.path(), &said("E0308")), 0);
        assert_eq!(remove_damaged(folder.path(), &said("E0786")), 2);
        // As rustc says it, of a library that is cut short.
        let text = "crate `half` required to be available in rlib format, but was not found in this form";
        let half = folder.path().join("target/x/debug/deps/libhalf-1.rlib");
        fs::create_dir_all(half.parent().expect("a folder")).expect("it can be made");
        fs::write(&half, "123").expect("it can be written");
        let message = json!({"message": {"message": text, "level": "error", "code": null, "children": []}});
        assert_eq!((remove_damaged(folder.path(), &message.to_string()), half.exists()), (1, false));
        assert!(deps.join("libtch-1.rlib").exists() && !deps.join("libpxfm-1.rlib").exists());
        assert_eq!(remove_damaged(folder.path(), &said("E0786")), 0, "what is gone is cargo's");
    }

    #[test]
    fn opt_concerns_cells_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let manifest = folder.path().join("Cargo.toml");
        let write = |level: &str| fs::write(&manifest, format!("[profile.dev]\nopt-level = {level}\ndebug = false\n"));
        let file = || Kept::of(folder.path(), &[]).file;
        write("2").expect("it can be written");
        assert_eq!(level_of_cells(folder.path()), None);
        let before = file();
        write("3").expect("it can be written");
        for _ in 0..2 {
            assert_eq!(level_of_cells(folder.path()).as_deref(), Some("3"));
            let text = fs::read_to_string(&manifest).expect("it is there");
            assert!(text.contains("\nopt-level = 2 #") && text.ends_with("\ndebug = false\n"), "{text}");
            assert_eq!(file(), before, "what was kept serves at each level");
        }
    }

    #[test]
    fn only_what_compilers_go_by_is_noted() {
        let noted = |name: &str| begins(name, OF_COMPILERS) && !begins(name, OF_A_SESSION);
        assert!(["CARGO_HOME", "RUSTFLAGS", "LIBTORCH", "OUT_DIR", "CC"].into_iter().all(noted));
        assert!(!["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "KDLAB_DATA", "DATABASE_URL"].into_iter().any(noted));
    }

    #[test]
    fn what_was_kept_serves_in_a_copy_of_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dirs = ["template", "1"].map(|name| folder.path().join(name));
        let answer = |dir: &Path| json!({"args": ["--out-dir", dir.join("deps")]});
        Kept::of(&dirs[0], &[]).keep(answer(&dirs[0]), BTreeSet::new()).expect("it can be kept");
        fs::create_dir_all(&dirs[1]).expect("it can be made");
        fs::rename(dirs[0].join("target"), dirs[1].join("target")).expect("it can be moved");
        assert_eq!(Kept::of(&dirs[1], &[]).find(), Some(answer(&dirs[1])));
    }

    #[test]
    fn the_prelude_s_library_is_kept_whatever_the_order_of_its_items() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let made = folder.path().join("libctx.so");
        let loaded = folder.path().join("libcode_1.so");
        fs::write(&made, "library").expect("it can be written");
        let kept = Kept::of(folder.path(), &[]);
        let piece = |items: &str, number: u8, body: &str| format!("{items}\nfn run_user_code_{number}(\n{body}) {{}}");
        let prelude = |items: &str| piece(items, 1, "mut x: *mut u8");
        let found = |code: &str| kept.library(code).is_some_and(|library| library.is_file());
        kept.keep_library(&prelude("use a::b;\nuse c;"), &made);
        assert!(!found(&prelude("use a::b;\nuse c;")), "what it depends on is not known");
        kept.keep("answer".into(), BTreeSet::new()).expect("it can be kept");
        let cells = [
            piece("use a;", 2, "mut x: *mut u8"),
            piece("use a;", 1, "y: *mut u8"),
            prelude("const A: &str = include_str!(b);"),
        ];
        for code in cells.iter().chain([&prelude("use a::b;\nuse c;")]) {
            kept.keep_library(code, &made);
        }
        assert!(found(&prelude("use c;\nuse a::b;")));
        assert!(!found(&prelude("use c;\nuse a;")));
        assert!(!cells.iter().any(|code| found(code)), "cells of the user's");
        fs::hard_link(&made, &loaded).expect("it can be linked");
        fs::write(&made, "an older library").expect("it can be written");
        copy(&kept.library(&prelude("use a::b;\nuse c;")).expect("it is kept"), &made).expect("it can be copied");
        assert_eq!(fs::read_to_string(&loaded).expect("it is there"), "an older library");
        kept.keep("another".into(), BTreeSet::new()).expect("it can be kept");
        assert!(!found(&prelude("use a::b;\nuse c;")), "compiled otherwise");
    }

    #[test]
    fn what_was_kept_holds_until_something_changes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("lib.rs");
        let write = |path: &Path, text: &str| fs::write(path, text).expect("it can be written");
        write(&folder.path().join("Cargo.toml"), "[package]");
        write(&source, "one");
        let dir = folder.path().join("cells");
        fs::create_dir_all(&dir).expect("it can be made");
        let of = |args: &[&str]| Kept::of(&dir, &args.iter().map(OsString::from).collect::<Vec<_>>());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let kept = of(&["build"]);
        assert!(kept.find().is_none());
        kept.keep("answer".into(), [source.clone()].into()).expect("it can be kept");
        assert_eq!(of(&["build"]).find(), Some("answer".into()));
        assert!(of(&["build", "--release"]).find().is_none());
        write(&source, "two");
        assert!(of(&["build"]).find().is_none(), "a source was edited");
        // It is younger than what was asked before it: the answer may be about the old one.
        kept.keep("late".into(), [source.clone()].into()).expect("nothing fails");
        assert!(of(&["build"]).find().is_none());
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::remove_file(&source).expect("it is there");
        of(&["build"]).keep("without".into(), [source.clone()].into()).expect("it can be kept");
        assert_eq!(of(&["build"]).find(), Some("without".into()));
        write(&dir.join("Cargo.toml"), "[dependencies]");
        assert!(of(&["build"]).find().is_none(), "another dependency");
    }
}
