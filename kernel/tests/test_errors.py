"""How a cell fails: once, in words that help, and as an error of the protocol."""
import unittest

from support import Kernel, KernelCase, rust

# Words that only the machinery below a cell uses.
MACHINERY = [
    "stack backtrace", "evcxr", "EVCXR", "run_user_code", "/rustc/", "catch_unwind", "frame #",
    "Exception raised from", "RUST_BACKTRACE", "/.cargo/",
]


class Errors(KernelCase):
    def fails(self, code, *wanted, silent_about=MACHINERY):
        """The cell fails with one error that holds these words and none of the machinery's, and an empty stderr."""
        cell = self.client.run(code)
        text = cell.error_text
        self.assertEqual(cell.status, "error", cell.describe())
        self.assertEqual(len(cell.errors), 1, cell.describe())
        content, reply = cell.errors[0]["content"], cell.reply["content"]
        self.assertTrue(content["ename"] and content["evalue"] and content["traceback"], content)
        for key in ["ename", "evalue", "traceback"]:
            self.assertEqual(reply[key], content[key])
        for word in wanted:
            self.assertIn(word, text)
        for word in silent_about:
            self.assertNotIn(word, text)
        self.assertEqual(cell.stderr, "")
        self.assertEqual(cell.all("execute_result"), [])
        kinds = [m["msg_type"] for m in cell.all()]
        self.assertEqual(kinds[-1], "status")
        return cell

    def kept(self):
        self.assertEqual(self.client.ok('println!("{kept}");').stdout, "41\n")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client.ok("let kept = 41;")

    def test_question_mark(self):
        error = 'Err::<(), _>("the file is not there".to_string())?;'
        cell = self.fails(f'println!("before");\n{error}\nprintln!("after");', "the file is not there")
        self.assertEqual(cell.stdout, "before\n")
        self.assertIn("the file is not there", cell.errors[0]["content"]["evalue"])
        self.kept()

    def test_the_crates_own_errors_keep_their_words(self):
        self.fails("let kd = KdLoss::new(-1.0, 0.5)?;", "temperature must be > 0, got -1")

    def test_errors_with_several_lines_and_marks(self):
        self.fails(r'Err::<(), _>("first line\nsecond \"line\" é".to_string())?;', "first line", "second", "é")

    def test_panic(self):
        line = "let w = v[kept as usize];"
        reason = "index out of bounds: the len is 0 but the index is 41"
        cell = self.fails(f'println!("before");\nlet v: Vec<i32> = Vec::new();\n{line}', reason, "line 3", line)
        self.assertEqual(cell.stdout, "before\n")
        self.assertIn("index out of bounds", cell.errors[0]["content"]["evalue"])
        self.assertEqual("".join(cell.errors[0]["content"]["traceback"]).count("the index is 41"), 1)
        self.kept()

    def test_a_panic_that_takes_a_second_to_tell_is_one_error(self):
        self.addCleanup(self.client.ok, "drop(std::panic::take_hook());")
        cell = self.fails('''
            std::panic::set_hook(Box::new(|_| {
                eprint!("\\nthread 'slow' panicked at src/lib.rs:1:1:\\nslowly told\\n");
                std::thread::sleep(std::time::Duration::from_millis(1200));
                eprint!("stack backtrace:\\n   0: f\\n             at ./src/lib.rs:1:1\\n");
            }));
            panic!("slowly told");''', "slowly told")
        self.assertEqual(cell.errors[0]["content"]["ename"], "panic")

    def test_a_todo_is_a_task_and_no_panic(self):
        self.client.ok('fn later() -> i32 { todo!("later: return the number of images") }')
        cell = self.fails("later();", "to do: later: return the number of images", "in the place of `todo!`")
        self.assertNotIn("panic", cell.error_text)

    def test_panic_in_a_function_of_an_earlier_cell(self):
        self.client.ok('fn divide(a: i32, b: i32) -> i32 { assert!(b != 0, "b is {b}"); a / b }')
        self.fails("let one = 1;\ndivide(one, 0)", "b is 0")

    def test_a_panic_in_a_library_tells_where(self):
        # The place in the library, without the path on this machine.
        cell = self.fails("let x = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));\nlet y = x.matmul(&x);")
        self.assertRegex(cell.error_text, r"at tch-[0-9.]+/src/\S+\.rs:\d+")

    def test_unwrap_says_why(self):
        self.fails('let n: i32 = "x1".parse().unwrap();', "InvalidDigit", "line 1")

    def test_a_panic_that_the_cell_catches_is_none(self):
        panic = 'std::thread::spawn(|| { panic!("in a thread"); }).join().is_err()'
        cell = self.client.ok(f'let caught = {panic}; println!("{{caught}}");')
        self.assertEqual(cell.stdout, "true\n")
        # The thread's message is ordinary text and is shown.
        self.assertIn("in a thread", cell.stderr)

    def test_compile_errors_come_as_one(self):
        cell = self.fails('let a: i32 = "text";\nlet b: bool = 5;', "mismatched types", "i32", "bool")
        self.assertIn("mismatched types", cell.errors[0]["content"]["evalue"])
        self.kept()

    def test_warnings_are_left_out_beside_an_error(self):
        code = 'fn f() { let unread = 1; return; let b = 2; }\nlet a: u8 = "x";'
        cell = self.fails(code, "mismatched types", silent_about=[*MACHINERY, "unused", "unreachable", "the first of"])
        self.assertEqual(cell.errors[0]["content"]["evalue"], "mismatched types")

    def test_what_a_cell_moved_away_is_not_lost(self):
        self.client.ok("let moved = vec![1]; let stays = vec![2];")
        self.client.ok("fn only_an_item() {}")
        self.client.ok("drop(moved);")
        cell = self.client.run("std::process::abort();")
        self.assertRegex(cell.error_text, r"lost: .*\bstays\b")
        self.assertRegex(cell.error_text, r"lost: .*\bkept\b")
        self.assertNotIn("moved", cell.error_text)
        self.client.ok("let kept = 41;")

    def test_syntax_errors(self):
        for code in ["let = 3;", "let x = ;", "fn f( { }", "1 +", "let s = 'ab';", "}"]:
            with self.subTest(code=code):
                self.fails(code)
        self.kept()

    def test_unknown_name(self):
        self.fails('println!("{}", no_such_name);', "no_such_name")

    def test_unknown_command(self):
        self.fails(":no_such_command", "no_such_command")

    def test_moved_variable(self):
        self.client.ok('let moved = String::from("text");')
        self.client.ok("drop(moved);")
        self.fails('println!("{moved}");', "moved")
        self.kept()

    def test_variable_that_borrows(self):
        self.client.ok("let owner = vec![1, 2];")
        self.fails("let part = &owner[..1];", "part", silent_about=[w for w in MACHINERY if "evcxr" not in w])

    def test_shapes_of_a_tensor_error(self):
        zeros = "Tensor::zeros([2, 3], (Kind::Float, Device::Cpu))"
        cell = self.fails(f"let x = {zeros};\nlet y = x.matmul(&x);", "(2x3 and 2x3)")
        self.assertIn("(2x3 and 2x3)", cell.errors[0]["content"]["evalue"])
        cell = self.fails(f"let x = {zeros};\nlet y = x.f_matmul(&x)?;", "(2x3 and 2x3)")
        self.assertIn("(2x3 and 2x3)", cell.errors[0]["content"]["evalue"])
        self.kept()

    def test_what_a_failed_cell_would_have_replaced_stays(self):
        self.client.ok("let mut rows = vec![1, 2];\nlet name = String::from(\"first\");\nlet size = 3usize;")
        both = 'println!("{rows:?} {name} {size}");'
        for failure in ['"x".parse::<i32>()?', 'panic!("on purpose")', 'Err::<i32, _>("no".to_string())?']:
            code = f'// the rows of it\nlet rows = vec![9.5];\nlet (name, other) = (7, 8);\nlet size: i32 = {failure};'
            self.assertEqual(self.client.run(code).status, "error")
            self.assertEqual(self.client.ok(both).stdout, "[1, 2] first 3\n")
        # It is still mutable.
        self.assertEqual(self.client.ok(f"rows.push(3);\n{both}").stdout, "[1, 2, 3] first 3\n")
        # So does one that the cell reads first.
        cell = self.client.run('println!("{name}");\nlet rows = vec![rows.len()];\nlet name: i32 = "x".parse()?;')
        self.assertEqual((cell.status, cell.stdout), ("error", "first\n"))
        self.assertEqual(self.client.ok(both).stdout, "[1, 2, 3] first 3\n")
        self.client.ok("rows.push(4); rows.pop();")
        # A value that the cell moved away before the failure is gone, and a note says so.
        cell = self.client.run('let moved = name; let name = 1;\nlet size: i32 = "x".parse()?;')
        self.assertIn("`name` is lost, because the cell moved it away before it replaced it", cell.stderr)
        self.fails("name.len()", "cannot find value `name`")
        self.assertEqual(self.client.ok('println!("{rows:?} {size}");').stdout, "[1, 2, 3] 3\n")
        # A cell that succeeds replaces them.
        self.assertEqual(self.client.ok("let rows = 1.5;\nlet name = 2;").status, "ok")
        self.assertEqual(self.client.ok(both).stdout, "1.5 2 3\n")

    def test_text_on_stderr_is_no_error(self):
        cell = self.client.ok("eprintln!(\"error: thread 'main' panicked at nothing\");")
        self.assertEqual(cell.stderr, "error: thread 'main' panicked at nothing\n")

    def test_stderr_before_a_panic_is_kept(self):
        cell = self.client.run('eprintln!("a warning"); panic!("and out");')
        self.assertEqual(cell.status, "error")
        self.assertEqual(cell.stderr, "a warning\n")
        self.assertEqual(len(cell.errors), 1)
        self.assertIn("and out", cell.error_text)

    def test_abort_and_exit_name_what_is_lost(self):
        for code, word in [("std::process::abort();", "SIGABRT"), ("std::process::exit(3);", "3")]:
            with self.subTest(code=code):
                self.client.ok("let kept = 41; let also_lost = vec![1];")
                cell = self.fails(f'println!("last words");\n{code}', word, "kept", "also_lost")
                self.assertEqual(cell.stdout, "last words\n")
                self.fails('println!("{kept}");', "kept")
                again = self.client.ok("let kept = 41; kept + 1").all("execute_result")
                self.assertEqual(again[0]["content"]["data"]["text/plain"], "42")
        # Functions are not values of the process, so they are still there.
        self.client.ok("fn twice(x: i32) -> i32 { 2 * x }")
        self.client.run("std::process::abort();")
        self.assertEqual(self.client.ok('let kept = 41; println!("{}", twice(4));').stdout, "8\n")

    def test_what_ended_the_process_is_told_by_its_kind(self):
        body = "if n == 0 { 0 } else { 1 + deep(n - 1) + std::hint::black_box(n % 2) }"
        deep = f"fn deep(n: u64) -> u64 {{ {body} }}\ndeep(1 << 40)"
        large = "vec![1u64; 1 << 38].len()"
        for code, words in [(large, "out of memory: memory allocation of"), (deep, "nested too deeply")]:
            cell = self.client.run(code)
            self.assertIn(words, cell.error_text)
            self.assertNotIn("rustc", cell.stderr + cell.error_text)
            self.client.ok("let kept = 41;")

    def test_a_variable_of_what_never_returns(self):
        for end in [".join().unwrap()", ""]:
            self.fails(f'let t = std::thread::spawn(|| panic!("x")){end};', "its type is `!`", "|| -> ()")
            self.kept()

    def test_segfault(self):
        cell = self.client.run("unsafe { std::ptr::null_mut::<i32>().write_volatile(1) };")
        self.client.ok("let kept = 41;")
        self.assertEqual(cell.status, "error")
        self.assertEqual(len(cell.errors), 1)
        for word in ["SIG", "kept", "unsafe code used memory that is not its own"]:
            self.assertIn(word, cell.error_text)
        # Only the first line of evcxr's signal handler, without its frames.
        self.assertIn(cell.stderr, ["", "Segmentation fault.\n"])

    def queue(self, failing, **content):
        gate = self.gate()
        first = self.client.begin(f"gate({rust(gate)});\n{failing}", **content)
        rest = [self.client.begin(f'println!("{i}");', **content) for i in range(3)]
        first.wait(lambda: first.all("execute_input"), "its beginning")
        gate.touch()
        return [cell.finish() for cell in [first, *rest]]

    def test_an_error_aborts_what_is_queued(self):
        for failing in ['panic!("out");', 'Err::<(), _>("out".to_string())?;', 'let n: i32 = "text";']:
            with self.subTest(failing=failing):
                first, *rest = self.queue(failing)
                self.assertEqual(first.status, "error")
                self.assertEqual([cell.status for cell in rest], ["aborted"] * 3)
                self.assertEqual([cell.all("stream", "execute_input", "error") for cell in rest], [[]] * 3)
                # A frontend would show a count, but these cells never ran.
                self.assertNotIn("execution_count", rest[0].reply["content"])
        # Only queued cells are aborted; the next request runs.
        self.assertEqual(self.client.ok('println!("on");').stdout, "on\n")

    def test_a_request_may_ask_to_go_on(self):
        first, *rest = self.queue('panic!("out");', stop_on_error=False)
        self.assertEqual(first.status, "error")
        self.assertEqual([cell.status for cell in rest], ["ok"] * 3)
        self.assertEqual([cell.stdout for cell in rest], ["0\n", "1\n", "2\n"])


class First(unittest.TestCase):
    def test_the_first_cell_may_end_by_a_question_mark(self):
        kernel = Kernel()
        self.addCleanup(lambda: self.assertEqual(kernel.stop(), []))
        table = 'Ok::<_, String>(Table::new(&["a"]))?'
        cell = kernel.client.ok(table)
        result = cell.all("execute_result")[0]["content"]
        self.assertIn("<table", result["data"]["text/html"])
        self.assertEqual((cell.stdout, cell.stderr), ("", ""))
        self.assertEqual(result["execution_count"], cell.reply["content"]["execution_count"])
        code = '::std::println!("from the root");\n  ::std::mem::drop(1);'
        self.assertEqual(kernel.client.ok(code).stdout, "from the root\n")
        # What `:clear` removed is not lost.
        kernel.client.ok("let cleared = 1;")
        kernel.client.ok(":clear\nlet kept = 41;")
        self.assertRegex(kernel.client.run("std::process::abort();").error_text, r"lost: kept\n")


if __name__ == "__main__":
    unittest.main()
