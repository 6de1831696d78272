"""JupyterHub's settings for a class. `cargo lab class` hands over what it was asked for in KDLAB_CLASS, as JSON."""
import asyncio
import atexit
import dbm
import grp
import json
import os
import pwd
import signal
from hmac import compare_digest

import psutil
from firstuseauthenticator import FirstUseAuthenticator
from jupyterhub.app import JupyterHub
from jupyterhub.auth import LocalAuthenticator
from traitlets import Unicode

asked = json.loads(os.environ.pop("KDLAB_CLASS"))
folder, own, port = asked["folder"], asked["own"], asked["port"]
# Members are the accounts that the class has made. No other account of the system may be signed in to.
GROUP = "kdlab-class"
# Seconds after which the hub ends, even if servers still run. One that does not end by itself is killed after 60.
END = 80


class ClassAuthenticator(FirstUseAuthenticator):
    """Whoever knows the class code chooses a name and a password, and signs in with these from then on."""

    code = Unicode(config=True)
    instructor_code = Unicode(config=True)

    def refuse(self, handler, why):
        handler.custom_login_error = why
        self.log.warning("sign-in refused: %s", why)

    async def authenticate(self, handler, data):
        name = self.normalize_username(data["username"])
        if self.allowed_users and name not in self.allowed_users:
            return self.refuse(handler, f"{name} is not on the class list; ask the instructor.")
        with dbm.open(self.dbm_path, "c", 0o600) as known:
            new = name.encode() not in known
        code, whose = (self.instructor_code, "instructors'") if name in self.admin_users else (self.code, "class")
        if new and not compare_digest(data.get("otp", "").strip().encode(), code.encode()):
            return self.refuse(handler, f"{name} signs in for the first time, which needs the {whose} code.")
        return await super().authenticate(handler, data)


class AccountAuthenticator(ClassAuthenticator, LocalAuthenticator):
    """Everybody also gets an account of the system."""

    async def authenticate(self, handler, data):
        name = self.normalize_username(data["username"])
        try:
            pwd.getpwnam(name)
        except KeyError:
            return await super().authenticate(handler, data)
        if name not in grp.getgrnam(GROUP).gr_mem:
            return self.refuse(handler, f"{name} is another account of this machine; take another name.")
        return await super().authenticate(handler, data)


c = get_config()  # noqa: F821
accounts = asked["accounts"]
kind = AccountAuthenticator if accounts else ClassAuthenticator
c.JupyterHub.authenticator_class = kind
c.ClassAuthenticator.code, c.ClassAuthenticator.instructor_code = asked["code"], asked["instructor_code"]
c.Authenticator.request_otp = True
c.Authenticator.otp_prompt = "Class code, the first time only:"
c.Authenticator.username_pattern = "[a-z][a-z0-9-]{0,29}"
c.Authenticator.admin_users = set(asked["instructors"])
# Without a list, everybody who has the code.
listed = set(asked["list"] + asked["instructors"]) if asked["list"] else set()
c.Authenticator.allowed_users = listed
c.Authenticator.allow_all = not listed
# Also for people who signed in before there was a list.
c.Authenticator.allow_existing_users = False
c.FirstUseAuthenticator.dbm_path = f"{own}/passwords.dbm"
c.FirstUseAuthenticator.check_passwords_on_startup = False
c.LocalAuthenticator.create_system_users = True
c.LocalAuthenticator.add_user_cmd = ["useradd", "--create-home", "--shell", "/bin/bash", "--groups", GROUP]

c.JupyterHub.bind_url = f"{'https' if asked['certificate'] else 'http'}://{asked['address']}:{port}"
if asked["certificate"]:
    c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = asked["certificate"], asked["key"]
# The proxy's and the hub's own ends, for this machine alone. They stay the same, because servers outlive the hub.
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 1}"
c.ConfigurableHTTPProxy.command = asked["proxy"]
c.ConfigurableHTTPProxy.pid_file = f"{own}/proxy.pid"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port + 2}"
# Relative to the class's folder, in which the hub starts: in a URL, some characters of a path have another meaning.
c.JupyterHub.db_url = "sqlite:///hub/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = f"{own}/cookie_secret"
c.JupyterHub.template_vars = {"announcement_login": "kdlab: knowledge distillation, taught in notebooks"}
# Ctrl-C ends the class. A hub that is killed leaves all servers running, and finds them when it is started again.
c.JupyterHub.cleanup_servers = not asked["leave_running"]
c.JupyterHub.cleanup_proxy = not asked["leave_running"]


def proxy_left():
    """Returns the process id of the proxy that an earlier hub has left, or None. After a crash of the machine, another
    process may have it, and JupyterHub would end that."""
    try:
        with open(c.ConfigurableHTTPProxy.pid_file) as file:
            pid = int(file.read())
        return pid if asked["proxy"][-1] in psutil.Process(pid).cmdline() else None
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None


if os.path.exists(c.ConfigurableHTTPProxy.pid_file) and proxy_left() is None:
    os.remove(c.ConfigurableHTTPProxy.pid_file)


def end_proxy():
    """A hub that has once replaced its proxy also replaces the one that it ends itself."""
    try:
        if pid := proxy_left():
            os.kill(pid, signal.SIGTERM)
            os.remove(c.ConfigurableHTTPProxy.pid_file)
    except OSError:
        pass


if not asked["leave_running"]:
    atexit.register(end_proxy)


async def clean_up(hub, whole=JupyterHub.cleanup):
    """Lets the hub end even if its database cannot be written, as on a full disk. JupyterHub's own clean-up then ends
    servers and proxy and fails, and the hub would run on, deaf to Ctrl-C."""
    try:
        if not hub.db.is_active:
            hub.db.rollback()
        await asyncio.wait_for(whole(hub), END)
    except Exception as problem:
        hub.log.error("the hub ends without noting so in %s: %s", own, str(problem) or f"not done after {END} s")


JupyterHub.cleanup = clean_up

# The course is copied to each person once. Later, what has changed is merged beside their own changes: where both
# changed the same lines, theirs stay.
merge = '"$0" "$KDLAB_COURSE" main "$HOME/kdlab" || mkdir -p "$HOME/kdlab"'
# By its place, because the servers' PATH need not hold it.
gitpuller = os.path.join(os.path.dirname(asked["server"]), "gitpuller")
c.Spawner.cmd = ["sh", "-c", merge + '; exec "$@"', gitpuller, asked["server"]]
c.Spawner.default_url = "/lab"
c.Spawner.notebook_dir = "~/kdlab"
c.Spawner.args = [
    "--KernelSpecManager.ensure_native_kernel=False",
    "--KernelSpecManager.allowed_kernelspecs=kdlab",
    "--MappingKernelManager.default_kernel_name=kdlab",
    "--MappingKernelManager.kernel_info_timeout=600",
    # A kernel that runs a cell is not idle. The server of a person ends after its last kernel.
    f"--MappingKernelManager.cull_idle_timeout={asked['idle']}",
    f"--MappingKernelManager.cull_interval={max(10, min(300, asked['idle'] // 4))}",
    "--MappingKernelManager.cull_connected=True",
    f"--ServerApp.shutdown_no_activity_timeout={asked['idle']}",
]
c.Spawner.environment = {
    **asked["environment"],
    "KDLAB_COURSE": asked["course"],
}
c.Spawner.start_timeout = c.Spawner.http_timeout = 120
if asked["memory"]:
    c.Spawner.mem_limit = asked["memory"]
if asked["cpus"]:
    c.Spawner.cpu_limit = asked["cpus"]

if not accounts:
    c.JupyterHub.spawner_class = "simple"
    c.SimpleLocalProcessSpawner.home_dir_template = folder + "/people/{username}"
    if os.geteuid() == 0:
        c.Spawner.args.append("--allow-root")
    c.Spawner.environment["KDLAB_RUNS"] = lambda spawner: f"{spawner.home_dir}/runs"
elif os.path.isdir("/run/systemd/system"):
    c.JupyterHub.spawner_class = "systemd"
    c.SystemdSpawner.isolate_tmp = True
