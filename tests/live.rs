//! The crate's side of the live kernel: a fake kernel in these tests speaks its protocol over a real socket.

mod common;

use common::dataset;
use kdlab::Error;
use kdlab::data::{Dataset, Transform};
use kdlab::distill::*;
use kdlab::live::{Link, Push};
use kdlab::models::{Arch, Backbone, Layers, Model};
use kdlab::show::{knobs, live_progress, temperature_explorer};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor, nn};

/// How long anything may take before a test gives up.
const LIMIT: Duration = Duration::from_secs(60);

// ---- the fake kernel ----

#[derive(Clone)]
struct Kernel(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Default)]
struct Heard {
    /// Every message with the number of its connection, in order.
    messages: Vec<(usize, Value)>,
    connections: Vec<UnixStream>,
    closed: HashSet<usize>,
}

impl Kernel {
    fn listen(path: &Path, token: &str) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let kernel = Self(Arc::new((Mutex::default(), Condvar::new())));
        let (this, token) = (kernel.clone(), json!({ "token": token }));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (this, token) = (this.clone(), token.clone());
                std::thread::spawn(move || this.serve(stream, &token));
            }
        });
        kernel
    }

    fn serve(&self, stream: UnixStream, token: &Value) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().and_then(|line| line.ok()).unwrap_or_default();
        if serde_json::from_str::<Value>(&first).ok().as_ref() != Some(token) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let number = {
            let mut heard = self.0.0.lock().unwrap();
            heard.connections.push(stream.try_clone().unwrap());
            heard.connections.len() - 1
        };
        for line in lines.map_while(|line| line.ok()) {
            let message = serde_json::from_str(&line).unwrap();
            let mut heard = self.0.0.lock().unwrap();
            heard.messages.push((number, message));
            let answered = (&heard.connections[number]).write_all(b"{\"ok\": true}\n");
            self.0.1.notify_all();
            if answered.is_err() {
                break;
            }
        }
        self.0.0.lock().unwrap().closed.insert(number);
        self.0.1.notify_all();
    }

    fn messages(&self) -> Vec<(usize, Value)> {
        self.0.0.lock().unwrap().messages.clone()
    }

    /// Waits until `found` finds something in all that was heard so far.
    fn wait<T>(&self, what: &str, found: impl Fn(&[(usize, Value)]) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut heard = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = found(&heard.messages) {
                return found;
            }
            assert!(begun.elapsed() < LIMIT, "{what} never came");
            heard = self.0.1.wait_timeout(heard, Duration::from_millis(200)).unwrap().0;
        }
    }

    fn push(&self, number: usize, message: &Value) {
        let heard = self.0.0.lock().unwrap();
        (&heard.connections[number]).write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    /// The front end moved a widget, or clicked it.
    fn front_end(&self, comm_id: &str, data: &Value) {
        let number = (self.messages().iter()).find(|(_, m)| m["comm_open"]["comm_id"] == comm_id).unwrap().0;
        self.push(number, &json!({"comm_msg": {"comm_id": comm_id, "data": data}}));
    }

    fn slide(&self, comm_id: &str, value: Value) {
        self.front_end(comm_id, &json!({"method": "update", "state": {"value": value}, "buffer_paths": []}));
    }

    fn interrupt(&self) {
        let watching: HashSet<usize> =
            self.messages().iter().filter(|(_, m)| m.get("watch").is_some()).map(|(number, _)| *number).collect();
        assert!(!watching.is_empty(), "nobody watches");
        for number in watching {
            // Those that are done have closed theirs.
            if !self.0.0.lock().unwrap().closed.contains(&number) {
                self.push(number, &json!({"stop": "interrupted"}));
            }
        }
    }

    /// The id of the last widget with this key and value in its first state.
    fn widget(&self, key: &str, value: &str) -> String {
        self.wait(value, |messages| {
            let open = |m: &Value| m["comm_open"]["data"]["state"][key] == value;
            let (_, message) = messages.iter().rev().find(|(_, m)| open(m))?;
            Some(message["comm_open"]["comm_id"].as_str()?.to_owned())
        })
    }

    /// What was sent to a widget: the states of its updates.
    fn updates(&self, comm_id: &str) -> Vec<Value> {
        let of = |(_, m): &(usize, Value)| {
            (m["comm_msg"]["comm_id"] == comm_id).then(|| m["comm_msg"]["data"]["state"].clone())
        };
        self.messages().iter().filter_map(of).collect()
    }

    /// Each display's states in order, in the order in which they were opened. Nothing is opened twice, or changed unopened.
    fn displays(&self) -> Vec<Vec<Value>> {
        let (mut order, mut states) = (Vec::new(), HashMap::<String, Vec<Value>>::new());
        for (_, message) in self.messages() {
            let Some(display) = message.get("display") else { continue };
            let id = display["id"].as_str().unwrap().to_owned();
            assert_eq!(display["update"] == true, states.contains_key(&id), "{message}");
            if display["update"] == false {
                order.push(id.clone());
            }
            states.entry(id).or_default().push(display.clone());
        }
        order.iter().map(|id| states[id].clone()).collect()
    }

    /// All widgets refer to open ones, and none is left open.
    fn check_widgets(&self) {
        let mut open = HashSet::new();
        for (_, message) in self.messages() {
            if let Some(comm) = message.get("comm_open") {
                let state = &comm["data"]["state"];
                for key in ["_model_module", "_model_name", "_view_module", "_view_name"] {
                    assert!(state[key].is_string(), "{key} is missing in {state}");
                }
                assert_eq!(
                    (&comm["target_name"], &state["_model_module_version"]),
                    (&json!("jupyter.widget"), &json!("2.0.0"))
                );
                for part in state.to_string().split("IPY_MODEL_").skip(1) {
                    assert!(open.contains(&part[..32]), "{state} refers to a widget that is not open");
                }
                assert!(open.insert(comm["comm_id"].as_str().unwrap().to_owned()), "opened twice: {message}");
            }
            for key in ["comm_msg", "comm_close"] {
                if let Some(comm) = message.get(key) {
                    assert!(open.contains(comm["comm_id"].as_str().unwrap()), "{message}");
                }
            }
            if let Some(comm) = message.get("comm_close") {
                open.remove(comm["comm_id"].as_str().unwrap());
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }
}

/// Runs the test called `name` in a process of its own with a kernel: its address is in the environment, which is a
/// process's own.
fn with_kernel(name: &str, test: impl FnOnce(Kernel)) {
    if std::env::var("KDLAB_TEST_CHILD").as_deref() == Ok(name) {
        let path = std::env::var("KDLAB_LIVE").unwrap();
        return test(Kernel::listen(Path::new(&path), "secret"));
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("KDLAB_TEST_CHILD", name)
        .env("KDLAB_LIVE", folder.path().join("socket"))
        .env("KDLAB_LIVE_TOKEN", "secret")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains(" 1 passed"), "{said}{}", text(&output.stderr));
}

// ---- something to fit ----

struct Bench {
    folder: tempfile::TempDir,
    data: Dataset,
    train: Examples,
    validation: Examples,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 0); // 64 to train on, 8 batches of 8
    let examples = |split| {
        let logits = Tensor::ones([kdlab::data::Split::len(split) as i64, 10], (Kind::Float, Device::Cpu));
        let logits = CachedTensor::new(split, logits, "ones").unwrap();
        Examples::images(split, &Transform::cifar10(32)).unwrap().with_teacher(&logits).unwrap()
    };
    let (train, validation) = (examples(&data.train), examples(&data.validation));
    Bench { folder, data, train, validation }
}

fn model() -> Model {
    let tiny = |vs: &nn::Path| {
        Layers::new()
            .func("pool", |x| x.adaptive_avg_pool2d([4, 4]).flatten(1, -1))
            .add("fc", nn::linear(vs / "fc", 48, 10, Default::default()))
    };
    Model::new("tiny", Device::Cpu, 1, &tiny).unwrap()
}

/// Options whose control the listener shows.
fn live_options(name: &str, epochs: usize) -> FitOptions {
    let control = Control::new();
    let listener = live_progress(&control);
    FitOptions { name: name.into(), epochs, batch_size: 8, control, listener, ..FitOptions::default() }
}

fn plain_options(name: &str, epochs: usize) -> FitOptions {
    FitOptions { name: name.into(), epochs, batch_size: 8, ..FitOptions::default() }
}

/// The distillation loss at T = 4, alpha = 0.5, which calls `at` with the number of the training batch, from 0, and its T.
fn watched(at: impl Fn(usize, f64) + Send + Sync + 'static) -> Criterion {
    let steps = AtomicUsize::new(0);
    Criterion::soft("watched", KdLoss::new(4.0, 0.5).unwrap(), move |s, y, t, temperature, alpha| {
        let loss = KdLoss::new(temperature, alpha).unwrap().forward(s, y, t).unwrap();
        if loss.requires_grad() {
            at(steps.fetch_add(1, Ordering::SeqCst), temperature);
        }
        loss
    })
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

// ---- with a kernel ----

#[test]
fn a_fit_is_shown_while_it_runs_and_what_stays_is_the_last_of_it() {
    with_kernel("a_fit_is_shown_while_it_runs_and_what_stays_is_the_last_of_it", |kernel| {
        let b = bench();
        // A first epoch of more than two seconds: the figure changes within it.
        let pause = |step, _| std::thread::sleep(Duration::from_millis(if step < 8 { 300 } else { 60 }));
        let history =
            fit(&mut model(), &b.train, &b.validation, &watched(pause), &live_options("shown & <b>", 3)).unwrap();
        let displays = kernel.displays();
        assert_eq!(displays.len(), 3);
        let data = |display: &[Value], mime: &str| -> Vec<String> {
            display.iter().map(|state| state["data"][mime].as_str().unwrap_or_default().to_owned()).collect()
        };
        let bar = data(&displays[0], "text/plain");
        assert!(bar.iter().any(|b| b.contains("epoch 2/3") && b.contains("of 64 images  loss ")), "{bar:#?}");
        assert!(bar.iter().filter(|b| b.contains(" img/s, ")).count() <= 4 * (history.seconds().ceil() as usize + 1));
        let html = data(&displays[0], "text/html");
        assert!(
            html[0].contains("<progress") && bar[0].contains("epoch 1/3") && html.iter().all(|h| !h.contains("<b>")),
            "{html:?}"
        );
        let best = history.best().unwrap();
        let last = bar.last().unwrap();
        assert!(last.starts_with(&format!("shown & <b>: kept the weights of epoch {}", best.epoch)), "{last}");
        // The panel, and what it leaves behind.
        let panel = &displays[1];
        assert_eq!(panel.len(), 2);
        let root = panel[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"].as_str().unwrap();
        assert_eq!(kernel.widget("_model_name", "VBoxModel"), root);
        assert_eq!(panel[1]["data"]["text/plain"], "T 4, alpha 0.5, learning rate 1e-3, unchanged");
        assert!(panel[1]["data"].get("application/vnd.jupyter.widget-view+json").is_none());
        // The figure: of one size all along, redrawn each epoch, and at the end all of the curve.
        let figures = data(&displays[2], "image/png");
        assert!(figures.len() > 4, "{}", figures.len());
        assert!(displays[2].iter().all(|f| f["metadata"] == json!({"image/png": {"width": 880, "height": 348}})));
        assert!(figures.iter().all(|png| png.starts_with("iVBORw0KGgo")));
        let again = figures.iter().filter(|png| *png == figures.last().unwrap()).count();
        assert!((1..=2).contains(&again), "the last figure is another than those before");
        kernel.check_widgets();
        // The slider for T is a slider as ipywidgets knows it.
        let id = kernel.widget("description", "T");
        let messages = kernel.messages();
        let slider = &messages.iter().find(|(_, m)| m["comm_open"]["comm_id"] == *id).unwrap().1["comm_open"];
        assert_eq!(slider["metadata"], json!({"version": "2.1.0"}));
        let state = &slider["data"]["state"];
        for (key, value) in [
            ("_model_name", json!("FloatSliderModel")),
            ("_view_name", json!("FloatSliderView")),
            ("_model_module", json!("@jupyter-widgets/controls")),
            ("value", json!(4.0)),
            ("continuous_update", json!(true)),
        ] {
            assert_eq!(state[key], value, "{key}");
        }
        // A fit on hard labels has neither T nor alpha.
        fit(&mut model(), &b.train, &b.validation, &Criterion::cross_entropy(), &live_options("hard", 1)).unwrap();
        let count = |text: &str| kernel.messages().iter().filter(|(_, m)| m.to_string().contains(text)).count();
        assert_eq!([count("\"description\":\"T\""), count("\"description\":\"learning rate\"")], [1, 2]);
        kernel.check_widgets();
    });
}

#[test]
fn a_slider_acts_on_the_next_batch_and_the_program_moves_the_slider() {
    with_kernel("a_slider_acts_on_the_next_batch_and_the_program_moves_the_slider", |kernel| {
        let b = bench();
        let options = live_options("sliders", 3);
        let (control, front) = (options.control.clone(), kernel.clone());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&seen);
        let criterion = watched(move |step, temperature| {
            note.lock().unwrap().push(temperature);
            if step == 10 {
                // The third batch of the second epoch: 16 of 64 images are done before it, 24 after it.
                front.slide(&front.widget("description", "T"), json!(7));
                until("T", || control.temperature() == Some(7.0));
                front.slide(&front.widget("description", "learning rate"), json!(0.01));
                until("the learning rate", || control.learning_rate() == Some(0.01));
            }
            if step == 20 {
                control.set_alpha(0.25).unwrap();
                control.set_temperature(2.0).unwrap();
            }
        });
        let history = fit(&mut model(), &b.train, &b.validation, &criterion, &options).unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen[..11].iter().all(|&t| t == 4.0) && seen[11..21].iter().all(|&t| t == 7.0), "{seen:?}");
        assert!(seen[21..].iter().all(|&t| t == 2.0));
        let values = |s: Settings| (s.temperature, s.alpha, s.learning_rate);
        let changes: Vec<_> = history.changes.iter().map(|c| (c.epoch, values(c.before), values(c.after))).collect();
        let (begun, slid) = ((Some(4.0), Some(0.5), 1e-3), (Some(7.0), Some(0.5), 0.01));
        assert_eq!(changes, [(1.375, begun, slid), (2.625, slid, (Some(2.0), Some(0.25), 0.01))]);
        let lr: Vec<_> = history.records.iter().map(|r| (r.temperature, r.learning_rate)).collect();
        assert_eq!(lr, [(Some(4.0), 1e-3), (Some(7.0), 0.01), (Some(2.0), 0.01)]);
        // What came from a slider is not sent back to it; what the program set is.
        assert_eq!(kernel.updates(&kernel.widget("description", "T")), [json!({"value": 2.0})]);
        assert_eq!(kernel.updates(&kernel.widget("description", "alpha")), [json!({"value": 0.25})]);
        assert!(kernel.updates(&kernel.widget("description", "learning rate")).is_empty());
        let text = kernel.displays()[1].last().unwrap()["data"]["text/plain"].to_string();
        assert!(
            text.contains("T 2, alpha 0.25, learning rate 0.01 at the end; T 4 -> 7, lr 1e-3 -> 0.01 at epoch 1.38"),
            "{text}"
        );
        kernel.check_widgets();
    });
}

#[test]
fn buttons_pause_and_stop_a_fit() {
    with_kernel("buttons_pause_and_stop_a_fit", |kernel| {
        let b = bench();
        let options = live_options("buttons", 5);
        let (control, front) = (options.control.clone(), kernel.clone());
        let criterion = watched(move |step, _| {
            if step == 9 {
                let (control, front) = (control.clone(), front.clone());
                let pause = front.widget("description", "Pause");
                front.slide(&pause, json!(true));
                until("the pause", || control.is_paused());
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(1500));
                    front.slide(&pause, json!(false));
                });
            }
            if step == 20 {
                front.front_end(
                    &front.widget("description", "Stop"),
                    &json!({"method": "custom", "content": {"event": "click"}}),
                );
                until("the stop", || control.stopping().is_some());
            }
        });
        let begun = Instant::now();
        let history = fit(&mut model(), &b.train, &b.validation, &criterion, &options).unwrap();
        assert!(begun.elapsed() > Duration::from_millis(1500));
        assert!(history.seconds() < begun.elapsed().as_secs_f64() - 1.4, "the pause was counted");
        assert_eq!((history.records.len(), history.stopped.as_deref()), (2, Some("by the Stop button")));
        let bars = kernel.displays()[0].iter().map(|b| b["data"]["text/plain"].to_string()).collect::<Vec<_>>();
        assert!(
            bars.iter().any(|b| b.contains("  paused")) && bars.last().unwrap().contains("stopped: by the Stop button"),
            "{bars:?}"
        );
        kernel.check_widgets();
    });
}

#[test]
fn interrupt_stops_a_fit_and_refuses_half_a_pass() {
    with_kernel("interrupt_stops_a_fit_and_refuses_half_a_pass", |kernel| {
        let b = bench();
        let run = |stop_at: usize, name: &str| {
            let options = FitOptions { folder: Some(b.folder.path().join(name)), ..live_options(name, 4) };
            let (control, front) = (options.control.clone(), kernel.clone());
            let criterion = watched(move |step, _| {
                if step == stop_at {
                    front.interrupt();
                    until("the stop", || control.stopping().is_some());
                }
            });
            let mut model = model();
            let history = fit(&mut model, &b.train, &b.validation, &criterion, &options).unwrap();
            let accuracy = evaluate(&model, &b.validation, 8).unwrap().accuracy();
            (history, accuracy)
        };
        let (history, accuracy) = run(18, "late");
        assert_eq!((history.records.len(), history.stopped.as_deref()), (2, Some("interrupted")));
        assert_eq!(history.best().unwrap().validation.accuracy, accuracy, "the best weights so far are kept");
        assert_eq!(run(1000, "late").0.records.len(), 4, "it goes on");
        // Before the first epoch is done there is nothing to keep.
        let (history, _) = run(3, "early");
        assert_eq!((history.records.len(), history.stopped.as_deref()), (0, Some("interrupted")));
        assert_eq!(run(1000, "early").0.records.len(), 4);
        let bars: Vec<_> =
            kernel.displays().iter().filter_map(|d| Some(d.last()?["data"]["text/plain"].to_string())).collect();
        assert!(
            bars.iter().any(|b| b.contains("early: stopped before its first epoch was done (interrupted)")),
            "{bars:?}"
        );
        kernel.check_widgets();

        // A pass of the backbone.
        let cache = b.folder.path().join("cache");
        let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
        let pass = |listener: &Listener| {
            backbone_features(&backbone, &b.data.train, &Transform::imagenet(64), 1, Some(&cache), listener)
        };
        let front = kernel.clone();
        let interrupts = Listener::new(move |event| {
            if let Event::Progress(p) = event
                && p.done < p.total
            {
                front.interrupt();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let e = pass(&interrupts).err().unwrap();
        assert!(matches!(e, Error::Interrupted(_)) && e.to_string().contains("interrupted after"), "{e}");
        assert!(e.to_string().contains("of 64 images; run the cell again"), "{e}");
        // It goes on where it was interrupted.
        let (rest, heard) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let (total, done) = (Arc::clone(&rest), Arc::clone(&heard));
        let counts = Listener::new(move |event| {
            if let Event::Progress(p) = event {
                (*total.lock().unwrap(), *done.lock().unwrap()) = (p.total, p.done);
            }
        });
        assert!(!pass(&counts).unwrap().from_disk);
        assert!((1..64).contains(&*rest.lock().unwrap()) && *heard.lock().unwrap() == *rest.lock().unwrap());
        assert!(pass(&Listener::default()).unwrap().from_disk);
    });
}

#[test]
fn a_background_run_is_shown_from_the_cell_that_started_it() {
    with_kernel("a_background_run_is_shown_from_the_cell_that_started_it", |kernel| {
        let b = bench();
        let queue = Queue::default();
        let (gate, opened) = mpsc::channel::<()>();
        let opened = Mutex::new(opened);
        let first = watched(move |step, _| {
            if step == 4 {
                let _ = opened.lock().unwrap().recv_timeout(LIMIT);
            }
        });
        let first = queue.spawn(model(), &b.train, &b.validation, first, live_options("first", 3)).unwrap();
        let second =
            queue.spawn(model(), &b.train, &b.validation, watched(|_, _| ()), live_options("second", 2)).unwrap();
        let third =
            queue.spawn(model(), &b.train, &b.validation, watched(|_, _| ()), live_options("third", 2)).unwrap();
        assert_eq!(second.state(), RunState::Queued);
        let bar = |name: &str| {
            let displays = kernel.displays();
            let bars = displays.iter().filter(|d| d[0]["data"]["text/plain"].to_string().contains(name));
            bars.flat_map(|d| d.iter().map(|state| state["data"]["text/plain"].to_string())).collect::<Vec<_>>()
        };
        assert!(bar("second")[0].contains("waiting for the runs before it"));
        // The Stop button of one that waits takes it out of the queue, and leaves nothing of its view open.
        kernel.front_end(
            &kernel.widget("description", "Stop"),
            &json!({"method": "custom", "content": {"event": "click"}}),
        );
        until("the stop", || third.is_finished());
        until("the last of its view", || bar("third").last().unwrap().contains("before its first epoch was done"));
        let (_, history) = third.wait().unwrap();
        assert_eq!((history.records.len(), history.stopped.as_deref()), (0, Some("by the Stop button")));
        assert_eq!(second.settings(), Settings { temperature: Some(4.0), alpha: Some(0.5), learning_rate: 1e-3 });
        drop(gate);
        // Interrupt while a cell waits stops the run that it waits for.
        let (control, front) = (second.control(), kernel.clone());
        let waits = std::thread::spawn(move || first.wait().unwrap().1);
        assert_eq!(waits.join().unwrap().records.len(), 3);
        control.pause();
        let waits = std::thread::spawn(move || second.wait().unwrap().1);
        kernel.wait("the watch", |messages| messages.iter().any(|(_, m)| m["watch"] == "second").then_some(()));
        front.interrupt();
        assert_eq!(waits.join().unwrap().stopped.as_deref(), Some("interrupted"));
        assert!(bar("first").last().unwrap().contains("kept the weights"), "{:?}", bar("first"));
        kernel.check_widgets();
    });
}

#[test]
fn explorer_and_knobs_work_as_long_as_they_live() {
    with_kernel("explorer_and_knobs_work_as_long_as_they_live", |kernel| {
        let classes: Vec<String> = (0..10).map(|i| format!("class {i}")).collect();
        let logits = Tensor::arange(10, (Kind::Float, Device::Cpu));
        let explorer = temperature_explorer(&logits, &classes, Some(3)).unwrap();
        explorer.evcxr_display();
        let data = |display: usize| kernel.displays()[display].last().unwrap()["data"].clone();
        assert!(data(0)["application/vnd.jupyter.widget-view+json"].is_object());
        assert!(data(1)["image/png"].is_string(), "what stays in a saved notebook");
        let picture = kernel.widget("_model_name", "HTMLModel");
        kernel.slide(&kernel.widget("description", "T"), json!(9.5));
        kernel.wait("the picture", |messages| {
            let update = |m: &Value| {
                m["comm_msg"]["comm_id"] == *picture
                    && m["comm_msg"]["data"]["state"]["value"].as_str().is_some_and(|v| v.contains("data:image/png"))
            };
            messages.iter().any(|(_, m)| update(m)).then_some(())
        });
        drop(explorer);
        assert!(data(0).get("application/vnd.jupyter.widget-view+json").is_none() && data(1)["image/png"].is_string());
        kernel.check_widgets();
        assert!(temperature_explorer(&logits, &classes[..3], None).is_err());

        let control = Control::new();
        let begun = Settings { temperature: Some(4.0), alpha: None, learning_rate: 1e-3 };
        let panel = knobs(&control, begun);
        panel.evcxr_display();
        kernel.slide(&kernel.widget("description", "T"), json!(6));
        until("T", || control.temperature() == Some(6.0));
        control.set_learning_rate(0.1).unwrap();
        assert_eq!(kernel.displays().len(), 3);
        drop(panel);
        assert_eq!(data(2)["text/plain"], "T 6, learning rate 0.1");
        kernel.check_widgets();
        assert_eq!(kernel.updates(&kernel.widget("description", "learning rate")), [json!({"value": 0.1})]);
    });
}

#[test]
fn a_link_gives_answers_in_order_and_says_when_the_kernel_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    assert!(Link::connect_to(&path, "secret", |_| ()).is_none(), "nobody listens");
    let kernel = Kernel::listen(&path, "secret");
    let wrong = Link::connect_to(&path, "guess", |_| ()).unwrap();
    let e = wrong.request(&json!({"watch": "x"})).unwrap_err().to_string();
    assert!(e.contains("live kernel"), "{e}");
    let (sender, pushes) = mpsc::channel();
    let link = Link::connect_to(&path, "secret", move |push| sender.send(push).unwrap()).unwrap();
    link.request(&json!({"watch": "x"})).unwrap();
    kernel.push(0, &json!({"stop": "interrupted"}));
    kernel.push(0, &json!({"error": "unasked"}));
    kernel.push(0, &json!("nonsense"));
    kernel.push(0, &json!({"comm_msg": {"comm_id": "a", "data": {"x": 1}}}));
    let got = || pushes.recv_timeout(LIMIT).unwrap();
    assert_eq!(got(), Push::Stop("interrupted".into()));
    assert_eq!(got(), Push::Comm { comm_id: "a".into(), data: json!({"x": 1}) });
    link.post(&json!({"watch": "y"})).unwrap();
    link.display("d", false, json!({"text/plain": "1"}), json!({})).unwrap();
    drop(link);
    until("the end", || kernel.0.0.lock().unwrap().closed.contains(&0));
}

// ---- without a kernel ----

#[test]
fn a_pause_holds_the_fit_and_does_not_count() {
    let b = bench();
    let options = plain_options("paused", 2);
    let control = options.control.clone();
    let begun = Arc::new(Mutex::new(None));
    let (hand, at) = (control.clone(), Arc::clone(&begun));
    let criterion = watched(move |step, _| {
        let mut at = at.lock().unwrap();
        if step == 9 {
            hand.pause();
            *at = Some(Instant::now());
            let hand = hand.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(3));
                hand.resume();
            });
        }
        if step == 10 {
            let waited = at.unwrap().elapsed();
            assert!(waited > Duration::from_secs(3), "it went on after {waited:?}");
        }
    });
    let start = Instant::now();
    let history = fit(&mut model(), &b.train, &b.validation, &criterion, &options).unwrap();
    assert!(history.seconds() < start.elapsed().as_secs_f64() - 2.9);
    let speed = |epoch: usize| history.records[epoch].images_per_second;
    assert!(speed(1) > 64.0 / 3.0, "the pause counts as work: {} img/s", speed(1));
    assert!(history.changes.is_empty() && history.stopped.is_none());
    assert!(!serde_json::to_string(&history).unwrap().contains("changes"));
    // A stop ends the pause too.
    control.pause();
    control.stop("enough");
    assert!(!control.is_paused());
}

#[test]
fn who_observes_a_control_hears_every_change_until_it_goes() {
    let control = Control::new();
    let count = Arc::new(AtomicUsize::new(0));
    let (counts, reads) = (Arc::clone(&count), control.clone());
    let observer = control.on_change(move || {
        let _ = (reads.temperature(), counts.fetch_add(1, Ordering::SeqCst));
    });
    control.set_temperature(3.0).unwrap();
    control.set_temperature(3.0).unwrap(); // no change
    control.set_learning_rate(1e-4).unwrap();
    assert!(control.set_learning_rate(0.0).unwrap_err().to_string().contains("learning rate must be > 0, got 0"));
    assert!(control.set_learning_rate(f64::INFINITY).is_err());
    control.pause();
    assert_eq!(count.load(Ordering::SeqCst), 3);
    drop(observer);
    control.resume();
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[test]
fn changes_survive_a_resume_and_old_histories_load() {
    let b = bench();
    let folder = b.folder.path().join("run");
    let run = |criterion: &Criterion, control: Control, listener: Listener| {
        let options = FitOptions { folder: Some(folder.clone()), control, listener, ..plain_options("run", 4) };
        fit(&mut model(), &b.train, &b.validation, criterion, &options).unwrap()
    };
    let control = Control::new();
    let hand = control.clone();
    let criterion = watched(move |step, _| match step {
        3 => hand.set_temperature(2.0).unwrap(),
        12 => hand.set_learning_rate(1e-4).unwrap(),
        // Lost: its epoch is not finished, and trained again.
        17 => hand.set_alpha(0.9).unwrap(),
        19 => hand.stop("test"),
        _ => {}
    });
    let told = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&told);
    let listener = Listener::new(move |event| {
        if let Event::Changed { change, .. } = event {
            note.lock().unwrap().push(*change);
        }
    });
    let first = run(&criterion, control, listener);
    assert_eq!((first.records.len(), first.changes.len()), (2, 3));
    assert_eq!(*told.lock().unwrap(), first.changes);
    // Another control, as after a restart of the kernel: the values that were in force come from the checkpoint.
    let begun = Arc::new(Mutex::new(None));
    let note = Arc::clone(&begun);
    let listener = Listener::new(move |event| {
        if let Event::Started { history, settings } = event {
            *note.lock().unwrap() = Some((history.records.len(), *settings));
        }
    });
    let control = Control::new();
    let whole = run(&watched(|_, _| ()), control.clone(), listener);
    assert_eq!(whole.changes, first.changes[..2]);
    assert_eq!(whole.changes.iter().map(|c| c.epoch).collect::<Vec<_>>(), [0.5, 1.625]);
    let settings = Settings { temperature: Some(2.0), alpha: Some(0.5), learning_rate: 1e-4 };
    assert_eq!(*begun.lock().unwrap(), Some((2, settings)));
    assert_eq!((whole.records.len(), whole.records[3].learning_rate), (4, 1e-4));
    let file = folder.join("history.json");
    assert_eq!(History::load(&file).unwrap(), whole);
    // As it was written before changes were kept.
    let mut old: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    old.as_object_mut().unwrap().remove("changes");
    std::fs::write(&file, old.to_string()).unwrap();
    let old = History::load(&file).unwrap();
    assert_eq!((old.records.len(), old.changes.len()), (4, 0));
}

#[test]
fn background_runs_take_turns_and_outlive_errors() {
    let b = bench();
    let queue = Queue::default();
    let order = Arc::new(Mutex::new(Vec::new()));
    let spawn = |name: &str, criterion: Criterion, learning_rate: f64| {
        let (heard, of) = (Arc::clone(&order), name.to_owned());
        let listener = Listener::new(move |event| match event {
            Event::Started { .. } => heard.lock().unwrap().push(format!("{of} began")),
            Event::Finished(_) | Event::Failed { .. } => heard.lock().unwrap().push(format!("{of} ended")),
            _ => {}
        });
        let options = FitOptions { listener, learning_rate, ..plain_options(name, 2) };
        queue.spawn(model(), &b.train, &b.validation, criterion, options).unwrap()
    };
    let (gate, opened) = mpsc::channel::<()>();
    let opened = Mutex::new(opened);
    let first = watched(move |step, _| {
        if step == 12 {
            let _ = opened.lock().unwrap().recv_timeout(LIMIT);
        }
    });
    let runs = [
        spawn("first", first, 1e-3),
        spawn("refused", Criterion::cross_entropy(), -1.0),
        spawn("panics", Criterion::hard("panics", |_, _| panic!("on purpose")), 1e-3),
        spawn("last", watched(|_, _| ()), 1e-3),
    ];
    // It returned at once; the first is under way and can be looked at and changed.
    until("the second epoch", || runs[0].state() == RunState::Running { epoch: 2, epochs: 2 });
    assert_eq!(runs[0].history().records.len(), 1);
    assert_eq!(runs[3].state(), RunState::Queued);
    runs[0].control().set_temperature(9.0).unwrap();
    assert!(runs[0].to_string().starts_with("first: running, epoch 2 of 2; best validation accuracy"), "{}", runs[0]);
    drop(gate);
    let [first, refused, panics, last] = runs;
    let (fitted, history) = first.wait().unwrap();
    assert_eq!(history.records[1].temperature, Some(9.0));
    assert_eq!(evaluate(&fitted, &b.validation, 8).unwrap().accuracy(), history.best().unwrap().validation.accuracy);
    // The queue goes on without its owner and without whoever holds the run.
    drop(queue);
    assert!(refused.wait().unwrap_err().to_string().contains("learning rate must be > 0, got -1"));
    until("the panic", || panics.is_finished());
    assert_eq!(panics.state(), RunState::Failed("libtorch: the fit panicked: on purpose".into()));
    assert!(panics.wait().is_err());
    let (_, history) = last.wait().unwrap();
    assert_eq!((history.records.len(), history.changes.len()), (2, 0));
    let ended =
        ["first began", "first ended", "refused ended", "panics began", "panics ended", "last began", "last ended"];
    assert_eq!(*order.lock().unwrap(), ended);
}

/// Run by the test below, in processes of their own; by itself it does nothing.
#[test]
fn child_prints() {
    let Ok(case) = std::env::var("KDLAB_TEST_CHILD") else { return };
    let b = bench();
    let options = live_options(&case, 2);
    let history = fit(&mut model(), &b.train, &b.validation, &Criterion::cross_entropy(), &options).unwrap();
    assert_eq!(history.records.len(), 2);
    evaluate(&model(), &b.validation, 8).unwrap();
    // In the background nothing is printed until somebody waits.
    let queue = Queue::default();
    let run =
        queue.spawn(model(), &b.train, &b.validation, Criterion::cross_entropy(), live_options("unheard", 2)).unwrap();
    until("its end", || run.is_finished());
    run.wait().unwrap();
}

#[test]
fn without_a_kernel_lines_are_printed_and_nothing_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let deaf = folder.path().join("deaf");
    let other = Kernel::listen(&deaf, "another token");
    let nobody = folder.path().join("nobody");
    for (case, socket) in [("stock", None), ("nobody", Some(&nobody)), ("deaf", Some(&deaf))] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_prints", "--nocapture"]).env("KDLAB_TEST_CHILD", case);
        match socket {
            Some(path) => command.env("KDLAB_LIVE", path).env("KDLAB_LIVE_TOKEN", "secret"),
            None => command.env_remove("KDLAB_LIVE"),
        };
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        for line in [
            format!("{case}  1/2  train "),
            format!("{case}  2/2  train "),
            format!("{case}: kept the weights of epoch "),
        ] {
            assert!(said.contains(&line), "{line} is missing in {said}");
        }
        assert!(!said.contains("unheard"), "{said}");
    }
    assert!(other.messages().is_empty());
}
