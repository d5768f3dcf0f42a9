"""What limits of ports do, measured: guarantees and bursts, both ways. Ceilings are measured with real guests."""

import socket
import subprocess
import threading
import time

from atoll.network.model import Bandwidth, Mode
from tests.kit.lab import Guest, Lab
from tests.kit.netns import Namespace

MBIT = 10**6
SECONDS = 2.0
OUTSIDE = "198.51.100.2"


SEND = """
import socket, sys, time
c = socket.create_connection((sys.argv[1], int(sys.argv[2]))); end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end: c.sendall(bytes(16384))
"""


class Sink:
    """Takes one connection and tells Mbit/s of the second half of the time, when queues have settled."""

    def __init__(self, where: Namespace, port: int) -> None:
        with where.entered():
            self._server = socket.create_server(("", port))
        self.rate = 0.0
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        taken, _ = self._server.accept()
        began, total, counted = time.monotonic(), 0, 0.0
        with taken, self._server:
            while data := taken.recv(1 << 18):
                if (now := time.monotonic()) - began > SECONDS / 2:
                    counted = counted or now
                    total += len(data)
                    if now - began > SECONDS:
                        break
            self.rate = total * 8 / MBIT / max(time.monotonic() - counted, 0.1)

    def result(self) -> float:
        self._thread.join(20)
        return self.rate


def race(flows: list[tuple[Namespace, Namespace, str]]) -> list[float]:
    """(from, to, address): all at the same time."""
    sinks = [Sink(to, 7000 + n) for n, (_, to, _) in enumerate(flows)]
    sending = [
        subprocess.Popen(
            source.argv("python3", "-c", SEND, address, str(7000 + n), str(SECONDS + 0.5)),
            stderr=subprocess.DEVNULL,
        )
        for n, (source, _, address) in enumerate(flows)
    ]
    found = [sink.result() for sink in sinks]
    for process in sending:
        process.wait(20)
    return found


async def pair(lab: Lab, first: Bandwidth, second: Bandwidth) -> tuple[Namespace, Guest, Guest]:
    outside = lab.outside()
    record = await lab.network("blue", bandwidth=40 * MBIT, mode=Mode.ROUTED)
    driver = lab.driver(record)
    await driver.up()
    guests = []
    for name, limit in (("one", first), ("two", second)):
        port = await lab.port(record, name, up=limit, down=limit)
        guest = await lab.held(driver, port)
        placed = driver._taps._files.get(port.id)
        assert placed is not None
        await driver._taps._limit(placed, None)  # its link is another than the one that had its limits
        guest.run("ip", "route", "add", "default", "via", record.gateways[0])
        guests.append(guest)
    outside.run("ip", "route", "add", record.subnets[0], "via", "198.51.100.1")
    return outside, guests[0], guests[1]


async def test_a_guarantee_holds_however_busy_the_others_are(lab: Lab) -> None:
    outside, sure, greedy = await pair(lab, Bandwidth(guaranteed=30 * MBIT), Bandwidth(ceiling=40 * MBIT))
    up = race([(sure.wire, outside, OUTSIDE), (greedy.wire, outside, OUTSIDE)])
    down = race([(outside, guest.wire, guest.port.addresses[0]) for guest in (sure, greedy)])
    for both in (up, down):
        assert both[0] > 30 * 0.85, (up, down)
        assert sum(both) < 40 * 1.06, (up, down)
    [alone] = race([(greedy.wire, outside, OUTSIDE)])
    assert alone > 30, "what nobody uses is everybody's"


async def test_a_burst_passes_at_once_and_no_more(lab: Lab) -> None:
    limits = Bandwidth(ceiling=4 * MBIT, burst=1 << 20), Bandwidth(ceiling=4 * MBIT)
    outside, bursting, plain = await pair(lab, *limits)
    ways = [(bursting.wire, outside, OUTSIDE), (outside, bursting.wire, bursting.port.addresses[0])]
    for way in ways:
        assert span(*way, size=800_000) < 1.0, "800 kB take 1.6 s at 4 Mbit/s"
        assert span(*way, size=2_400_000) > 2.0, "of which the first 1 MiB may pass at once"
    assert span(plain.wire, outside, OUTSIDE, size=800_000) > 1.2


def span(source: Namespace, to: Namespace, address: str, *, size: int) -> float:
    """Seconds from the connection to the last of `size` bytes."""
    with to.entered():
        server = socket.create_server(("", 7000))
    code = f"import socket; c=socket.create_connection(({address!r},7000)); c.sendall(bytes({size}))"
    with server, subprocess.Popen(source.argv("python3", "-c", code)) as sending:
        taken, _ = server.accept()
        began = time.monotonic()
        with taken:
            while taken.recv(1 << 18):
                pass
        took = time.monotonic() - began
        sending.wait(20)
    return took
