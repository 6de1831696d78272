"""The Stop button: what stops, what is kept, and what the kernel reports as lost."""
import time
import unittest

from support import KernelCase, family, plain, rust, still_there, wait_until

# A fit on 300 tiny images whose batches take a given time.
FIT = '''
use kdlab::train::{Event, Listener};
fn slow(vs: &nn::Path, milliseconds: u64) -> Layers {
    Layers::new()
        .func("pool", |x| x.adaptive_avg_pool2d([1, 1]).flatten(1, -1))
        .add("fc", nn::linear(vs / "fc", 3, 10, Default::default()))
        .add("wait", nn::func_t(move |x, training| {
            if training {
                println!("a batch");
                std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            }
            x.shallow_clone()
        }))
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

    def interrupted(self, code, kept, without=(), moved=()):
        """Interrupts the cell once.

        It names the variables of its own that are `kept`, those `without` a value, and those of earlier cells that it
        has `moved` away.
        """
        self.client.ok("let kept = 41; let dear = vec![1];")
        cell = self.client.begin(code)
        cell.wait_text("begun")
        self.stop(cell, within=5)
        self.assertEqual(cell.status, "error", cell.describe())
        self.assertEqual([error["content"]["ename"] for error in cell.errors], ["Interrupted"], cell.describe())
        own = "; kept from this cell: " + ", ".join(kept) if kept else ""
        lost = "; not kept: " + ", ".join(without) if without else ""
        away = ", except those that this cell has moved: " + ", ".join(moved) if moved else ""
        message = f"all variables of earlier cells are kept{away}{own}{lost}"
        self.assertEqual(cell.errors[0]["content"]["evalue"], message)
        self.assertEqual(plain("\n".join(cell.errors[0]["content"]["traceback"])), f"Interrupted: {message}")
        self.assertEqual(self.client.ok('println!("{kept} {dear:?}");').stdout, "41 [1]\n")
        return cell

    def test_a_training_loop_of_ones_own(self):
        self.interrupted('''
            let mut steps = 0u64;
            let vs = nn::VarStore::new(Device::Cpu);
            let net = nn::linear(vs.root(), 4, 2, Default::default());
            let mut optimizer = nn::Adam::default().build(&vs, 1e-3)?;
            println!("begun");
            for epoch in 0.. {
                for batch in 0..10 {
                    let x = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
                    optimizer.backward_step(&x.apply(&net).square().mean(Kind::Float));
                    steps += 1;
                }
            }
            let trained = true;''', ["steps", "vs", "net", "optimizer"], ["trained"])
        # They are variables as all others: the loop goes on where it was.
        before = self.number("steps")
        self.assertGreater(before, 0)
        self.client.ok("for _ in 0..5 { optimizer.zero_grad(); steps += 1; }")
        self.assertEqual(self.number("steps"), before + 5)

    def test_loops_and_what_they_leave_behind(self):
        for code, kept, without in [
            ('println!("begun"); loop { std::hint::black_box(0); }', [], []),
            ('let a = 1; println!("begun"); while a > 0 { std::hint::black_box(0); } let b = 2;', ["a"], ["b"]),
            ('let mut left = vec![1]; println!("begun");\n'
             'while let Some(x) = left.pop() { left.push(x + 1); }', ["left"], []),
            # Of a statement that binds a variable, nothing is there yet.
            ('let a = 1; println!("begun");\n'
             'let n = loop { std::hint::black_box(0); if a == 2 { break a; } };', ["a"], ["n"]),
            ('let a = vec![1]; println!("begun"); for x in a.iter().cycle() { std::hint::black_box(x); }', ["a"], []),
            # A loop that moves a variable cannot give it back.
            ('let a = vec![1u64]; let b = 2; println!("begun");\n'
             'for mut x in a { loop { x = x.wrapping_add(b); } }', ["b"], ["a"]),
            # In functions, closures and iterators the variables of the cell are out of reach.
            ('fn forever(mut n: u64) -> u64 { loop { n += 1; if n == 0 { return n; } } }\n'
             'let a = 1; println!("begun"); let n = forever(a);', [], ["a", "n"]),
            ('println!("begun"); let n = (0..u64::MAX).map(|x| x ^ 1).filter(|x| x % 3 == 0).sum::<u64>();', [], ["n"]),
            ('fn deep(n: u64) -> u64 { if n < 2 { n } else { deep(n - 1) + deep(n - 2) } }\n'
             'println!("begun"); deep(90)', [], []),
            ('let t = std::thread::spawn(|| -> () { loop { std::hint::black_box(0); } });\n'
             'println!("begun"); t.join().unwrap();', [], ["t"]),
        ]:
            with self.subTest(code):
                self.interrupted(code, kept, without)
        # The function of an earlier cell.
        self.interrupted('println!("begun"); forever(1)', [])

    def test_loops_that_hide(self):
        """Loops in which not all can be stored, and those that are not written as loops of the cell."""
        spin = "std::hint::black_box(0);"
        self.client.ok('''
            fn even(n: u64) -> u64 { if n < 2 { n } else { odd(n - 1) + odd(n - 2) } }
            fn odd(n: u64) -> u64 { if n < 2 { n } else { even(n - 1) + even(n - 2) } }
            struct Twig(Option<Box<Twig>>);
            impl Twig { fn ends(&self) -> u64 { self.0.as_ref().map_or(1, |t| t.ends() + t.ends()) } }
            macro_rules! forever { ($body:block) => { loop { $body } } }''')
        for code, kept, without in [
            # The loop borrows a variable.
            ('let a = 1; let mut v = vec![1]; println!("begun");\n'
             'for x in v.drain(..) { loop { std::hint::black_box(x); } }', ["a"], ["v"]),
            ('let a = 1; let c = std::cell::RefCell::new(vec![1]); println!("begun");\n'
             'for x in c.borrow_mut().iter_mut() { loop { std::hint::black_box(&x); } }', ["a"], ["c"]),
            ('let a = 1; let c = std::sync::Mutex::new(1); let g = c.lock().unwrap(); println!("begun");\n'
             'loop { std::hint::black_box(&g); }', ["a"], ["c", "g"]),
            # It has no value yet, or none in the inner loop.
            (f'let a = 1; let x: u8; println!("begun");\n'
             f'loop {{ {spin} if a == 2 {{ x = 1; break; }} }} x', ["a"], ["x"]),
            (f'let a = 1; let mut v = vec![1]; println!("begun");\n'
             f'loop {{ drop(v); loop {{ {spin} if a == 2 {{ break; }} }} v = vec![]; }}', ["a"], ["v"]),
            # Another variable of the same name.
            ('let x = 1; println!("begun");\n'
             'println!("{}", { let x = 5; loop { std::hint::black_box(x); } });', [], ["x"]),
            # Inner loops that are short otherwise.
            ('let mut s = 0u64; println!("begun"); loop { for i in [1u64, 2].iter().cycle() { s ^= i; } }', ["s"], []),
            ('let mut s = 0;\n'
             'loop { println!("begun"); s += (0..u64::MAX).map(|x| x ^ 3).filter(|x| x % 7 == 1).count(); }',
             [], ["s"]),
            ('println!("begun"); even(90)', [], []),
            ('let t = (0..70).fold(Twig(None), |t, _| Twig(Some(Box::new(t)))); println!("begun");\n'
             't.ends()', [], ["t"]),
            (f'let a = 1; println!("begun"); forever!({{ {spin} }});', [], ["a"]),
            (f'mod live_kernel {{}}\nlet a = 1; println!("begun"); loop {{ {spin} }}', ["a"], []),
            # Threads: a panic of another thread is not what ended the cell.
            (f'println!("begun"); std::thread::scope(|s| {{ s.spawn(|| loop {{ {spin} }}); }});', [], []),
            ('let (tx, rx) = std::sync::mpsc::sync_channel(9);\n'
             'std::thread::spawn(move || (0..).for_each(|x| tx.send(x).unwrap()));\n'
             'println!("begun"); let mut s = 0u64; for x in rx { s ^= x; }', ["s"], ["tx", "rx"]),
        ]:
            with self.subTest(code):
                self.interrupted(code, kept, without)
        self.client.ok("let prey = vec![1, 2];")
        self.interrupted('println!("begun"); for x in prey { loop { std::hint::black_box(x); } }', [], moved=["prey"])

    def test_a_cell_that_goes_on_without_a_part_is_no_success(self):
        self.client.ok("let kept = 41usize;")
        for code in [
            'let (tx, rx) = std::sync::mpsc::channel();\n'
            'std::thread::spawn(move || loop { if std::env::args().count() > 99 { tx.send(1).unwrap(); } });\n'
            'println!("begun"); let n = rx.iter().count();',
            'println!("begun"); let n = 0usize;\n'
            'let _ = std::panic::catch_unwind(|| loop { std::hint::black_box(0); });',
        ]:
            cell = self.client.begin(code)
            cell.wait_text("begun")
            self.stop(cell, within=5)
            self.assertEqual(cell.status, "error", cell.describe())
            self.assertIn("Interrupted: a part of the cell was stopped", cell.error_text)
            self.assertEqual(self.number("n + kept"), 41)

    def test_what_cannot_be_unwound_runs_to_its_end(self):
        self.client.ok('''
            unsafe extern "C" {
                fn qsort(base: *mut u64, n: usize, size: usize, by: extern "C" fn(*const u64, *const u64) -> i32);
            }
            fn dawdle(n: u64) -> u64 { let mut i = 0u64; while i < 20_000_000 { i = std::hint::black_box(i + 1); } n }
            extern "C" fn by(a: *const u64, b: *const u64) -> i32 { unsafe { dawdle(*a) as i32 - dawdle(*b) as i32 } }
            let kept = 41;''')
        cell = self.client.begin('''
            let mut v: Vec<u64> = (0..8).rev().collect();
            println!("begun");
            unsafe { qsort(v.as_mut_ptr(), v.len(), 8, by); }
            println!("{v:?}");
            loop { std::hint::black_box(0); }''')
        cell.wait_text("begun")
        self.client.interrupt()
        cell.finish()
        self.assertIn("all variables of earlier cells are kept; kept from this cell: v", cell.error_text)
        self.assertIn("[0, 1, 2, 3, 4, 5, 6, 7]", cell.stdout)
        self.assertEqual(self.number("kept"), 41)

    def test_checks_are_not_seen(self):
        self.client.ok("let dbg_of = vec![1, 2];")
        cell = self.client.run("assert!(dbg_of.iter().all(|x| *x > 1));")
        self.assertEqual(cell.errors[0]["content"]["evalue"], "assertion failed: dbg_of.iter().all(|x| *x > 1)")
        cell = self.client.ok("let s = dbg!(dbg_of.iter().map(|x| x * 2).sum::<i32>());")
        self.assertIn("dbg_of.iter().map(|x| x * 2).sum::<i32>() = 6", cell.stderr)

    def test_a_cell_after_an_interrupted_one_runs(self):
        self.interrupted('println!("begun"); loop { std::hint::black_box(0); }', [])
        self.assertEqual(self.client.ok('for i in 0..3 { print!("{i}"); }').stdout, "012")

    def test_one_interrupt_ends_a_loop_of_fits(self):
        self.client.ok(OPEN)
        code = '''
            let mut done = 0;
            println!("begun");
            for seed in 0..1000 {
                let mut net = Model::new("net", Device::Cpu, seed, &|vs| slow(vs, 100))?;
                fit(&mut net, &train, &validation, &Criterion::cross_entropy(), &options(1, 100))?;
                done += 1;
            }'''
        cell = self.interrupted(code, ["done"])
        self.assertLessEqual(self.number("done"), cell.stdout.count("epoch") + 1)

    def test_what_follows_an_interrupted_fit_still_runs(self):
        cell = self.fit(milliseconds=100, epochs=1000, batch_size=100)
        self.stop(cell, within=3)
        self.assertEqual(cell.status, "ok", cell.describe())
        # But not for ever.
        self.client.ok('let mut net = Model::new("net", Device::Cpu, 0, &|vs| slow(vs, 0))?;')
        self.interrupted('''
            let history = fit(&mut net, &train, &validation, &Criterion::cross_entropy(), &options(1, 100))?;
            println!("begun"); loop { std::hint::black_box(0); }''', ["history"])

    def test_the_place_of_an_error_beside_a_loop(self):
        for code, place in [
            ('let a: u8 = "x"; for i in 0..3 { }', "1:13"),
            ('for i in 0..3 { } let a: u8 = "x";', "1:31"),
            ('for i in 0..3 { let a: u8 = "x"; }', "1:29"),
            ('let f = |x: u8| x + 1; let a: u8 = "x"; for i in 0..3 { f(i); }', "1:36"),
        ]:
            cell = self.client.run(code)
            self.assertIn(f":{place} ]", cell.error_text, code)
        cell = self.client.run('let a = 1;\nfor i in 0..3 { assert!(i < 2); }')
        self.assertIn("in line 2 of this cell", cell.error_text)

    def test_what_cannot_be_stopped_is_told(self):
        self.client.ok("let kept = 41;")
        cell = self.client.begin('println!("begun"); std::thread::sleep(std::time::Duration::from_secs(3)); let a = 1;')
        cell.wait_text("begun")
        self.client.interrupt()
        self.assertEqual(cell.finish().status, "ok", cell.describe())
        self.assertIn("Press again within 3 s to end its process and lose:", cell.stderr)
        self.assertRegex(cell.stderr, r"lose: .*\bkept\b")
        self.assertEqual(self.number("kept + a"), 42)
        cell = self.client.begin('println!("begun"); std::thread::sleep(std::time::Duration::from_secs(60));')
        cell.wait_text("begun")
        self.client.interrupt()
        wait_until(lambda: "Press again" in cell.stderr, "the note", 5)
        self.stop(cell, within=5)
        self.assertRegex(cell.error_text, r"lost: .*\bkept\b")

    def test_a_thread_of_an_earlier_cell_stops(self):
        file = self.kernel.file("ticks")
        self.client.ok(f'''
            std::thread::spawn(|| -> () {{
                loop {{
                    std::fs::write({rust(file)}, "x").unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }}
            }});''')
        wait_until(file.exists, "the thread", 5)
        self.client.interrupt()
        time.sleep(0.1)
        file.unlink()
        time.sleep(0.1)
        self.assertFalse(file.exists())

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

    def test_a_command_that_runs_long_is_ended(self):
        self.client.ok("let kept = 41;")
        file = self.kernel.file("command-begun")
        ignoring = "trap '' TERM; sleep 60; sleep 60\nlet after = 1;"
        for command, times in [("sleep 60", 1), ("sleep 60\nlet after = 1;", 1), (ignoring, 2)]:
            cell = self.client.begin(f"!echo so far; touch {file}; {command}")
            wait_until(file.exists, "the command", 60)
            file.unlink()
            for _ in range(times - 1):
                self.client.interrupt()
                time.sleep(0.5)
            self.stop(cell, within=5)
            self.assertIn("its command was ended; all variables are kept", cell.error_text)
            shown = [m["content"]["data"]["text/plain"] for m in cell.all("execute_result")]
            # evcxr shows nothing of a cell that fails behind its command.
            self.assertEqual(shown, ["so far\n"] if command == "sleep 60" else [])
            self.assertEqual(self.number("kept"), 41)

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
        self.assertEqual(self.number("kept"), 41)


if __name__ == "__main__":
    unittest.main()
