//! `cargo lab class`: a JupyterHub on which everybody has a server, a copy of the course and kernels of their own.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::paths::Paths;
use crate::setup::{self, python};
use crate::steps::Step;
use crate::{files, gpu, tools};

const CONFIG: &str = include_str!("../class/jupyterhub_config.py");
const PACKAGE: &str = include_str!("../class/package.json");
const PACKAGE_LOCK: &str = include_str!("../class/package-lock.json");

/// Variables of the instructor's that also hold for everybody's kernels.
const PASSED_ON: [&str; 6] =
    ["KDLAB_PROFILE", "KDLAB_DEVICE", "KDLAB_PRECISION", "KDLAB_BOARD", "KDLAB_BOARD_CODE", gpu::MEMORY];

#[derive(Args)]
pub struct ClassArgs {
    /// Folder for passwords, the hub's database and, without system accounts, everybody's files [default: .kdlab/class;
    /// of an installation /var/lib/kdlab-class]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Address to listen on. Others than 127.0.0.1 are for the whole network: give a certificate, too
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port for browsers; the next two are used within the machine
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u16).range(1..65533))]
    port: u16,
    /// TLS certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Class code, which everybody needs once [default: a random one, kept in the folder]
    #[arg(long)]
    code: Option<String>,
    /// Class list, a name a line: nobody else may sign in
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Name of an instructor, who sees all servers and can stop them; may be repeated
    #[arg(long, value_name = "NAME")]
    instructor: Vec<String>,
    /// Minutes after which a kernel that runs nothing ends
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    /// Memory of each person, such as 4G (with systemd)
    #[arg(long)]
    memory: Option<String>,
    /// Cores of each person, such as 2 (with systemd)
    #[arg(long)]
    cpus: Option<f64>,
    /// GPU memory of each kernel, such as 8G
    #[arg(long, value_name = "SIZE", value_parser = |size: &str| gpu::size(size).map(|_| size.to_owned()))]
    gpu_memory: Option<String>,
    /// Run everybody's server under your own account, as is done anyway if you are not root. Everybody can then read
    /// and change everybody's files
    #[arg(long)]
    one_account: bool,
    /// At Ctrl-C end the hub alone: servers and kernels run on until the class is started again
    #[arg(long)]
    leave_running: bool,
    /// Only install JupyterHub and its proxy
    #[arg(long)]
    install: bool,
}

/// Runs `cargo lab class`, in place of this process. Returns only with an error.
pub fn run(paths: &Paths, args: &ClassArgs) -> Result<()> {
    let installed = paths.installed;
    let accounts = rustix::process::getuid().is_root() && !args.one_account;
    if accounts && !installed && !args.install {
        bail!(
            "root starts a class from an installation that every account can read: run `cargo lab install --prefix \
             /opt/kdlab`, then `/opt/kdlab/bin/kdlab class`; to try it out under your own account, add --one-account"
        );
    }
    let chosen = chosen(paths)?;
    let limited = args.memory.is_some() || args.cpus.is_some();
    if limited && !(accounts && Path::new("/run/systemd/system").is_dir()) {
        bail!("--memory and --cpus need systemd and a class that root starts: leave them out here");
    }
    if !installed {
        setup::set_up(paths, None)?;
    }
    python::install_class(paths)?;
    let proxy = install_proxy(paths)?;
    if args.install {
        return Ok(());
    }

    let usual = if installed { PathBuf::from("/var/lib/kdlab-class") } else { paths.kdlab.join("class") };
    let folder = args.folder.clone().unwrap_or(usual);
    files::create_dir(Some(&folder))?;
    let folder = folder.canonicalize().with_context(|| format!("cannot open {}", folder.display()))?;
    // People's accounts pass through the first to the course. What is the hub's own is nobody else's.
    let own = folder.join("hub");
    files::create_dir(Some(&own))?;
    for (folder, mode) in [(&folder, if accounts { 0o711 } else { 0o700 }), (&own, 0o700)] {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
    }
    let port = args.port;
    // With this file, the proxy of a hub that was killed still listens; the new hub ends it.
    if !own.join("proxy.pid").exists() {
        for port in [port, port + 1, port + 2] {
            if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                bail!("port {port} is taken ({error}): name another with --port (it needs three in a row)");
            }
        }
    }
    let course = course(paths, &folder)?;
    let code = code(args, &own)?;
    let instructor_code = kept(&own.join("instructor_code"))?;
    let list = match &args.list {
        Some(list) => fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?,
        None => String::new(),
    };
    // Some editors begin a file with an invisible mark.
    let list = list.trim_start_matches('\u{feff}').lines().map(str::trim);
    let list: Vec<&str> = list.filter(|name| !name.is_empty()).collect();
    if let (Some(file), true) = (&args.list, list.is_empty()) {
        bail!("{} holds no name: write one on each line, or leave --list out to let everybody in", file.display());
    }
    if let Some(wrong) = list.iter().copied().chain(args.instructor.iter().map(|name| &**name)).find(|n| !is_name(n)) {
        bail!("{wrong:?} is no name to sign in with: use letters a to z, digits and -, at most 30, a letter first");
    }
    if accounts {
        let made = Command::new("groupadd").args(["--force", "kdlab-class"]).status();
        if !made.is_ok_and(|status| status.success()) {
            bail!("cannot make the group kdlab-class: is there a groupadd?");
        }
    }
    let bin = paths.class().join("bin");
    let absolute = |file: &Option<PathBuf>| {
        let find = |file: &PathBuf| file.canonicalize().with_context(|| format!("cannot read {}", file.display()));
        file.as_ref().map(find).transpose()
    };
    let (certificate, key) = (absolute(&args.certificate)?, absolute(&args.key)?);
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let mut environment = environment(paths, installed)?;
    environment.extend(chosen.into_iter().map(|(name, value)| (name.to_owned(), json!(value))));
    environment.extend(args.gpu_memory.iter().map(|size| (gpu::MEMORY.to_owned(), json!(size))));
    let asked = json!({
        "folder": folder, "own": own, "address": args.address, "port": port, "certificate": certificate, "key": key,
        "code": code, "instructor_code": instructor_code, "list": list, "instructors": args.instructor,
        "idle": 60 * u64::from(args.idle), "memory": args.memory, "cpus": args.cpus, "accounts": accounts,
        "leave_running": args.leave_running, "course": course, "proxy": proxy,
        "server": bin.join("jupyterhub-singleuser"), "environment": environment,
    });
    let config = own.join("jupyterhub_config.py");
    files::write(&config, CONFIG)?;

    println!("class at {scheme}://{}:{port}, class code: {code}", args.address);
    if !args.instructor.is_empty() {
        println!("instructors ({}) sign in first with the code {instructor_code}", args.instructor.join(", "));
    }
    if !accounts {
        println!("everybody's server runs under your account: nothing keeps them from each other's files");
    }
    if scheme == "http" && !args.address.is_loopback() {
        println!(
            "passwords cross the network unencrypted: give --certificate and --key, or put a proxy with TLS before it"
        );
    }
    let path =
        env::join_paths([bin.clone()].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())))?;
    let mut command = Command::new(bin.join("jupyterhub"));
    command.arg("--config").arg(config).current_dir(&folder).env("PATH", path).env("KDLAB_CLASS", asked.to_string());
    // Servers that outlive the hub go on behind a proxy that knows the same secret.
    command.env("CONFIGPROXY_AUTH_TOKEN", kept(&own.join("proxy_token"))?);
    let error = command.exec();
    Err(error).context("cannot start JupyterHub")
}

/// Installs the hub's proxy, and returns its command.
fn install_proxy(paths: &Paths) -> Result<Vec<PathBuf>> {
    let folder = paths.class().join("proxy");
    let program = folder.join("node_modules/configurable-http-proxy/bin/configurable-http-proxy");
    let what = "installing the hub's proxy from npm (3 MB to fetch)".into();
    let step = Step { name: "class-proxy", what, version: PACKAGE_LOCK.into(), paths };
    if !tools::in_path("node") {
        bail!("the hub's proxy needs Node.js (Debian: apt-get install npm)");
    }
    step.run(&program, || {
        if !tools::in_path("npm") {
            bail!("the hub's proxy is installed by npm (Debian: apt-get install npm)");
        }
        files::write(&folder.join("package.json"), PACKAGE)?;
        files::write(&folder.join("package-lock.json"), PACKAGE_LOCK)?;
        step.command(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder))
    })?;
    Ok(vec!["node".into(), program])
}

/// Commits the notebooks as they are now to a repository in the folder, and packs it for people's copies: git reads a
/// repository of another account only where it is told to, and a bundle of anybody's.
fn course(paths: &Paths, folder: &Path) -> Result<PathBuf> {
    let course = folder.join("hub/course.git");
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.arg("--git-dir").arg(&course).arg("--work-tree").arg(paths.notebooks()).args(args);
        git.output().context("cannot start git, which copies the course to people: install git")
    };
    let must = |args: &[&str]| {
        let output = git(args)?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("git {} failed in {}: {}", args.join(" "), course.display(), why.trim());
        }
        Ok(())
    };
    if !course.exists() {
        must(&["init", "--quiet", "--initial-branch", "main"])?;
    }
    // The sources of the exercises hold the solutions.
    files::write(&course.join("info/exclude"), ".ipynb_checkpoints\n/exercises/source\n")?;
    must(&["add", "--all", "."])?;
    if !git(&["diff", "--cached", "--quiet"])?.status.success() {
        let who = ["-c", "user.name=kdlab", "-c", "user.email=kdlab@localhost", "-c", "commit.gpgsign=false"];
        must(&[&who[..], &["commit", "--quiet", "--message", "The course"]].concat())?;
    }
    let bundle = folder.join("course.bundle");
    must(&["bundle", "create", "--quiet", &bundle.to_string_lossy(), "main"])?;
    fs::set_permissions(&bundle, fs::Permissions::from_mode(0o644))?;
    Ok(bundle)
}

/// The class code: the given one, else that of the folder.
fn code(args: &ClassArgs, folder: &Path) -> Result<String> {
    let file = folder.join("code");
    if let Some(code) = &args.code {
        let (code, length) = (code.trim(), code.trim().chars().count());
        if length < 6 {
            bail!("the class code has {length} characters: take at least 6, or leave --code out for a random one");
        }
        files::write(&file, code)?;
    }
    kept(&file)
}

/// The secret in a file that only its owner can read; a new one if there is none. An empty one, as a full disk leaves
/// it, would let everybody in.
fn kept(file: &Path) -> Result<String> {
    let read = || fs::read_to_string(file).map(|text| text.trim().to_owned());
    let new = || -> std::io::Result<String> {
        let mut random = [0; 8];
        fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let text = random.map(|byte| format!("{byte:02x}")).concat();
        fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(file)?
            .write_all(text.as_bytes())?;
        Ok(text)
    };
    match read() {
        Ok(text) if !text.is_empty() => Ok(text),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot read {}", file.display()))
        }
        _ => new().with_context(|| format!("cannot write {}", file.display())),
    }
}

/// Whether this name, which the hub writes in small letters, fits the hub's `username_pattern`.
fn is_name(name: &str) -> bool {
    name.len() <= 30
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// The variables that are passed on. What would end everybody's kernel is refused here.
fn chosen(paths: &Paths) -> Result<Vec<(&'static str, String)>> {
    paths.profile(None)?;
    let mut chosen = Vec::new();
    for (name, value) in PASSED_ON.into_iter().filter_map(|name| Some((name, tools::variable(name)?))) {
        let Ok(value) = value.into_string() else { bail!("{name} is no UTF-8 text: set it again, or unset it") };
        if name == gpu::MEMORY
            && let Err(why) = gpu::size(&value)
        {
            bail!("{name}: {why}");
        }
        let choices: &[&str] = match name {
            "KDLAB_DEVICE" => &["cpu", "cuda"],
            "KDLAB_PRECISION" => &["f32", "bf16"],
            _ => &[],
        };
        if !choices.is_empty() && !choices.contains(&&*value) {
            bail!("{name} is {value:?}; it may be {}", choices.join(" or "));
        }
        chosen.push((name, value));
    }
    Ok(chosen)
}

/// The environment of people's servers. What is the instructor's own is left out.
fn environment(paths: &Paths, installed: bool) -> Result<serde_json::Map<String, serde_json::Value>> {
    if installed {
        let jupyter = |place: &str| json!(paths.venv().join(place));
        let pairs = [("JUPYTER_PATH", jupyter("share/jupyter")), ("JUPYTER_CONFIG_PATH", jupyter("etc/jupyter"))];
        return Ok(pairs.map(|(name, value)| (name.to_owned(), value)).into_iter().collect());
    }
    let own = ["KDLAB_RUNS", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"];
    let all = paths.environment()?.into_iter().filter(|(name, _)| !own.contains(name));
    let mut pairs: serde_json::Map<_, _> =
        all.map(|(name, value)| (name.to_owned(), json!(value.to_string_lossy()))).collect();
    pairs.insert("JUPYTER_CONFIG_PATH".into(), json!(paths.jupyter().join("config")));
    // Their HOME is another one, in which there is no Rust.
    let home = PathBuf::from(tools::variable("HOME").context("HOME is not set")?);
    for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        let place = tools::variable(name).map_or_else(|| home.join(folder), PathBuf::from);
        pairs.insert(name.into(), json!(place));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_never_empty() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("code");
        let first = kept(&file).unwrap();
        assert_eq!((first.len(), kept(&file).unwrap()), (16, first.clone()));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in ["", "\n"] {
            fs::write(&file, damaged).unwrap();
            let new = kept(&file).unwrap();
            assert!(new.len() == 16 && new != first, "{new:?}");
        }
        fs::write(&file, "kudu-42\n").unwrap();
        assert_eq!(kept(&file).unwrap(), "kudu-42", "as an editor writes it");
    }

    #[test]
    fn names_are_those_that_the_hub_takes() {
        assert!(["ada", "Ada-2", "a"].iter().all(|name| is_name(name)));
        let long = "a".repeat(31);
        assert!(!["", "2ada", "-a", "ada lovelace", "ada,bob", "adä", "a@b", &long].iter().any(|name| is_name(name)));
    }
}
