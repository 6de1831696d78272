"""Jupyter's tests for every kernel: PyPI's jupyter_kernel_test, with samples in Rust.

Left out is only `code_page_something`: a pager is a feature of IPython's `?`, and evcxr has none.
"""
import functools
import unittest

import jupyter_kernel_test

TIMEOUT = 60
TABLE = 'let t = Table::new(&["a", "b"]).row(&["1".to_string(), "2".to_string()]);'
BLOCK = 'println!("EVCXR_BEGIN_CONTENT text/html\\n<b>bold</b>\\nEVCXR_END_CONTENT");'


class Conformance(jupyter_kernel_test.KernelTests):
    kernel_name = "kdlab"
    language_name = "Rust"
    file_extension = ".rs"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        code = "let mut fourty_two = 42;\nlet mut fourty_one = 41;\nfn full_name() -> i32 { 1 }"
        cls.kc.execute_interactive(code, timeout=TIMEOUT)

    # The original waits 15 s for a cell, too short for a compiler on a busy machine, and for other replies for ever.
    def execute_helper(self, code, timeout=TIMEOUT, **options):
        return super().execute_helper(code, timeout, **options)

    def get_non_kernel_info_reply(self, timeout=TIMEOUT):
        return super().get_non_kernel_info_reply(timeout)

    code_hello_world = 'println!("hello, world")'
    code_stderr = 'eprintln!("to stderr")'
    code_generate_error = "let number: i32 = \"text\";"
    completion_samples = [
        {"text": "fourty", "matches": {"fourty_two", "fourty_one"}},
        {"text": "fourty_t", "matches": {"fourty_two"}},
        {"text": "let y = full_na", "matches": {"full_name()"}},
        {"text": "fourty_two.checked_ne", "matches": {"checked_neg()"}},
    ]
    complete_code_samples = [
        "1",
        'println!("hello, world")',
        "let x = 1;",
        "fn f(x: i32) -> i32 {\n    x + 1\n}",
        ":vars",
        "// a remark",
        "struct P { x: f64 }\nimpl P { fn new() -> Self { P { x: 1.0 } } }",
        'let s = "a } in a text";',
    ]
    incomplete_code_samples = [
        "fn f(x: i32) -> i32 {",
        "println!(",
        "let v = vec![1,",
        'let s = "not closed',
        "/* a remark that goes on",
        "for i in 0..3 {\n    println!(\"{i}\");",
    ]
    invalid_code_samples = ["let x = 1; }", "fn f() { ) }", "let = = 3;"]
    code_execute_result = [
        {"code": "6*7", "result": "42"},
        {"code": TABLE + "\nt", "mime": "text/html"},
    ]
    code_display_data = [
        {"code": TABLE + "\nt.evcxr_display();\nprintln!();", "mime": "text/html"},
        {"code": BLOCK + '\nprintln!("after it");', "mime": "text/html"},
    ]
    code_clear_output = "kdlab_client::clear_output(false)?;"
    code_history_pattern = "6*7"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "fourty_two"


class Welcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "kdlab"
    support_iopub_welcome = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.kc.get_iopub_msg = functools.partial(cls.kc.get_iopub_msg, timeout=TIMEOUT)


if __name__ == "__main__":
    unittest.main()
