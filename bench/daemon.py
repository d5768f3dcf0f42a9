"""The daemon: how soon it answers, what it holds, what it does while nothing happens.

    python -m bench.daemon

Starts are timed from the fork of `python -m atoll.daemon` to the last byte of its first answer over the unix
socket, which is asked for every 2 ms. Idle is counted over 10 seconds, with no guest and with five.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.report import Goal, Row, row, text
from tests.kit.daemon import TOP, Daemon, daemon
from tests.kit.images import tiny

STARTS = 9
GUESTS = 5
WATCHED = 10.0
SETTLED = 5.0


def health(path: Path) -> bool:
    """Whether somebody answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(str(path))
            asking.sendall(b"GET /v1/health HTTP/1.1\r\nHost: atoll\r\nConnection: close\r\n\r\n")
            return asking.recv(4096).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


@contextlib.contextmanager
def started(made: Daemon) -> Iterator[tuple[int, float]]:
    """A daemon over `made`'s state, ended by SIGTERM: its pid, and the seconds to its first answer."""
    path = made.state / "atoll.sock"
    path.unlink(missing_ok=True)
    assert made.net is not None
    line = [sys.executable, "-m", "atoll.daemon", "--state", str(made.state)]
    with (made.state / "log").open("ab") as log, made.net.entered():
        begun = time.perf_counter()
        process = subprocess.Popen(line, cwd=TOP, env=made.env, stdout=log, stderr=log, start_new_session=True)
    try:
        while not health(path):
            assert process.poll() is None, made.said()
            assert time.perf_counter() < begun + 60, "no answer within a minute"
            time.sleep(0.002)
        yield process.pid, time.perf_counter() - begun
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def resident(pid: int) -> float:
    """MB (1,000,000 bytes) that it holds, shared pages too."""
    return int(_status(pid, "VmRSS")) * 1024 / 1e6


def _status(pid: int | str, name: str) -> str:
    return Path(f"/proc/{pid}/status").read_text().split(f"{name}:")[1].split()[0]


def used(pid: int) -> tuple[float, int]:
    """Milliseconds of CPU time, and how often its threads were woken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    woken = sum(
        int(_status(f"{pid}/task/{thread}", "voluntary_ctxt_switches"))
        for thread in os.listdir(f"/proc/{pid}/task")
    )
    return ticks * 1000 / os.sysconf("SC_CLK_TCK"), woken


def idle(pid: int, what: str) -> list[Row]:
    time.sleep(SETTLED)
    before = used(pid)
    time.sleep(WATCHED)
    after = used(pid)
    return [
        row(f"resident, {what}", "MB", [resident(pid)], Goal(100)),
        row(f"CPU time a second, {what}", "ms", [(after[0] - before[0]) / WATCHED]),
        row(f"wake-ups of its threads a second, {what}", "1/s", [(after[1] - before[1]) / WATCHED]),
    ]


def rows() -> list[Row]:
    tiny()  # its packages are in the cache now: the daemon in its namespace has no network
    with daemon() as made:
        first, later = [], []
        with started(made) as (_, took):
            first.append(took * 1000)
        for _ in range(STARTS):
            with started(made) as (_, took):
                later.append(took * 1000)
        found = [
            row("start to first answer", "ms", later, Goal(1000)),
            row("the same at the very first start", "ms", first, Goal(1000)),
        ]
        with started(made) as (pid, _):
            found += idle(pid, "no guest")
            for number in range(GUESTS):
                made.atoll("launch", "tiny", f"idle{number}", "-m", "128MiB")
            found += idle(pid, f"{GUESTS} idle guests")
            made.atoll("delete", "--all", "--force")
        return found


if __name__ == "__main__":
    print(text(rows()))
