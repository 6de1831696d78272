//! `cargo lab bench`: our side and two in Python, on the same data with the same threads, round by round in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::paths::{self, Flavour, Paths};
use crate::{progress, setup, steps};

#[derive(Args)]
pub struct BenchArgs {
    /// What to measure [default: all but levers, growth and million]
    #[arg(value_enum)]
    what: Vec<What>,
    /// Rounds of each side, in turn; the table tells their medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..))]
    rounds: u64,
    /// Threads of every side [default: as many as there are cores]
    #[arg(long)]
    threads: Option<usize>,
    /// On the first CUDA GPU, with more images
    #[arg(long)]
    cuda: bool,
    /// Without `torch.compile` on the Python side
    #[arg(long)]
    no_compile: bool,
    /// In f32 where bf16 would be taken, to compare losses and seconds
    #[arg(long)]
    f32: bool,
    /// Where the numbers go [default: <runs>/bench/bench.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    /// An epoch of the student at 32 px
    Student32,
    /// An epoch of the student at 224 px
    Student224,
    /// The teacher stage of ten epochs, EfficientNet-Lite0 at 224 px
    TeacherLite0,
    /// The teacher stage of ten epochs, ResNet-50 at 224 px
    TeacherResnet50,
    /// One pass of EfficientNet-Lite0 over a split
    FeaturesLite0,
    /// One pass of ResNet-50 over a split
    FeaturesResnet50,
    /// CIFAR-10 from disk to memory
    Data,
    /// Cells of a notebook: from a key press to the answer
    Cells,
    /// Notebook 5: from a changed temperature to its curve
    Tweak,
    /// What each lever gives: our side with one thing changed at a time
    Levers,
    /// The student's epoch against images, size, batch size and classes, with fitted lines
    Growth,
    /// The caches and the loop's data path with a million images
    Million,
}

impl What {
    const USUAL: [What; 9] = [
        What::Student32,
        What::Student224,
        What::TeacherLite0,
        What::TeacherResnet50,
        What::FeaturesLite0,
        What::FeaturesResnet50,
        What::Data,
        What::Cells,
        What::Tweak,
    ];

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What all sides are told; `images` grows with the device.
    fn task(self, cuda: bool) -> Value {
        let scale = if cuda { 32 } else { 1 };
        let sized = |workload: &str, size: u64, train: u64, arch: Option<&str>| {
            json!({"workload": workload, "size": size, "batch": 64, "train": scale * train, "validation": scale * train / 4,
                "arch": arch, "temperature": 4.0, "alpha": 0.5, "epochs": 10})
        };
        match self {
            What::Student32 => sized("student", 32, 1024, None),
            What::Student224 => sized("student", 224, 64, None),
            What::TeacherLite0 => sized("teacher", 224, 128, Some("efficientnet-lite0")),
            What::TeacherResnet50 => sized("teacher", 224, 192, Some("resnet50")),
            What::FeaturesLite0 => sized("features", 224, 128, Some("efficientnet-lite0")),
            What::FeaturesResnet50 => sized("features", 224, 64, Some("resnet50")),
            _ => json!({"workload": self.name(), "train": 100, "validation": 100}),
        }
    }
}

/// A process that measures when it is told to.
struct Side {
    name: &'static str,
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    rounds: Vec<Value>,
}

impl Side {
    fn start(name: &'static str, command: &mut Command, task: &Value) -> Result<Self> {
        let mut child = crate::steps::ends_with_us(command)
            .arg(task.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let answers = BufReader::new(child.stdout.take().context("a side without output")?);
        let mut side = Self { name, child, answers, rounds: vec![] };
        side.answer()?;
        Ok(side)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            // Data may have something to say too.
            match serde_json::from_str(&line) {
                Ok(answer) => return Ok(answer),
                Err(_) => eprint!("{}", std::mem::take(&mut line)),
            }
        }
        bail!("{} gave up; its reason stands above", self.name)
    }

    fn round(&mut self) -> Result<Value> {
        writeln!(self.child.stdin.as_mut().context("a side without input")?)?;
        self.answer()
    }

    /// The median of the rounds, of which the first warmed up.
    fn median(&self, of: &str) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(|round| round[of].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// Seconds of what is compared: an article's epoch stands for each of the others.
    fn seconds(&self, epochs: f64) -> Option<f64> {
        let share = self.rounds.first()?["epochs"].as_f64().map_or(1.0, |measured| epochs / measured);
        Some(self.median("seconds")? * share)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

pub fn run(paths: &Paths, args: &BenchArgs) -> Result<()> {
    setup::set_up(paths, args.cuda.then_some(Flavour::Cuda))?;
    setup::oracle(paths)?;
    let ours = compile(paths)?;
    let what = if args.what.is_empty() { What::USUAL.to_vec() } else { args.what.clone() };
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let folder = paths.runs()?.join("bench");
    let mut results = vec![];
    if what.contains(&What::Growth) {
        results.push(growth(paths, &ours, &folder, threads, args)?);
    }
    if what.contains(&What::Levers) {
        results.push(levers(paths, &ours, &folder, threads, args)?);
    }
    let apart = [What::Cells, What::Tweak, What::Growth, What::Levers];
    let beside: Vec<_> = what.iter().filter(|what| !apart.contains(what)).collect();
    if !beside.is_empty() {
        println!("| what | side | seconds | ours is faster by | last loss | peak MB |\n|---|---|---|---|---|---|");
    }
    for what in beside {
        let task = prepared(paths, &ours, what.task(args.cuda), &folder.join(what.name()), threads, args)?;
        results.push(measure(paths, &ours, *what, &task, args.rounds)?);
    }
    let report = json!({"machine": machine(), "system": said("uname", &["-srm"]), "threads": threads, "commit": commit(paths),
        "torch": setup::TORCH, "rustc": said("rustc", &["-V"]), "results": results});
    let file = args.json.clone().unwrap_or_else(|| folder.join("bench.json"));
    steps::write(&file, &serde_json::to_string_pretty(&report)?)?;
    println!("\n{}, {threads} threads; {}", machine(), file.display());
    for kernel in [What::Cells, What::Tweak].into_iter().filter(|kernel| what.contains(kernel)) {
        let script = paths.root.join("benches").join(kernel.name()).with_extension("py");
        let status =
            crate::steps::ends_with_us(Command::new(paths.python()).arg(script).current_dir(&paths.root)).status();
        if !status.context("cannot start Python")?.success() {
            bail!("the bench {} failed; its reason stands above", kernel.name());
        }
    }
    Ok(())
}

/// The task with what the machine and the data say, and its folder filled.
fn prepared(
    paths: &Paths,
    ours: &str,
    mut task: Value,
    folder: &Path,
    threads: usize,
    args: &BenchArgs,
) -> Result<Value> {
    for (name, value) in [
        ("folder", json!(folder)),
        ("device", json!(if args.cuda { "cuda" } else { "cpu" })),
        ("threads", json!(threads)),
        ("workers", json!(threads)),
        ("rounds", json!(args.rounds + 1)),
        ("compile", json!(!args.no_compile)),
        ("f32", json!(args.f32)),
    ] {
        task[name] = value;
    }
    let prepared = command(paths, ours, "prepare")?.arg(task.to_string()).output()?;
    if !prepared.status.success() {
        let reason = String::from_utf8_lossy(&prepared.stderr);
        bail!("nothing to measure {} with: {}", task["workload"], reason.trim().trim_start_matches("error: "));
    }
    let line = String::from_utf8_lossy(&prepared.stdout);
    serde_json::from_str(line.lines().last().unwrap_or_default()).context("the prepared task")
}

/// Our side alone, as it is and with one thing changed at a time, in turn.
fn levers(paths: &Paths, ours: &str, folder: &Path, threads: usize, args: &BenchArgs) -> Result<Value> {
    let huge_pages = format!("{}:glibc.malloc.hugetlb=1", paths::ALLOCATOR);
    let changes = [
        ("as it is", json!({}), paths::ALLOCATOR),
        ("in f32", json!({"f32": true}), paths::ALLOCATOR),
        ("glibc's allocator as it comes", json!({}), ""),
        ("huge pages on top", json!({}), &huge_pages),
        ("weights laid out channels first", json!({"channels_first": true}), paths::ALLOCATOR),
        ("one thread", json!({"threads": 1}), paths::ALLOCATOR),
    ];
    let other = |name, change: Value| (name, change, paths::ALLOCATOR);
    let one_by_one = [other("layers one by one, whole batches", json!({"one_by_one": true}))];
    let parts = [other("the batches alone", json!({"workload": "batches"}))];
    let rows = [
        other("features kept as f32: reading them for ten epochs", json!({"workload": "rows"})),
        other("the same as f16", json!({"workload": "rows", "f16": true})),
    ];
    let mut results = vec![];
    println!("| what | changed | seconds | as it is / changed | peak MB |\n|---|---|---|---|---|");
    for (name, what, changes) in [
        ("student32", What::Student32, [&changes[..], &parts].concat()),
        ("features-resnet50", What::FeaturesResnet50, [&changes[..], &one_by_one].concat()),
        ("features-lite0", What::FeaturesLite0, [&changes[..1], &one_by_one].concat()),
        ("rows", What::Student32, rows.to_vec()),
    ] {
        let task = prepared(paths, ours, what.task(args.cuda), &folder.join("levers"), threads, args)?;
        let mut sides = vec![];
        for (changed, change, allocator) in changes {
            let mut task = task.clone();
            for (key, value) in change.as_object().into_iter().flatten() {
                task[key] = value.clone();
            }
            sides.push(Side::start(changed, command(paths, ours, "measure")?.env("GLIBC_TUNABLES", allocator), &task)?);
        }
        take_turns(name, &mut sides, args.rounds)?;
        let of = |side: &Side, of: &str| side.median(of).unwrap_or(f64::NAN);
        let base = of(&sides[0], "seconds");
        for side in &sides {
            let (seconds, peak) = (of(side, "seconds"), of(side, "peak_mb"));
            println!("| {name} | {} | {seconds:.3} | {:.2} | {peak:.0} |", side.name, base / seconds);
            results.push(json!({"what": name, "changed": side.name, "seconds": seconds, "peak_mb": peak}));
        }
    }
    Ok(json!({"what": "levers", "rows": results}))
}

/// MB from which on what a side freed weighs on the next: a virtual machine hands it on to its host, which took up to 15 % of
/// both cores (`steal` in /proc/stat) one to eight seconds after the article's features.
const GIVEN_BACK: f64 = 2000.0;
const PAUSE: Duration = Duration::from_secs(10);

/// The first round compiles and warms up.
fn take_turns(what: &str, sides: &mut [Side], rounds: u64) -> Result<()> {
    for round in 0..=rounds {
        for i in 0..sides.len() {
            // There and back, so that none always comes after the same other one.
            let side = if round % 2 == 0 { i } else { sides.len() - 1 - i };
            let side = &mut sides[side];
            let answer = side.round()?;
            progress::line(&format!("{what} {}: {answer}", side.name));
            if answer["peak_mb"].as_f64().is_some_and(|peak| peak > GIVEN_BACK) {
                std::thread::sleep(PAUSE);
            }
            if round > 0 {
                side.rounds.push(answer);
            }
        }
    }
    Ok(())
}

/// Our side alone, one quantity changed at a time.
fn growth(paths: &Paths, ours: &str, folder: &Path, threads: usize, args: &BenchArgs) -> Result<Value> {
    let axes: [(&str, &[u64]); 4] = [
        ("train", &[256, 512, 1024, 2048]),
        ("size", &[16, 32, 64, 128]),
        ("batch", &[16, 64, 256]),
        ("classes", &[10, 100, 1000]),
    ];
    println!("| images | size | batch | classes | seconds | peak MB |\n|---|---|---|---|---|---|");
    let mut points = vec![];
    for (axis, values) in axes {
        for &value in values {
            let mut task = What::Student32.task(args.cuda);
            (task["train"], task["validation"], task["classes"]) = (json!(512), json!(64), json!(10));
            task[axis] = json!(value);
            let task = prepared(paths, ours, task, &folder.join("growth"), threads, args)?;
            let mut side = Side::start("kdlab", &mut command(paths, ours, "measure")?, &task)?;
            side.round()?;
            for _ in 0..args.rounds {
                let answer = side.round()?;
                side.rounds.push(answer);
            }
            let (seconds, peak) =
                (side.median("seconds").unwrap_or(f64::NAN), side.median("peak_mb").unwrap_or(f64::NAN));
            let [images, size, batch, classes] = ["train", "size", "batch", "classes"].map(|name| &task[name]);
            println!("| {images} | {size} | {batch} | {classes} | {seconds:.2} | {peak:.0} |");
            points.push((axis, value as f64, seconds, peak));
        }
    }
    let of = |axis: &str, y: &dyn Fn(f64, f64) -> f64| -> Vec<(f64, f64)> {
        points.iter().filter(|p| p.0 == axis).map(|p| (p.1, y(p.2, p.3))).collect()
    };
    let (fixed, each) = line(&of("train", &|seconds, _| 1e3 * seconds));
    println!("\nseconds of an epoch = {:.3} + {each:.3} ms x images", fixed / 1e3);
    let logs: Vec<_> = of("size", &|seconds, _| seconds.ln()).iter().map(|(x, y)| (x.ln(), *y)).collect();
    println!("seconds ~ size ^ {:.2}", line(&logs).1);
    let (fixed, each) = line(&of("batch", &|_, peak| peak));
    println!("MB = {fixed:.0} + {each:.2} x batch size\n");
    let point = |p: &(&str, f64, f64, f64)| json!({"axis": p.0, "value": p.1, "seconds": p.2, "peak_mb": p.3});
    Ok(json!({"what": "growth", "points": points.iter().map(point).collect::<Vec<_>>()}))
}

/// Least squares: `y = a + b x`.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    let b = mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x).powi(2));
    (y - b * x, b)
}

fn measure(paths: &Paths, ours: &str, what: What, task: &Value, rounds: u64) -> Result<Value> {
    let mut sides = vec![Side::start("kdlab", &mut command(paths, ours, "measure")?, task)?];
    if !task["size"].is_null() {
        for (name, file) in [("PyTorch, best", "pytorch.py"), ("article", "article.py")] {
            let mut python = Command::new(paths.python());
            python.arg(paths.root.join("benches").join(file));
            if file == "pytorch.py" {
                python.env("GLIBC_TUNABLES", paths::ALLOCATOR);
            }
            sides.push(Side::start(name, &mut python, task)?);
        }
    }
    take_turns(&what.name(), &mut sides, rounds)?;
    let epochs = task["epochs"].as_f64().unwrap_or(1.0);
    let base = sides[0].seconds(epochs).context("no round was measured")?;
    let rows = sides.iter().map(|side| {
        let last = side.rounds.last().unwrap_or(&Value::Null);
        let ratio = side.seconds(epochs).map(|seconds| seconds / base);
        let show = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            what.name(),
            side.name,
            show(side.seconds(epochs), 2),
            show(ratio, 2),
            show(last["loss"].as_f64(), 4),
            show(last["peak_mb"].as_f64(), 0)
        );
        json!({"side": side.name, "seconds": side.seconds(epochs), "ratio": ratio, "rounds": side.rounds})
    });
    Ok(json!({"what": what.name(), "rows": rows.collect::<Vec<_>>(), "task": task}))
}

/// Compiles our side with what the tests compiled, and says where it lies.
fn compile(paths: &Paths) -> Result<String> {
    let output = paths::as_without_cargo(&mut Command::new(paths::cargo()))
        .args(["bench", "--workspace", "--profile", "dev", "--bench", "kdlab", "--no-run", "--message-format", "json"])
        .current_dir(&paths.root)
        .envs(paths.environment()?)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo; install Rust from https://rustup.rs")?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let file = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let ours = message["target"]["kind"][0] == "bench" && message["target"]["name"] == "kdlab";
        message["executable"].as_str().filter(|_| ours).map(str::to_owned)
    });
    file.context("our side of the bench does not compile; the reason stands above")
}

fn command(paths: &Paths, ours: &str, verb: &str) -> Result<Command> {
    let mut command = Command::new(ours);
    command.arg(verb).envs(paths.environment()?);
    Ok(command)
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(std::env::consts::ARCH);
    let bf16 = if info.contains("avx512_bf16") || info.contains("amx_bf16") { "with bf16" } else { "without bf16" };
    format!("{} ({bf16})", model.trim_start_matches([':', '\t', ' ']))
}

fn commit(paths: &Paths) -> String {
    let root = paths.root.to_string_lossy();
    said("git", &["-C", &root, "describe", "--always", "--dirty"])
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
