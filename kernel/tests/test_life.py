"""From start to end: several kernels, other clients, restart, and shutdown that leaves nothing behind."""
import contextlib
import os
import pathlib
import signal
import socket
import stat
import threading
import unittest

import psutil
import zmq

from support import HELPERS, REQUEST, Client, Kernel, display, family, rust, still_there, wait_for_end, wait_until


class Life(unittest.TestCase):
    """Three kernels that were started at once. Each test takes one, and ends it in its own way."""

    kernels: list

    @classmethod
    def setUpClass(cls):
        cls.kernels, problems = [], []

        def start():
            try:
                cls.kernels.append(Kernel())
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=start) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cls.addClassCleanup(cls.end_all)
        if problems:
            raise problems[0]
        # They run at once, and none disturbs another.
        code = lambda i: f'{HELPERS}\nlet own = {i}; println!("kernel {{own}}");'
        cells = [kernel.client.begin(code(i)) for i, kernel in enumerate(cls.kernels)]
        for i, cell in enumerate(cells):
            if cell.finish().stdout != f"kernel {i}\n":
                raise AssertionError(f"kernel {i}: {cell.describe()}")

    @classmethod
    def end_all(cls):
        for kernel in cls.kernels:
            kernel.stop()

    def take(self):
        return self.kernels.pop()

    def looping(self, kernel):
        """Starts a cell that computes, so that its process reacts to nothing."""
        cell = kernel.client.begin('println!("begun"); loop { std::hint::black_box(0); }')
        cell.wait_text("begun")

    def socket_folder(self, kernel):
        path = pathlib.Path(kernel.environment("LIVE_KERNEL_SOCKET"))
        self.assertTrue(stat.S_ISSOCK(path.stat().st_mode))
        return path.parent

    def test_1_strangers_get_nothing(self):
        kernel = self.kernels[0]
        folder = self.socket_folder(kernel)
        self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o700)
        path = kernel.environment("LIVE_KERNEL_SOCKET")
        request = rust(display("stranger", "no")).removeprefix('r####"').removesuffix('"####')
        token = kernel.environment("LIVE_KERNEL_TOKEN")
        wrong = [f'{{"token": "{token[:-1]}"}}', '{"token": "00"}', '{"token": ""}', f'{{"token": ["{token}"]}}']
        starts = [*wrong, "{}", request, "no json"]
        for start in starts:
            with self.subTest(start=start), socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(5)
                stranger.connect(path)
                try:
                    stranger.sendall(f"{start}\n{request}\n".encode())
                    self.assertEqual(stranger.recv(1000), b"")
                except (ConnectionResetError, BrokenPipeError):
                    pass  # closed, before all was read
        # With the token it is served, from another process too, and the answer follows the display.
        with socket.socket(socket.AF_UNIX) as known:
            known.settimeout(5)
            known.connect(path)
            known.sendall(f'{{"token": "{token}"}}\n{request.replace("stranger", "known")}\n'.encode())
            self.assertIn(b'"ok"', known.recv(1000))
        shown = kernel.client.first("display_data", 5)
        self.assertEqual(shown["content"]["transient"], {"display_id": "known"})

    def test_1_messages_with_a_wrong_signature_get_nothing(self):
        client = self.kernels[0].client
        session, right = client.kc.session, client.kc.session.key
        proof = self.kernels[0].file("proof")
        content = {"code": f'std::fs::write({rust(proof)}, "")?;', **REQUEST}
        session.key = b"a wrong key"
        try:
            forged = [client.send("execute_request", content), client.send("kernel_info_request", {})]
            forged.append(client.send("shutdown_request", {"restart": False}, "control"))
        finally:
            session.key = right
        # Each channel is served in order: once these are answered, the forged ones have been handled.
        client.ask("kernel_info_request", {}, channel="control")
        client.ok('println!("on");')
        self.assertFalse(proof.exists())
        self.assertEqual([m for m in client.seen if m["parent_header"].get("msg_id") in forged], [])
        self.assertEqual([id for id in forged if id in client.replies], [])

    def test_2_another_client_joins_and_takes_over(self):
        kernel = self.kernels[0]
        one, two = kernel.file("gate-one"), kernel.file("gate-two")
        self.addCleanup(one.touch)
        self.addCleanup(two.touch)
        second = f'gate({rust(one)}); println!("second");'
        third = f'gate({rust(two)}); println!("third");'
        cell = kernel.client.begin(f'println!("first"); {second} {third} let late = 7;')
        cell.wait_text("first")
        joined = Client(kernel.manager, timeout=10)
        self.assertEqual(joined.ask("kernel_info_request", {}, timeout=2)["status"], "ok")
        one.touch()
        texts = lambda: [m["content"]["text"] for m in joined.seen if m["msg_type"] == "stream"]
        joined.wait(lambda: any("second" in text for text in texts()), "the output of another client's cell", 10)
        cell.wait_text("second")
        # The first client closes while its cell runs.
        kernel.client.close()
        kernel.client = joined
        two.touch()
        third = lambda: any(m["msg_type"] == "stream" and "third" in m["content"]["text"] for m in joined.seen)
        joined.wait(third, "output after the first client has gone", 10)
        self.assertEqual(joined.ok('println!("{late}");').stdout, "7\n")
        self.assertEqual(joined.ok('println!("{}", own >= 0);').stdout, "true\n")

    def test_3_restart_and_shutdown_leave_nothing(self):
        kernel = self.take()
        folder = self.socket_folder(kernel)
        self.looping(kernel)
        kernel.restart()
        self.assertFalse(folder.exists(), f"{folder} is left after a restart")
        cell = kernel.client.run('println!("{own}");')
        self.assertEqual(cell.status, "error")
        self.assertIn("own", cell.error_text)
        cell = kernel.client.ok('println!("new");')
        self.assertEqual(cell.stdout, "new\n")
        folder = self.socket_folder(kernel)
        self.looping(kernel)
        reply = kernel.client.ask("shutdown_request", {"restart": False}, channel="control")
        self.assertEqual(reply, {"status": "ok", "restart": False})
        wait_until(lambda: not kernel.manager.is_alive(), "the end of the kernel", 10)
        self.assertEqual(kernel.stop(), [])
        self.assertFalse(folder.exists(), f"{folder} is left after shutdown")

    def test_4_killing_the_kernel_leaves_no_process(self):
        kernel = self.take()
        kernel.client.ok("std::thread::spawn(|| loop { std::thread::sleep(std::time::Duration::from_secs(1)); });")
        self.looping(kernel)
        members = dict(kernel.remember())
        self.assertGreater(len(members), 1, "the kernel is one process: this test proves nothing")
        os.kill(kernel.pid, signal.SIGKILL)
        wait_until(lambda: not kernel.manager.is_alive(), "the end of the kernel", 5)
        wait_for_end(members, 10)
        self.assertEqual(kernel.stop(), [])

    def test_5_a_crash_leaves_no_process(self):
        kernel = self.take()
        before = family(kernel.pid)
        cell = kernel.client.run("std::process::abort();")
        self.assertEqual(cell.status, "error")
        self.assertEqual(kernel.client.ok("6 * 7").all("execute_result")[0]["content"]["data"]["text/plain"], "42")
        kernel.remember()
        gone = {key for key in before if key not in still_there(before)}
        self.assertEqual(len(gone), 1, "exactly the process that ran cells ends, and is buried")
        self.assertEqual(len(family(kernel.pid)), len(before))
        folder = self.socket_folder(kernel)
        self.assertEqual(kernel.stop(), [])
        self.assertFalse(folder.exists(), f"{folder} is left after shutdown")

    def test_6_the_end_of_the_compiling_process_says_what_is_lost(self):
        kernel = Kernel()
        kernel.client.ok("let dear = 41;")
        cell = kernel.client.begin('println!("begun"); loop { std::thread::sleep(std::time::Duration::from_secs(1)); }')
        cell.wait_text("begun")
        kernel.remember()
        [inner] = psutil.Process(kernel.pid).children()
        inner.kill()
        kernel.client.wait(lambda: cell.errors, "the error", 10)
        for word in ["the process that compiles cells ended", "SIGKILL", "lost: dear", "are on disk"]:
            self.assertIn(word, cell.error_text)
        self.assertNotIn("configuration", cell.error_text)
        self.assertEqual(kernel.stop(), [])

    def test_7_rubbish_on_the_sockets_ends_nothing(self):
        kernel = Kernel()
        self.addCleanup(lambda: self.assertEqual(kernel.stop(), []))
        info = kernel.manager.get_connection_info()
        context = zmq.Context()
        self.addCleanup(context.destroy, linger=0)
        ports = ["shell_port", "control_port", "stdin_port", "hb_port", "iopub_port"]
        for port in ports:
            # Data that is not ZeroMQ, and a connection that closes at once.
            for rubbish in [b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f" + bytes(100), b""]:
                with socket.create_connection((info["ip"], info[port])) as raw:
                    raw.sendall(rubbish)
            # Malformed messages, and one with a forged signature.
            dealer = context.socket(zmq.SUB if port == "iopub_port" else zmq.DEALER)
            dealer.connect(f"tcp://{info['ip']}:{info[port]}")
            if port != "iopub_port":
                dealer.send(b"")
                dealer.send_multipart([b"\xff"] * 3)
                header = b'{"msg_type": "shutdown_request"}'
                dealer.send_multipart([b"<IDS|MSG>", b"0" * 64, header, b"{}", b"{}", b"{}"])
        for _ in range(20):
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as link:
                link.connect(kernel.environment("LIVE_KERNEL_SOCKET"))
                link.sendall(b'{"token": "0"}\n\xff\n')
        beat = context.socket(zmq.REQ)
        beat.connect(f"tcp://{info['ip']}:{info['hb_port']}")
        beat.send(b"ping")
        self.assertTrue(beat.poll(10_000), "no heartbeat")
        self.assertEqual(kernel.client.ok('println!("on");').stdout, "on\n")
        self.assertTrue(kernel.manager.is_alive())


if __name__ == "__main__":
    unittest.main()
