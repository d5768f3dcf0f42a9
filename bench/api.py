"""How fast the API answers: GET of one instance, and a list of 10,000, over the unix socket with keep-alive.

    python -m bench.api [--instances 10000] [--seconds 5] [--connections 8]

The server is a process of its own (uvloop, the real app and catalog on a memory store), the load another.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event as Flag
from pathlib import Path

import msgspec
import uvloop


def serve_until(flag: Flag, ready: Flag, path: Path, count: int, report: "multiprocessing.Queue[float]") -> None:
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
            serving = await serve(build(kit.services), unix=path)
            ready.set()
            await asyncio.to_thread(flag.wait)
            report.put(resident())
            await serving.close()
            await kit.close()

    uvloop.run(main())


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


async def changing(path: Path, seconds: float) -> dict[str, float]:
    """The list while another instance is changed before each: rows are encoded anew only where they changed."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 26)
    times: list[float] = []
    until, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        body = msgspec.json.encode({"cpus": number % 8 + 1})
        number += 1
        name = f"web{number % 1000:05d}"
        head = f"PATCH /v1/projects/default/instances/{name} HTTP/1.1\r\nHost: atoll\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await answer(reader)
        await asyncio.sleep(0.01)
        began = time.perf_counter()
        writer.write(b"GET /v1/projects/default/instances HTTP/1.1\r\nHost: atoll\r\n\r\n")
        await answer(reader)
        times.append(time.perf_counter() - began)
    writer.close()
    times.sort()
    return {
        "median_ms": round(statistics.median(times) * 1000, 2),
        "p99_ms": round(times[-1 - len(times) // 100] * 1000, 2),
    }


async def answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))


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
        one, every = "/v1/projects/default/instances/web00007", "/v1/projects/default/instances"
        found = {
            "one": uvloop.run(measure(path, one, options.seconds, options.connections)),
            "list": uvloop.run(measure(path, every, options.seconds, 1)),
            "list_while_changing": uvloop.run(changing(path, options.seconds)),
        }
        flag.set()
        print(json.dumps({**found, "server_rss_mib": round(report.get(timeout=30))}, indent=2))
        server.join(30)


if __name__ == "__main__":
    main()
