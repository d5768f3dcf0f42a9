"""A host with guests and an outside, all network namespaces, to try networks in (as root)."""

import contextlib
import secrets
import subprocess
from pathlib import Path
from typing import Any

from atoll.network import naming
from atoll.network.book import NetworkBook
from atoll.network.drivers.bridge import BridgeNetwork
from atoll.network.model import Network, Port, PortSettings, PortWish
from atoll.network.naming import run_directory
from atoll.store.memory import MemoryStore
from tests.kit.netns import Namespace, namespace

CONFIGURE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr replace $ip/$mask dev $interface
ip route replace default via $router
printf 'nameserver %s\\nsearch %s\\n' "$dns" "$domain" > "$RESOLV"
"""
"""What udhcpc has done with its lease."""


class Guest:
    """A namespace on the bridge by a veth that has the port's MAC."""

    def __init__(self, wire: Namespace, port: Port, script: Path) -> None:
        self.wire, self.port, self._script = wire, port, script
        self.resolv = Path("/etc/netns") / wire.name / "resolv.conf"

    def run(self, *argv: str, check: bool = True) -> str:
        return self.wire.run(*argv, check=check)

    def dhcp(self, *, tries: int = 5) -> bool:
        """Ask for an address, claiming to be called `liar`."""
        env = f"RESOLV={self.resolv}"
        ask = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", str(tries), "-T", "1", "-x", "hostname:liar"]
        return "obtained" in self.run("env", env, *ask, "-s", str(self._script), check=False)

    def has_made(self, address: str) -> bool:
        """From the router's advertisement, and sure that it is nobody else's."""
        lines = self.run("ip", "-6", "addr", "show", "eth0").splitlines()
        return any(f"{address}/64" in line and "tentative" not in line for line in lines)

    def pings(self, target: str, *, tries: int = 5) -> bool:
        argv = self.wire.argv("busybox", "ping", "-c", "1", "-W", "1", target)
        return any(subprocess.run(argv, capture_output=True).returncode == 0 for _ in range(tries))

    def resolve(self, name: str, server: str = "") -> list[str]:
        said = self.run("busybox", "nslookup", name, *([server] if server else []), check=False)
        answer = said.partition("\n\n")[2] or said
        lines = [line for line in answer.splitlines() if line.startswith("Address:") or "name = " in line]
        return [line.rpartition("name = ")[2].removeprefix("Address:").strip() for line in lines]

    def connects(self, address: str, port: int, *, within: float = 2) -> bool:
        code = f"import socket; socket.create_connection(({address!r}, {port}), {within})"
        return subprocess.run(self.wire.argv("python3", "-c", code), capture_output=True).returncode == 0


class Lab:
    """The host's namespace, and whatever a test puts on its networks."""

    def __init__(self, host: Namespace, directory: Path, stack: contextlib.ExitStack) -> None:
        self.host, self.tag = host, secrets.token_hex(3)
        self.store = MemoryStore()
        self.book = NetworkBook(self.store)
        self._stack = stack
        self._script = directory / "configure"
        self._script.write_text(CONFIGURE)
        self._script.chmod(0o755)

    async def network(self, name: str, **settings: Any) -> Network:
        return await self.book.create("default", name, "bridge", **settings)

    def driver(self, record: Network, index: int = 1, **options: Any) -> BridgeNetwork:
        directory = run_directory(self.tag) / record.id
        return BridgeNetwork(record, tag=self.tag, index=index, directory=directory, **options)

    async def port(self, record: Network, name: str, **settings: Any) -> Port:
        wish = PortWish(settings=PortSettings(**settings))
        port, txn = await self.book.plan_port(record, project="default", instance=name, name=name, wish=wish)
        await self.store.commit(txn)
        return port

    async def guest(self, driver: BridgeNetwork, port: Port) -> Guest:
        await driver.plug(port)
        return self.attach(driver, port)

    async def held(self, driver: BridgeNetwork, port: Port) -> Guest:
        """One whose link is the port's, so that guards, groups and limits are about it: its tap gives way to it."""
        link = (await driver.plug(port)).link
        self.host.run("ip", "link", "del", link)
        guest = self.attach(driver, port, link=link)
        await driver._links.attach(link, driver._bridge)
        alias, group = naming.port_alias(port.network, port.id), str(naming.link_group(self.tag))
        self.host.run("ip", "link", "set", link, "alias", alias, "group", group)
        for address in port.addresses:
            length, dad = ("64", ["nodad"]) if ":" in address else ("24", [])
            guest.run("ip", "addr", "add", f"{address}/{length}", "dev", "eth0", *dad)
        return guest

    def attach(self, driver: BridgeNetwork, port: Port, *, link: str = "") -> Guest:
        wire = self._stack.enter_context(namespace("guest"))
        guest = Guest(wire, port, self._script)
        guest.resolv.parent.mkdir(parents=True)
        guest.resolv.touch()
        self._stack.callback(_remove, guest.resolv)
        self.wire(wire, "eth0", port.mac, driver, end=link)
        return guest

    def wire(
        self, other: Namespace, name: str, mac: str, driver: BridgeNetwork | None = None, *, end: str = ""
    ) -> str:
        end = end or f"v{secrets.token_hex(4)}"
        self.host.run("ip", "link", "add", end, "type", "veth", "peer", "name", name, "netns", other.name)
        other.run("ip", "link", "set", name, "address", mac, "up")
        master = ["master", driver._bridge] if driver else []
        self.host.run("ip", "link", "set", end, *master, "up")
        return end

    def outside(self) -> Namespace:
        """A place beyond the host that knows no way to the guests' subnets."""
        there = self._stack.enter_context(namespace("outside"))
        end = self.wire(there, "eth0", "02:00:00:00:00:99")
        for where, link, host in ((self.host, end, 1), (there, "eth0", 2)):
            where.run("ip", "addr", "add", f"198.51.100.{host}/24", "dev", link)
            where.run("ip", "addr", "add", f"2001:db8::{host}/64", "dev", link, "nodad")
        return there

    def dnsmasq_pid(self, record: Network) -> int:
        return int((run_directory(self.tag) / record.id / "pid").read_text())

    def left(self) -> list[str]:
        """Everything of this Atoll that is in the host."""
        found = [line for line in self.host.run("ip", "-o", "link").splitlines() if f"at{self.tag}" in line]
        found += [line for line in self.host.run("nft", "list", "tables").splitlines() if self.tag in line]
        found += [str(path) for path in run_directory(self.tag).rglob("*")]
        return found + [str(pid) for pid in self.host.pids()]


def _remove(resolv: Path) -> None:
    resolv.unlink()
    resolv.parent.rmdir()
    with contextlib.suppress(OSError):  # other tests' or the host's own
        resolv.parent.parent.rmdir()
