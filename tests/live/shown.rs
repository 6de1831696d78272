//! With a kernel: what is shown, and what its widgets and Interrupt do.

use super::*;

#[test]
fn a_fit_is_shown_while_it_runs_and_what_stays_is_the_last_of_it() {
    with_kernel("a_fit_is_shown_while_it_runs_and_what_stays_is_the_last_of_it", |kernel| {
        let b = bench();
        // The first epoch takes more than two seconds, so the figure changes within it.
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
        // The panel, and the line that stays in its place.
        let panel = &displays[1];
        assert_eq!(panel.len(), 2);
        let root = panel[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"].as_str().unwrap();
        assert_eq!(kernel.widget("_model_name", "VBoxModel"), root);
        assert_eq!(panel[1]["data"]["text/plain"], "T 4, alpha 0.5, learning rate 1e-3, unchanged");
        assert!(panel[1]["data"].get("application/vnd.jupyter.widget-view+json").is_none());
        // The figure keeps its size, is drawn anew each epoch, and ends as the whole curve.
        let figures = data(&displays[2], "image/png");
        assert!(figures.len() > 4, "{}", figures.len());
        assert!(displays[2].iter().all(|f| {
            let image = &f["metadata"]["image/png"];
            let alt = image["alt"].as_str().unwrap_or_default();
            let words = alt.starts_with("cross-entropy and accuracy over epochs: ");
            words && (&image["width"], &image["height"]) == (&json!(880), &json!(348))
        }));
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
            ("tooltip", json!("temperature T")),
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
        let (control, frontend) = (options.control.clone(), kernel.clone());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&seen);
        let criterion = watched(move |step, temperature| {
            note.lock().unwrap().push(temperature);
            if step == 10 {
                // The third batch of the second epoch: 16 of 64 images are done before it, 24 after it.
                // Steps of 0.1 add up to this; the control gets 7.
                frontend.slide(&frontend.widget("description", "T"), json!(6.999999999999999));
                until("T", || shows(&control, "temperature: Some(7.0)"));
                frontend.slide(&frontend.widget("description", "learning rate"), json!(0.01));
                until("the learning rate", || shows(&control, "learning_rate: Some(0.01)"));
            }
            if step == 20 {
                control.set_alpha(0.25).unwrap();
                control.set_temperature(2.0).unwrap();
                control.set_learning_rate(0.1).unwrap();
            }
        });
        let history = fit(&mut model(), &b.train, &b.validation, &criterion, &options).unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen[..11].iter().all(|&t| t == 4.0) && seen[11..21].iter().all(|&t| t == 7.0), "{seen:?}");
        assert!(seen[21..].iter().all(|&t| t == 2.0));
        let values = |s: Hyperparameters| (s.temperature, s.alpha, s.learning_rate);
        let changes: Vec<_> = history.changes.iter().map(|c| (c.epoch, values(c.before), values(c.after))).collect();
        let (begun, slid) = ((Some(4.0), Some(0.5), 1e-3), (Some(7.0), Some(0.5), 0.01));
        assert_eq!(changes, [(1.375, begun, slid), (2.625, slid, (Some(2.0), Some(0.25), 0.1))]);
        let lr: Vec<_> =
            history.records.iter().map(|r| (r.hyperparameters.temperature, r.hyperparameters.learning_rate)).collect();
        assert_eq!(lr, [(Some(4.0), 1e-3), (Some(7.0), 0.01), (Some(2.0), 0.1)]);
        // What came from a slider is not sent back to it; what the program set is.
        assert_eq!(kernel.updates(&kernel.widget("description", "T")), [json!({"value": 2.0})]);
        assert_eq!(kernel.updates(&kernel.widget("description", "alpha")), [json!({"value": 0.25})]);
        assert_eq!(kernel.updates(&kernel.widget("description", "learning rate")), [json!({"value": 0.1})]);
        let text = kernel.displays()[1].last().unwrap()["data"]["text/plain"].to_string();
        assert!(
            text.contains("T 2, alpha 0.25, learning rate 0.1 at the end; T 4 -> 7, lr 1e-3 -> 0.01 at epoch 1.38"),
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
        let (control, frontend) = (options.control.clone(), kernel.clone());
        let criterion = watched(move |step, _| {
            if step == 9 {
                let (control, frontend) = (control.clone(), frontend.clone());
                let pause = frontend.widget("description", "Pause");
                frontend.slide(&pause, json!(true));
                until("the pause", || shows(&control, "paused: true"));
                until("the button's new word", || {
                    frontend.updates(&pause).iter().any(|state| state["description"] == "Resume")
                });
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(1500));
                    frontend.slide(&pause, json!(false));
                });
            }
            if step == 20 {
                frontend.frontend_sends(
                    &frontend.widget("description", "Stop"),
                    &json!({"method": "custom", "content": {"event": "click"}}),
                );
                until("the stop", || shows(&control, "stop: Some"));
            }
        });
        let begun = Instant::now();
        let history = fit(&mut model(), &b.train, &b.validation, &criterion, &options).unwrap();
        assert!(begun.elapsed() > Duration::from_millis(1500));
        assert!(history.seconds() < begun.elapsed().as_secs_f64() - 1.4, "the pause was counted");
        assert_eq!((history.records.len(), history.stopped.as_deref()), (2, Some("by the Stop button")));
        let words: Vec<_> =
            kernel.updates(&kernel.widget("description", "Pause")).iter().map(|s| s["description"].clone()).collect();
        assert_eq!(words, [json!("Resume"), json!("Pause")]);
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
            let (control, frontend) = (options.control.clone(), kernel.clone());
            let criterion = watched(move |step, _| {
                if step == stop_at {
                    frontend.interrupt();
                    until("the stop", || shows(&control, "stop: Some"));
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

        // Interrupt stops a pass of the backbone too.
        let cache = b.folder.path().join("cache");
        let backbone = Backbone::untrained(Arch::ResNet18, Device::Cpu, 1).unwrap();
        let pass = |listener: &Listener| {
            backbone_features(&backbone, &b.data.train, &Transform::imagenet(128), 1, Some(&cache), listener)
        };
        // At this point some images are done and most are not, however fast the machine.
        let some_done = || {
            let files = std::fs::read_dir(&cache).into_iter().flatten().flatten();
            files.filter(|f| f.path().extension() == Some("part".as_ref())).any(|f| f.metadata().unwrap().len() > 4096)
        };
        let e = std::thread::scope(|scope| {
            scope.spawn(|| {
                until("the first rows", some_done);
                kernel.interrupt();
            });
            pass(&Listener::default()).err().unwrap()
        });
        assert!(matches!(e, Error::Interrupted(_)) && e.to_string().contains("interrupted after"), "{e}");
        assert!(e.to_string().contains("of 64 images; run it again"), "{e}");
        // The next pass goes on where this one was interrupted.
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
        let lab = kdlab::Lab::open().unwrap();
        let (gate, opened) = mpsc::channel::<()>();
        let opened = Mutex::new(opened);
        let first = watched(move |step, _| {
            if step == 4 {
                let _ = opened.lock().unwrap().recv_timeout(LIMIT);
            }
        });
        let first = lab.spawn(model(), &b.train, &b.validation, first, live_options("first", 3)).unwrap();
        let second =
            lab.spawn(model(), &b.train, &b.validation, watched(|_, _| ()), live_options("second", 2)).unwrap();
        let third = lab.spawn(model(), &b.train, &b.validation, watched(|_, _| ()), live_options("third", 2)).unwrap();
        assert_eq!(second.to_string(), "second: queued");
        let bar = |name: &str| {
            let displays = kernel.displays();
            let bars = displays.iter().filter(|d| {
                // A figure names its run too, in its alternative text.
                let data = &d[0]["data"];
                data["image/png"].is_null() && data["text/plain"].to_string().contains(name)
            });
            bars.flat_map(|d| d.iter().map(|state| state["data"]["text/plain"].to_string())).collect::<Vec<_>>()
        };
        assert!(bar("second")[0].contains("waiting for the runs before it"));
        // The Stop button of one that waits takes it out of the queue, and leaves nothing of its view open.
        kernel.frontend_sends(
            &kernel.widget("description", "Stop"),
            &json!({"method": "custom", "content": {"event": "click"}}),
        );
        until("the stop", || third.to_string().contains("finished"));
        until("the last of its view", || bar("third").last().unwrap().contains("before its first epoch was done"));
        let (_, history) = third.wait().unwrap();
        assert_eq!((history.records.len(), history.stopped.as_deref()), (0, Some("by the Stop button")));
        // One that waits shows the values it will begin with.
        let text = "T 4, alpha 0.5, learning rate 1e-3 (this frontend shows no sliders)";
        assert_eq!(kernel.displays().iter().filter(|panel| panel[0]["data"]["text/plain"] == text).count(), 3);
        drop(gate);
        // Interrupt while a cell waits stops the run that it waits for.
        let (control, frontend) = (second.control(), kernel.clone());
        let waits = std::thread::spawn(move || first.wait().unwrap().1);
        assert_eq!(waits.join().unwrap().records.len(), 3);
        control.pause();
        let waits = std::thread::spawn(move || second.wait().unwrap().1);
        kernel.wait("the watch", |messages| messages.iter().any(|(_, m)| m["watch"] == "second").then_some(()));
        frontend.interrupt();
        assert_eq!(waits.join().unwrap().stopped.as_deref(), Some("interrupted"));
        assert!(bar("first").last().unwrap().contains("kept the weights"), "{:?}", bar("first"));
        kernel.check_widgets();
    });
}

#[test]
fn background_runs_share_the_chart_of_the_last() {
    with_kernel("background_runs_share_the_chart_of_the_last", |kernel| {
        let b = bench();
        let lab = kdlab::Lab::open().unwrap();
        let spawn = |name: &str, epochs: usize, criterion: Criterion| {
            let FitOptions { control, listener, .. } = lab.fit_options(name);
            let options = FitOptions { control, listener, ..plain_options(name, epochs) };
            lab.spawn(model(), &b.train, &b.validation, criterion, options).unwrap()
        };
        // Each view opens three displays: the bar, the knobs and the figure.
        let shown = |run: usize, part: &str| {
            let displays = kernel.displays();
            let last = displays.get(3 * run + 2).and_then(|states| states.last());
            last.is_some_and(|state| state["data"]["text/plain"].to_string().contains(part))
        };
        let (gate, opened) = mpsc::channel::<()>();
        let opened = Mutex::new(opened);
        let gated = watched(move |step, _| {
            if step == 12 {
                let _ = opened.lock().unwrap().recv_timeout(LIMIT);
            }
        });
        let alone = spawn("alone", 3, gated);
        let distilled = spawn("distilled", 2, watched(|_, _| ()));
        // While the second waits, its chart shows how the first gets on.
        until("the line", || shown(0, "The chart of distilled also shows the curve of alone."));
        until("an epoch of the first", || shown(1, "in epoch 1 of 3; distilled, no finished epoch of 2"));
        // The chart goes to the third, and comes back when that is stopped before its turn.
        let third = spawn("third", 2, watched(|_, _| ()));
        until("the line", || shown(1, "The chart of third also shows the curve of distilled."));
        third.control().stop("by a test");
        assert_eq!(third.wait().unwrap().1.records.len(), 0);
        until("the line", || shown(2, "The chart of distilled also shows the curve of third."));
        drop(gate);
        assert_eq!(alone.wait().unwrap().1.records.len(), 3);
        assert_eq!(distilled.wait().unwrap().1.records.len(), 2);
        until("all curves", || shown(1, "of 3; distilled, best") && shown(1, "of 2; third, no finished epoch"));
        assert!(shown(0, "The chart of distilled also shows the curve of alone."));
        // A run that is queued when all have ended has a chart of its own.
        spawn("later", 1, watched(|_, _| ())).wait().unwrap();
        until("its chart", || shown(3, "over epochs: later, best"));
        kernel.check_widgets();
    });
}

#[test]
fn the_explorer_works_as_long_as_it_lives() {
    with_kernel("the_explorer_works_as_long_as_it_lives", |kernel| {
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
    assert_eq!(got(), Push::Comm { comm_id: "a".into(), data: json!({"x": 1}), buffers: vec![] });
    link.post(&json!({"watch": "y"})).unwrap();
    let display = Display::on(Some(&link));
    display.show(Bundle::text("1")).unwrap();
    drop((link, display));
    until("the end", || kernel.is_closed(0));
}
