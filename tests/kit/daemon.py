"""A real daemon for a test: its own state directory and network namespace, the shared download cache, and an
account of everything that it has on the host and on record."""

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from tests.kit import crashing
from tests.kit.images import cache
from tests.kit.netns import Namespace, namespace
from tests.kit.wire import Answer, request

TOP = Path(__file__).parents[2]
CGROUPS = Path("/sys/fs/cgroup")
DEADLINE = 120.0
MIB = 1 << 20
SMALL = 128 * MIB
"""Bytes of memory that tiny needs at least."""
INSTANCES = "/v1/projects/default/instances"
HELD = {
    "shared": (
        "/instances/", "/instance-status/", "/instance-names/", "/volumes/", "/volume-names/", "/attachments/",
        "/ports/", "/addresses/", "/macs/", "/host-ports/", "/groups/", "/subnets/", "/network-names/",
        "/networks-ending/", "/image-refs/", "/operations-running/",
    ),
    "local": ("/journal/", "/uids/", "/idranges/"),
}  # fmt: skip
"""Records that instances and running operations have, by store."""

_OWN_SYS = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/cgroup
mount --rbind /sys/fs/cgroup /mnt/cgroup
mount -t sysfs sysfs /sys
mount --rbind /mnt/cgroup /sys/fs/cgroup
umount -l /mnt
exec "$@"
"""
"""`ip netns exec` gives a /sys of the namespace's links, and takes the control groups away, which Atoll needs."""


class Ran(msgspec.Struct, frozen=True):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


def until(true: Callable[[], Any], what: str | Callable[[], str], deadline: float = DEADLINE) -> Any:
    """Poll for a fact; fails with `what` at the deadline. Returns what `true` gave."""
    end = time.monotonic() + deadline
    while not (found := true()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)
    return found


class Daemon:
    """`net`: the network namespace it runs in; None: where the test runs. `user`: the unprivileged uid it has."""

    def __init__(self, state: Path, net: Namespace | None, user: int | None = None) -> None:
        self.state, self.net, self.user = state, net, user
        self.process: subprocess.Popen[bytes] | None = None
        self.path = os.environ["PATH"]
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ATOLL_")}
        self.env |= {"ATOLL_STATE": str(state), "ATOLL_CACHE": str(cache() / "debs"), "NO_COLOR": "1"}
        self.env |= {"HOME": str(state), "PYTHONPATH": str(TOP), crashing.VARIABLE: str(state / "crash")}

    # its life

    def start(self, *options: str, crash: str = "") -> "Daemon":
        """Run it until it answers. `crash`: VERB/STEP/MOMENT at which it kills itself."""
        self.run("--listen", "none", *options, crash=crash)
        until(self.answers, lambda: f"the daemon answers; it said:\n{self.said()}", 60)
        return self

    def run(self, *options: str, crash: str = "") -> "subprocess.Popen[bytes]":
        """The same without waiting."""
        self.crash_at(crash)
        argv = [sys.executable, "-m", "tests.kit.crashing", "--state", str(self.state), *options]
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(argv), cwd="/", env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        return self.process

    def crash_at(self, moment: str) -> None:
        (self.state / "crash").write_text(moment)

    def command(self, argv: list[str]) -> list[str]:
        """`argv` as a command line that runs where the daemon runs."""
        if self.user is not None:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *argv]
        if self.net is None:
            return argv
        own_sys = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OWN_SYS, "own-sys"]
        return ["nsenter", f"--net={self.net.path}", *own_sys, *argv]

    def answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"the daemon ended:\n{self.said()}")
        try:
            return self.http("GET", "/v1/health").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def said(self) -> str:
        texts = [p.read_text(errors="replace")[-4000:] for p in self.state.glob("*log") if p.is_file()]
        return "\n".join(texts)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, reaped."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        """In good order: guests go on."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def wait_dead(self) -> None:
        assert self.process is not None
        assert self.process.wait(DEADLINE) == -signal.SIGKILL, self.said()

    # asking it

    def atoll(
        self,
        *args: str,
        check: bool = True,
        input: bytes = b"",
        timeout: float = 240,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Ran:
        """The command line, from outside its namespace."""
        done = subprocess.run(
            self.cli(*args), cwd=TOP, env={**self.env, **env}, input=input, capture_output=True, timeout=timeout
        )
        ran = Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        if check and ran.code:
            raise AssertionError(
                f"atoll {' '.join(args)}: exit code {ran.code}\n{ran.out}\n{ran.err}\n{self.said()}"
            )
        return ran

    @staticmethod
    def cli(*args: str) -> list[str]:
        return [sys.executable, "-m", "atoll.cli.main", *args]

    def json(self, *args: str) -> Any:
        return self.atoll("-o", "json", *args).json

    def http(self, method: str, path: str, body: Any = None, **rest: Any) -> Answer:
        return request(self.state / "atoll.sock", method, path, body, **rest)

    def do(self, method: str, path: str, body: Any = None) -> Any:
        """A change, waited for: the operation, which has succeeded."""
        accepted = self.http(method, path, body)
        assert accepted.status == 202, accepted
        ended = self.http("GET", f"/v1/operations/{accepted.json['id']}?wait=60").json
        assert ended["status"] == "done", (ended, self.said())
        return ended

    def launch(self, name: str, *, start: bool = True, **spec: Any) -> Any:
        """Without waiting for its agent. Returns its view."""
        wanted = {"image": "tiny", "memory": SMALL, **spec}
        self.do("POST", INSTANCES, {"name": name, "start": start, "spec": wanted})
        return self.show(name)

    def contain(self, name: str, *, start: bool = True, **spec: Any) -> Any:
        """Launch a container. Returns its view."""
        return self.launch(name, start=start, **{"kind": "container", "memory": 64 * MIB, **spec})

    def act(self, name: str, verb: str, body: Any = None) -> Any:
        return self.do("POST", f"{INSTANCES}/{name}/{verb}", body)

    def delete(self, *names: str) -> None:
        for name in names:
            self.do("DELETE", f"{INSTANCES}/{name}?force=true")

    def all(self) -> dict[str, Any]:
        """Every instance by name."""
        return {view["instance"]["name"]: view for view in self.http("GET", INSTANCES).json}

    def show(self, name: str) -> Any:
        answer = self.http("GET", f"{INSTANCES}/{name}")
        return answer.json if answer.status == 200 else None

    def state_of(self, name: str) -> str:
        view = self.show(name)
        return str(view["status"]["state"]) if view else "absent"

    def until_state(self, name: str, state: str, deadline: float = DEADLINE) -> Any:
        until(
            lambda: self.state_of(name) == state,
            lambda: f"{name} is {state}, not {self.state_of(name)}\n{self.said()}",
            deadline,
        )
        return self.show(name)

    def ready(self, name: str) -> None:
        """Once its agent answers."""
        got = self.http("GET", f"{INSTANCES}/{name}/ready?timeout=200", timeout=240)
        assert got.status < 300, (got, self.atoll("log", name, check=False).out)

    def exec(self, name: str, *argv: str, input: bytes = b"", check: bool = True) -> Ran:
        ran = self.atoll("exec", name, "--", *argv, check=False, input=input)
        assert not check or ran.code == 0, (argv, ran, self.said())
        return ran

    # what it has

    def qemus(self) -> dict[int, str]:
        """Processes of guests of this state directory by pid, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if "qemu-system" in line and os.readlink(entry / "cwd").startswith(f"{self.state}/run/"):
                        found[int(entry.name)] = line
        return found

    def monitors(self) -> dict[int, str]:
        """Monitors of containers (lxc-start) by pid, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if "lxc-start" in line and f"/run/atoll/{self.tag}/ct" in line:
                        found[int(entry.name)] = line
        return found

    def monitor_of(self, name: str) -> int:
        id = self.show(name)["instance"]["id"]
        [pid] = [pid for pid, line in self.monitors().items() if id in line]
        return pid

    def init_of(self, name: str) -> int:
        """A container's first process."""
        monitor = self.monitor_of(name)
        return int(Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()[0])

    def pid_of(self, name: str) -> int:
        [pid] = [pid for pid, line in self.qemus().items() if f"guest={name}." in line or f"/{name}." in line]
        return pid

    def taps(self) -> list[str]:
        if self.net is None:
            return []
        listed = self.net.run("ip", "-o", "link", "show")
        names = [line.split(": ")[1].split("@")[0] for line in listed.splitlines()]
        return [name for name in names if name.startswith(f"at{self.tag}") and "-" not in name]

    def rules(self) -> list[str]:
        """Packet filter rules in its namespace, without counters."""
        return self.net.run("nft", "-s", "list", "ruleset").splitlines() if self.net else []

    def cgroups(self) -> list[str]:
        """Of guests: directories below those of this state directory's tag."""
        return [str(p) for root in self._cgroup_roots() for p in root.rglob("*") if p.is_dir()]

    def _cgroup_roots(self) -> list[Path]:
        return [*CGROUPS.glob(f"atoll-{self.tag}"), *CGROUPS.glob(f"*/atoll-{self.tag}")]

    @property
    def tag(self) -> str:
        id = msgspec.json.decode((self.state / "host.json").read_bytes())["id"]
        return hashlib.sha256(id.encode()).hexdigest()[:6]

    def files(self) -> list[str]:
        """Run directories, volumes, memory, builds, what is on its way, and what DHCP and DNS are told of ports."""
        found = [*(self.state / "run").glob("*"), *(self.state / "containers").glob("*")]
        found += [*(self.state / "pools").glob("*/volumes/*")]
        found += [*(self.state / "parcels").glob("*"), *(self.state / "images" / "incoming").glob("*")]
        found += [*(self.state / "images" / "builds").glob("*"), *Path("/dev/shm").glob(f"atoll-{self.tag}-*")]
        found += [p for p in self._runtime().rglob("*") if p.is_file() and p.parent.name in ("names", "dhcp")]
        return [str(path) for path in found]

    def _runtime(self) -> Path:
        return Path("/run/atoll") / self.tag

    def records(self) -> list[str]:
        """Keys of records, read beside the daemon."""
        found = []
        for store, prefixes in HELD.items():
            with contextlib.closing(sqlite3.connect(self.state / f"{store}.db", timeout=10)) as db:
                keys = [key for (key,) in db.execute("SELECT key FROM entry")]
            found += [f"{store} {key}" for key in keys if key.startswith(prefixes)]
        return found

    def account(self) -> list[str]:
        """Everything that instances and operations have on the host and on record, to be compared."""
        parts = (
            self.qemus().values(),
            self.monitors().values(),
            self.taps(),
            self.rules(),
            self.cgroups(),
            self.files(),
            self.records(),
        )
        return sorted(item for part in parts for item in part)

    def settled_at(self, before: list[str], deadline: float = 30) -> None:
        """Fails unless what it has comes to be what it was `before`."""
        with contextlib.suppress(AssertionError):
            until(lambda: self.account() == before, "", deadline)
        now = self.account()
        assert now == before, (
            f"left behind: {sorted(set(now) - set(before))}\n"
            f"missing: {sorted(set(before) - set(now))}\n{self.said()}"
        )

    def end(self) -> None:
        """Whatever the test did: no process, cgroup or runtime file remains."""
        if self.process is not None:
            self.kill()
        if not (self.state / "host.json").exists():
            return
        for pid in (*self.qemus(), *self.monitors()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            until(lambda: not self.qemus() and not self.monitors(), "guests end", 10)
        for path in (*sorted(self.cgroups(), reverse=True), *map(str, self._cgroup_roots())):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        for ram in Path("/dev/shm").glob(f"atoll-{self.tag}-*"):
            ram.unlink(missing_ok=True)
        shutil.rmtree(self._runtime(), ignore_errors=True)


@contextlib.contextmanager
def daemon(base: Path | None = None, *, net: Namespace | None = None, user: int | None = None) -> Iterator[Daemon]:
    """One that is not started yet, in `net` or a namespace of its own, or as `user` where the test runs.
    `base`: a state directory to begin with, with its images and without its identity."""
    with contextlib.ExitStack() as held:
        state = Path(tempfile.mkdtemp(prefix="atoll-test-"))
        held.callback(shutil.rmtree, state, ignore_errors=True)
        if net is None and user is None:
            net = held.enter_context(namespace("atoll"))
        if base is not None:
            subprocess.run(["cp", "-a", "--reflink=auto", "--sparse=always", f"{base}/.", str(state)], check=True)
        if user is not None:
            subprocess.run(["chown", "-R", f"{user}:{user}", str(state)], check=True)
        made = Daemon(state, net, user)
        held.callback(made.end)
        yield made


def make_base(state: Path) -> None:
    """A state directory with the image `tiny` in it and nothing that is one host's own."""
    with daemon() as made:
        made.start()
        made.atoll("image", "build", "tiny", timeout=600)
        made.http("GET", f"/v1/hosts/{made.http('GET', '/v1').json['host']}/probe", timeout=200)
        made.stop()
        for name in ("images", "shared.db", "accel.json"):
            source = made.state / name
            if source.exists():
                subprocess.run(["cp", "-a", "--sparse=always", str(source), str(state / name)], check=True)
