"""How the dispatcher of a sweep shares fits among workers with several kinds of CPU. tests/cluster.rs runs it with the
Python that has Dask."""

import importlib.util
import json
import pathlib
import random
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).parents[1] / "src/study/dispatcher.py"
spec = importlib.util.spec_from_file_location("dispatcher", SOURCE)
dispatcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dispatcher)


class Future:
    def add_done_callback(self, call):
        self.call = call

    def result(self):
        return {"run": {}}


class Client:
    """Notes what is submitted, for workers with so many threads of each kind."""

    def __init__(self, threads):
        self.threads, self.submitted = threads, []

    def scheduler_info(self, n_workers):
        of = lambda cpu, units: {"resources": {dispatcher.CORES + cpu: units, "GPU": 4}}
        return {"workers": {cpu: of(cpu, units) for cpu, units in self.threads.items()}}

    def submit(self, *arguments, key, resources, **_):
        future = Future()
        (resource,) = resources
        self.submitted.append((key, resource.removeprefix(dispatcher.CORES), future))
        return future


def make(threads, cpus, seeds=4):
    fits = [{"place": 3 * s + i, "seed": s, "name": f"{i}-seed{s}"} for s in range(seeds) for i in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "work.json"
        path.write_text(json.dumps({"environment": {}, "cpus": cpus, "fits": fits}))
        client = Client(threads)
        return client, dispatcher.Dispatcher(client, path, "program")


class Sharing(unittest.TestCase):
    def setUp(self):
        self.said, dispatcher.QUIET = [], -1.0
        dispatcher.say = lambda **event: self.said.append(event)

    def test_a_seed_stays_on_one_kind_and_no_worker_gets_more_than_its_threads(self):
        draw = random.Random(0)
        for _ in range(50):
            client, sharing = make({"old": draw.randint(1, 3), "new": draw.randint(1, 3)}, {"2": "old"})
            while sharing.waiting or sharing.running:
                sharing.hand_out()
                for cpu, threads in client.threads.items():
                    self.assertLessEqual(sum(on == cpu for on, _ in sharing.running.values()), threads)
                sharing.collect(draw.choice(list(sharing.running)))
            kinds = {}
            for key, cpu, _ in client.submitted:
                kinds.setdefault(key.split("-")[1], set()).add(cpu)
            self.assertEqual(len(client.submitted), 12)
            self.assertEqual([len(of_seed) for of_seed in kinds.values()], [1] * 4)
            self.assertEqual(kinds["seed2"], {"old"})

    def test_a_seed_waits_for_the_kind_on_which_it_began(self):
        client, sharing = make({"new": 2}, {"0": "old"}, seeds=1)
        sharing.hand_out()
        sharing.hand_out()
        self.assertEqual(client.submitted, [])
        self.assertEqual(len(self.said), 1)
        self.assertIn("waiting for a worker with old, on which these seeds began: [0]", self.said[0]["line"])

    def test_the_loss_of_all_workers_is_told(self):
        client, sharing = make({"new": 1}, {}, seeds=1)
        sharing.hand_out()
        client.threads = {}
        sharing.hand_out()
        self.assertEqual(self.said, [{"line": "waiting for a worker"}])
        sharing.local, sharing.idle_since = True, -dispatcher.SILENCE
        with self.assertRaises(dispatcher.Broken):
            sharing.hand_out()


if __name__ == "__main__":
    unittest.main()
