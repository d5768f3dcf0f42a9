"""Network namespaces for tests: made, entered, and surely removed with everything that runs in them."""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A named network namespace. Links in it die with it; so do the processes that `remove` finds in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns") / name

    def argv(self, *argv: str) -> list[str]:
        """A command line that runs `argv` in it (with its own /sys)."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 30) -> str:
        """What a program in it prints, errors too. A failure shows that."""
        done = subprocess.run(
            self.argv(*argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} in {self.name}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and threads and processes that it starts meanwhile, are in it."""
        with open("/proc/thread-self/ns/net") as before:
            _enter(self.path)
            try:
                yield
            finally:
                _setns(before.fileno())

    def pids(self) -> list[int]:
        """Of the processes in it, without this one."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        found = [int(pid) for pid in listed.stdout.split() if int(pid) != os.getpid()]
        return [pid for pid in found if Path(f"/proc/{pid}").exists()]  # without that `ip`, too

    def remove(self) -> None:
        deadline = time.monotonic() + 10
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@contextlib.contextmanager
def namespace(purpose: str = "test") -> Iterator[Namespace]:
    """A new one with `lo` up, removed at the end whatever happens."""
    made = Namespace(f"{purpose}-{secrets.token_hex(4)}")
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        made.remove()


def _enter(path: Path) -> None:
    with open(path) as file:
        _setns(file.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
