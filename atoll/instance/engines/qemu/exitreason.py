"""How a guest ended, from what is left of it. Pure but for reading the ends of its logs."""

import re
import signal
from typing import Literal

import msgspec

from atoll.base import clock
from atoll.instance.engines.kept import tail
from atoll.instance.engines.qemu.rundir import RunDir
from atoll.instance.model import Exit

Cause = Literal[
    "none", "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui", "guest-shutdown",
    "guest-reset", "guest-panic", "subsystem-reset", "snapshot-load",
]  # fmt: skip
CAUSES: tuple[Cause, ...] = Cause.__args__  # type: ignore[attr-defined]
"""QEMU's ShutdownCause in its order (qapi/run-state.json): the trace tells the number, the event the name."""

_TRACED = re.compile(rb"qemu_system_shutdown_request reason=(\d+)")
_SIGNAL = re.compile(rb"terminating on signal (\d+)(?: from pid (\d+) \(([^)]*)\))?")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\xa0-\uffff]")
_TRACE_LINE = re.compile(r"^\d+@[\d.]+:qemu_system_")
LINES, WIDTH = 20, 300
_TAIL = 16 << 10
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})


class Remains(msgspec.Struct, frozen=True, kw_only=True):
    """`cause`: by event or trace. `status`: exit status, or minus a signal, where it was our child.

    `killer`: who sent the signal of `host-signal`. `forced`: we ended it by force.
    """

    cause: str = ""
    status: int | None = None
    oom_kills: int = 0
    killer: str = ""
    forced: bool = False
    rebooted: bool = False


def judge(remains: Remains) -> tuple[str, bool]:
    """The reason for a person, and whether the guest or its user ended it."""
    status, cause = remains.status, remains.cause
    if remains.forced:
        return "ended by force", True
    if remains.rebooted:
        return "the host was restarted", False
    if cause in ("guest-shutdown", "host-qmp-quit", "host-ui"):
        return ("the guest shut down" if cause == "guest-shutdown" else "stopped"), True
    if cause == "guest-panic":
        return "the guest's kernel panicked", False
    if cause == "host-signal":
        return "ended by a signal from the host" + (f": {remains.killer}" if remains.killer else ""), False
    if remains.oom_kills and status in (None, -signal.SIGKILL):
        return "killed by the host's kernel: it was out of memory", False
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"QEMU crashed ({name})" if -status in _CRASHES else f"killed by {name}", False
    if status:
        return f"QEMU failed with exit code {status}", False
    if cause and cause != "none":
        return f"QEMU ended: {cause}", False
    return "killed or crashed: QEMU ended without a word", False


def of(run: RunDir, remains: Remains) -> Exit:
    """Complete `remains` from the logs, and judge."""
    log = tail(run.log, _TAIL)
    signalled = killer(log)  # of which the trace says nothing
    cause = remains.cause or ("host-signal" if signalled else traced(log))
    remains = msgspec.structs.replace(remains, cause=cause, killer=signalled)
    reason, clean = judge(remains)
    return Exit(reason, clean, clock.now(), last_lines(tail(run.serial, _TAIL), log))


def traced(log: bytes) -> str:
    """The cause that QEMU's trace left in its log; "" where there is none. A reset is not an end."""
    found = [int(number) for number in _TRACED.findall(log)]
    return CAUSES[found[-1]] if found and found[-1] < len(CAUSES) else ""


def killer(log: bytes) -> str:
    match = _SIGNAL.search(log)
    if match is None:
        return ""
    name = signal.Signals(int(match[1])).name
    return f"{name} from process {match[2].decode()} ({match[3].decode(errors='replace')})" if match[2] else name


def last_lines(serial: bytes, log: bytes) -> tuple[str, ...]:
    """The last of the guest's console, then of QEMU's log, each line bounded and free of control characters."""
    said = _lines(serial)[-LINES:]
    told = [line for line in _lines(log) if not _TRACE_LINE.match(line)]
    return tuple([*said, *told[-LINES:]][-LINES:])


def _lines(text: bytes) -> list[str]:
    plain = (_CONTROL.sub("", line)[:WIDTH].rstrip() for line in text.decode(errors="replace").splitlines())
    return [line for line in plain if line]
