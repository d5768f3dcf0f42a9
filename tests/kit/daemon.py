"""A real daemon for a test: its own state directory and network namespace, the shared download cache, and an
account of everything it could leave behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.kit.netns import Namespace, namespace

TOP = Path(__file__).parents[2]
CACHE = Path(os.environ.get("ATOLL_TEST_CACHE") or Path.home() / ".cache" / "atoll-tests")
DEADLINE = 120.0


class Ran(msgspec.Struct, frozen=True):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


def until(true: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Poll for a fact; fails with `what` at the deadline. Returns what `true` gave."""
    end = time.monotonic() + deadline
    while not (found := true()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:.0f} s: {what}")
        time.sleep(0.05)
    return found


class Daemon:
    """`user`: an unprivileged uid to run it as; then without a namespace."""

    def __init__(self, state: Path, net: Namespace | None, user: int | None = None) -> None:
        self.state, self.net, self.user = state, net, user
        self.process: subprocess.Popen[bytes] | None = None
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ATOLL_")}
        self.env |= {"ATOLL_STATE": str(state), "ATOLL_CACHE": str(CACHE), "NO_COLOR": "1", "HOME": str(state)}

    def start(self, crash: str = "", *options: str) -> "Daemon":
        """Run it (without waiting for it where it shall `crash`)."""
        module = ["tests.kit.crashing", "--crash", crash] if crash else ["atoll.daemon"]
        argv = [sys.executable, "-m", *module, "--state", str(self.state), "--listen", "none", *options]
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._in(argv), cwd=TOP, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        until(self.answers, f"the daemon answers; it said:\n{self.said()}", 30)
        return self

    def _in(self, argv: list[str]) -> list[str]:
        if self.user is not None:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *argv]
        return self.net.argv(*argv) if self.net else argv

    def answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"the daemon ended:\n{self.said()}")
        return self.atoll("version", check=False).code == 0 and (self.state / "atoll.sock").exists()

    def said(self) -> str:
        texts = [p.read_text(errors="replace")[-3000:] for p in self.state.glob("*log") if p.is_file()]
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

    def wait_dead(self) -> None:
        assert self.process is not None
        self.process.wait(DEADLINE)

    def atoll(self, *args: str, check: bool = True, input: bytes = b"", timeout: float = 180) -> Ran:
        argv = [sys.executable, "-m", "atoll.cli.main", *args]
        done = subprocess.run(argv, cwd=TOP, env=self.env, input=input, capture_output=True, timeout=timeout)
        ran = Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        if check and ran.code:
            raise AssertionError(
                f"atoll {' '.join(args)}: exit code {ran.code}\n{ran.out}\n{ran.err}\n{self.said()}"
            )
        return ran

    def json(self, *args: str) -> Any:
        return self.atoll("-o", "json", *args).json

    def show(self, name: str) -> Any:
        return self.json("show", name)

    def state_of(self, name: str) -> str:
        found = [one for one in self.json("list") if one["instance"]["name"] == name]
        return str(found[0]["status"]["state"]) if found else "absent"

    def qemus(self) -> dict[int, str]:
        """Processes of guests of this state directory, by pid, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    cwd = os.readlink(entry / "cwd")
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if cwd.startswith(f"{self.state}/run/") and "qemu-system" in line:
                        found[int(entry.name)] = line
        return found

    def links(self) -> list[str]:
        """Taps that are left (a bridge may stay: it is the network's)."""
        if self.net is None:
            return []
        listed = self.net.run("ip", "-o", "link", "show", "type", "tun")
        return [line.split(":")[1].strip() for line in listed.splitlines() if ":" in line]

    def cgroups(self) -> list[str]:
        """Of guests: directories below the one of this state directory's tag."""
        found = []
        for root in Path("/sys/fs/cgroup").rglob(f"atoll-{self.tag}"):
            found += [str(p) for p in root.rglob("*") if p.is_dir()]
        return found

    @property
    def tag(self) -> str:
        import hashlib

        id = msgspec.json.decode((self.state / "host.json").read_bytes())["id"]
        return hashlib.sha256(id.encode()).hexdigest()[:6]

    def files(self) -> list[str]:
        return [str(p) for sub in ("run", "pools") for p in (self.state / sub).rglob("*.qcow2")] + [
            str(p) for p in (self.state / "run").iterdir() if p.is_dir()
        ]

    def leftovers(self) -> list[str]:
        """Everything that would remain of instances if there were none."""
        return [*self.qemus().values(), *self.links(), *self.cgroups(), *self.files()]

    def end(self) -> None:
        """Whatever the test did: no process, cgroup or runtime file remains."""
        if self.process is not None:
            self.kill()
        for pid in self.qemus():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            until(lambda: not self.qemus(), "guests end", 10)
        if (self.state / "host.json").exists():
            for path in sorted(self.cgroups(), reverse=True):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            for root in Path("/sys/fs/cgroup").rglob(f"atoll-{self.tag}"):
                with contextlib.suppress(OSError):
                    os.rmdir(root)
            shutil.rmtree(Path("/run/atoll") / self.tag, ignore_errors=True)


@contextlib.contextmanager
def daemon(base: Path | None = None) -> Iterator[Daemon]:
    """A daemon that runs in a namespace of its own; `base`: a state directory to begin as a copy of."""
    state = Path(tempfile.mkdtemp(prefix="atoll-test-"))
    with namespace("atoll") as net:
        if base is not None:
            subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", str(state)], check=True)
        made = Daemon(state, net)
        try:
            yield made
        finally:
            made.end()
            shutil.rmtree(state, ignore_errors=True)
