//! The class's board: what a room sends at once is kept, whatever ends the server; what strangers send harms nothing;
//! and what people see in Chromium. `cargo lab test` sets up the Python that drives the browser.

use kdlab::study::{Setting, Sweep, SweepReport, Verdict};
use kdlab::{Error, Lab};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A board of its own, in a folder of its own.
struct Board {
    folder: tempfile::TempDir,
    server: Child,
    address: String,
    code: String,
}

impl Board {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, address, code) = start(folder.path(), 0);
        Self { folder, server, address, code }
    }

    fn kill(&mut self) {
        self.server.kill().unwrap(); // SIGKILL
        self.server.wait().unwrap();
    }

    fn start_again(&mut self) {
        let port = self.address.rsplit_once(':').unwrap().1.parse().unwrap();
        let (server, address, code) = start(self.folder.path(), port);
        self.server = server;
        assert_eq!((&address, &code), (&self.address, &self.code), "it goes on as the same board");
    }

    /// A participant with runs of their own.
    fn lab(&self, person: &str) -> Lab {
        let mut lab = Lab::open().unwrap();
        lab.folder = self.folder.path().join(person).join("laptop");
        lab
    }

    fn send(&self, what: &str, body: &str) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("{}/{what}", self.address);
        let mut answer = agent.post(url).header("Content-Type", "application/json").send(body).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or_default())
    }

    fn get(&self, what: &str) -> String {
        ureq::get(format!("{}/{what}", self.address)).call().unwrap().body_mut().read_to_string().unwrap()
    }

    /// Name, setting, seed and the two accuracies of every pair.
    fn pairs(&self) -> BTreeSet<[String; 5]> {
        let csv = self.get("board.csv");
        let mut lines = csv.lines();
        assert_eq!(lines.next().unwrap().split(',').count(), 14, "{csv}");
        let pairs: Vec<[String; 5]> = lines
            .map(|line| {
                let cells: Vec<String> = line.split(',').map(str::to_owned).collect();
                [1, 10, 11, 12, 13].map(|column| cells[column].clone())
            })
            .collect();
        let all: BTreeSet<[String; 5]> = pairs.iter().cloned().collect();
        assert_eq!(all.len(), pairs.len(), "a pair stands there twice");
        all
    }

    /// A post as `lab.post` sends it.
    fn body(&self) -> Value {
        let report = serde_json::to_value(report(&[7], |_| (0.4, 0.45))).unwrap();
        let setting = Sweep { temperatures: vec![2.0], ..Sweep::default() }.settings().remove(0);
        json!({
            "code": self.code, "id": "0".repeat(32), "name": "Ada", "bets": {}, "profile": "laptop", "data": "CIFAR-10",
            "images": 1000, "conditions": "c".repeat(64), "sweep": report["sweep"],
            "pairs": [{"setting": setting, "seed": 7, "alone": 0.4, "distilled": 0.45}],
        })
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program(arguments: Value) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_board"));
    command.arg(arguments.to_string());
    command
}

/// Starts a board, and returns it with its address and code.
fn start(folder: &Path, port: u16) -> (Child, String, String) {
    let file = folder.join("class/board.sqlite");
    let arguments = json!({"file": file, "host": "127.0.0.1", "port": port, "profiles": ["laptop"], "remove": null});
    let mut server = program(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = lines.next().expect("the board says where it is").unwrap();
    std::thread::spawn(move || lines.count()); // so that the pipe never fills
    let (_, rest) = line.split_once("http://").unwrap();
    let (address, rest) = rest.split_once("/#").unwrap();
    let code = rest.split(' ').next().unwrap();
    (server, format!("http://{address}"), code.to_owned())
}

/// A report of the stored sweep with other seeds and results.
fn report(seeds: &[u64], result: impl Fn(u64) -> (f64, f64)) -> SweepReport {
    let stored = std::fs::read_to_string(PathBuf::from(ROOT).join("notebooks/stored/patience.json")).unwrap();
    let mut stored: Value = serde_json::from_str(&stored).unwrap();
    let runs = stored["runs"].take();
    let of =
        |taught: bool| runs.as_array().unwrap().iter().find(|run| run["setting"]["teaching"].is_object() == taught);
    stored["runs"] = (seeds.iter())
        .flat_map(|&seed| {
            let (alone, distilled) = result(seed);
            [(false, alone), (true, distilled)].map(|(taught, test)| {
                let mut run = of(taught).unwrap().clone();
                (run["seed"], run["test"]) = (json!(seed), json!(test));
                run
            })
        })
        .collect();
    (stored["sweep"]["seeds"], stored["conditions"]) = (json!(seeds), json!("c".repeat(64)));
    serde_json::from_value(stored).unwrap()
}

/// What the runs of a seed come to.
fn result(seed: u64) -> (f64, f64) {
    let alone = 0.4 + (seed % 7) as f64 / 1000.0;
    (alone, alone + 0.03 + (seed % 11) as f64 / 500.0)
}

#[test]
fn sixty_people_post_at_once_and_a_killed_board_loses_none() {
    const PEOPLE: usize = 60;
    let mut board = Board::start();
    let labs: Vec<(String, Lab)> =
        (0..PEOPLE).map(|i| format!("person {i}")).map(|n| (n.clone(), board.lab(&n))).collect();
    let (address, code, posted) = (board.address.clone(), board.code.clone(), AtomicUsize::new(0));
    let seeds: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let post = |(name, lab): &(String, Lab)| {
            // As somebody does who runs the cell again when it failed.
            let again = |error: Error| {
                assert!(error.to_string().contains("nothing is lost"), "{error}");
                std::thread::sleep(Duration::from_millis(100));
            };
            let seeds = loop {
                match lab.join(&address, &code) {
                    Ok(seeds) => break seeds,
                    Err(error) => again(error),
                }
            };
            let report = report(&seeds, result);
            while let Err(error) = lab.post(name, &report) {
                again(error);
            }
            posted.fetch_add(1, Ordering::SeqCst);
            seeds
        };
        let threads: Vec<_> = labs.iter().map(|person| scope.spawn(move || post(person))).collect();
        for part in [1, 2] {
            while posted.load(Ordering::SeqCst) < part * PEOPLE / 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
            board.kill();
            board.start_again();
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let wanted: BTreeSet<[String; 5]> = (seeds.iter().enumerate())
        .flat_map(|(i, seeds)| {
            seeds.iter().map(move |&seed| {
                let (alone, distilled) = result(seed);
                let setting = "kd-T2-alpha0.9-same-view".to_owned();
                [format!("person {i}"), setting, seed.to_string(), alone.to_string(), distilled.to_string()]
            })
        })
        .collect();
    assert_eq!(wanted.len(), 3 * PEOPLE);
    assert_eq!(board.pairs(), wanted);
    let all: BTreeSet<u64> = seeds.iter().flatten().copied().collect();
    assert_eq!(all.len(), 3 * PEOPLE, "two people got the same seed");
    assert!(all.iter().all(|seed| *seed > 2), "0, 1 and 2 are the seeds of whoever has not joined");

    // Everybody sees the verdict of the crate on all seeds.
    let (name, lab) = &labs[0];
    let table = lab.post(name, &report(&seeds[0], result)).unwrap().to_string();
    let (alone, distilled): (Vec<f64>, Vec<f64>) = all.iter().map(|seed| result(*seed)).unzip();
    let verdict = Verdict::new(&alone, &distilled, 1).unwrap();
    let interval = format!("{:+.1} to {:+.1}", 100.0 * verdict.low, 100.0 * verdict.high);
    for part in ["kd-T2-alpha0.9-same-view", " 180 ", " 60 ", &interval, &verdict.decision.to_string()] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
}

#[test]
fn the_first_post_of_a_pair_stands_and_a_seed_counts_once() {
    let board = Board::start();
    let [ada, bob] = ["ada", "bob"].map(|name| board.lab(name));
    let first = report(&[5, 6], |seed| (0.4, 0.44 + seed as f64 / 1000.0));
    let e = ada.post("Ada", &first).unwrap_err().to_string();
    assert!(e.contains("lab.join(\"http://...\", \"CODE\")?"), "{e}");
    let e = ada.join(&board.address, "WRONG").unwrap_err().to_string();
    assert!(e.contains("refuses: this is not the board's code"), "{e}");
    // Without `http://` and in lower case, as people type it.
    let seeds = ada.join(board.address.trim_start_matches("http://"), &board.code.to_lowercase()).unwrap();
    assert_eq!(seeds, ada.join(&board.address, &board.code).unwrap(), "joining again changes nothing");
    // As the projector's page shows it, with the code.
    bob.join(&format!("{}/#{}", board.address, board.code), &board.code).unwrap();

    let said = ada.post("Ada", &first).unwrap().to_string();
    assert_eq!(said, ada.post("Ada", &first).unwrap().to_string());
    let kept = board.pairs();
    ada.post("Ada", &report(&[5, 6], |_| (0.1, 0.9))).unwrap();
    assert_eq!(board.pairs(), kept);
    let e = bob.post("ADA", &first).unwrap_err().to_string();
    assert!(e.contains("somebody else is called ADA already"), "{e}");

    // The same seeds by somebody else: their means count, and there are still two.
    let said = bob.post("Bob", &report(&[5, 6], |seed| (0.4, 0.46 + seed as f64 / 1000.0))).unwrap().to_string();
    let verdict = Verdict::new(&[0.4, 0.4], &[0.455, 0.456], 1).unwrap();
    let wanted = format!("2 2 {:+.1} {:+.1} to", 100.0 * verdict.mean, 100.0 * verdict.low);
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(&wanted), "{wanted} is missing in\n{said}");

    // Another name of the same person takes the pairs along.
    ada.post("Ada L.", &first).unwrap();
    assert!(board.pairs().iter().all(|[name, ..]| name == "Ada L." || name == "Bob"));

    // What is not of this machine, or has no pair.
    let mut stored = serde_json::to_value(&first).unwrap();
    stored.as_object_mut().unwrap().remove("conditions");
    let e = ada.post("Ada", &serde_json::from_value(stored).unwrap()).unwrap_err().to_string();
    assert!(e.contains("post one that lab.sweep returned here"), "{e}");
    let e = ada.post("Ada", &report(&[], result)).unwrap_err().to_string();
    assert!(e.contains("has no pair yet"), "{e}");

    // Taken off, while the board runs.
    let file = board.folder.path().join("class/board.sqlite");
    let remove = |name: &str| -> Output {
        let arguments = json!({"file": file, "host": "127.0.0.1", "port": 0, "profiles": [], "remove": name});
        program(arguments).output().unwrap()
    };
    assert!(remove("ada l.").status.success());
    assert!(board.pairs().iter().all(|[name, ..]| name == "Bob"));
    let output = remove("Eve");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody on the board"), "{output:?}");
}

#[test]
fn runs_under_other_conditions_are_not_pooled() {
    let board = Board::start();
    let mut body = board.body();
    let mut seen = 0;
    let mut posted = |change: &dyn Fn(&mut Value)| {
        seen += 1;
        let mut other = body.clone();
        (other["id"], other["name"], other["pairs"][0]["seed"]) =
            (json!(format!("{seen:032x}")), json!(format!("p{seen}")), json!(seen));
        change(&mut other);
        let (status, answer) = board.send("post", &other.to_string());
        assert_eq!(status, 200, "{answer}");
        answer["rows"][0][1].as_str().unwrap().to_owned()
    };
    assert_eq!(posted(&|_| ()), "1");
    assert_eq!(posted(&|_| ()), "2", "the same conditions");
    assert_eq!(posted(&|other| other["sweep"]["precision"] = json!("bf16")), "3", "a matter of the machine");
    assert_eq!(posted(&|other| other["sweep"]["temperatures"] = json!([1.0, 2.0])), "4", "a wider grid");
    assert_eq!(posted(&|other| other["conditions"] = json!("d".repeat(64))), "1", "other images");
    assert_eq!(posted(&|other| other["sweep"]["epochs"] = json!(5)), "1", "another length");
    assert_eq!(posted(&|other| other["images"] = json!(900)), "1", "fewer images");
    body["sweep"]["name"] = json!("other");
    assert_eq!(posted_once(&board, &body), "1", "another question");
}

fn posted_once(board: &Board, body: &Value) -> String {
    board.send("post", &body.to_string()).1["rows"][0][1].as_str().unwrap().to_owned()
}

#[test]
fn what_strangers_send_harms_nothing() {
    let board = Board::start();
    let ada = board.lab("ada");
    ada.join(&board.address, &board.code).unwrap();
    ada.post("Ada", &report(&[5, 6], result)).unwrap();
    let kept = board.pairs();

    let elsewhere = |setting: &mut Value| setting["teaching"]["teacher"] = json!({"elsewhere": "<script>"});
    type Change<'a> = &'a dyn Fn(&mut Value);
    let changes: [(&str, Change); 22] = [
        ("not the board's code", &|b| b["code"] = json!("AAAAAAAA")),
        ("not the board's code", &|b| b["code"] = json!("' OR 1=1 --")),
        ("a name has 1 to 24", &|b| b["name"] = json!("<img src=x onerror=alert(1)>")),
        ("a name has 1 to 24", &|b| b["name"] = json!("=HYPERLINK(1)")),
        ("a name has 1 to 24", &|b| b["name"] = json!("a\u{202e}b")),
        ("a name has 1 to 24", &|b| b["name"] = json!("")),
        ("a name has 1 to 24", &|b| b["name"] = json!("x".repeat(100_000))),
        ("somebody else is called Ada", &|b| b["id"] = json!("f".repeat(32))),
        ("an id must be 32", &|b| b["id"] = json!("ada")),
        ("it takes runs of the profile laptop", &|b| b["profile"] = json!("article")),
        ("it takes runs of the profile laptop", &|b| b["profile"] = json!("<b>")),
        ("64 hex digits", &|b| b["conditions"] = json!("no digest")),
        ("1 to 80 characters", &|b| b["data"] = json!("x".repeat(81))),
        ("letters, digits", &|b| b["sweep"]["name"] = json!("../<script>")),
        ("letters, digits", &|b| elsewhere(&mut b["pairs"][0]["setting"])),
        ("1 to 200 pairs", &|b| b["pairs"] = json!([])),
        ("1 to 200 pairs", &|b| b["pairs"] = json!(vec![b["pairs"][0].clone(); 201])),
        ("0 to 1, got 1.5", &|b| b["pairs"][0]["distilled"] = json!(1.5)),
        ("0 to 1, got -0.1", &|b| b["pairs"][0]["alone"] = json!(-0.1)),
        ("below 2^53", &|b| b["pairs"][0]["seed"] = json!(u64::MAX)),
        ("no post of kdlab", &|b| b["pairs"][0]["seed"] = json!(-1)),
        ("no post of kdlab", &|b| b["admin"] = json!(true)),
    ];
    for (said, change) in changes {
        let mut body = board.body();
        change(&mut body);
        let (status, answer) = board.send("post", &body.to_string());
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{body} was taken: {answer}"));
        assert!((400..500).contains(&status) && error.contains(said), "{said}: {status} {error}");
        assert!(error.len() < 500, "{error}");
    }
    let good = board.body().to_string();
    let texts = [
        good.replace("0.45", "NaN"),
        good.replace("0.45", "1e999"),
        good.replace("0.45", "null"),
        good.replace("\"bets\":{}", "\"bets\":{\"few labels\":1e9}"),
        "[".repeat(200_000),
        "{".into(),
        String::new(),
        "x".repeat(10 << 20),
    ];
    for text in texts {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.post(format!("{}/post", board.address)).header("Content-Type", "application/json");
        // The server may close the connection before it has read all of a huge body.
        let status = request.send(&text).map_or(413, |answer| answer.status().as_u16());
        assert!((400..500).contains(&status), "{status} for {}", &text[..text.len().min(300)]);
    }
    // A page of another server can only send such a form without asking first.
    let form = ureq::post(format!("{}/post", board.address)).content_type("text/plain").send(&good);
    assert!(matches!(form, Err(ureq::Error::StatusCode(415))), "{form:?}");
    assert_eq!(board.pairs(), kept);

    // Connections that ask for nothing, and one that never ends its request.
    let to = board.address.trim_start_matches("http://");
    let mut idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(to).unwrap()).collect();
    idle[0].write_all(b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n").unwrap();
    // A flood, meanwhile. The board refuses most of it, and takes Ada's next post once it is over.
    let wrong = good.replace(&board.code, "AAAAAAAA");
    let refused: Vec<u16> = std::thread::scope(|scope| {
        let flood = || (0..400).map(|_| board.send("post", &wrong).0).collect::<Vec<u16>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(flood)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(refused.iter().all(|status| [403, 429].contains(status)));
    assert!(refused.iter().filter(|status| **status == 429).count() > 500);
    assert!(board.get("").contains("board.js"), "the page is there meanwhile");
    ada.post("Ada", &report(&[5, 6, 7], result)).unwrap();
    let now = board.pairs();
    assert!(now.is_superset(&kept) && now.len() == kept.len() + 1);
    drop(idle);
}

/// Bets come before results and stay then. The settings of `Setting` are what the page calls them.
#[test]
fn a_bet_is_shown_until_the_result_is_there_and_stays() {
    let board = Board::start();
    let ada = board.lab("ada");
    ada.bet("The Patience", 1.0).unwrap();
    ada.join(&board.address, &board.code).unwrap();
    let picture = || {
        // The first event of the stream.
        let mut answer = ureq::get(format!("{}/events", board.address)).call().unwrap();
        let first = BufReader::new(answer.body_mut().as_reader()).lines().next().unwrap().unwrap();
        serde_json::from_str::<Value>(first.strip_prefix("data: ").unwrap()).unwrap()
    };
    let wait_for = |what: &dyn Fn(&Value) -> bool| {
        for _ in 0..100 {
            let now = picture();
            if what(&now) {
                return now;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it never came: {}", picture());
    };
    let bets = |points: f64| move |now: &Value| now["studies"][0]["bets"] == json!([points]);
    wait_for(&bets(1.0));
    ada.bet("The Patience", 3.0).unwrap();
    let now = wait_for(&bets(3.0));
    assert_eq!(now["studies"][0]["settings"], json!([]));
    ada.post("Ada", &report(&[5, 6], result)).unwrap();
    let shown = |now: &Value| now["studies"][0]["settings"][0]["seeds"] == json!(2);
    let now = wait_for(&shown);
    let setting: Setting = Sweep { temperatures: vec![2.0], ..Sweep::default() }.settings().remove(0);
    assert_eq!(now["studies"][0]["settings"][0]["setting"], json!(format!("{setting}-same-view")));
    ada.bet("The Patience", 9.0).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(bets(3.0)(&picture()), "{}", picture());

    // Without the board a bet is kept here alone, and the cell does not fail.
    let mut board = board;
    board.kill();
    ada.bet("The Patience", 9.0).unwrap();
    let e = ada.post("Ada", &report(&[5, 6], result)).unwrap_err();
    assert!(matches!(&e, Error::Network(why) if why.contains("no board answers at http://127.0.0.1")), "{e}");
}

/// The page in Chromium (tests/board.py names what it looks at).
#[test]
fn the_page_shows_dots_as_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let python = Path::new(ROOT).join(".kdlab/venv/bin/python");
    assert!(python.exists(), "{} is missing: run `cargo lab test`, which sets it up", python.display());
    let body = {
        let board = Board::start();
        board.body()
    };
    std::fs::write(folder.path().join("post.json"), body.to_string()).unwrap();
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/board.py"))
        .args([Path::new(env!("CARGO_BIN_EXE_board")), folder.path()])
        .output()
        .unwrap();
    let [said, trouble] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{said}{trouble}");
}
