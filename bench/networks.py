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
from functools import partial
from pathlib import Path

from atoll.base.clock import now
from atoll.base.ids import NetworkId, PortId, new_uuid
from atoll.host import nft
from atoll.network import filter
from atoll.network.addresses import choose_prefix, draw_mac, gateway
from atoll.network.dnsmasq import arguments
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.model import Network, Port
from atoll.network.naming import run_directory
from atoll.network.rules import host_rules
from bench import network_ports
from bench.report import Goal, Row, row, text
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


async def timed(acts: Sequence[Callable[[], Awaitable[object]]], *, at_once: int = 1) -> list[float]:
    """Milliseconds of each."""
    gate = asyncio.Semaphore(at_once)
    spans: list[float] = []

    async def one(act: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            began = time.perf_counter()
            await act()
            spans.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*map(one, acts))
    return spans


async def ours(count: int, at_once: int) -> list[Row]:
    found: list[Row] = []
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
        acts: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "up": [network.up for network in networks],
            "up again": [network.up for network in networks],
            "plug": [partial(network.plug, port) for network, port in both],
            "unplug": [partial(network.unplug, port.id) for network, port in both],
            "down": [network.down for network in networks],
        }
        for what, each in acts.items():
            began = time.perf_counter()
            took = await timed(each, at_once=at_once)
            found.append(row(f"network, {at_once} at a time: {what}", "ms", took))
            if what in ("up", "down"):
                whole = (time.perf_counter() - began) * 1000
                found.append(row(f"network, {at_once} at a time: {what} in all", "ms", [whole]))
    shutil.rmtree(run_directory(tag).parent)
    return found


def raw(count: int) -> list[Row]:
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
            rules += host_rules(link, link, record.subnets, record.gateways)[0]
            rules += [{"add": {"table": {"family": filter.FAMILY, "name": link}}}]
            rules += filter.contents(link, record.gateways)[0]
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
        for pid in space.pids():
            subprocess.run(["kill", str(pid)], check=True)
        feed(space.argv("nft", "flush", "ruleset"), "")
        feed(space.argv("ip", "link", "del", "group", "7"), "")
        down = time.perf_counter()
    shutil.rmtree(scratch)
    each = {
        "up": up - began,
        "links of that": linked - began,
        "rules of that": filtered - linked,
        "dnsmasq of that": up - filtered,
        "down": down - up,
    }
    return [
        row(f"raw tools, a network's share: {what}", "ms", [took * 1000 / count]) for what, took in each.items()
    ]


def feed(argv: Sequence[str], text: str) -> None:
    subprocess.run(argv, input=text, text=True, check=True)


def rows(count: int = 100) -> list[Row]:
    by_tools, one, several = raw(count), asyncio.run(ours(count, 1)), asyncio.run(ours(count, AT_ONCE))
    return [*by_tools, *one, *several, compared(by_tools, several, count), *network_ports.rows()]


def compared(by_tools: list[Row], several: list[Row], count: int) -> Row:
    """The time from the first network to the last, made and removed: how many times the tools'."""
    spent = sum(each.ours.median for each in several if each.what.endswith((": up in all", ": down in all")))
    raw_ = sum(each.ours.median * count for each in by_tools if each.what.endswith((": up", ": down")))
    return row(f"{count} networks created and removed, of the tools' time", "x", [spent / raw_], Goal(1.5))


if __name__ == "__main__":
    print(text(rows(int(sys.argv[1]) if sys.argv[1:] else 100)))
