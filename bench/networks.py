"""100 bridge networks up, up again, and down, one after the other and eight at a time, against the raw tools.

Run as root: `python -m bench.networks [COUNT]`. Everything happens in network namespaces made for it. The raw
side does the same work: `ip -batch` for the links, one `nft -f` for all tables, a dnsmasq for each network.
"""

import asyncio
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from atoll.base.clock import now
from atoll.base.ids import NetworkId, PortId, new_uuid
from atoll.host import nft
from atoll.network.addresses import choose_prefix, draw_mac, gateway
from atoll.network.dnsmasq import arguments
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.model import Network, Port
from atoll.network.naming import run_directory
from atoll.network.rules import nat_rules
from tests.kit.netns import namespace

AT_ONCE = 8


def make_record(number: int) -> Network:
    id = NetworkId(new_uuid())
    subnets = (f"10.99.{number}.0/24", choose_prefix(id))
    return Network(
        id=id,
        project="default",
        name=f"n{number}",
        driver="bridge",
        subnets=subnets,
        gateways=tuple(map(gateway, subnets)),
        domain=f"n{number}.default.internal",
        created=now(),
    )


async def timed(what: str, acts: Sequence[Callable[[], Awaitable[object]]], *, at_once: int = 1) -> None:
    gate = asyncio.Semaphore(at_once)
    spans: list[float] = []

    async def one(act: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            began = time.perf_counter()
            await act()
            spans.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*map(one, acts))
    whole = time.perf_counter() - began
    spans.sort()
    middle, worst = spans[len(spans) // 2] * 1000, spans[-1] * 1000
    print(f"{what:<34} {whole:7.2f} s   each: median {middle:6.1f} ms, worst {worst:6.1f} ms")


async def ours(count: int, at_once: int) -> None:
    tag = secrets.token_hex(3)
    records = [make_record(number) for number in range(count)]
    with namespace("bench") as space, space.entered():
        networks = [
            BridgeNetwork(record, tag=tag, index=number + 1, directory=run_directory(tag) / record.id)
            for number, record in enumerate(records)
        ]
        ports = [
            Port(
                id=PortId(new_uuid()), network=record.id, instance="i", mac=draw_mac(),
                addresses=(record.subnets[0].replace(".0/24", ".10"),), name="web",
            )
            for record in records
        ]  # fmt: skip
        both = list(zip(networks, ports, strict=True))
        label = f"atoll, {at_once} at a time:"
        await timed(f"{label} up", [network.up for network in networks], at_once=at_once)
        await timed(f"{label} up again", [network.up for network in networks], at_once=at_once)
        await timed(f"{label} plug", [lambda n=n, p=p: n.plug(p) for n, p in both], at_once=at_once)  # type: ignore[misc]
        await timed(f"{label} unplug", [lambda n=n, p=p: n.unplug(p.id) for n, p in both], at_once=at_once)  # type: ignore[misc]
        await timed(f"{label} down", [network.down for network in networks], at_once=at_once)
    shutil.rmtree(run_directory(tag).parent)


def raw(count: int) -> None:
    """The same links, rules and daemons by the tools themselves, all of a kind in one call."""
    records = [make_record(number) for number in range(count)]
    scratch = Path(tempfile.mkdtemp(dir="/run"))
    scratch.chmod(0o755)
    with namespace("bench") as space:
        links = [f"raw{number}" for number in range(count)]
        made, rules, daemons = [], [], []
        for link, record in zip(links, records, strict=True):
            made += [f"link add {link} group 7 type bridge", f"link set {link} alias {link} up"]
            made.append(f"addr add {record.gateways[0]}/24 dev {link}")
            made.append(f"addr add {record.gateways[1]}/64 dev {link} nodad")
            rules += [{"add": {"table": {"family": "inet", "name": link}}}]
            rules += nat_rules(link, link, record.subnets, record.gateways)[0]
            directory = scratch / link
            for part in ("dhcp", "names"):
                (directory / part).mkdir(parents=True)
            daemons.append(arguments(record, link=link, directory=directory, user="nobody", ipv6=True))
        began = time.perf_counter()
        feed(space.argv("ip", "-batch", "-"), "\n".join(made))
        linked = time.perf_counter()
        with space.entered():
            asyncio.run(nft.apply(rules))
        filtered = time.perf_counter()
        for words in daemons:
            feed(space.argv("dnsmasq", *words), "")
        up = time.perf_counter()
        print(f"{'raw tools: up':<34} {up - began:7.2f} s   links {linked - began:.2f}, "
              f"rules {filtered - linked:.2f}, dnsmasq {up - filtered:.2f}")  # fmt: skip
        for pid in space.pids():
            subprocess.run(["kill", str(pid)], check=True)
        feed(space.argv("nft", "flush", "ruleset"), "")
        feed(space.argv("ip", "link", "del", "group", "7"), "")
        print(f"{'raw tools: down':<34} {time.perf_counter() - up:7.2f} s")
    shutil.rmtree(scratch)


def feed(argv: Sequence[str], text: str) -> None:
    subprocess.run(argv, input=text, text=True, check=True)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"{count} networks, each with IPv4, IPv6, NAT, DHCP and names")
    raw(count)
    asyncio.run(ours(count, 1))
    asyncio.run(ours(count, AT_ONCE))


if __name__ == "__main__":
    main()
