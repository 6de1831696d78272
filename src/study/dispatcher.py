"""Hands the fits of a sweep to the workers of a Dask cluster. Arguments: the sweep's work.json, where to run, and the
program that makes one fit. Writes a line of JSON to stdout for each event. Stops when stdin closes: whoever started it
ended or stopped it."""

import collections
import contextlib
import ipaddress
import json
import os
import pathlib
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid

from distributed import Client, LocalCluster, Security, WorkerPlugin, get_client, get_worker
from distributed.core import Status

# A fit looks this often whether it shall stop, and the dispatcher shows this often that it lives.
LOOK = 1.0
# A fit stops when the dispatcher has shown nothing for so long.
SILENCE = 60.0
# How long fits get to stop, and a scheduler to answer.
STOP, START = 20.0, 30.0
# How long nothing runs before it says for what it waits.
QUIET = 5.0
# What the name of a worker's resource begins with; its CPU follows.
CORES = "kdlab cores of "


def cpu_name():
    """As `cpu_name` of the crate: fits of one seed stay on one kind."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return {"arm64": "aarch64"}.get(platform.machine(), platform.machine())


class Cores(WorkerPlugin):
    """Says what CPU a worker has, as a resource of as many units as it has threads; a fit takes one."""

    name = "kdlab-cores"

    async def setup(self, worker):
        await worker.set_resources(**{CORES + cpu_name(): worker.state.nthreads})
        # The scheduler looks for tasks that nobody could take when a worker begins to run, which was before. Else a fit
        # whose worker died would wait for ever if that was the last one.
        worker.status = Status.paused
        worker.status = Status.running


def fit(program, work, place, environment, topic):
    """Makes one fit, in a process that ends with the worker. Runs on a thread of the worker."""
    worker, client = get_worker(), get_client()
    if not os.path.exists(work):
        return {"error": f"{worker.address} does not see {work}; put KDLAB_RUNS into a folder that all machines see"}
    child = subprocess.Popen(
        [program, "--fit", work, str(place), "--with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        text=True,
        errors="replace",
    )
    lines, last, end = queue.Queue(), collections.deque(maxlen=12), {}

    def read():
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    beat, heard, told = None, time.monotonic(), 0.0
    looked = time.monotonic()
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=LOOK)
                if line is None:
                    break
                try:
                    event = json.loads(line)
                except ValueError:
                    last.append(line.rstrip())
                    continue
                if "begun" in event:
                    told = 0.0
                    begun = {"place": place, "epochs": event["begun"], "worker": worker.address}
                    worker.log_event(topic, {"event": {"begun": begun}})
                elif "progress" in event and time.monotonic() > told + LOOK:
                    told = time.monotonic()
                    progress = {"place": place, "progress": event["progress"]}
                    worker.log_event(topic, {"event": {"progress": progress}})
                elif "run" in event or "stopped" in event:
                    end = event
            if time.monotonic() > looked + LOOK:
                looked = time.monotonic()
                # Without an answer the scheduler is gone, and this worker ends.
                state = None
                with contextlib.suppress(Exception):
                    state = client.get_metadata([topic], None)
                if state and state["beat"] != beat:
                    beat, heard = state["beat"], time.monotonic()
                if state and state["stop"] or time.monotonic() > heard + SILENCE:
                    child.stdin.close()
    finally:
        with contextlib.suppress(OSError):
            child.stdin.close()
        code = child.wait()
    if end:
        return end
    text = " / ".join(last) or "it said nothing"
    if code > 0:
        return {"error": text.removeprefix("error: ")}
    # Killed, such as for its memory: Dask tries it again, and it goes on from its last epoch.
    raise RuntimeError(f"its process was ended by {signal.Signals(-code).name if code else 'nobody'}; {text}")


class Stopped(Exception):
    """Whoever started the dispatcher ended, or asks it to stop."""


class Broken(Exception):
    """Why the cluster can't be used."""


speech = threading.Lock()
refused = queue.SimpleQueue()
stopping = threading.Event()


def say(**event):
    with speech:
        try:
            print(json.dumps(event), flush=True)
        except OSError:
            stopping.set()


def is_here(address):
    host = address.partition("://")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def telling(job):
    """A kind of job that says why it was not taken. Dask would try it again for ever."""

    class Job(job):
        async def _submit_job(self, script):
            try:
                return await super()._submit_job(script)
            except Exception as error:
                why = str(error).rpartition("stderr:")[2].strip() or str(error)
                refused.put(f"{self.submit_command} took no job: {' '.join(why.split())}")
                raise

    return Job


def start(where, work):
    """Starts or finds a cluster. Returns the client, and the cluster if it is this program's own."""
    kind, _, count = where.partition(":")
    if kind == "local":
        # With TLS, because other users of this machine reach its loopback addresses.
        cluster = LocalCluster(
            n_workers=int(count),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=True,
            memory_limit=0,
        )
        return Client(cluster), cluster
    if kind in ("slurm", "pbs"):
        import dask
        import dask_jobqueue

        private = work.parent / "tls"
        private.mkdir(mode=0o700, exist_ok=True)
        config = dask.config.get(f"jobqueue.{kind}", {})
        usual = {name: value for name, value in {"cores": 1, "memory": "4GB"}.items() if not config.get(name)}
        jobs = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster}[kind]
        cluster = jobs(
            **usual,
            job_cls=telling(jobs.job_cls),
            security=True,
            protocol="tls://",
            shared_temp_directory=str(private),
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            worker_extra_args=["--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
            log_directory=str(work.parent / "jobs"),
        )
        # So many all the time: a job that runs out of time is replaced.
        cluster.adapt(minimum_jobs=int(count or 4), maximum_jobs=int(count or 4))
        return Client(cluster), cluster
    security = None
    if kind == "tls":
        security = Security(require_encryption=True)
        if not (security.tls_ca_file and security.tls_client_cert):
            raise Broken(
                "TLS needs certificates: let DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
                "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY name them"
            )
    try:
        client = Client(where, timeout=START, security=security)
    except Exception as error:
        raise Broken(f"no scheduler answers at {where}: {error}") from error
    if kind == "tcp":
        info = client.scheduler_info()
        open_to_all = [address for address in [info["address"], *info["workers"]] if not is_here(address)]
        if open_to_all:
            client.close()
            raise Broken(
                f"{open_to_all[0]} listens for other machines without TLS, so whoever reaches it runs programs there: "
                "start scheduler and workers with --host 127.0.0.1, or with TLS"
            )
    return client, None


class Dispatcher:
    """Fits that wait, fits that run, and the kind of CPU on which each seed stays."""

    def __init__(self, client, path, program, local=False):
        work = json.loads(path.read_text())
        self.client, self.path, self.program, self.local = client, path, program, local
        self.environment = work["environment"]
        self.waiting = collections.deque(work["fits"])
        self.cpus = {int(seed): cpu for seed, cpu in work["cpus"].items()}
        self.running, self.ended = {}, queue.Queue()
        self.topic = f"kdlab-{uuid.uuid4().hex}"
        self.beats, self.shown, self.said = 0, 0.0, set()
        self.idle_since = time.monotonic()

    def free(self):
        """Returns how many fits more each kind of CPU takes, most first."""
        kinds = collections.Counter()
        # Some versions of Dask name five workers if they are not asked for all.
        self.workers = self.client.scheduler_info(n_workers=-1)["workers"]
        for worker in self.workers.values():
            resources = worker["resources"].items()
            kinds.update({name[len(CORES) :]: int(units) for name, units in resources if name.startswith(CORES)})
        kinds.subtract(collections.Counter(cpu for cpu, _ in self.running.values()))
        return [(kind, units) for kind, units in kinds.most_common() if units > 0]

    def choose(self, cpu):
        """Takes the next fit for a kind of CPU: of a seed that is there already, else of one that is nowhere yet."""
        for at_home in (True, False):
            for fit in self.waiting:
                if self.cpus.get(fit["seed"]) == (cpu if at_home else None):
                    self.waiting.remove(fit)
                    self.cpus[fit["seed"]] = cpu
                    return fit
        return None

    def hand_out(self):
        free = self.free()
        for cpu, units in free:
            for _ in range(units):
                chosen = self.choose(cpu)
                if chosen is None:
                    break
                future = self.client.submit(
                    fit,
                    self.program,
                    str(self.path),
                    chosen["place"],
                    self.environment,
                    self.topic,
                    key=f"{chosen['name']}-{self.topic}",
                    pure=False,
                    retries=2,
                    resources={CORES + cpu: 1},
                )
                self.running[future] = (cpu, chosen)
                future.add_done_callback(self.ended.put)
        if self.running and self.workers:
            self.idle_since = time.monotonic()
            self.said.clear()
        elif self.local and not self.workers and time.monotonic() > self.idle_since + SILENCE:
            raise Broken("all workers have ended and none came back; run the sweep again, and it goes on")
        elif time.monotonic() > self.idle_since + QUIET:
            seeds = sorted({fit["seed"] for fit in self.waiting})
            kinds = sorted({self.cpus[seed] for seed in seeds if seed in self.cpus})
            logs = self.path.parent / "jobs"
            self.tell(
                f"waiting for a worker with {' or '.join(kinds)}, on which these seeds began: {seeds}"
                if free
                else "waiting for a worker" + (f"; {logs} has what its jobs write" if logs.exists() else "")
            )

    def tell(self, line):
        if line not in self.said:
            self.said.add(line)
            say(line=line)

    def show_life(self, stop=False):
        if stop or time.monotonic() > self.shown + LOOK:
            self.beats, self.shown = self.beats + 1, time.monotonic()
            self.client.set_metadata([self.topic], {"stop": stop, "beat": self.beats})

    def collect(self, future):
        _, done = self.running.pop(future)
        place = done["place"]
        try:
            result = future.result()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        if "run" in result:
            say(run={"place": place, "run": result["run"]})
        elif "error" in result:
            say(failed={"place": place, "error": result["error"]})

    def run(self):
        # Dask adds the worker's address beside what was logged.
        self.client.subscribe_topic(self.topic, lambda event: say(**event[1]["event"]))
        self.client.register_plugin(Cores())
        while self.waiting or self.running:
            if stopping.is_set():
                raise Stopped
            self.show_life()
            self.hand_out()
            with contextlib.suppress(queue.Empty):
                why = refused.get_nowait()
                if not self.workers:
                    raise Broken(f"{why}; call it where jobs are submitted; docs/cluster.md has the settings")
                self.tell(why)
            with contextlib.suppress(queue.Empty):
                self.collect(self.ended.get(timeout=LOOK / 4))

    def stop(self):
        """Lets running fits end at their next batch."""
        self.waiting.clear()
        self.show_life(stop=True)
        until = time.monotonic() + STOP
        while self.running and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                self.collect(self.ended.get(timeout=LOOK / 4))


def listen():
    # Not by sys.stdin: Python aborts if a thread holds its lock at the end.
    while os.read(0, 4096):
        pass
    stopping.set()


def main(path, where, program):
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    threading.Thread(target=listen, daemon=True).start()
    client = cluster = None
    path = pathlib.Path(path)
    try:
        client, cluster = start(where, path)
        link = client.dashboard_link
        if cluster:
            # There it listens, whatever address its workers use.
            link = re.sub("//[^/]*:", "//127.0.0.1:", link)
        say(line=f"Dask's dashboard: {link}")
        dispatcher = Dispatcher(client, path, program, where.startswith("local:"))
        try:
            dispatcher.run()
        except Stopped:
            dispatcher.stop()
    except Broken as error:
        say(broken=str(error))
    except Exception as error:
        traceback.print_exc()
        say(broken=f"Dask: {type(error).__name__}: {error}")
    finally:
        for part in (client, cluster):
            with contextlib.suppress(Exception):
                part and part.close()
        shutil.rmtree(path.parent / "tls", ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
