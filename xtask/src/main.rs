//! `cargo lab`: sets the machine up, runs the notebooks, runs the tests. It does not use tch, so it builds in seconds.
//!
//! Each command has a module of its own: [`setup`], [`install`], [`bundle`], [`doctor`], [`notebooks`] (the command
//! `run`), [`sweep`], [`train`], [`board`], [`class`], [`classify`], [`page`], [`exercises`], [`docs`], [`bench`], and
//! [`kernel`], which Jupyter calls. The others serve them.

mod bench;
mod board;
mod build_directories;
mod bundle;
mod class;
mod classify;
mod docs;
mod doctor;
mod execute;
mod exercises;
mod files;
mod gpu;
mod install;
mod installed;
mod kernel;
mod notebooks;
mod page;
mod paths;
mod program;
mod progress;
mod setup;
mod steps;
mod sweep;
mod table;
mod template;
mod tools;
mod train;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use paths::{Flavour, Paths};

/// Knowledge distillation in Rust notebooks: set-up, runs and checks.
///
/// Without a command: sets up whatever is missing, then opens JupyterLab in notebooks/.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Commands>,
    /// Arguments for JupyterLab, such as `-- --no-browser --port 9000`
    #[arg(last = true)]
    jupyter: Vec<String>,
}

#[derive(Subcommand)]
enum Commands {
    /// Install what is missing into .kdlab/: JupyterLab, libtorch, the Rust kernel, weights, and the compiled crates
    Setup(SetupArgs),
    /// Install for all accounts of this machine, into a folder that nobody writes afterwards
    Install(install::InstallArgs),
    /// Put everything that set-up fetches, with data and weights, into one file for machines without a network
    Bundle {
        /// The file to write [default: kdlab-bundle.tar in the current folder]
        file: Option<PathBuf>,
    },
    /// Say what was found on this machine; each problem comes with its fix
    Doctor {
        /// Check the folders of the user who calls this, too
        #[arg(long)]
        user: bool,
    },
    /// Set up, run notebooks in order through the real kernel, and write the executed notebooks and one HTML report
    /// of the profile
    Run(notebooks::RunArgs),
    /// Train students with several seeds, alone and distilled, and print a verdict; lists with commas make a grid of
    /// settings, and a sweep that was killed goes on
    Sweep(Box<sweep::SweepArgs>),
    /// Train the teacher and the student of a plan, on several processes if you like; a training that was killed goes
    /// on
    Train(train::TrainArgs),
    /// Start the class's board: a page for the projector that collects what participants send with `lab.post`
    Board(board::BoardArgs),
    /// Classify the pictures of a folder with a student that was saved as ONNX: file, class, probability, margin
    Classify(classify::ClassifyArgs),
    /// Write a web page in which a student that was saved as ONNX names pictures, without a network
    Page(page::PageArgs),
    /// Open a JupyterHub for a class: people sign in with a class code, and each gets a copy of the course and kernels
    Class(class::ClassArgs),
    /// Write the students' copies of the exercises from their sources, or check, solve or execute them
    Exercises(exercises::ExercisesArgs),
    /// Build the documentation as a site that can be read without a network
    Docs(docs::DocsArgs),
    /// Measure speed and memory beside the article's loops and the best PyTorch we can write
    Bench(bench::BenchArgs),
    /// Set up, install Python's torch to compare with, then run every test, notebooks included
    Test(TestArgs),
    /// Start the Rust kernel in a warm build directory (Jupyter calls this)
    #[command(hide = true)]
    Kernel {
        /// The connection file that Jupyter wrote
        connection_file: PathBuf,
    },
}

#[derive(Args)]
struct SetupArgs {
    /// Install libtorch for the CPU only, even if there is an NVIDIA driver
    #[arg(long, conflicts_with = "cuda")]
    cpu: bool,
    /// Install libtorch with CUDA, even if there is no NVIDIA driver
    #[arg(long)]
    cuda: bool,
    /// Set up without a network, from a file that `cargo lab bundle` made
    #[arg(long, value_name = "FILE", conflicts_with = "cuda")]
    bundle: Option<PathBuf>,
    /// Install what `cargo lab test` needs, too: Python's torch, and the compiled crates of the kernel
    #[arg(long)]
    tests: bool,
    /// Install Dask, too, and compile the program for sweeps: what `lab.sweep_on` needs in a notebook
    #[arg(long)]
    dask: bool,
}

#[derive(Args)]
struct TestArgs {
    /// Arguments for `cargo test --workspace`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    match real_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the error for a wrong command. clap takes such a command for an argument of JupyterLab, and would not name
/// the commands.
fn no_command() -> Option<clap::Error> {
    let mut cli = Cli::command();
    let first =
        std::env::args().nth(1).filter(|first| !first.starts_with('-') && cli.find_subcommand(first).is_none())?;
    let names: Vec<&str> =
        cli.get_subcommands().filter(|task| !task.is_hide_set()).map(|task| task.get_name()).collect();
    let text = format!("no command `{first}`; there are {}", names.join(", "));
    Some(cli.error(ErrorKind::InvalidSubcommand, text))
}

fn real_main() -> Result<()> {
    tools::find_rust();
    let cli = Cli::try_parse().unwrap_or_else(|error| no_command().unwrap_or(error).exit());
    let paths = Paths::find()?;
    if paths.installed {
        tools::use_rust(&paths.rust());
        if needs_repository(&cli.command) {
            let name = std::env::args().nth(1).unwrap_or_default();
            bail!(
                "`{name}` does not work in the installation {}, which is not written: run it in a clone of the \
                 repository",
                paths.root.display()
            );
        }
    }
    match cli.command {
        None if paths.installed => open_jupyterlab(&paths, &installed::notebooks(&paths)?, &cli.jupyter),
        None => {
            setup::set_up(&paths, None)?;
            open_jupyterlab(&paths, &paths.notebooks(), &cli.jupyter)
        }
        Some(Commands::Setup(args)) => {
            let flavour = match (args.cpu || args.bundle.is_some(), args.cuda) {
                (true, _) => Some(Flavour::Cpu),
                (_, true) => Some(Flavour::Cuda),
                _ => None,
            };
            if let Some(file) = args.bundle {
                bundle::unpack(&paths, &file)?;
            }
            if args.tests {
                setup::set_up_for_tests(&paths, flavour)?;
            } else {
                setup::set_up(&paths, flavour)?;
            }
            if args.dask { sweep::prepare_for_clusters(&paths).map(drop) } else { Ok(()) }
        }
        Some(Commands::Bench(args)) => bench::run(&paths, &args),
        Some(Commands::Bundle { file }) => bundle::make(&paths, file.as_deref()),
        Some(Commands::Doctor { user }) => doctor::examine(&paths, user),
        Some(Commands::Install(args)) => install::run(&paths, &args),
        Some(Commands::Run(args)) => notebooks::run(&paths, &args),
        Some(Commands::Sweep(args)) => sweep::run(&paths, &args),
        Some(Commands::Train(args)) => train::run(&paths, &args),
        Some(Commands::Board(args)) => board::run(&paths, &args),
        Some(Commands::Class(args)) => class::run(&paths, &args),
        Some(Commands::Classify(args)) => classify::run(&paths, &args),
        Some(Commands::Page(args)) => page::run(&paths, &args),
        Some(Commands::Exercises(args)) => exercises::run(&paths, &args),
        Some(Commands::Docs(args)) => docs::run(&paths, &args),
        Some(Commands::Test(args)) => test(&paths, &args),
        Some(Commands::Kernel { connection_file }) => kernel::start(&paths, &connection_file),
    }
}

/// Returns whether a command compiles or writes in the repository. `class` writes in an installation once, as root.
fn needs_repository(command: &Option<Commands>) -> bool {
    use Commands::{Class, Doctor, Kernel, Run};
    !matches!(command, None | Some(Class(_) | Doctor { .. } | Kernel { .. } | Run(_)))
}

fn open_jupyterlab(paths: &Paths, notebooks: &Path, args: &[String]) -> Result<()> {
    let mut server = tools::end_with_this_process(&mut Command::new(paths.python()))
        .args(["-m", "jupyterlab"])
        .arg(format!("--ServerApp.root_dir={}", notebooks.display()))
        // JupyterLab brings a Python kernel along, which is of no use here.
        .arg("--KernelSpecManager.ensure_native_kernel=False")
        .arg("--KernelSpecManager.allowed_kernelspecs=kdlab")
        .arg("--MappingKernelManager.default_kernel_name=kdlab")
        // A stale build directory is rebuilt before the kernel answers.
        .arg("--MappingKernelManager.kernel_info_timeout=600")
        .args(args)
        .envs(paths.environment()?)
        .spawn()
        .context("cannot start JupyterLab; run `cargo lab setup`")?;
    if let Err(error) = kernel::start_reserve(paths, notebooks, server.id()) {
        eprintln!("the first notebook will open more slowly: {error:#}");
    }
    let status = server.wait().context("cannot wait for JupyterLab")?;
    if !status.success() {
        bail!("JupyterLab ended with {status}");
    }
    Ok(())
}

fn test(paths: &Paths, args: &TestArgs) -> Result<()> {
    setup::set_up_for_tests(paths, None)?;
    let clock = progress::Clock::start();
    let status = tools::end_with_this_process(tools::without_cargo_variables(&mut Command::new(tools::cargo())))
        .args(["test", "--workspace"])
        .args(&args.args)
        .current_dir(&paths.root)
        .envs(paths.environment()?)
        .status()
        .context("cannot start cargo; install Rust from https://rustup.rs")?;
    if !status.success() {
        bail!("tests failed after {clock} (the failing ones are named above)");
    }
    println!("all tests passed in {clock}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The commands of a page: what follows each `cargo lab`, up to the end of its line or code.
    fn commands(page: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (at, _) in page.match_indices("cargo lab") {
            let end = match page[..at].chars().last() {
                // In the text it ends at its backtick, maybe on the next line.
                Some('`') => '`',
                // A block of code; variables may stand before the command.
                Some('\n' | ' ') if page[..at].matches("```").count() % 2 == 1 => '\n',
                _ => continue,
            };
            // A notebook's JSON escapes quotes.
            found.push(page[at..].split(end).next().unwrap_or_default().replace('\n', " ").replace("\\\"", "\""));
        }
        found
    }

    #[test]
    fn an_installation_runs_what_compiles_nothing() {
        let refused = |name: &str| needs_repository(&Cli::parse_from(["lab", name]).command);
        assert!(!["class", "doctor", "run"].iter().any(|name| refused(name)));
        assert!(["setup", "bundle", "test"].iter().all(|name| refused(name)));
    }

    #[test]
    fn commands_in_pages_and_notebooks_are_understood() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders = ["", "docs", "benches", "kernel", "kernel/client", "notebooks", "notebooks/exercises/source"];
        let files = folders.iter().flat_map(|folder| fs::read_dir(root.join(folder)).into_iter().flatten().flatten());
        let pages = files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "md" || kind == "ipynb"));
        let (mut seen, mut wrong) = (0, vec![]);
        for page in pages {
            let text = fs::read_to_string(&page).expect("a page");
            for command in commands(&text) {
                let mut words = shlex::split(&command).unwrap_or_else(|| panic!("{command}: a quote is never closed"));
                // What a shell would take, and names that stand for any command.
                words.truncate(words.iter().position(|word| word == ">").unwrap_or(words.len()));
                if words.get(2).is_some_and(|word| word == "COMMAND" || word == "...") {
                    continue;
                }
                // As the alias hands them over: the first word names the program.
                let parsed = Cli::try_parse_from(&words[1..]);
                let fine = match &parsed {
                    Ok(cli) => cli.command.is_some() || words.len() == 2 || words[2] == "--",
                    // The text may name a command or an option without its values.
                    Err(error) => {
                        matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::MissingRequiredArgument)
                            || error.to_string().contains("none was supplied")
                    }
                };
                if !fine {
                    let why = parsed.err().map_or("no such command".into(), |error| error.to_string());
                    wrong.push(format!("{}: `{command}`: {why}", page.display()));
                }
                seen += 1;
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(seen > 100, "only {seen}");
    }
}
