"""Ports of one network: a security group that changes while 200 ports are in it, and a cap that holds.

Run as root: `python -m bench.network_ports`. In network namespaces made for it. The cap is measured over TCP
between two namespaces, one of them behind a link that is metered as a port is.
"""

import asyncio
import secrets
import shutil
import socket
import subprocess
import threading
import time

from atoll.base.clock import now
from atoll.base.ids import NetworkId, PortId, new_uuid
from atoll.host import tc
from atoll.network import meter
from atoll.network.addresses import draw_mac
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.groups import OUTWARDS, GroupPlan, GroupRule
from atoll.network.model import Bandwidth, Network, Port, PortSettings
from atoll.network.naming import run_directory
from bench.report import Goal, Row, row, text
from tests.kit.netns import Namespace, namespace

PORTS = 200
ROUNDS = 15
CAP = 100_000_000
SECONDS = 4.0


def network() -> Network:
    return Network(
        id=NetworkId(new_uuid()),
        project="default",
        name="bench",
        driver="bridge",
        subnets=("10.99.0.0/16",),
        gateways=("10.99.0.1",),
        domain="bench.internal",
        created=now(),
    )


async def changes() -> list[Row]:
    """One rule more or less, and one member more or less, of a group that every port is in."""
    tag, record = secrets.token_hex(3), network()
    rules, members = [], []
    with namespace("bench") as space, space.entered():
        driver = BridgeNetwork(record, tag=tag, index=1, directory=run_directory(tag) / record.id)
        await driver.up()
        addresses = [f"10.99.{n // 200 + 1}.{n % 200 + 10}" for n in range(PORTS)]
        plan = GroupPlan(id="web", rules=(OUTWARDS,), addresses=frozenset(addresses))
        await driver.set_groups([plan])
        for address in addresses:
            settings = PortSettings(groups=("web",))
            await driver.plug(
                Port(
                    id=PortId(new_uuid()), network=record.id, instance="i", mac=draw_mac(), addresses=(address,),
                    settings=settings,
                )
            )  # fmt: skip
        for number in range(ROUNDS):
            more = GroupRule(direction="ingress", protocol="tcp", port=1000 + number)
            for plans, spans in (
                (GroupPlan(id="web", rules=(OUTWARDS, more), addresses=plan.addresses), rules),
                (
                    GroupPlan(id="web", rules=(OUTWARDS, more), addresses=plan.addresses - {addresses[number]}),
                    members,
                ),
            ):
                began = time.perf_counter()
                await driver.set_groups([plans])
                spans.append((time.perf_counter() - began) * 1000)
        await driver.down()
    shutil.rmtree(run_directory(tag).parent, ignore_errors=True)
    goal = Goal(50)
    return [
        row(f"security group, a rule changes: {PORTS} ports", "ms", rules, goal),
        row(f"security group, a member goes: {PORTS} ports", "ms", members, goal),
    ]


def received(server: socket.socket, found: list[float]) -> None:
    """Mbit/s of payload, from the first byte on."""
    taken, _ = server.accept()
    with taken:
        total, began = 0, 0.0
        while data := taken.recv(1 << 20):
            began = began or time.perf_counter()
            total += len(data)
        found.append(total * 8 / 1e6 / (time.perf_counter() - began))


def transfer(sender: Namespace, receiver: Namespace, address: str) -> float:
    found: list[float] = []
    with receiver.entered():
        server = socket.create_server((address, 7000))
    with server:
        reading = threading.Thread(target=received, args=(server, found))
        reading.start()
        code = (
            "import socket,time\n"
            f"c=socket.create_connection(({address!r},7000)); end=time.monotonic()+{SECONDS}\n"
            "while time.monotonic()<end: c.sendall(bytes(65536))\n"
        )
        subprocess.run(sender.argv("python3", "-c", code), check=True)
        reading.join()
    return found[0]


async def caps() -> list[Row]:
    mac, spans = draw_mac(), {"u": list[float](), "d": list[float]()}
    with namespace("host") as host, namespace("guest") as guest:
        host.run("ip", "link", "add", "tap", "type", "veth", "peer", "name", "eth0", "netns", guest.name)
        guest.run("ip", "link", "set", "eth0", "address", mac, "up")
        for where, link, address in ((host, "tap", "10.99.0.1"), (guest, "eth0", "10.99.0.2")):
            where.run("ip", "addr", "add", f"{address}/24", "dev", link)
            where.run("ip", "link", "set", link, "up")
        with host.entered():
            for way in meter.WAYS:
                host.run("ip", "link", "add", f"ifb{way}", "type", "ifb")
                host.run("ip", "link", "set", f"ifb{way}", "up")
                await tc.batch(meter.queue_lines(f"ifb{way}", "tap"), forgiving=True)
                await tc.batch(meter.device_lines(f"ifb{way}", 0))
                await tc.batch(meter.port_lines(f"ifb{way}", "tap", way, meter.FIRST, mac, Bandwidth(CAP), 0))
        for _ in range(3):
            spans["u"].append(transfer(guest, host, "10.99.0.1"))
            spans["d"].append(transfer(host, guest, "10.99.0.2"))
    found = []
    for way, name in (("u", "from"), ("d", "to")):
        off = [abs(rate / (CAP / 1e6) - 1) * 100 for rate in spans[way]]
        found.append(row(f"cap of 100 Mbit/s {name} a guest: payload", "Mbit/s", spans[way]))
        found.append(row(f"cap of 100 Mbit/s {name} a guest: off by", "%", off, Goal(6)))
    return found


def rows() -> list[Row]:
    return [*asyncio.run(changes()), *asyncio.run(caps())]


if __name__ == "__main__":
    print(text(rows()))
