//! Where everything lies, and the environment of kernels and tests.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tools;

/// The file that makes a folder an installation.
pub const INSTALLED: &str = ".kdlab/installed";

/// Set while `cargo lab install` works in an installation.
pub const INSTALLING: &str = "KDLAB_INSTALLING";

/// Which build of libtorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Cpu,
    Cuda,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Cpu => "cpu",
            Flavour::Cuda => "cuda",
        })
    }
}

/// The repository and, below it, `.kdlab/`, which holds everything that set-up installs. An installation
/// ([`crate::install`]) is a copy of both that all accounts share; what a user writes is then in folders of the user's.
#[derive(Clone, Debug)]
pub struct Paths {
    pub root: PathBuf,
    pub kdlab: PathBuf,
    /// This is an installation: nothing in `root` is written.
    pub installed: bool,
}

impl Paths {
    /// Finds the repository: `KDLAB_ROOT`, else the workspace that cargo started this program from, else the
    /// installation that this program is in, else the nearest repository above the current folder.
    pub fn find() -> Result<Paths> {
        let named = tools::variable("KDLAB_ROOT").map(PathBuf::from);
        let from_cargo = tools::variable("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let program = env::current_exe().and_then(|program| program.canonicalize()).unwrap_or_default();
        let installation = program.ancestors().find(|dir| dir.join(INSTALLED).is_file());
        let here = env::current_dir().context("cannot read the current folder")?;
        let candidates = (named.into_iter())
            .chain(from_cargo.iter().flat_map(|dir| dir.ancestors()).map(Path::to_path_buf))
            .chain(installation.map(Path::to_path_buf))
            .chain(here.ancestors().map(Path::to_path_buf));
        for root in candidates {
            if root.join("xtask/Cargo.toml").is_file() {
                let root = root.canonicalize().with_context(|| format!("cannot open {}", root.display()))?;
                return Ok(Paths::of(root));
            }
        }
        bail!("{} is not inside the repository: run `cargo lab` there, or set KDLAB_ROOT to it", here.display())
    }

    /// The repository in this folder. While `cargo lab install` runs, an installation is a repository like others.
    pub fn of(root: PathBuf) -> Paths {
        let installed = root.join(INSTALLED).is_file() && tools::variable(INSTALLING).is_none();
        Paths { kdlab: root.join(".kdlab"), root, installed }
    }

    pub fn notebooks(&self) -> PathBuf {
        self.root.join("notebooks")
    }

    pub fn venv(&self) -> PathBuf {
        self.kdlab.join("venv")
    }

    pub fn python(&self) -> PathBuf {
        self.venv().join("bin/python")
    }

    /// The Python that has Dask.
    pub fn dask(&self) -> PathBuf {
        self.kdlab.join("dask/bin/python")
    }

    /// The Python that has Sphinx.
    pub fn docs(&self) -> PathBuf {
        self.kdlab.join("docs/bin/python")
    }

    /// The Python environment of `cargo lab class`, with the proxy of its hub.
    pub fn class(&self) -> PathBuf {
        self.kdlab.join("hub")
    }

    pub fn libtorch(&self) -> PathBuf {
        self.kdlab.join("libtorch")
    }

    pub fn libtorch_cpu(&self) -> PathBuf {
        let name = if cfg!(target_os = "macos") { "libtorch_cpu.dylib" } else { "libtorch_cpu.so" };
        self.libtorch().join("lib").join(name)
    }

    /// The live kernel around evcxr_jupyter.
    pub fn kernel(&self) -> PathBuf {
        self.kdlab.join("bin/kdlab-kernel")
    }

    /// The copy of this program that the kernelspec names, so that `cargo clean` does not remove the kernel.
    pub fn lab(&self) -> PathBuf {
        self.kdlab.join("bin/lab")
    }

    pub fn jupyter(&self) -> PathBuf {
        self.kdlab.join("jupyter")
    }

    /// The Rust of an installation, which users need not have.
    pub fn rust(&self) -> PathBuf {
        self.kdlab.join("rust")
    }

    /// The folder where an installation keeps crates.
    pub fn cargo_home(&self) -> PathBuf {
        self.kdlab.join("cargo")
    }

    /// The folder for what kernels read at start-up (`prelude.rs` and `kernel.toml`), and for what they keep.
    pub fn kernel_config(&self) -> Result<PathBuf> {
        if self.installed { self.own_cache("kernel") } else { Ok(self.shared_kernel_config()) }
    }

    /// The same folder of set-up.
    pub fn shared_kernel_config(&self) -> PathBuf {
        self.kdlab.join("kernel")
    }

    /// The folder with the build directories of kernels.
    pub fn build_directories(&self) -> Result<PathBuf> {
        if self.installed { self.own_cache("cells") } else { Ok(self.kdlab.join("slots")) }
    }

    /// The build directory from which those of kernels are copied.
    pub fn template(&self) -> PathBuf {
        self.kdlab.join("slots/template")
    }

    /// The file that says which version a step of set-up has installed.
    pub fn stamp(&self, step: &str) -> PathBuf {
        self.kdlab.join("stamps").join(step)
    }

    pub fn log(&self, step: &str) -> PathBuf {
        self.kdlab.join("logs").join(format!("{step}.log"))
    }

    /// Returns `KDLAB_CACHE`, else `kdlab` in the user's cache folder.
    pub fn cache(&self) -> Result<PathBuf> {
        match tools::variable("KDLAB_CACHE") {
            Some(dir) => absolute(Path::new(&dir)),
            None => user_folder("XDG_CACHE_HOME", if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }),
        }
    }

    /// Returns a folder in the cache that only the user can open, and makes it.
    fn own_cache(&self, name: &str) -> Result<PathBuf> {
        let cache = user_folder("XDG_CACHE_HOME", ".cache")?;
        if cache.to_string_lossy().contains(char::is_whitespace) {
            bail!(
                "{} holds a space, which evcxr cannot take: set XDG_CACHE_HOME to a folder of yours without",
                cache.display()
            );
        }
        private(&cache.join(name), "XDG_CACHE_HOME")
    }

    /// The folder of the unpacked bundle, if this machine was set up from one.
    pub fn bundle(&self) -> PathBuf {
        self.kdlab.join("bundle")
    }

    /// The sources of Rust's standard library: the bundle's, below which cargo finds the crates that they need, or an
    /// installation's. All kernels of an installation name the same place, so they share one outline of it.
    pub fn rust_library(&self) -> Option<PathBuf> {
        let places = [self.bundle().join("rust-src/library"), self.rust().join("lib/rustlib/src/rust/library")];
        places.into_iter().find(|library| library.is_dir())
    }

    /// The data and weights of an installation, which users find in their caches.
    pub fn shared_cache(&self) -> PathBuf {
        self.kdlab.join("cache")
    }

    /// The teacher, features and logits of an installation, which users find among their runs.
    pub fn shared_runs(&self) -> PathBuf {
        self.kdlab.join("runs")
    }

    /// The folder in which an installation has a link to the instructor's data.
    pub fn shared_data(&self) -> PathBuf {
        self.kdlab.join("data")
    }

    /// Returns `KDLAB_DATA`, else the data of the installation or of the bundle, if there is some.
    pub fn data(&self) -> Option<PathBuf> {
        let first = |folder: PathBuf| fs::read_dir(folder).ok()?.flatten().next().map(|entry| entry.path());
        let named = tools::variable("KDLAB_DATA").map(PathBuf::from);
        named.or_else(|| first(self.shared_data())).or_else(|| first(self.bundle().join("data")))
    }

    /// Returns `KDLAB_RUNS`, else `runs/` in the repository, or in the user's own folder.
    pub fn runs(&self) -> Result<PathBuf> {
        match tools::variable("KDLAB_RUNS") {
            Some(dir) => absolute(Path::new(&dir)),
            None if self.installed => {
                private(&user_folder("XDG_STATE_HOME", ".local/state")?.join("runs"), "XDG_STATE_HOME")
            }
            None => Ok(self.root.join("runs")),
        }
    }

    /// Returns the flavour of libtorch that set-up installed, or `None` if there is none.
    pub fn flavour(&self) -> Option<Flavour> {
        let stamp = fs::read_to_string(self.stamp("libtorch")).ok()?;
        if stamp.contains("cuda") { Some(Flavour::Cuda) } else { Some(Flavour::Cpu) }
    }

    /// Returns `wanted`, else `KDLAB_PROFILE`, else `article` if there is a driver and a libtorch for CUDA, else
    /// `laptop`.
    pub fn profile(&self, wanted: Option<&str>) -> Result<String> {
        let from_environment = tools::variable("KDLAB_PROFILE").map(|value| value.to_string_lossy().into_owned());
        let profile = match wanted.map(str::to_owned).or(from_environment) {
            Some(profile) => profile,
            None if self.flavour() == Some(Flavour::Cuda) && tools::nvidia_driver().is_some() => "article".into(),
            None => "laptop".into(),
        };
        if !["article", "laptop", "smoke"].contains(&profile.as_str()) {
            bail!("unknown profile `{profile}`: use article, laptop or smoke");
        }
        Ok(profile)
    }

    /// Returns the environment of kernels, JupyterLab and tests. It keeps everything inside the repository and the
    /// user's own folders.
    pub fn environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        let jupyter = self.jupyter();
        let mut path = vec![self.venv().join("bin")];
        if let Some(dir) = Path::new(&tools::cargo()).parent().filter(|dir| dir.is_absolute()) {
            path.push(dir.to_path_buf());
        }
        let library_path = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        // Cells find Rust's library by a path relative to their first place, which is not where they are loaded from.
        let targets = fs::read_dir(self.rust().join("lib/rustlib")).into_iter().flatten().flatten();
        let mut libraries = vec![self.libtorch().join("lib")];
        libraries.extend(targets.map(|target| target.path().join("lib")).filter(|lib| lib.is_dir()));
        let mut variables = vec![
            ("KDLAB_ROOT", self.root.clone().into()),
            ("KDLAB_RUNS", self.runs()?.into()),
            ("KDLAB_CACHE", self.cache()?.into()),
            ("LIBTORCH", self.libtorch().into()),
            (library_path, prepended(library_path, libraries)?),
            ("PATH", prepended("PATH", path)?),
            ("PYTHONUNBUFFERED", "1".into()),
            ("GLIBC_TUNABLES", ALLOCATOR.into()),
        ];
        // An installation's kernelspec and settings lie in its venv, and each user has folders of their own.
        if !self.installed {
            variables.extend([
                ("JUPYTER_PATH", jupyter.clone().into()),
                ("JUPYTER_DATA_DIR", jupyter.clone().into()),
                ("JUPYTER_CONFIG_DIR", jupyter.join("config").into()),
                ("JUPYTER_RUNTIME_DIR", jupyter.join("runtime").into()),
                ("IPYTHONDIR", jupyter.join("ipython").into()),
            ]);
        }
        variables.extend(self.data().map(|data| ("KDLAB_DATA", data.into())));
        variables.extend(self.rust_library().map(|library| ("RUST_SRC_PATH", library.into())));
        Ok(variables)
    }
}

/// Makes glibc's malloc keep freed memory, up to 2 GiB; other systems ignore it. By default glibc returns tensors above
/// 32 MB to the system at once, which then has to clear every page of the next one (docs/log.md has the cost).
pub const ALLOCATOR: &str = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483648";

/// Fails if something would stop cargo or the kernel later, and says what to do.
pub fn check(paths: &Paths) -> Result<()> {
    check_root(paths)?;
    if !tools::in_path("rustc") {
        bail!("no rustc in PATH and no ~/.cargo/bin; install Rust from https://rustup.rs");
    }
    Ok(())
}

/// Fails if linkers or search paths cannot take the repository's path.
pub fn check_root(paths: &Paths) -> Result<()> {
    let root = paths.root.display().to_string();
    if let Some(bad) = root.chars().find(|c| c.is_whitespace() || c.is_control() || ":;,\"'`$\\\u{fffd}".contains(*c)) {
        bail!("the repository's path holds {bad:?}, which linkers cannot take: {root}; move it to a path without");
    }
    Ok(())
}

/// Returns `kdlab` in the folder that the variable `name` names, else in `below` of the user's home.
fn user_folder(name: &str, below: &str) -> Result<PathBuf> {
    let home = || tools::variable("HOME").map(|home| Path::new(&home).join(below));
    let base = tools::variable(name).filter(|_| cfg!(not(target_os = "macos"))).map(PathBuf::from).or_else(home);
    let base = base.with_context(|| format!("HOME is not set: set it or {name} to a folder of yours"))?;
    absolute(&base.join("kdlab"))
}

/// Makes a folder that only the user can open. `variable` moves it elsewhere.
fn private(dir: &Path, variable: &str) -> Result<PathBuf> {
    let made = fs::create_dir_all(dir).and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)));
    made.with_context(|| {
        format!("cannot write in {}: set HOME or {variable} to a folder of yours that can be written", dir.display())
    })?;
    Ok(dir.to_owned())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))
}

fn prepended(name: &str, first: Vec<PathBuf>) -> Result<OsString> {
    let old = tools::variable(name).unwrap_or_default();
    let rest = env::split_paths(&old).filter(|path| !path.as_os_str().is_empty() && !first.contains(path));
    env::join_paths(first.iter().cloned().chain(rest)).with_context(|| format!("{name} holds a path with a colon"))
}
