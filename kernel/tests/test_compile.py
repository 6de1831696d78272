"""How cells are compiled: changes take effect, and errors are reported."""
import os
import pathlib
import tempfile
import unittest

from jupyter_client import KernelManager

from support import Client, KernelCase


class Compile(KernelCase):
    def value(self, code):
        return self.client.ok(code).all("execute_result")[0]["content"]["data"]["text/plain"]

    def test_an_edited_crate_takes_effect_in_the_next_cell(self):
        folder = self.kernel.file("mine")
        (folder / "src").mkdir(parents=True)
        (folder / "Cargo.toml").write_text('[package]\nname = "mine"\nversion = "0.1.0"\nedition = "2024"\n')
        source = folder / "src/lib.rs"
        source.write_text("pub fn answer() -> i32 { 1 }\n")
        self.client.ok(f':dep mine = {{ path = "{folder}" }}')
        self.assertEqual(self.value("let before = mine::answer(); before"), "1")
        self.assertEqual(self.value("mine::answer()"), "1")
        source.write_text("mod deeper;\npub use deeper::answer;\n")
        (folder / "src/deeper.rs").write_text("pub fn answer() -> i32 { 2 }\n")
        self.assertEqual(self.value("mine::answer()"), "2")
        (folder / "src/deeper.rs").write_text("pub fn answer() -> i32 { 3 }\n")
        self.assertEqual(self.value("mine::answer() + before"), "4")
        (folder / "src/deeper.rs").write_text("pub fn answer() -> i32 { }\n")
        cell = self.client.run("mine::answer()")
        self.assertEqual(cell.status, "error")
        (folder / "src/deeper.rs").write_text("pub fn answer() -> i32 { 5 }\n")
        self.assertEqual(self.value("mine::answer()"), "5")

    def test_values_without_a_display_are_shown_by_debug(self):
        cases = {'("a", 1.5)': '("a", 1.5)', '"text"': '"text"', "vec![1u8; 3]": "[1, 1, 1]", "1 + 1": "2"}
        for code, text in cases.items():
            self.assertEqual(self.value(code), text)
        self.client.ok("struct Silent(#[allow(dead_code)] i32);")
        cell = self.client.run("Silent(1)")
        self.assertEqual(cell.status, "error")
        self.assertIn("Debug", cell.error_text)
        # A type's own display comes first, through references too.
        display = 'pub fn evcxr_display(&self) { println!("heard"); }'
        self.client.ok(f"#[derive(Debug)] pub struct Loud; impl Loud {{ {display} }}")
        for code in ["Loud", "&Loud"]:
            cell = self.client.ok(code)
            self.assertEqual((cell.stdout, cell.all("execute_result")), ("heard\n", []))

    def test_types_of_the_standard_library_are_known(self):
        """rust-analyzer reads it without function bodies, except those that the length of an array may depend on."""
        self.client.ok(
            "let sizes = [0u8; std::mem::size_of::<u64>() + 2usize.pow(3)];\n"
            "let doubled = (0..3).map(|x| x * 2).collect::<std::collections::VecDeque<i32>>();\n"
            "let words = \"a b\".split(' ').map(str::to_owned).collect::<Vec<_>>();\n"
            "let bits = 1.5f64.max(2.0).sqrt().to_bits().leading_zeros();\n"
            "let powers = std::iter::successors(Some(1u32), |x| x.checked_mul(10)).take(3).collect::<Vec<_>>();\n"
            "let shared = std::sync::Arc::new(std::sync::Mutex::new(Some('c').zip(u8::try_from(300).ok())));"
        )
        self.assertEqual(self.value("(sizes.len(), doubled.len(), words.len(), bits)"), "(16, 3, 2, 2)")

    def test_what_no_variable_can_hold_is_told_by_rustc_alone(self):
        """evcxr runs `cargo check`, which would first check all dependencies of the cell."""
        built = pathlib.Path(self.kernel.environment("EVCXR_TMPDIR")) / "target"
        crates = lambda: sorted(str(path) for path in built.glob("**/deps/libtch-*"))
        before = crates()
        self.assertTrue(before)
        for body, reason in [("2 * x", "closure"), ("x.twice()", "no method named `twice`")]:
            cell = self.client.run(f"let twice = |x: i64| {body};")
            self.assertEqual(cell.status, "error")
            self.assertIn(reason, cell.error_text)
        self.assertEqual(crates(), before)
        self.assertEqual(self.value("2 * 2"), "4")

    def test_cells_see_the_user_s_own_tools(self):
        """The kernel compiles with a cargo of its own, but programs that cells start use the user's."""
        cell = self.client.ok('std::env::var("PATH").unwrap_or_default()')
        self.assertNotIn("kernel/cargo", str(cell.all("execute_result")))
        self.assertEqual(self.value('std::env::vars().filter(|(name, _)| name.starts_with("MIMALLOC")).count()'), "0")
        if pathlib.Path("/proc/self/status").exists():
            line = 'lines().find(|line| line.starts_with("THP")).map(str::to_owned)'
            huge = f'std::fs::read_to_string("/proc/self/status")?.{line}'
            self.assertIn("1", self.value(huge))
        run = 'std::process::Command::new("cargo").arg("--version").output()?.stdout'
        version = self.value(f"String::from_utf8_lossy(&{run}).into_owned()")
        self.assertRegex(version, r"^\"cargo \d")


class Start(unittest.TestCase):
    def test_a_prelude_that_does_not_compile_is_told(self):
        program = str(pathlib.Path(os.environ["KDLAB_ROOT"]) / ".kdlab/bin/kdlab-kernel")
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder) / "config"
            config.mkdir()
            (config / "prelude.rs").write_text('let n: u32 = "text";\n')
            manager = KernelManager(kernel_name="kdlab")
            manager.kernel_spec.argv = [program, "{connection_file}"]
            own = {"EVCXR_CONFIG_DIR": str(config), "EVCXR_TMPDIR": f"{folder}/cells"}
            manager.start_kernel(cwd=folder, env={**os.environ, **own})
            try:
                client = Client(manager)
                cell = client.run("6 * 7", timeout=60)
                self.assertEqual(cell.status, "error")
                self.assertIn("mismatched types", cell.error_text)
                client.close()
            finally:
                manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    unittest.main()
