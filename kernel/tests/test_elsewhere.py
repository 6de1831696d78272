"""The kernel by itself: installed as README.md says, in a folder outside the repository.

Its notebook knows neither kdlab nor torch.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

from support import Client, family, wait_for_end

ROOT = pathlib.Path(os.environ["KDLAB_ROOT"])
# `cargo install --path kernel` compiles the same program, in more minutes.
PROGRAM = ROOT / ".kdlab/bin/kdlab-kernel"
# A fresh build directory: the notebook's crates are compiled.
CRATES = 300


class Elsewhere(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="elsewhere-"))
        self.addCleanup(shutil.rmtree, self.folder)
        ours = ("KDLAB_", "EVCXR_", "LIBTORCH", "LIVE_KERNEL_", "JUPYTER_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment["LIVE_KERNEL_CACHE"] = str(self.folder / "cache")

    def start(self):
        install = [PROGRAM, "install", "--prefix", self.folder]
        subprocess.run(install, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        specs = KernelSpecManager(kernel_dirs=[str(self.folder / "share/jupyter/kernels")])
        self.assertIn("rust-live", specs.find_kernel_specs())
        manager = KernelManager(kernel_name="rust-live", kernel_spec_manager=specs)
        log = open(self.folder / "kernel.log", "wb")
        self.addCleanup(log.close)
        manager.start_kernel(cwd=str(self.folder), env=self.environment, stdout=log, stderr=log)
        self.addCleanup(manager.shutdown_kernel, now=True)
        client = Client(manager)
        self.addCleanup(client.close)
        return manager, client

    def cells(self):
        notebook = json.loads((ROOT / "kernel/examples/pendulum.ipynb").read_text())
        code = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}
        code["crates"] = code["crates"].replace("../client", str(ROOT / "kernel/client"))
        return code

    def test_a_live_chart_a_slider_and_interrupt(self):
        manager, client = self.start()
        code = self.cells()
        client.ok(code["crates"], CRATES)
        client.ok(code["chart"])
        cell = client.begin(code["loop"])
        shown = lambda: [m["content"]["data"] for m in cell.all("display_data", "update_display_data")]
        charts = lambda: [data for data in shown() if "image/svg+xml" in data]
        cell.wait(lambda: len(charts()) > 2, "a chart that grows")
        self.assertNotEqual(charts()[0]["image/svg+xml"], charts()[-1]["image/svg+xml"])
        opened = [m["content"] for m in cell.all("comm_open")]
        slider = next(comm["comm_id"] for comm in opened if comm["data"]["state"]["_model_name"] == "FloatSliderModel")
        update = {"method": "update", "state": {"value": 1.5}, "buffer_paths": []}
        client.send("comm_msg", {"comm_id": slider, "data": update})
        cell.wait(lambda: "damping 1.5" in charts()[-1]["text/plain"], "a chart with the new damping", 10)
        self.assertTrue(cell.running)
        self.assertEqual(client.interrupt()["status"], "ok")
        cell.finish(10)
        self.assertEqual((cell.status, cell.errors, cell.stderr), ("ok", [], ""), cell.describe())
        self.assertRegex(client.ok(code["kept"]).stdout, r"^\d+ points, the last at -?[\d.]+\n$")
        # Neither kdlab nor torch was compiled.
        manifest = (self.folder / "cache/cells/1/Cargo.toml").read_text()
        self.assertIn("plotters", manifest)
        self.assertFalse(re.search(r"^(kdlab|tch) *=", manifest, re.M), manifest)
        # An error gives no advice that is meant for kdlab.
        cell = client.run("std::process::abort();")
        self.assertIn("run the notebook again from its first cell", cell.error_text)
        self.assertNotIn("checkpoint", cell.error_text)
        members = family(manager.provisioner.pid)
        manager.shutdown_kernel()
        wait_for_end(members)

    def test_a_task_is_awaited_in_another_cell(self):
        _, client = self.start()
        client.ok(':dep tokio = { version = "1", features = ["rt-multi-thread", "time"] }', CRATES)
        # The first `.await` makes the runtime.
        client.ok("let sum = tokio::spawn(async { 40 + 2 }).await?;")
        client.ok("""
            use std::time::Duration;
            let kept = 5;
            let later = tokio::spawn(async { tokio::time::sleep(Duration::from_millis(50)).await; 7 });""")
        self.assertEqual(client.ok('println!("{}", later.await?);').stdout, "7\n")
        loop = "loop { tokio::time::sleep(Duration::from_millis(10)).await; }"
        cell = client.begin('let n = 3; println!("begun"); ' + loop)
        cell.wait_text("begun")
        client.interrupt()
        cell.finish(10)
        self.assertIn("from this cell: n", cell.error_text)
        cell = client.begin("let task = tokio::spawn(async { " + loop + ' }); println!("begun"); task.await?')
        cell.wait_text("begun")
        client.interrupt()
        self.assertEqual(cell.finish(10).errors[0]["content"]["ename"], "Interrupted")
        self.assertEqual(client.ok('println!("{kept} {n}");').stdout, "5 3\n")

    def test_a_configuration_that_is_wrong_is_named(self):
        config = self.folder / "config"
        config.mkdir()
        (config / "kernel.toml").write_text("hint = 1\n")
        self.environment["EVCXR_CONFIG_DIR"] = str(config)
        _, client = self.start()
        cell = client.run("1 + 1")
        self.assertEqual(cell.status, "error")
        self.assertIn("kernel.toml", cell.error_text)
        self.assertIn("unknown field `hint`", cell.error_text)


if __name__ == "__main__":
    unittest.main()
