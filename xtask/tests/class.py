"""Two people in a class: class.py LAB FOLDER PORT. Starts the hub by `LAB class`, and says what it saw, a line each."""
import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

import requests
import websocket

lab, folder, port = sys.argv[1:]
base = f"http://127.0.0.1:{port}"


def until(what, found, seconds=240):
    end = time.time() + seconds
    while not (value := found()):
        assert time.time() < end, f"{what}: not after {seconds} s"
        time.sleep(0.3)
    return value


def answers(url, **options):
    try:
        return requests.get(url, timeout=10, **options).status_code == 200
    except requests.ConnectionError:
        return False


def end(hub):
    if hub.poll() is None:
        hub.send_signal(signal.SIGINT)
        hub.wait(60)


def start(names="ada\nbob\nhetty\n"):
    log = open(f"{folder}.log", "a")
    with open(f"{folder}.list", "w") as file:
        file.write(names)
    command = [lab, "class", "--one-account", "--folder", folder, "--port", port, "--code", "kudu-42"]
    command += ["--list", f"{folder}.list", "--instructor", "hetty"]
    chosen = {**os.environ, "KDLAB_PROFILE": "smoke", "KDLAB_BOARD": "http://127.0.0.1:8765"}
    hub = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=chosen)
    atexit.register(end, hub)  # also where the test fails
    until("the hub", lambda: answers(f"{base}/hub/api") or hub.poll() is not None, 600)
    assert hub.poll() is None, open(f"{folder}.log").read()[-3000:]
    return hub


class Person:
    def __init__(self, name):
        self.name, self.session = name, requests.Session()
        self.home = f"{base}/user/{name}"

    def sign_in(self, password, code=""):
        """Returns whether the hub let the person in."""
        page = self.session.get(f"{base}/hub/login").text
        form = {"username": self.name, "password": password, "otp": code}
        form["_xsrf"] = re.search(r'name="_xsrf" value="([^"]*)"', page)[1]
        return self.session.post(f"{base}/hub/login", data=form, allow_redirects=False).status_code == 302

    def open_server(self):
        self.session.get(f"{base}/hub/spawn/{self.name}")
        until(f"the server of {self.name}", lambda: self.session.get(f"{self.home}/lab").url.startswith(self.home))

    def ask(self, method, path, **options):
        tokens = [c.value for c in self.session.cookies if c.name == "_xsrf" and c.path == f"/user/{self.name}/"]
        answer = self.session.request(method, self.home + path, headers={"X-XSRFToken": tokens[0]}, **options)
        answer.raise_for_status()
        return answer.json() if answer.text else None

    def open_kernel(self):
        self.kernel = self.ask("POST", "/api/kernels", json={"name": "kdlab"})["id"]

    def run(self, code):
        """Returns what a cell printed and answered."""
        paths = ("/", f"/user/{self.name}/")
        cookies = "; ".join(f"{c.name}={c.value}" for c in self.session.cookies if c.path in paths)
        url = f"{self.home}/api/kernels/{self.kernel}/channels".replace("http", "ws", 1)
        channels = websocket.create_connection(url, cookie=cookies, timeout=300)
        asked, text = uuid.uuid4().hex, ""
        header = {"msg_id": asked, "msg_type": "execute_request", "session": asked, "username": "", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": {**header, "date": ""}, "parent_header": {}, "metadata": {}, "content": content}
        channels.send(json.dumps({**message, "channel": "shell", "buffers": []}))
        # Outputs and the reply come on two channels, in any order.
        ended = set()
        while ended != {"reply", "idle"}:
            message = json.loads(channels.recv())
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind in ("execute_result", "display_data"):
                text += content["data"].get("text/plain", "")
            elif kind == "error":
                text += "\n".join(content["traceback"])
            elif kind == "execute_reply":
                ended.add("reply")
            elif kind == "status" and content["execution_state"] == "idle":
                ended.add("idle")
        channels.close()
        return text.strip()


def processes(pattern):
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if int(pid) != os.getpid()]


def say(what):
    print(what, flush=True)


with open(f"{folder}.empty", "w"):
    pass
for options, variables, why in [
    (["--list", f"{folder}.empty"], {}, "holds no name"),
    (["--instructor", "Ada Lovelace"], {}, "is no name to sign in with"),
    ([], {"KDLAB_PROFILE": "latop"}, "unknown profile `latop`"),
    ([], {"KDLAB_GPU_MEMORY": "8"}, "such as 8G"),
    ([], {"KDLAB_DEVICE": "gpu"}, "may be cpu or cuda"),
    ([], {"KDLAB_PRECISION": "f16"}, "may be f32 or bf16"),
]:
    command = [lab, "class", "--one-account", "--folder", folder, "--port", port, *options]
    refused = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and why in refused.stderr, refused
say("what would fail for everybody, or let everybody in, is refused at the start")

# As after a crash of the machine: the file of an earlier proxy names a process that is somebody's.
bystander = subprocess.Popen(["sleep", "600"])
atexit.register(bystander.kill)
os.makedirs(f"{folder}/hub", exist_ok=True)
with open(f"{folder}/hub/proxy.pid", "w") as file:
    file.write(str(bystander.pid))
hub = start()
assert bystander.poll() is None, "the hub ended a process that is not its proxy"
ada, bob = Person("ada"), Person("bob")
assert not ada.sign_in("sesame-1", "kudu-41") and not ada.sign_in("sesame-1")
assert not Person("eve").sign_in("sesame-1", "kudu-42"), "a name that is not on the list"
assert not Person("hetty").sign_in("sesame-1", "kudu-42"), "the instructor's name needs another code"
assert ada.sign_in("sesame-1", "kudu-42") and bob.sign_in("sesame-2", "kudu-42")
assert not Person("ada").sign_in("sesame-2", "kudu-42") and Person("ada").sign_in("sesame-1")
say("a wrong code, a strange name, a wrong password are refused")

for number, person in enumerate([ada, bob]):
    person.open_server()
    assert os.path.exists(f"{folder}/people/{person.name}/kdlab/00_start.ipynb"), "the course is copied"
    person.open_kernel()
    person.run(f"let own = {number};")
    assert person.run("own + 41") == str(number + 41)
assert ada.session.get(f"{bob.home}/api/contents").status_code == 403
chosen = ada.run('for name in ["KDLAB_PROFILE", "KDLAB_BOARD"] { println!("{}", std::env::var(name)?); };')
assert chosen.split() == ["smoke", "http://127.0.0.1:8765"], chosen
say("each has a kernel of their own")

hub.kill()
hub.wait()
assert ada.run("own + 1") == "1", "cells run while there is no hub"
hub = start()
assert bob.run("own + 1") == "2" and Person("bob").sign_in("sesame-2")
say("a hub that was killed loses nothing")

proxy = int(open(f"{folder}/hub/proxy.pid").read())
os.kill(proxy, signal.SIGKILL)
until("another proxy", lambda: int(open(f"{folder}/hub/proxy.pid").read()) != proxy and answers(f"{base}/hub/api"), 60)
until("the way to ada's server", lambda: ada.session.get(f"{ada.home}/api/status").status_code == 200, 90)
assert ada.run("own + 2") == "2"
say("a proxy that was killed loses nothing")

for pid in processes(f"kdlab-kernel.*kernel-{ada.kernel}"):
    os.kill(pid, signal.SIGKILL)
# Jupyter looks every three seconds.
time.sleep(5)
lost, works, kept = ada.run("own"), ada.run("1 + 1"), bob.run("own + 1")
assert "cannot find value" in lost and works == "2" and kept == "2", (lost, works, kept)
say("a kernel that was killed loses its person's variables, and is started again")

notebook = f"{folder}/people/ada/kdlab/00_start.ipynb"
with open(notebook, "a") as file:
    file.write("\n")


def end_class(least):
    """Ctrl-C, after which the hub and all that it has started are to end."""
    started = processes(f"{folder}/hub|{folder}/people|kernel-({ada.kernel}|{bob.kernel})")
    # Other classes may run on this machine.
    servers = processes("jupyterhub-singleuser")
    started += [pid for pid in servers if os.readlink(f"/proc/{pid}/cwd").startswith(folder)]
    assert len(started) >= least, started
    hub.send_signal(signal.SIGINT)
    hub.wait(60)
    until("the end of everything", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in started), 60)


end_class(5)
say("nothing runs on after the class")

hub = start("bob\n")
assert not Person("ada").sign_in("sesame-1"), "a name that is no longer on the list"
bob.open_server()
shutil.rmtree(f"{folder}/hub")
end_class(2)
say("a hub that cannot write its database ends, too")
