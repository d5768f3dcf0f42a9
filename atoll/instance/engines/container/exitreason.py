"""How a container ended, from liblxc's log. Pure but for reading the ends of its logs."""

import re
import signal

import msgspec

from atoll.base import clock
from atoll.instance.engines.container.rundir import RunDir
from atoll.instance.engines.kept import tail
from atoll.instance.model import Exit

_CODE = re.compile(r"Child <\d+> ended on error \((\d+)\)")
_SIGNALLED = re.compile(r"Child <\d+> ended on signal [^()\n]*\((\d+)\)")
_ENDED = re.compile(r"Container init process \d+ exited")
_HALTED = re.compile(r"Container \"[^\"]*\" is (?:halting|shutting down|rebooting)")
_FAILED = re.compile(r"ERROR +\S+ - [^ ]+:\w+:\d+ - (.+)$", re.MULTILINE)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\xa0-\uffff]")
LINES, WIDTH = 20, 300
_TAIL = 32 << 10


class Remains(msgspec.Struct, frozen=True, kw_only=True):
    """`ended`: liblxc saw its first program end, with `code` or by `signal`. `halted`: the guest shut itself down.
    `asked`, `forced`: we asked it to, ended it by force."""

    ended: bool = False
    code: int = 0
    signal: int = 0
    halted: bool = False
    oom_kills: int = 0
    asked: bool = False
    forced: bool = False
    rebooted: bool = False


def read(log: str) -> Remains:
    """What liblxc's log says. Pure."""
    code, ended = _CODE.findall(log), bool(_ENDED.search(log))
    by = _SIGNALLED.findall(log)
    return Remains(
        ended=ended or bool(code or by),
        code=int(code[-1]) if code else 0,
        signal=int(by[-1]) if by else 0,
        halted=bool(_HALTED.search(log)),
    )


def failures(log: str) -> list[str]:
    """Its errors in its own words, the first the cause."""
    return [found.strip() for found in _FAILED.findall(log)]


def judge(remains: Remains) -> tuple[str, bool, int | None]:
    """The reason for a person, whether the guest or its user ended it, and its first program's exit status."""
    status = 128 + remains.signal if remains.signal else remains.code
    if remains.rebooted:
        return "the host was restarted", False, None
    if remains.forced:
        return "ended by force", True, 128 + signal.SIGKILL
    if not remains.ended:
        return "its monitor (lxc-start) was killed from outside", False, None
    if remains.halted:
        return "the guest shut down", True, 0
    if remains.asked:
        return "the guest shut down", True, status
    if remains.oom_kills and remains.signal == signal.SIGKILL:
        return "killed by the host's kernel: it was out of memory", False, status
    if remains.signal:
        return f"killed by {_name(remains.signal)}", False, status
    if remains.code:
        return f"its first program failed with exit code {remains.code}", False, status
    return "its first program ended", True, 0


def of(run: RunDir, **facts: object) -> Exit:
    """Judge from its logs and what else is known."""
    log = tail(run.log, _TAIL).decode(errors="replace")
    remains = msgspec.structs.replace(read(log), **facts)
    reason, clean, code = judge(remains)
    return Exit(reason, clean, clock.now(), lines(tail(run.console, _TAIL)), code)


def lines(said: bytes) -> tuple[str, ...]:
    """The last of its console, each line bounded and free of control characters."""
    plain = (_CONTROL.sub("", line)[:WIDTH].rstrip() for line in said.decode(errors="replace").splitlines())
    return tuple([line for line in plain if line][-LINES:])


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
