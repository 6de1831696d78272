"""What cells print, show and read, and their numbers."""
import base64
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import struct
import unittest

from support import Kernel, KernelCase, rust, wait_until

TABLE = 'let t = Table::new(&["a", "b"]).row(&["1".to_string(), "2".to_string()]);'


class Flood(unittest.TestCase):
    def test_a_flood_is_cut_and_nobody_waits_for_a_reader_that_stopped(self):
        kernel = Kernel()
        self.addCleanup(lambda: self.assertEqual(kernel.stop(), []))
        self.client = kernel.client
        info = kernel.manager.get_connection_info()
        code = f"""import time, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.connect("tcp://{info['ip']}:{info['iopub_port']}")
socket.subscribe(b"")
socket.recv()
print("subscribed", flush=True)
time.sleep(999)"""
        reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        self.addCleanup(reader.stdout.close)
        self.addCleanup(reader.wait)
        self.addCleanup(reader.kill)
        self.assertEqual(reader.stdout.readline(), "subscribed\n")
        reader.send_signal(signal.SIGSTOP)
        cell = self.client.begin('let mut i = 0u64; loop { println!("line {i}"); i += 1; }')
        cell.wait(lambda: "[cut: " in cell.stdout, "a note that output is cut", 60)
        time.sleep(5)
        begun = time.monotonic()
        self.client.interrupt()
        self.client.wait(lambda: not cell.running, "the end of the cell", 10)
        self.assertLess(time.monotonic() - begun, 5)
        # What was shown is whole up to the note, and its end follows.
        shown, _, end = cell.stdout.partition("\n[cut: ")
        self.assertTrue(shown == "".join(f"line {i}\n" for i in range(shown.count("\n"))), shown[-1000:])
        self.assertRegex(end, r"\[cut: [\d.]+ MB of output are left out here; this is their end:\]\nline \d+\n")
        memory = pathlib.Path(f"/proc/{kernel.pid}/status").read_text()
        self.assertLess(int(re.search(r"VmHWM:\s+(\d+) kB", memory)[1]), 500_000)
        # This is more than the pipes to the stopped reader hold.
        for _ in range(5):
            self.assertEqual(len(self.client.ok('println!("{}", "x".repeat(3_000_000));').stdout), 3_000_001)


class Streams(KernelCase):
    def test_a_line_arrives_while_the_cell_runs(self):
        gate = self.gate()
        cell = self.client.begin(f'println!("before"); gate({rust(gate)}); println!("after");')
        cell.wait_text("before\n")
        self.assertTrue(cell.running)
        gate.touch()
        self.assertEqual(cell.finish().stdout, "before\nafter\n")

    def test_text_without_a_newline_arrives(self):
        gate = self.gate()
        flush = "std::io::stdout().flush()?;"
        cell = self.client.begin(f'print!("no newline"); {flush} gate({rust(gate)}); println!(" and on");')
        cell.wait_text("no newline")
        self.assertTrue(cell.running)
        gate.touch()
        self.assertEqual(cell.finish().stdout, "no newline and on\n")
        # Text that the cell does not even flush, as its last action: it belongs to this cell, and nothing is appended.
        self.assertEqual(self.client.ok('print!("the end");').stdout, "the end")
        self.assertEqual(self.client.ok('println!("next");').stdout, "next\n")
        self.assertEqual(self.client.ok('eprint!("to stderr");').stderr, "to stderr")
        for write in ['write_all(b"first\\nrest")?;', 'lock().write_all(b"first\\nrest")?; Err::<(), _>("no")?;']:
            self.assertEqual(self.client.run(f"std::io::stdout().{write}").stdout, "first\nrest")

    def test_ten_megabytes_arrive_whole_and_in_order(self):
        cell = self.client.ok('for i in 0..100_000 { println!("{i:0>99}"); }')
        expected = "".join(f"{i:0>99}\n" for i in range(100_000))
        self.assertEqual(len(cell.stdout), len(expected))
        self.assertTrue(cell.stdout == expected, "the order of lines is not kept")

    def test_one_long_line_arrives_whole(self):
        cell = self.client.ok('println!("{}", "x".repeat(3_000_000));')
        self.assertEqual(len(cell.stdout), 3_000_001)

    def test_the_lines_by_which_evcxr_talks_are_text_when_a_cell_prints_them(self):
        for marker in ["EVCXR_EXECUTION_COMPLETE", "EVCXR_ERROR_OCCURRED"]:
            code = f'''
                println!("{marker}");
                std::thread::sleep(std::time::Duration::from_millis(500));
                let value = 7; println!("after");'''
            self.assertEqual(self.client.ok(code).stdout, f"{marker}\nafter\n")
            # A thread prints as the last action of the cell.
            self.client.ok(f'println!("{marker}");')
            wait = "std::thread::sleep(std::time::Duration::from_secs(1));"
            self.client.ok(f'std::thread::spawn(|| println!("{marker}")).join().unwrap(); {wait}')
            self.assertEqual(self.client.ok('println!("{value}");').stdout, "7\n")

    def test_both_streams_keep_what_is_theirs(self):
        cell = self.client.ok('for i in 0..500 { println!("out {i}"); eprintln!("err {i}"); }')
        self.assertEqual(cell.stdout, "".join(f"out {i}\n" for i in range(500)))
        self.assertEqual(cell.stderr, "".join(f"err {i}\n" for i in range(500)))

    def test_invalid_utf8_neither_hangs_nor_takes_other_text_along(self):
        bytes_ = r'b"caf\xe9 au\n\xff\xfe\n"'
        cell = self.client.ok(f'std::io::stdout().write_all({bytes_})?; println!("lait é");', timeout=60)
        self.assertIn("caf", cell.stdout)
        self.assertIn(" au\n", cell.stdout)
        self.assertTrue(cell.stdout.endswith("lait é\n"), cell.stdout)
        cell = self.client.ok(r'std::io::stderr().write_all(b"\xff bad\n")?;', timeout=60)
        self.assertIn(" bad\n", cell.stderr)
        # A character whose bytes arrive separately is one character.
        halves = r'''
            std::io::stdout().write_all(b"\xe2\x82")?; std::io::stdout().flush()?;
            std::thread::sleep(std::time::Duration::from_millis(300));
            std::io::stdout().write_all(b"\xac\n")?;'''
        self.assertEqual(self.client.ok(halves).stdout, "€\n")

    def test_a_thread_that_prints_between_cells(self):
        gate, done = self.gate(), self.kernel.file("printed")
        cell = self.client.ok(f'''
            std::thread::spawn(|| {{
                gate({rust(gate)});
                for i in 0..2_000 {{ println!("between {{i:0>99}}"); }}
                std::fs::write({rust(done)}, "").unwrap();
            }});''')
        gate.touch()
        # This is more than a pipe holds, so the kernel must read it although no cell runs.
        wait_until(done.exists, "the end of the thread's printing", 20)
        expected = "".join(f"between {i:0>99}\n" for i in range(2_000))

        def printed():
            texts = [m["content"]["text"] for m in self.client.seen if m["msg_type"] == "stream"]
            return "".join(texts).count("between ") >= 2_000

        self.client.wait(printed, "all that the thread printed", 20)
        messages = [m for m in self.client.seen if m["msg_type"] == "stream" and "between" in m["content"]["text"]]
        self.assertTrue("".join(m["content"]["text"] for m in messages) == expected, "lines are lost or out of order")
        self.assertEqual({m["parent_header"].get("msg_id") for m in messages}, {cell.id})


class Shown(KernelCase):
    def test_several_results_in_one_cell(self):
        cell = self.client.ok(f'''
            {TABLE}
            for i in 0..3 {{ println!("before {{i}}"); t.evcxr_display(); }}
            println!("after");
            t''')
        kinds = [m["msg_type"] for m in cell.all("stream", "display_data", "execute_result")]
        self.assertEqual(kinds, ["stream", "display_data"] * 3 + ["stream", "execute_result"])
        shown = cell.all("display_data", "execute_result")
        for message in shown:
            self.assertEqual(sorted(message["content"]["data"]), ["text/html", "text/plain"])
            self.assertIn("<table", message["content"]["data"]["text/html"])
            self.assertNotIn("EVCXR", str(message["content"]))
        self.assertNotIn("EVCXR", cell.stdout)
        self.assertEqual(shown[-1]["content"]["execution_count"], cell.reply["content"]["execution_count"])

    def test_a_figure_is_a_png(self):
        cell = self.client.ok('''
            let figure = plot(&[1, 2], &[3, 4], ["x", "y"])?;
            figure.evcxr_display();
            println!("on");
            figure''')
        for kind in ["display_data", "execute_result"]:
            data = cell.all(kind)[0]["content"]["data"]
            self.assertEqual(sorted(data), ["image/png", "text/plain"])
            # Half of the pixels, because JupyterLab would show the figure at twice its size.
            metadata = cell.all(kind)[0]["content"]["metadata"]["image/png"]
            pixels = struct.unpack(">II", base64.b64decode(data["image/png"])[16:24])
            self.assertEqual((2 * metadata["width"], 2 * metadata["height"]), pixels)
            self.assertTrue(metadata["alt"])
            self.assertTrue(base64.b64decode(data["image/png"], validate=True).startswith(b"\x89PNG"))
        self.assertEqual(cell.stdout, "on\n")

    def test_vars_are_listed(self):
        self.client.ok("let listed_number = 3i64;")
        cell = self.client.ok(":vars")
        data = cell.all("execute_result", "display_data")[-1]["content"]["data"]
        self.assertIn("listed_number", data["text/plain"])
        self.assertIn("i64", data["text/plain"])


class Input(KernelCase):
    READ = '''
        println!("EVCXR_INPUT_REQUEST:name? ");
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        println!("hello {}", line.trim());'''

    def test_a_cell_asks_and_reads(self):
        cell = self.client.begin(self.READ, allow_stdin=True)
        request = self.client.kc.stdin_channel.get_msg(timeout=120)
        self.assertEqual(request["msg_type"], "input_request")
        self.assertEqual(request["content"], {"prompt": "name? ", "password": False})
        self.assertEqual(request["parent_header"]["msg_id"], cell.id)
        self.assertTrue(cell.running)
        self.client.send("input_reply", {"value": "Ada", "status": "ok"}, "stdin", parent=request)
        self.assertEqual(cell.finish().status, "ok")
        self.assertEqual(cell.stdout, "hello Ada\n")

    def test_a_password_is_asked_for_as_one(self):
        cell = self.client.begin(self.READ.replace("REQUEST:", "REQUEST_PASSWORD:"), allow_stdin=True)
        request = self.client.kc.stdin_channel.get_msg(timeout=120)
        self.assertEqual(request["content"], {"prompt": "name? ", "password": True})
        self.client.send("input_reply", {"value": "sesame", "status": "ok"}, "stdin", parent=request)
        self.assertEqual(cell.finish().stdout, "hello sesame\n")

    def test_without_leave_to_ask_the_cell_ends_all_the_same(self):
        cell = self.client.run(self.READ, timeout=120, allow_stdin=False)
        self.assertIn(cell.status, ["ok", "error"])
        self.assertNotIn("Ada", cell.stdout)
        self.assertEqual(self.client.ok('println!("on");').stdout, "on\n")

    def type(self, *lines):
        """Answers the requests for input, one by one."""
        for line in lines:
            request = self.client.kc.stdin_channel.get_msg(timeout=120)
            self.assertEqual(request["content"], {"prompt": "", "password": False})
            self.client.send("input_reply", {"value": line, "status": "ok"}, "stdin", parent=request)

    def test_what_reads_stdin_gets_what_the_user_types(self):
        cell = self.client.begin('''
            let mut all = vec![];
            for _ in 0..3 {
                let mut line = String::new();
                print!("? ");
                std::io::stdin().read_line(&mut line)?;
                all.push(line);
            }
            println!("{all:?}");''', allow_stdin=True)
        self.type("one", "", "drei é")
        self.assertEqual(cell.finish().stdout, '? ? ? ["one\\n", "\\n", "drei é\\n"]\n')
        self.assertEqual((cell.status, cell.stderr), ("ok", ""))
        # Ctrl-D in a terminal.
        cell = self.client.begin(
            'for line in std::io::stdin().lines() { println!("<{}>", line?); }\nprintln!("end");', allow_stdin=True
        )
        self.type("one", "two", "\x04")
        self.assertEqual(cell.finish().stdout, "<one>\n<two>\nend\n")
        thread = "let mut line = String::new(); std::io::stdin().read_line(&mut line).unwrap(); line.len()"
        cell = self.client.begin(f"std::thread::spawn(|| {{ {thread} }}).join().unwrap()", allow_stdin=True)
        self.type("four")
        self.assertEqual(cell.finish().all("execute_result")[0]["content"]["data"]["text/plain"], "5")

    def test_interrupt_ends_a_read_of_stdin(self):
        self.client.ok("let kept = 41;")
        cell = self.client.begin(
            """
            let mut line = String::new();
            let bytes = std::io::stdin().read_line(&mut line)? + std::io::stdin().read_line(&mut line)?;""",
            allow_stdin=True,
        )
        request = self.client.kc.stdin_channel.get_msg(timeout=120)
        self.client.interrupt()
        cell.finish(10)
        self.assertEqual([error["content"]["ename"] for error in cell.errors], ["Interrupted"], cell.describe())
        # A late answer reaches nobody.
        self.client.send("input_reply", {"value": "late", "status": "ok"}, "stdin", parent=request)
        self.assertEqual(self.client.ok('println!("{kept} {bytes} {line:?}");').stdout, '41 0 ""\n')

    def test_where_nobody_can_type_stdin_ends(self):
        read = "let mut line = String::new();\nstd::io::stdin().read_line(&mut line)?"
        cell = self.client.ok(read, timeout=30)
        self.assertEqual(cell.all("execute_result")[0]["content"]["data"]["text/plain"], "0")
        self.assertIn("note: nobody can type here, so stdin ends at once", cell.stderr)

    def test_interrupt_ends_a_wait_for_input(self):
        cell = self.client.begin(self.READ, allow_stdin=True)
        self.client.kc.stdin_channel.get_msg(timeout=120)
        self.assertEqual(self.client.interrupt()["status"], "ok")
        cell.finish(20)
        self.assertEqual(cell.status, "error")
        self.assertEqual(self.client.ok('println!("on");').stdout, "on\n")


class Requests(KernelCase):
    """Parts of the protocol around a cell."""

    ASK = 'let mut live = Live::open();\nprintln!("{}", live.ask(r#"REQUEST"#));'

    def asks(self, request):
        return self.client.ok(self.ASK.replace("REQUEST", request))

    def test_a_cell_clears_its_output(self):
        for wait in ["true", "false"]:
            code = self.ASK.replace("REQUEST", f'{{"clear_output": {{"wait": {wait}}}}}')
            cell = self.client.ok(f'println!("before");\n{code}')
            shown = cell.all("stream", "clear_output")
            self.assertEqual([message["msg_type"] for message in shown], ["stream", "clear_output", "stream"])
            self.assertEqual(shown[0]["content"]["text"], "before\n")
            self.assertEqual(shown[1]["content"], {"wait": wait == "true"})

    def test_a_cell_writes_the_next_one(self):
        cell = self.asks('{"set_next_input": {"text": "1 + 1"}}')
        expected = [{"source": "set_next_input", "text": "1 + 1", "replace": False}]
        self.assertEqual(cell.reply["content"]["payload"], expected)
        self.assertIn('"error"', self.asks('{"set_next_input": {"replace": true}}').stdout)
        self.assertEqual(self.client.ok("1").reply["content"]["payload"], [])

    def test_expressions_are_evaluated_after_the_cell(self):
        asked = {
            "length": "words.len()", "words": "words", "statement": "let a = 1", "fails": '"x".parse::<i32>()?',
            "unknown": "no_such_name", "panics": "words[7]", "command": ":vars",
        }
        cell = self.client.ok('let words = vec!["a".to_owned(), "b".to_owned()];', user_expressions=asked)
        values = cell.reply["content"]["user_expressions"]
        self.assertEqual(set(values), set(asked))
        self.assertEqual(values["length"], {"status": "ok", "data": {"text/plain": "2"}, "metadata": {}})
        self.assertEqual(values["words"]["data"]["text/plain"], '["a", "b"]')
        for name, words in {
            "statement": "this is no expression of Rust", "fails": "invalid digit", "unknown": "cannot find value",
            "panics": "index out of bounds", "command": "this is no expression of Rust",
        }.items():
            self.assertEqual(values[name]["status"], "error")
            self.assertIn(words, values[name]["evalue"])
            self.assertTrue(values[name]["ename"] and values[name]["traceback"])
        # They show and change nothing.
        self.assertEqual([m["msg_type"] for m in cell.all()], ["status", "execute_input", "status"])
        self.assertEqual(self.client.ok("words.len()").all("execute_result")[0]["content"]["data"]["text/plain"], "2")
        # After an error, none is evaluated.
        cell = self.client.run('panic!("out");', user_expressions={"length": "words.len()"})
        self.assertNotIn("user_expressions", cell.reply["content"])

    def test_control_requests_are_busy_and_idle(self):
        for kind in ["interrupt_request", "kernel_info_request", "usage_request"]:
            id = self.client.send(kind, {}, "control")
            self.client.reply(id, 10, "control")
            self.client.first("status", 5, id, lambda content: content["execution_state"] == "idle")
            own = [m for m in self.client.seen if m["parent_header"].get("msg_id") == id]
            self.assertEqual([m["content"]["execution_state"] for m in own], ["busy", "idle"], kind)

    def test_what_the_kernel_uses_of_the_machine(self):
        ask = lambda: self.client.ask("usage_request", {}, channel="control")
        first = ask()
        self.assertEqual((first["pid"], first["cpu_count"]), (self.kernel.pid, os.cpu_count()))
        # The server, evcxr with rust-analyzer, and the child.
        self.assertGreater(first["kernel_memory"], 50 << 20)
        self.client.ok("let begun = std::time::Instant::now();\nwhile begun.elapsed().as_secs_f64() < 0.5 {}")
        second = ask()
        self.assertGreater(second["kernel_cpu"], 1.0)
        self.assertGreater(second["host_cpu_percent"], 0.0)
        memory = second["host_virtual_memory"]
        self.assertLess(memory["available"], memory["total"])

    def test_the_language_has_the_version_of_rustc(self):
        version = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
        for channel in ["shell", "control"]:
            info = self.client.ask("kernel_info_request", {}, channel=channel)
            self.assertEqual(info["language_info"]["version"], version)


class Counting(KernelCase):
    def count(self, cell):
        return cell.reply["content"]["execution_count"]

    def test_counts_start_at_one_and_go_up_by_one(self):
        # `setUpClass` ran the first cell.
        first = self.client.first("execute_input", 1)
        self.assertEqual(first["content"]["execution_count"], 1)
        one, two = self.client.ok("1"), self.client.ok("2")
        self.assertEqual(self.count(two), self.count(one) + 1)
        self.assertEqual(two.all("execute_input")[0]["content"], {"code": "2", "execution_count": self.count(two)})
        self.assertEqual(two.all("execute_result")[0]["content"]["execution_count"], self.count(two))
        failed = self.client.run('Err::<(), _>("no".to_string())?;')
        self.assertEqual(self.count(failed), self.count(two) + 1)
        self.assertEqual(self.count(self.client.ok("3")), self.count(two) + 2)

    def test_silent_requests_are_not_counted_and_show_nothing(self):
        before = self.client.ok("1")
        silent = self.client.ok("let quiet = 5; quiet", silent=True, store_history=False)
        self.assertEqual(silent.all("execute_input", "execute_result"), [])
        after = self.client.ok("quiet + 1")
        self.assertEqual(self.count(after), self.count(before) + 1)
        self.assertEqual(after.all("execute_result")[0]["content"]["data"]["text/plain"], "6")
        history = self.client.ask("history_request", {"hist_access_type": "tail", "n": 2, "output": False, "raw": True})
        self.assertEqual([entry[2] for entry in history["history"]], ["1", "quiet + 1"])

    def test_requests_that_do_not_store_history(self):
        before = self.client.ok("7")
        self.client.ok("8", store_history=False)
        self.assertEqual(self.count(self.client.ok("9")), self.count(before) + 1)
        history = self.client.ask("history_request", {"hist_access_type": "tail", "n": 2, "output": False, "raw": True})
        self.assertEqual([entry[2] for entry in history["history"]], ["7", "9"])

    def test_an_empty_cell_is_ok(self):
        for code in ["", "  \n", "// only a remark"]:
            with self.subTest(code=code):
                self.assertEqual(self.client.ok(code).all("error", "stream", "execute_result"), [])

    def test_every_cell_is_busy_first_and_idle_last(self):
        cell = self.client.ok('println!("text"); 5')
        kinds = [m["msg_type"] for m in cell.all()]
        self.assertEqual(kinds, ["status", "execute_input", "stream", "execute_result", "status"])
        states = [m["content"]["execution_state"] for m in cell.all("status")]
        self.assertEqual(states, ["busy", "idle"])


if __name__ == "__main__":
    unittest.main()
