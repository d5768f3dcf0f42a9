import signal

import pytest

from atoll.instance.engines.qemu import exitreason
from atoll.instance.engines.qemu.exitreason import Remains

TRACE = b"8815@1795220492.393219:qemu_system_shutdown_request reason=6\n"
KILLED = b"2026-11-21T00:36:12Z qemu-system-x86_64: terminating on signal 15 from pid 20861 (timeout)\n"


@pytest.mark.parametrize(
    ("remains", "reason", "clean"),
    [
        (Remains(cause="guest-shutdown", status=0), "the guest shut down", True),
        (Remains(cause="host-qmp-quit", status=0), "stopped", True),
        (Remains(cause="host-qmp-quit", status=0, forced=True), "ended by force", True),
        (Remains(status=-9, forced=True), "ended by force", True),
        (Remains(cause="guest-panic", status=0), "the guest's kernel panicked", False),
        (Remains(cause="host-signal", killer="SIGTERM from process 1 (x)"), "SIGTERM from process 1", False),
        (Remains(status=-9), "killed by SIGKILL", False),
        (Remains(status=-9, oom_kills=1), "out of memory", False),
        (Remains(oom_kills=1), "out of memory", False),
        (Remains(cause="guest-shutdown", oom_kills=1), "the guest shut down", True),
        (Remains(status=-11), "QEMU crashed (SIGSEGV)", False),
        (Remains(status=-6), "QEMU crashed (SIGABRT)", False),
        (Remains(status=1), "exit code 1", False),
        (Remains(), "without a word", False),
        (Remains(rebooted=True), "the host was restarted", False),
    ],
)
def test_reasons(remains: Remains, reason: str, clean: bool) -> None:
    said = exitreason.judge(remains)
    assert reason in said[0]
    assert said[1] is clean


def test_the_trace_tells_the_cause_later() -> None:
    assert exitreason.traced(b"warning\n" + TRACE) == "guest-shutdown"
    assert exitreason.traced(b"reason=6") == ""
    assert exitreason.traced(TRACE.replace(b"=6", b"=99")) == ""


def test_who_sent_the_signal() -> None:
    assert exitreason.killer(KILLED) == "SIGTERM from process 20861 (timeout)"
    assert exitreason.killer(b"terminating on signal 2") == signal.SIGINT.name
    assert exitreason.killer(b"") == ""


def test_last_lines_are_bounded_and_plain() -> None:
    serial = b"".join(b"line %d\r\n" % n for n in range(100)) + b"\x1b[31mred\x1b[0m \x00\x07" + b"x" * 1000
    lines = exitreason.last_lines(serial, TRACE + KILLED)
    assert len(lines) == exitreason.LINES
    assert lines[-1] == KILLED.decode().strip()
    assert lines[-2].startswith("red xxx")
    assert max(map(len, lines)) <= exitreason.WIDTH
