//! An installation as its users meet it: a made-up one, whose kernel prints what it was given. `.ci/install` tries a
//! whole one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A user who is not the one that runs this test.
const OTHER: u32 = 54_321;

struct Installation {
    folder: tempfile::TempDir,
}

impl Installation {
    fn new() -> Self {
        let made = Self { folder: tempfile::tempdir().unwrap() };
        let file = |path: &str, text: &str, mode: u32| {
            let path = made.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        file("xtask/Cargo.toml", "", 0o644);
        file(".kdlab/installed", "", 0o644);
        file("prelude/prelude.rs", "", 0o644);
        file("prelude/kernel.toml", "", 0o644);
        file("notebooks/01_data.ipynb", "{}", 0o644);
        file(".kdlab/rust/bin/rustc", "#!/bin/sh\n", 0o755);
        file(".kdlab/bin/kdlab-kernel", "#!/bin/sh\nenv\necho \"arguments=$@\"\n", 0o755);
        let template = ".kdlab/slots/template";
        file(&format!("{template}/built-from"), "one", 0o644);
        file(&format!("{template}/Cargo.lock"), &"locked".repeat(10_000), 0o644);
        file(&format!("{template}/target/debug/deps/libtch-1.rlib"), &"compiled".repeat(10_000), 0o644);
        file(&format!("{template}/target/debug/deps/libctx.so"), &"a cell".repeat(10_000), 0o644);
        file(&format!("{template}/target/debug/.fingerprint/tch/lib"), "small", 0o644);
        file(".kdlab/cache/weights/net.pth", "weights", 0o644);
        file(".kdlab/runs/laptop/cache/features-1.safetensors", "features", 0o644);
        file(".kdlab/runs/laptop/cache/features-1.lock", "", 0o644);
        for folder in ["", "installation"] {
            let folder = made.folder.path().join(folder);
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        made
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("installation")
    }

    /// The home of the user with this name.
    fn home(&self, name: &str) -> PathBuf {
        let home = self.folder.path().join(format!("home-of-{name}"));
        fs::create_dir_all(&home).unwrap();
        home
    }

    fn lab(&self, home: &Path) -> Command {
        let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
        lab.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("KDLAB_ROOT", self.root()).current_dir("/");
        lab
    }
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// What the made-up kernel printed.
fn environment(mut kernel: Command) -> BTreeMap<String, String> {
    let output = kernel.args(["kernel", "connection.json"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_kernel_writes_only_to_folders_that_its_user_alone_can_open() {
    let installation = Installation::new();
    let home = installation.home("ada");
    let found = environment(installation.lab(&home));
    let (cache, state) = (home.join(".cache/kdlab"), home.join(".local/state/kdlab"));
    let at = |name: &str| PathBuf::from(&found[name]);
    assert_eq!(at("EVCXR_TMPDIR"), cache.join("cells/1"));
    assert_eq!((at("LIVE_KERNEL_CACHE"), at("KDLAB_RUNS")), (cache.join("kernel"), state.join("runs")));
    assert_eq!(at("LIVE_KERNEL_SHARED"), installation.root().join(".kdlab/kernel"));
    assert!(found["PATH"].contains("installation/.kdlab/rust/bin") && !found.contains_key("JUPYTER_DATA_DIR"));
    for folder in ["cells", "kernel"].map(|name| cache.join(name)).into_iter().chain([state.join("runs")]) {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
    }
    // What is large is shared; what cells write, and what is small, is the user's own.
    let deps = cache.join("cells/1/target/debug/deps");
    assert!(deps.join("libtch-1.rlib").is_symlink() && !deps.join("libctx.so").is_symlink());
    for own in ["Cargo.lock", "target/debug/.fingerprint/tch/lib"] {
        assert!(!cache.join("cells/1").join(own).is_symlink(), "{own}");
    }
    // What others have fetched and computed is found, and what the user has stays.
    assert_eq!(fs::read_to_string(cache.join("weights/net.pth")).unwrap(), "weights");
    let features = state.join("runs/laptop/cache/features-1.safetensors");
    assert!(features.is_symlink() && !features.with_extension("lock").exists());
    fs::remove_file(&features).unwrap();
    fs::write(&features, "my own").unwrap();
    environment(installation.lab(&home));
    assert_eq!(fs::read_to_string(&features).unwrap(), "my own");
    // Variables of the user's choice.
    let mut other = installation.lab(&home);
    other.env("XDG_CACHE_HOME", home.join("c")).env("XDG_STATE_HOME", home.join("s")).env("KDLAB_RUNS", home.join("r"));
    let found = environment(other);
    assert_eq!(PathBuf::from(&found["EVCXR_TMPDIR"]), home.join("c/kdlab/cells/1"));
    assert_eq!(PathBuf::from(&found["KDLAB_RUNS"]), home.join("r"));
    assert!(home.join("r/laptop/cache/features-1.safetensors").is_symlink() && !home.join("s").exists());
}

#[test]
fn another_account_uses_an_installation_that_it_cannot_write() {
    let installation = Installation::new();
    let home = installation.home("bob");
    if chown(&home, Some(OTHER), Some(OTHER)).is_err() {
        println!("skipped: only root can start a program as another account");
        return;
    }
    // The program has to be where the account can read it. Without KDLAB_ROOT it finds the installation around it.
    let program = installation.root().join(".kdlab/bin/lab");
    fs::copy(env!("CARGO_BIN_EXE_lab"), &program).unwrap();
    let as_other = |home: &Path| {
        let mut lab = Command::new(&program);
        lab.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).current_dir("/").uid(OTHER).gid(OTHER);
        lab
    };
    let found = environment(as_other(&home));
    assert_eq!(PathBuf::from(&found["EVCXR_TMPDIR"]), home.join(".cache/kdlab/cells/1"));
    // As after `sudo -u bob`, which leaves the home of the caller.
    let foreign = installation.home("root");
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o700)).unwrap();
    let output = as_other(&foreign).args(["kernel", "connection.json"]).output().unwrap();
    assert!(said(&output).contains("set HOME or XDG_CACHE_HOME to a folder of yours"), "{}", said(&output));
    let output = as_other(&foreign).args(["doctor", "--user"]).output().unwrap();
    assert!(said(&output).contains("home-of-root is not yours"), "{}", said(&output));
}

/// Some NFS servers have none, and two kernels in one build directory would disturb each other.
#[cfg(target_os = "linux")]
#[test]
fn a_file_system_without_locks_is_named_with_what_to_do() {
    let installation = Installation::new();
    let (source, library) = (installation.folder.path().join("a.c"), installation.folder.path().join("a.so"));
    fs::write(&source, "#include <errno.h>\nint flock(int fd, int how) { errno = ENOLCK; return -1; }\n").unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
    assert!(made.success());
    let mut lab = installation.lab(&installation.home("ada"));
    let output = lab.args(["kernel", "connection.json"]).env("LD_PRELOAD", &library).output().unwrap();
    let said = said(&output);
    assert!(said.contains("cannot lock") && said.contains("set XDG_CACHE_HOME to a folder on a local disk"), "{said}");
}

#[test]
fn a_home_with_a_space_needs_a_cache_without() {
    let installation = Installation::new();
    let home = installation.folder.path().join("Ada Lovelace");
    fs::create_dir(&home).unwrap();
    let output = installation.lab(&home).args(["kernel", "connection.json"]).output().unwrap();
    assert!(said(&output).contains("holds a space") && said(&output).contains("XDG_CACHE_HOME"), "{}", said(&output));
    let mut lab = installation.lab(&home);
    lab.env("XDG_CACHE_HOME", installation.home("ada"));
    assert_eq!(PathBuf::from(&environment(lab)["KDLAB_RUNS"]), home.join(".local/state/kdlab/runs"));
}

#[test]
fn an_installation_is_not_changed_and_replaces_no_other_files() {
    let installation = Installation::new();
    let home = installation.home("ada");
    let output = installation.lab(&home).args(["sweep", "mine"]).output().unwrap();
    assert!(said(&output).contains("`sweep` does not work in the installation"), "{}", said(&output));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let install = |prefix: &Path| {
        let mut lab = installation.lab(&home);
        let output = lab.env("KDLAB_ROOT", repository).args(["install", "--prefix"]).arg(prefix).output().unwrap();
        assert!(!output.status.success());
        said(&output)
    };
    let said = install(&repository.join("prefix"));
    assert!(said.contains("must not lie within each other"), "{said}");
    fs::write(home.join("thesis.tex"), "mine").unwrap();
    let said = install(&home);
    assert!(said.contains("holds other files"), "{said}");
    // Another clone of the repository.
    for folder in ["xtask", ".git"] {
        fs::create_dir(home.join(folder)).unwrap();
    }
    let said = install(&home);
    assert!(said.contains("holds other files") && home.join("thesis.tex").exists(), "{said}");
}

/// A repository of empty files, and a toolchain in rustup's form. Its cargo is an empty file, so an installation
/// ends where something is compiled.
fn hollow(folder: &Path) -> (PathBuf, PathBuf) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (source, rust) = (folder.join("repository"), folder.join("rust"));
    let own = |entry: &fs::DirEntry| [".git", ".kdlab"].iter().any(|name| entry.file_name() == *name);
    for entry in fs::read_dir(repository).unwrap().flatten().filter(|entry| !own(entry)) {
        let name = source.join(entry.file_name());
        fs::create_dir_all(if entry.path().is_dir() { &name } else { &source }).unwrap();
        if entry.path().is_file() {
            fs::write(&name, "").unwrap();
        }
    }
    fs::write(source.join("xtask/Cargo.toml"), "x".repeat(100_000)).unwrap();
    for file in ["bin/cargo", "lib/rustlib/components", "lib/rustlib/src/rust/library/core/lib.rs"] {
        fs::create_dir_all(rust.join(file).parent().unwrap()).unwrap();
        fs::write(rust.join(file), "").unwrap();
    }
    let rustc = rust.join("bin/rustc");
    fs::write(&rustc, format!("#!/bin/sh\necho {}\n", rust.display())).unwrap();
    fs::set_permissions(rustc, fs::Permissions::from_mode(0o755)).unwrap();
    (source, rust)
}

#[test]
fn an_interrupted_copy_goes_on_and_a_link_to_the_systems_rust_is_not_written_through() {
    let installation = Installation::new();
    let folder = installation.folder.path();
    let (source, rust) = hollow(folder);
    let (prefix, home) = (folder.join("prefix"), installation.home("ada"));
    let install = |prefix: &Path, limit: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{limit}\nexec \"$0\" install --no-course --prefix \"$1\"")]);
        shell.arg(env!("CARGO_BIN_EXE_lab")).arg(prefix).env_clear().env("HOME", &home).env("KDLAB_ROOT", &source);
        shell.env("PATH", format!("{}:/usr/bin:/bin", rust.join("bin").display()));
        said(&shell.current_dir("/").output().unwrap())
    };
    // The limit on the size of files ends it in the middle of xtask/Cargo.toml.
    let killed = install(&prefix, "ulimit -c 0; ulimit -f 64");
    assert!(!prefix.join("src").exists(), "{killed}");
    let system = folder.join("system");
    fs::create_dir_all(system.join("lib")).unwrap();
    fs::write(system.join("lib/libc.so"), "of the system").unwrap();
    fs::create_dir(prefix.join(".kdlab")).unwrap();
    symlink(&system, prefix.join(".kdlab/rust")).unwrap();
    let went_on = install(&prefix, "");
    assert!(!went_on.contains("holds other files") && prefix.join("src").exists(), "{went_on}");
    assert!(prefix.join(".kdlab/rust/bin/rustc").is_file() && !prefix.join(".kdlab/rust").is_symlink(), "{went_on}");
    assert_eq!(fs::read_to_string(system.join("lib/libc.so")).unwrap(), "of the system");
    // A link to the repository is the repository.
    let link = folder.join("link");
    symlink(&source, &link).unwrap();
    let refused = install(&link, "");
    assert!(refused.contains("must not lie within each other") && !source.join(".kdlab").exists(), "{refused}");
}
