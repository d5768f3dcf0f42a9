"""A real etcd of one member on loopback, for tests."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from atoll.base.errors import Lacking


class Etcd:
    """`etcd` (Debian: etcd-server) with its data in `directory`, on ports that were free."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._client, self._peer = _free_ports(2)
        self.endpoint = f"127.0.0.1:{self._client}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, patience: float = 60) -> None:
        """Until it answers. Also after `kill`, with the same data and ports."""
        program = shutil.which("etcd")
        if program is None:
            raise Lacking("these tests need a real etcd: apt-get install etcd-server")
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer}"
        with (self.directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program, "--name", "test", "--data-dir", str(self.directory / "data")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"test={peer}", "--logger", "zap"),
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),  # leases of 1 s
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "ETCD_UNSUPPORTED_ARCH": os.uname().machine},
            )
        deadline = time.monotonic() + patience
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"etcd did not start:\n{self._log()[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """At once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Silent, its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            self._await_stopped()
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _await_stopped(self) -> None:
        """The signal is sent at once; on a busy machine a thread stops only when it is its turn."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        end = time.monotonic() + 10
        while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in tasks.glob("*/stat")):
            assert time.monotonic() < end, "etcd does not stop"
            time.sleep(0.002)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/health", timeout=1) as reply:
                return b'"true"' in reply.read()
        except OSError:
            return False

    def _log(self) -> str:
        return (self.directory / "etcd.log").read_text(errors="replace")


@contextlib.contextmanager
def running_etcd(directory: Path) -> Iterator[Etcd]:
    etcd = Etcd(directory)
    etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
