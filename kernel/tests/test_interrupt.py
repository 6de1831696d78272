"""The Stop button: what stops, what is kept, and what the kernel reports as lost."""
import time
import unittest

from support import KernelCase, family, rust, still_there, wait_until

# A fit on 300 tiny images whose batches take a given time.
FIT = '''
use kdlab::train::{Event, Listener};
fn slow(vs: &nn::Path, milliseconds: u64) -> Layers {
    Layers::new()
        .func("pool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))
        .add("fc", nn::linear(vs / "fc", 3, 10, Default::default()))
        .func_t("wait", move |x, training| {
            if training {
                println!("a batch");
                std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            }
            x.shallow_clone()
        })
}
fn options(epochs: usize, batch_size: usize) -> FitOptions {
    let listener = Listener::new(|event| {
        if let Event::Epoch { record, .. } = event { println!("epoch {}", record.epoch) }
    });
    FitOptions { epochs, batch_size, listener, ..FitOptions::default() }
}
'''
OPEN = '''
let kept = 41;
let lab = Lab::open()?;
let data = lab.dataset()?;
let train = Examples::images(&data.train, &lab.student_transform())?;
let validation = Examples::images(&data.validation, &lab.student_transform())?;
'''
ENDED = 'println!("ended: {:?} after {}", history.stopped, history.records.len());'



class Interrupt(KernelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client.ok(FIT)

    def fit(self, milliseconds, epochs, batch_size):
        """Starts a cell with a fit, and waits for its first batch."""
        self.client.ok(OPEN + f'let mut net = Model::new("net", Device::Cpu, 0, &|vs| slow(vs, {milliseconds}))?;')
        cell = self.client.begin(f'''
            let history =
                fit(&mut net, &train, &validation, &Criterion::cross_entropy(), &options({epochs}, {batch_size}))?;
            {ENDED}''')
        cell.wait_text("a batch")
        return cell

    def stop(self, cell, within):
        """Interrupts once; the cell has to end within `within` seconds."""
        begun = time.time()
        self.assertEqual(self.client.interrupt()["status"], "ok")
        cell.finish(within + 10)
        took = cell.reply["came"] - begun
        self.assertLess(took, within, f"it took {took:.1f} s")
        return begun

    def number(self, name):
        return int(self.client.ok(f'println!("{{}}", {name});').stdout)

    def lost(self, cell, *names):
        self.assertEqual(cell.status, "error", cell.describe())
        self.assertEqual(len(cell.errors), 1, cell.describe())
        for name in names:
            self.assertRegex(cell.error_text, rf"\b{name}\b")
        self.assertEqual(cell.stderr, "")
        # The kernel goes on, and functions are still there.
        self.assertEqual(self.client.run('println!("{kept}");').status, "error")
        self.client.ok("let o = options(1, 1); let kept = 5;")
        self.assertEqual(self.number("kept"), 5)

    def test_a_fit_stops_within_a_batch_and_keeps_everything(self):
        cell = self.fit(milliseconds=300, epochs=1000, batch_size=100)
        cell.wait_text("epoch 2")
        begun = self.stop(cell, within=3)
        self.assertEqual(cell.status, "ok", cell.describe())
        self.assertEqual(cell.errors, [])
        later = [m for m in cell.all("stream") if m["came"] > begun]
        self.assertLessEqual("".join(m["content"]["text"] for m in later).count("a batch"), 1)
        done = cell.stdout.count("epoch ")
        self.assertIn(f'ended: Some("interrupted") after {done}', cell.stdout)
        self.assertGreaterEqual(done, 2)
        # No variable is lost, and nothing says so.
        self.assertNotIn("lost", cell.stdout + cell.stderr)
        self.assertEqual(self.number("history.records.len()"), done)
        self.assertEqual(self.number("net.parameters()"), 40)
        self.assertEqual(self.number("kept"), 41)

    def test_a_fit_stops_before_its_first_epoch_has_ended(self):
        cell = self.fit(milliseconds=200, epochs=3, batch_size=1)
        self.stop(cell, within=3)
        self.assertEqual(cell.status, "ok", cell.describe())
        self.assertIn('ended: Some("interrupted") after 0', cell.stdout)
        self.assertEqual(self.number("net.parameters()"), 40)
        # Interrupt stops that fit, not the next one.
        cell = self.client.ok(f'''
            let mut quick = Model::new("quick", Device::Cpu, 0, &|vs| slow(vs, 0))?;
            let history = fit(&mut quick, &train, &validation, &Criterion::cross_entropy(), &options(2, 100))?;
            {ENDED}''')
        self.assertIn("ended: None after 2", cell.stdout)

    def test_a_second_interrupt_ends_what_does_not_listen(self):
        cell = self.fit(milliseconds=50_000, epochs=1, batch_size=300)
        begun = time.monotonic()
        self.assertEqual(self.client.interrupt()["status"], "ok")
        self.assertTrue(cell.running)
        self.stop(cell, within=5)
        self.assertLess(time.monotonic() - begun, 30)
        self.lost(cell, "net", "train", "kept")

    def test_a_loop_that_nothing_can_stop(self):
        self.client.ok("let kept = 41; let dear = vec![1];")
        cell = self.client.begin('println!("begun"); loop { std::hint::black_box(0); }')
        cell.wait_text("begun")
        self.stop(cell, within=5)
        self.assertEqual(cell.stdout, "begun\n")
        self.lost(cell, "kept", "dear")

    def test_a_watch_that_ended_protects_no_more(self):
        # After the fit, the same cell does work that does not watch.
        self.client.ok(OPEN + 'let mut net = Model::new("net", Device::Cpu, 0, &|vs| slow(vs, 0))?;')
        cell = self.client.begin('''
            let history = fit(&mut net, &train, &validation, &Criterion::cross_entropy(), &options(1, 100))?;
            println!("fitted"); loop { std::hint::black_box(0); }''')
        cell.wait_text("fitted")
        self.stop(cell, within=5)
        self.lost(cell, "net", "kept")

    def test_while_it_compiles_nothing_is_lost(self):
        self.client.ok("let kept = 41;")
        cell = self.client.begin('''
            #[allow(long_running_const_eval)]
            const SLOW: u64 = { let mut i = 0u64; while i < 100_000_000_000 { i += 1; } i };
            println!("{SLOW}");''')
        compilers, since = {}, time.monotonic()

        def compiling():
            # A rustc that runs for two seconds compiles; others only print their version.
            nonlocal compilers, since
            now = {key for key, name in family(self.kernel.pid).items() if name == "rustc"}
            if compilers != now:
                compilers, since = now, time.monotonic()
            return compilers and time.monotonic() - since > 2

        wait_until(compiling, "a compiler below the kernel", 60)
        members = family(self.kernel.pid)
        self.stop(cell, within=5)
        self.assertEqual(cell.status, "error", cell.describe())
        self.assertEqual(len(cell.errors), 1, cell.describe())
        self.assertEqual(cell.stderr, "")
        self.assertEqual(self.number("kept"), 41)
        compilers = {key: name for key, name in members.items() if name in ("rustc", "cargo")}
        wait_until(lambda: not still_there(compilers), f"the end of {list(compilers.values())}", 3)
        # The next cell compiles as usual.
        self.assertEqual(self.client.ok('println!("{}", kept + 1);').stdout, "42\n")

    def test_while_nothing_runs_nothing_is_lost(self):
        self.client.ok("let kept = 41;")
        for _ in range(2):
            self.assertEqual(self.client.interrupt()["status"], "ok")
        self.assertEqual(self.number("kept"), 41)

    def test_queued_cells_are_dropped(self):
        self.client.ok("let kept = 41;")
        cell = self.client.begin('println!("begun"); loop { std::hint::black_box(0); }')
        queued = [self.client.begin('println!("ran");') for _ in range(2)]
        cell.wait_text("begun")
        self.stop(cell, within=5)
        self.assertEqual([q.finish().status for q in queued], ["aborted"] * 2)
        self.assertEqual([q.stdout for q in queued], ["", ""])
        self.lost(cell, "kept")


if __name__ == "__main__":
    unittest.main()
