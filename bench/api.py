"""How fast the API answers: GET of one instance, and a list of 10,000, over the unix socket with keep-alive.

    python -m bench.api [--instances 10000] [--seconds 5] [--connections 8]

The server is a process of its own (uvloop, the real app and catalog on a memory store), the load another.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event as Flag
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

Report = Any
"""A queue of what the server's process says at its end: MiB resident, and p99 milliseconds within the app."""


def serve_until(flag: Flag, ready: Flag, path: Path, count: int, report: Report) -> None:
    """The server's process: the app with `count` instances in its store."""

    async def main() -> None:
        from atoll.api.app import build
        from atoll.api.server import serve
        from atoll.instance.book import InstanceBook
        from atoll.instance.catalog import Catalog
        from atoll.store.memory import MemoryStore
        from tests.kit.app import make_kit, make_view

        store = MemoryStore()
        book = InstanceBook(store)
        for number in range(count):
            view = make_view(f"web{number:05d}")
            await store.commit(book.claiming(view.instance, view.status))
        async with Catalog(store) as catalog:
            kit = await make_kit(instances=catalog)
            app = build(kit.services)
            spent: dict[str, list[float]] = {}

            async def timed(scope: Any, receive: Any, send: Any) -> None:
                began = time.perf_counter()
                await app(scope, receive, send)
                what = "list" if scope["path"].endswith("/instances") else f"one, {scope['method']}"
                spent.setdefault(what, []).append(time.perf_counter() - began)

            timed.closing = app.closing  # type: ignore[attr-defined]
            serving = await serve(cast(Any, timed), unix=path)
            ready.set()
            await asyncio.to_thread(flag.wait)
            report.put((resident(), {what: p99_of(times) for what, times in spent.items()}))
            await serving.close()
            await kit.close()

    uvloop.run(main())


def p99_of(times: list[float]) -> float:
    return round(sorted(times)[max(0, int(len(times) * 0.99) - 1)] * 1000, 2)


def resident() -> float:
    """MiB that this process holds."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


async def get(path: Path, target: str, until: float, times: list[float]) -> int:
    """One connection that asks again as soon as it has its answer. Returns the length of the last body."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 26)
    request = f"GET {target} HTTP/1.1\r\nHost: atoll\r\n\r\n".encode()
    length = 0
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - began)
    writer.close()
    return length


async def measure(path: Path, target: str, seconds: float, connections: int) -> dict[str, float]:
    await get(path, target, time.perf_counter() + 0.5, [])
    times: list[float] = []
    began = time.perf_counter()
    lengths = await asyncio.gather(*(get(path, target, began + seconds, times) for _ in range(connections)))
    took = time.perf_counter() - began
    times.sort()
    return {
        "per_second": round(len(times) / took),
        "median_ms": round(statistics.median(times) * 1000, 2),
        "p99_ms": round(times[int(len(times) * 0.99) - 1] * 1000, 2),
        "requests": len(times),
        "body_bytes": lengths[0],
    }


class Reader:
    """One blocking connection whose bodies land in a buffer of its own: little time of ours in what is measured."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.buffer = memoryview(bytearray(64 << 20))

    def ask(self, method: str, target: str, body: bytes = b"") -> float:
        """Seconds from the request's first byte to the answer's last."""
        head = f"{method} {target} HTTP/1.1\r\nHost: atoll\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        have, end = 0, -1
        while end < 0 or have < end:
            got = self.socket.recv_into(self.buffer[have:])
            assert got, "the server hung up"
            have += got
            if end < 0 and (at := bytes(self.buffer[:4096]).find(b"\r\n\r\n")) >= 0:
                head_ = bytes(self.buffer[:at]).lower()
                end = at + 4 + int(head_.split(b"content-length:")[1].split(b"\r\n")[0])
        return time.perf_counter() - began


def listing(path: Path, seconds: float, *, change: bool) -> dict[str, float]:
    """Lists one after the other, with `change` an instance is changed before each."""
    reader, times, number = Reader(path), [], 0
    base = "/v1/projects/default/instances"
    reader.ask("GET", base)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        number += 1
        if change:
            reader.ask("PATCH", f"{base}/web{number % 1000:05d}", msgspec.json.encode({"cpus": number % 8 + 1}))
            time.sleep(0.05)  # the change is carried out
        times.append(reader.ask("GET", base))
    times.sort()
    p99 = times[max(0, int(len(times) * 0.99) - 1)]
    median = statistics.median(times)
    return {"median_ms": round(median * 1000, 2), "p99_ms": round(p99 * 1000, 2), "requests": len(times)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    flag, ready, report = context.Event(), context.Event(), context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        server = context.Process(target=serve_until, args=(flag, ready, path, options.instances, report))
        server.start()
        assert ready.wait(120)
        one = "/v1/projects/default/instances/web00007"
        found = {
            "one": uvloop.run(measure(path, one, options.seconds, options.connections)),
            "list": listing(path, options.seconds, change=False),
            "list_while_changing": listing(path, options.seconds, change=True),
        }
        flag.set()
        memory, spent = report.get(timeout=30)
        print(json.dumps({**found, "server_rss_mib": round(memory), "server_side_p99_ms": spent}, indent=2))
        server.join(30)


if __name__ == "__main__":
    main()
