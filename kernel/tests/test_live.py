"""The live link: displays that change while a cell runs, widgets, and answers to a frontend while it runs."""
import time
import unittest

from support import Client, KernelCase, OtherPage, display, rust, wait_until


class Displays(KernelCase):
    def shown(self, cell):
        return cell.all("display_data", "update_display_data")

    def test_displays_arrive_while_the_cell_runs(self):
        first, second = self.gate(), self.gate()
        picture = {"display": {
            "id": "picture", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "p"},
            "metadata": {"image/png": {"width": 880, "height": 366}},
        }}
        cell = self.client.begin(f'''
            let mut live = Live::open();
            println!("{{}}", live.ask({rust(picture)}));
            gate({rust(first)});
            println!("{{}}", live.ask({rust(display("picture", "changed", update=True))}));
            gate({rust(second)});''')
        cell.wait(lambda: len(self.shown(cell)) == 1, "the display")
        self.assertTrue(cell.running)
        message = self.shown(cell)[0]
        self.assertEqual(message["msg_type"], "display_data")
        self.assertEqual(message["content"]["data"], picture["display"]["data"])
        # The plain text is the image's alternative text where it has none.
        self.assertEqual(message["content"]["metadata"], {"image/png": {"width": 880, "height": 366, "alt": "p"}})
        self.assertEqual(message["content"]["transient"], {"display_id": "picture"})
        opened = time.time()
        first.touch()
        cell.wait(lambda: len(self.shown(cell)) == 2, "the update")
        self.assertTrue(cell.running)
        update = self.shown(cell)[1]
        self.assertLess(update["came"] - opened, 1)
        self.assertEqual(update["msg_type"], "update_display_data")
        self.assertEqual(update["content"]["data"], {"text/plain": "changed"})
        self.assertEqual(update["content"]["transient"], {"display_id": "picture"})
        second.touch()
        self.assertEqual(cell.finish().status, "ok")
        self.assertEqual([line.replace(" ", "") for line in cell.stdout.split("\n")], ['{"ok":true}'] * 2 + [""])

    def test_text_and_displays_come_in_the_order_of_the_cell(self):
        cell = self.client.ok('''
            let mut live = Live::open();
            for i in 0..100 {
                println!("line {i}");
                live.ask(&shown(&format!("row{i}"), false, "text/plain", &i.to_string()));
            }''')
        order = []
        for message in cell.all("stream", "display_data"):
            if message["msg_type"] == "stream":
                order += message["content"]["text"].splitlines()
            else:
                order.append("display " + message["content"]["data"]["text/plain"])
        self.assertEqual(order, [entry for i in range(100) for entry in (f"line {i}", f"display {i}")])

    def test_a_thousand_fast_updates(self):
        cell = self.client.ok(f'''
            let mut live = Live::open();
            live.ask({rust(display("fast", "-1"))});
            for i in 0..1000 {{
                live.send(&shown("fast", true, "text/plain", &i.to_string()));
            }}
            let good = (0..1000).filter(|_| live.answer().contains("\\"ok\\"")).count();
            println!("{{good}}");''')
        self.assertEqual(cell.stdout, "1000\n")
        texts = [m["content"]["data"]["text/plain"] for m in self.shown(cell)]
        self.assertEqual(texts, [str(i) for i in range(-1, 1000)])

    def test_big_pictures_and_json_pass_as_they_are(self):
        view = {"version_major": 2, "version_minor": 0, "model_id": "abc"}
        shown = display("big", "é ✓", **{"application/vnd.jupyter.widget-view+json": view})
        cell = self.client.ok(f'''
            let mut live = Live::open();
            live.ask({rust(shown)});
            let png = "iVBO".repeat(500_000);
            println!("{{}}", live.ask(&shown("big", true, "image/png", &png)));''')
        first, second = self.shown(cell)
        self.assertEqual(first["content"]["data"], shown["display"]["data"])
        self.assertEqual(second["content"]["data"]["image/png"], "iVBO" * 500_000)

    def test_a_wrong_request_is_told_so_and_the_connection_goes_on(self):
        wrong = ["no json", "[1]", "{}", '{"no_such_request": 1}', '{"display": {"id": 5}}']
        asks = "\n".join(f'println!("{{}}", live.ask({rust(line)}));' for line in wrong)
        cell = self.client.ok(f'''
            let mut live = Live::open();
            {asks}
            println!("{{}}", live.ask({rust(display("right", "right"))}));''')
        lines = cell.stdout.splitlines()
        for request, answer in zip(wrong, lines):
            with self.subTest(request=request):
                self.assertRegex(answer, r'^\{"error": ?".+"\}$')
        self.assertIn('"ok"', lines[len(wrong)])
        self.assertEqual([m["content"]["data"]["text/plain"] for m in self.shown(cell)], ["right"])

    def test_a_display_belongs_to_the_cell_that_connected(self):
        gate, done = self.gate(), self.kernel.file("thread-shown")
        first = self.client.ok(f'''
            let mut owner = Live::open();
            owner.ask({rust(display("owned", "0"))});
            let mut thread = Live::open();
            std::thread::spawn(move || {{
                gate({rust(gate)});
                thread.ask({rust(display("from a thread", "0"))});
                std::fs::write({rust(done)}, "").unwrap();
            }});''')
        second = self.client.ok(f'owner.ask({rust(display("owned", "1", update=True))}); println!("second");')
        # Clients find an update by its id, but those such as nbclient listen only to the running cell.
        update, = self.shown(second)
        self.assertEqual(update["msg_type"], "update_display_data")
        self.assertEqual(update["content"]["transient"], {"display_id": "owned"})
        gate.touch()
        wait_until(done.exists, "the display between cells", 20)
        self.client.wait(lambda: len(self.shown(first)) == 2, "the display between cells under the first cell", 5)
        self.assertEqual(len(self.shown(second)), 1)

    def test_connections_at_once(self):
        cell = self.client.ok('''
            let threads: Vec<_> = (0..8).map(|t| std::thread::spawn(move || {
                let mut live = Live::open();
                for i in 0..50 {
                    live.ask(&shown(&format!("t{t}"), i > 0, "text/plain", &i.to_string()));
                }
            })).collect();
            for thread in threads { thread.join().unwrap(); }''')
        for t in range(8):
            own = [m for m in self.shown(cell) if m["content"]["transient"]["display_id"] == f"t{t}"]
            self.assertEqual([m["content"]["data"]["text/plain"] for m in own], [str(i) for i in range(50)])


class ClientCrate(KernelCase):
    """The crate by which cells talk to the kernel, as its README shows it."""

    def test_a_chart_a_slider_and_interrupt(self):
        cell = self.client.begin('''
            let kept = vec![42];
            let panel = kdlab_client::Panel::open(kdlab_client::Widget::slider("step", [0.0, 1.0], 0.25), |_, _, _| ());
            panel.show("this frontend shows no sliders")?;
            let chart = kdlab_client::Display::new();
            let interrupt = kdlab_client::watch("my loop", |_| ());
            while interrupt.reason().is_none() {
                chart.show(&kdlab_client::Bundle::text(format!("step {}", panel.value("step"))))?;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            println!("{:?}", interrupt.reason());''')
        displays = lambda: cell.all("display_data", "update_display_data")
        texts = lambda: [m["content"]["data"].get("text/plain") for m in displays()]
        cell.wait(lambda: texts()[-1:] == ["step 0.25"], "the chart")
        view = cell.all("display_data")[0]["content"]["data"]["application/vnd.jupyter.widget-view+json"]
        slider = self.client.first("comm_open", 5, cell.id, lambda c: c["comm_id"] == view["model_id"])["content"]
        self.assertEqual(slider["data"]["state"]["_model_name"], "FloatSliderModel")
        moved = {"method": "update", "state": {"value": 0.75}, "buffer_paths": []}
        self.client.send("comm_msg", {"comm_id": view["model_id"], "data": moved})
        cell.wait(lambda: texts()[-1] == "step 0.75", "the chart after the slider moved", 10)
        self.assertEqual(len(cell.all("display_data")), 2)
        self.client.interrupt()
        self.assertEqual(cell.finish().status, "ok")
        self.assertIn("interrupted", cell.stdout)
        self.assertEqual(self.client.ok('println!("{kept:?}");').stdout, "[42]\n")


    def test_a_file_that_the_user_chooses(self):
        cell = self.client.begin('''
            use kdlab_client::{Panel, Widget};
            let upload = Panel::open(Widget::upload("Your image", "image/*"), |panel, name, value| {
                println!("heard {} {:?}", value[0]["size"], panel.files(name).len());
            });
            upload.show("this frontend uploads no files")?;
            while upload.files("Your image").is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }''')
        cell.wait(lambda: cell.all("display_data"), "the button")
        id = cell.all("display_data")[0]["content"]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
        opened = self.client.first("comm_open", 5, cell.id, lambda content: content["comm_id"] == id)["content"]
        state = {"_model_name": "FileUploadModel", "_view_name": "FileUploadView", "accept": "image/*", "value": []}
        self.assertEqual({key: opened["data"]["state"][key] for key in state}, state)
        # As the button of ipywidgets 8 sends it.
        content = bytes(range(256)) * 20_000
        file = {"name": "cat.png", "type": "image/png", "size": len(content), "last_modified": 1_700_000_000_000}
        chosen = {"method": "update", "state": {"value": [file]}, "buffer_paths": [["value", 0, "content"]]}
        self.client.send("comm_msg", {"comm_id": id, "data": chosen}, buffers=[content])
        self.assertEqual(cell.finish(60).status, "ok")
        self.assertEqual(cell.stdout, f"heard {len(content)} 1\n")
        cell = self.client.ok('''
            let file = upload.files("Your image").remove(0);
            let same = file.bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8);
            println!("{} {} {} {same}", file.name, file.mime, file.bytes.len());''')
        self.assertEqual(cell.stdout, f"cat.png image/png {len(content)} true\n")
        # A page that is opened later gets the content, too.
        request = self.client.send("comm_msg", {"comm_id": id, "data": {"method": "request_state"}})
        answer = self.client.first("comm_msg", 5, request)
        self.assertEqual(answer["content"]["data"]["buffer_paths"], [["value", 0, "content"]])
        self.assertEqual([bytes(buffer) for buffer in answer["buffers"]], [content])

    def test_the_output_is_cleared_and_the_next_cell_written(self):
        cell = self.client.ok('''
            println!("before");
            kdlab_client::clear_output(true)?;
            kdlab_client::set_next_input("1 + 1", false)?;
            kdlab_client::set_next_input("2 + 2", true)?;''')
        self.assertEqual([m["msg_type"] for m in cell.all("stream", "clear_output")], ["stream", "clear_output"])
        payload = [{"source": "set_next_input", "text": "2 + 2", "replace": True}]
        self.assertEqual(cell.reply["content"]["payload"], payload)


class Widgets(KernelCase):
    """Common parts of the tests of comms."""

    def open(self, id, **state):
        """Opens a slider from a cell; returns the cell, and the file in which pushes are noted."""
        log = self.kernel.file(f"pushes-{id}")
        state = {
            "_model_name": "FloatSliderModel", "_model_module": "@jupyter-widgets/controls",
            "_model_module_version": "2.0.0", "_view_name": "FloatSliderView", "value": 1.0, "min": 0.0, **state,
        }
        content = {"comm_id": id, "target_name": "jupyter.widget", "data": {"state": state, "buffer_paths": []}}
        cell = self.client.ok(f'''
            let mut {id} = Live::open();
            println!("{{}}", {id}.ask({rust({"comm_open": {**content, "metadata": {"version": "2.1.0"}}})}));
            {id}.listen({rust(log)});''')
        self.assertIn('"ok"', cell.stdout)
        return cell, log, content

    def message(self, id, **data):
        return self.client.send("comm_msg", {"comm_id": id, "data": data})

    def update(self, id, **state):
        return self.message(id, method="update", state=state, buffer_paths=[])

    def states(self, parent, timeout=2):
        """Checks that the kernel answers a comm message by busy and idle."""
        for state in ["busy", "idle"]:
            self.client.first("status", timeout, parent, lambda content: content["execution_state"] == state)

    def pushed(self, log, text, sent, within):
        """Returns the seconds from `sent` until a line with `text` reached the cell's process."""
        lines = []

        def look():
            lines[:] = [line for line in log.read_text().splitlines() if text in line] if log.exists() else []
            return lines

        wait_until(look, f"{text!r} at the cell's connection", 10)
        took = float(lines[0].split()[0]) - sent
        self.assertLess(took, within, f"it took {took:.2f} s until the cell's process had it")
        return lines

    def full_state(self, id):
        request = self.message(id, method="request_state")
        matching = lambda content: content["comm_id"] == id and content["data"]["method"] == "update"
        return self.client.first("comm_msg", 5, request, matching)["content"]["data"]["state"]

    def comm_info(self, **content):
        return self.client.ask("comm_info_request", content, timeout=5)["comms"]


class Comms(Widgets):
    """Widgets, with the messages that the frontend of ipywidgets sends."""

    def test_a_widget_reaches_the_frontend(self):
        cell, _, content = self.open("a1")
        opened = self.client.first("comm_open", 5, cell.id)
        self.assertEqual(opened["content"], content)
        self.assertEqual(opened["metadata"]["version"], "2.1.0")
        self.assertEqual(self.comm_info()["a1"], {"target_name": "jupyter.widget"})
        self.assertIn("a1", self.comm_info(target_name="jupyter.widget"))
        self.assertEqual(self.comm_info(target_name="other"), {})
        update = {"method": "update", "state": {"value": 2.0}, "buffer_paths": []}
        later = self.client.ok(f'a1.send({rust({"comm_msg": {"comm_id": "a1", "data": update}})});')
        message = self.client.first("comm_msg", 5, None, lambda c: c["comm_id"] == "a1")
        self.assertEqual(message["content"]["data"], {"method": "update", "state": {"value": 2.0}, "buffer_paths": []})
        self.assertEqual(later.status, "ok")

    def test_a_drag_reaches_the_cell_at_once(self):
        _, log, _ = self.open("b1")
        sent = time.time()
        parent = self.update("b1", value=2.5)
        lines = self.pushed(log, "2.5", sent, 0.5)
        self.assertIn('"comm_id":"b1"', lines[0].replace(" ", ""))
        self.states(parent)
        echo = self.client.first("comm_msg", 2, parent, lambda c: c["data"]["method"] == "echo_update")
        self.assertEqual(echo["content"]["comm_id"], "b1")
        self.assertEqual(echo["content"]["data"]["state"], {"value": 2.5})
        sent = time.time()
        parent = self.message("b1", method="custom", content={"event": "click"})
        self.pushed(log, "click", sent, 0.5)
        self.states(parent)

    def test_a_drag_reaches_a_cell_that_computes(self):
        _, log, _ = self.open("c1")
        gate = self.gate()
        cell = self.client.begin(f'println!("begun"); spin({rust(gate)});')
        cell.wait_text("begun")
        for value in range(10, 20):
            sent = time.time()
            parent = self.update("c1", value=value)
            self.pushed(log, f'"value":{value}', sent, 0.5)
            self.states(parent, 1)
        self.assertTrue(cell.running)
        self.assertEqual(self.full_state("c1")["value"], 19)
        gate.touch()
        cell.finish()

    def test_many_drags_keep_their_order(self):
        _, log, _ = self.open("d1")
        sent = time.time()
        for value in range(1000, 1200):
            self.update("d1", value=value)
        self.pushed(log, '"value":1199', sent, 5)
        values = [line.partition('"value":')[2].split("}")[0].split(",")[0] for line in log.read_text().splitlines()]
        self.assertEqual(values, [str(value) for value in range(1000, 1200)])

    def test_the_kernel_knows_every_state(self):
        self.open("e1", description="T")
        self.open("f1")
        update = {"method": "update", "state": {"max": 20.0}, "buffer_paths": []}
        change = {"comm_msg": {"comm_id": "e1", "data": update}}
        self.client.ok(f'e1.send({rust(change)});')
        self.states(self.update("e1", value=4.0))
        state = self.full_state("e1")
        wanted = {"value": 4.0, "min": 0.0, "max": 20.0, "description": "T"}
        self.assertEqual({key: state[key] for key in wanted}, wanted)
        # JupyterLab asks for all states at once after a reload.
        control = {"comm_id": "control", "target_name": "jupyter.widget.control", "data": {}}
        self.client.send("comm_open", control, metadata={"version": "1.0.0"})
        parent = self.message("control", method="request_states")
        answer = self.client.first("comm_msg", 5, parent, lambda c: c["comm_id"] == "control")["content"]["data"]
        self.assertEqual(answer["method"], "update_states")
        self.assertEqual(answer["buffer_paths"], [])
        for id, value in [("e1", 4.0), ("f1", 1.0)]:
            found = answer["states"][id]
            self.assertEqual(found["model_name"], "FloatSliderModel")
            self.assertEqual(found["model_module"], "@jupyter-widgets/controls")
            self.assertEqual(found["model_module_version"], "2.0.0")
            self.assertEqual(found["state"]["value"], value)
        self.assertEqual(answer["states"]["e1"]["state"]["max"], 20.0)
        self.states(parent)

    def test_comms_end_with_their_connection(self):
        self.open("g1")
        self.open("h1")
        self.client.ok("g1.close();")
        self.client.first("comm_close", 5, None, lambda c: c["comm_id"] == "g1")
        self.assertNotIn("g1", self.comm_info())
        self.assertIn("h1", self.comm_info())
        # A late message from a frontend that does not know it yet.
        self.states(self.update("g1", value=3.0))
        # The process ends, so nobody can answer.
        self.client.run("std::process::abort();")
        self.client.first("comm_close", 5, None, lambda c: c["comm_id"] == "h1")
        self.assertEqual(self.comm_info(), {})

    def test_comm_close_by_the_cell_and_by_the_frontend(self):
        self.open("i1")
        self.client.ok(f'i1.send({rust({"comm_close": {"comm_id": "i1"}})});')
        self.client.first("comm_close", 5, None, lambda c: c["comm_id"] == "i1")
        self.open("j1")
        self.client.send("comm_close", {"comm_id": "j1", "data": {}})
        self.assertNotIn("j1", self.comm_info())

    def test_unknown_targets_are_closed(self):
        parent = self.client.send("comm_open", {"comm_id": "nobody", "target_name": "no.such.target", "data": {}})
        self.client.first("comm_close", 5, None, lambda c: c["comm_id"] == "nobody")
        self.states(parent)


class Pages(Widgets):
    """A page is closed or reloaded while a cell runs, and opened again."""

    def another_page(self):
        page = Client(OtherPage(self.kernel.manager))
        self.addCleanup(page.close)
        return page

    def test_a_page_that_came_later_is_told_where_the_results_are(self):
        gate = self.gate()
        code = 'curves(&[&lab.history("late")?])?'
        cell = self.client.begin(f'''
            let mut late = Live::open();
            for _ in 0..2 {{ late.ask({rust({"afterwards": code})}); }}
            println!("begun");
            gate({rust(gate)});''')
        cell.wait_text("begun")
        page = self.another_page()
        gate.touch()
        count = cell.finish().reply["content"]["execution_count"]
        told = page.ok("let after_late = 1;")
        self.assertEqual(told.stderr.count("note: "), 1)
        self.assertIn(f"was opened while cell [{count}] ran", told.stderr)
        self.assertEqual(told.stderr.count(f"    {code}\n"), 1)
        self.assertEqual(page.ok("after_late").stderr, "")

    def test_a_page_that_saw_all_is_told_nothing(self):
        gate = self.gate()
        cell = self.client.begin(f'println!("begun"); gate({rust(gate)});')
        cell.wait_text("begun")
        # The same page connects again after the machine slept.
        self.client.ask("kernel_info_request", {})
        self.another_page()
        gate.touch()
        cell.finish()
        self.assertEqual(self.client.ok("1").stderr, "")

    def test_widgets_are_told_of_another_page_and_may_outlive_their_cell(self):
        _, log, _ = self.open("k1")
        ask = {"method": "request_states"}
        opened = {"comm_id": "control-2", "target_name": "jupyter.widget.control", "data": {}}
        self.client.send("comm_open", opened)
        self.states(self.message("control-2", **ask))
        page = self.another_page()
        page.send("comm_open", {**opened, "comm_id": "control-3"})
        sent = time.time()
        page.send("comm_msg", {"comm_id": "control-3", "data": ask})
        self.assertEqual(len(self.pushed(log, '"opened"', sent, 2)), 1)
        wait = "std::thread::sleep(std::time::Duration::from_millis(300));"
        self.client.ok(f'k1.send({rust({"comms_keep": {}})}); {wait} k1.close();')
        self.assertEqual(self.full_state("k1")["value"], 1.0)
        self.client.send("comm_close", {"comm_id": "k1", "data": {}})


class Names(KernelCase):
    """Completion and inspection of what the crate and the user's cells declare."""

    def completions(self, code):
        return self.client.ask("complete_request", {"code": code, "cursor_pos": len(code)})["matches"]

    def inspect(self, code):
        """The cursor is at the bar."""
        content = {"code": code.replace("|", "", 1), "cursor_pos": code.index("|"), "detail_level": 0}
        return self.client.ask("inspect_request", content)["data"].get("text/plain", "")

    def test_private_names_of_the_crate_are_not_offered(self):
        self.client.ok("let lab = Lab::open()?;")
        self.client.ok("pub struct Mine { own: i32 }\nlet mine = Mine { own: 1 };")
        for code, offered, hidden in [
            ("kdlab::", ["data::", "Lab"], ["files::", "error::"]),
            (
                "kdlab::data::", ["Dataset", "image_folder(path, size, options)"],
                ["pool::", "stratified(rows, labels, n, purpose, seed)"],
            ),
            ("lab.", ["profile", "runs()", "history(name)"], ["saved()", "precision_at(size)"]),
            ("let table = lab.", ["runs()"], ["saved()"]),
            ("Figure::", ["save_png(&self, path)"], ["new(width, height, drawing)", "draw(&self, area, scale)"]),
            ("mine.", ["own"], []),
        ]:
            with self.subTest(code=code):
                matches = self.completions(code)
                self.assertEqual([name for name in offered if name not in matches], [], matches)
                self.assertEqual([name for name in hidden if name in matches], [], matches)
                self.assertEqual(len(matches), len(set(matches)), "something is offered twice")

    def test_private_fields_of_libraries_are_not_offered(self):
        self.client.ok("pub struct Mine { own: i32 }\nlet (mine, pair) = (Mine { own: 1 }, (1, 2));")
        self.client.ok('let (list, range, path) = (vec![1], 0..3, std::path::PathBuf::from("a"));')
        for code, offered, hidden in [
            ("list.", ["len()", "push(value)"], ["buf", "len", "append_elements(other)"]),
            ("range.", ["start", "end"], []),
            ("path.", ["join(path)"], ["inner", "_push(path)"]),
            ("mine.", ["own"], []),
            ("pair.", ["0", "1"], []),
        ]:
            with self.subTest(code=code):
                matches = self.completions(code)
                self.assertEqual([name for name in offered if name not in matches], [], matches)
                self.assertEqual([name for name in hidden if name in matches], [], matches)

    def test_places_are_counted_in_code_points(self):
        self.client.ok('let text = String::from("x");')
        # A scientist of three code points, an accent of its own, and a flag of two.
        before = 'let a = "\U0001f469\u200d\U0001f52c e\u0301 \U0001f1e9\U0001f1ea"; '
        code = f"{before}text.le // \U0001f980"
        end = len(before) + len("text.le")
        reply = self.client.ask("complete_request", {"code": code, "cursor_pos": end})
        self.assertIn("len()", reply["matches"])
        self.assertEqual((reply["cursor_start"], reply["cursor_end"]), (end - 2, end))
        entry = reply["metadata"]["_jupyter_types_experimental"][0]
        self.assertEqual((entry["start"], entry["end"]), (end - 2, end))
        self.assertIn("pub const fn len", self.inspect(f"{before}text.le|n()"))

    def test_of_requests_in_a_burst_the_first_and_the_newest_are_worked_on(self):
        """Whoever types on does not wait for the completions of what stood there before."""
        self.client.ok('let text = String::from("x");')
        for kind, field in [("complete_request", "matches"), ("inspect_request", "data")]:
            with self.subTest(kind=kind):
                asked = {"code": "text.len()", "cursor_pos": 7, "detail_level": 0}
                sent = [self.client.send(kind, asked) for _ in range(12)]
                found = [bool(self.client.reply(id, 30)["content"][field]) for id in sent]
                self.assertTrue(found[0] and found[-1], found)
                self.assertLess(sum(found), 12, found)

    def test_the_word_under_the_cursor_is_inspected(self):
        self.client.ok("let lab = Lab::open()?;")
        for code in ["lab.ru|ns()?", "lab.|runs()?", "lab.runs|()?", 'println!("{}", lab.r|uns()?);', "lab.runs(|)?"]:
            with self.subTest(code=code):
                self.assertIn("pub fn runs(&self) -> Table", self.inspect(code))
        self.assertIn("lab: Lab", self.inspect("l|ab.runs()?"))
        self.assertIn("pub fn gallery(", self.inspect("gal|lery(&data.train, &data.classes, &[0])?"))
        self.assertIn("lab: Lab", self.inspect("gallery(&l|ab, 1)"))


class Answers(KernelCase):
    """A frontend asks while a long cell runs."""

    def test_answers_within_a_second(self):
        self.client.ok("let answers_variable = 1; fn answers_function() {}")
        gate = self.gate()
        cell = self.client.begin(f'println!("begun"); spin({rust(gate)});')
        cell.wait_text("begun")
        requests = {
            "kernel_info_request": {},
            "is_complete_request": {"code": "fn f() {"},
            "complete_request": {"code": "answers_va", "cursor_pos": 10},
            "inspect_request": {"code": "answers_variable", "cursor_pos": 3, "detail_level": 0},
            "history_request": {"hist_access_type": "tail", "n": 3, "output": False, "raw": True},
            "comm_info_request": {},
        }
        for _ in range(2):
            for type, content in requests.items():
                with self.subTest(type=type):
                    begun = time.monotonic()
                    id = self.client.send(type, content)
                    reply = self.client.reply(id, 10)
                    took = time.monotonic() - begun
                    self.assertEqual(reply["msg_type"], type.replace("request", "reply"))
                    self.assertLess(took, 1, f"{type} took {took:.2f} s")
                    if type != "is_complete_request":
                        self.assertEqual(reply["content"]["status"], "ok")
                    self.client.first("status", 2, id, lambda c: c["execution_state"] == "idle")
        begun = time.monotonic()
        self.client.ask("kernel_info_request", {}, timeout=10, channel="control")
        self.assertLess(time.monotonic() - begun, 1)
        self.assertTrue(cell.running)
        # Replies to other requests do not belong to this cell, and the kernel still counts as busy.
        self.assertEqual([m["msg_type"] for m in cell.all() if m["msg_type"] != "status"], ["execute_input", "stream"])
        state = lambda: [m for m in self.client.seen if m["msg_type"] == "status"][-1]["content"]["execution_state"]
        self.client.wait(lambda: state() == "busy", "the status busy after all others", 2)
        gate.touch()
        self.assertEqual(cell.finish().status, "ok")

    def test_queued_cells_run_in_order(self):
        gate = self.gate()
        cells = [self.client.begin(f'gate({rust(gate)}); println!("0");')]
        cells += [self.client.begin(f'println!("{i}");') for i in range(1, 4)]
        cells[0].wait(lambda: cells[0].all("execute_input"), "its beginning")
        self.assertEqual([len(cell.all("execute_input")) for cell in cells], [1, 0, 0, 0])
        gate.touch()
        for cell in cells:
            cell.finish()
        self.assertEqual([cell.stdout for cell in cells], ["0\n", "1\n", "2\n", "3\n"])
        counts = [cell.reply["content"]["execution_count"] for cell in cells]
        self.assertEqual(counts, list(range(counts[0], counts[0] + 4)))


if __name__ == "__main__":
    unittest.main()
