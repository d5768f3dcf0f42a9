"""DHCP, router advertisements and DNS of one network: a dnsmasq of its own, which outlives the daemon.

It is found again by its pid file, and taken for ours only when its command line is exactly the one we would
start now, in our network namespace. A port is two small files that it reads by itself (inotify), so that
adding one restarts nothing. It logs to syslog, which has bounds; `--quiet-*` leaves only what matters.
"""

import contextlib
import pwd
import shutil
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

from atoll.base.errors import Broken, Lacking
from atoll.base.ids import PortId
from atoll.host.process import Process, command_line
from atoll.host.run import find, run
from atoll.network.leases import Lease, keep_leases, read_leases, release
from atoll.network.model import Mode, Network, Port
from atoll.network.process import end, find_daemon, same_namespace

_LEASE = "12h"
_START = 20.0  # seconds; dnsmasq says that it is ready by ending its first process
_UNPRIVILEGED = ("dnsmasq", "nobody")
_DNS = 53


def arguments(network: Network, *, link: str, directory: Path, user: str, ipv6: bool) -> list[str]:
    """dnsmasq's arguments, without the program."""
    isolated = network.mode is Mode.ISOLATED
    found = [
        "--conf-file=/dev/null",
        f"--pid-file={directory / 'pid'}",
        f"--dhcp-leasefile={directory / 'leases'}",
        f"--dhcp-hostsdir={directory / 'dhcp'}",
        f"--hostsdir={directory / 'names'}",
        f"--user={user}",
        f"--interface={link}",
        "--except-interface=lo",
        "--bind-dynamic",  # unlike --bind-interfaces it answers no query that came in by another link
        "--no-hosts",
        "--domain-needed",
        f"--domain={network.domain}",
        f"--local=/{network.domain}/",
        "--dhcp-authoritative",
        "--dhcp-ignore-names",  # a guest is called what its port is called, not what it says
        "--no-ping",
        "--quiet-dhcp",
        "--quiet-dhcp6",
        "--quiet-ra",
    ]
    if network.mtu != 1500:
        found.append(f"--dhcp-option=option:mtu,{network.mtu}")
        found.append(f"--ra-param={link},mtu:{network.mtu},0{',0' if isolated else ''}")
    elif isolated:
        found.append(f"--ra-param={link},0,0")
    if isolated:
        # No router is told of, in DHCP and in advertisements (a lifetime of 0), and no question goes beyond.
        found += ["--dhcp-option=option:router", "--no-resolv"]
    for subnet in network.subnets:
        net = ip_network(subnet)
        if net.version == 4:
            # "static": only planned ports are served, nothing is given out by asking.
            found.append(f"--dhcp-range={net.network_address},static,{net.netmask},{_LEASE}")
        elif ipv6:
            found += ["--enable-ra", f"--dhcp-range={net.network_address},ra-only,{net.prefixlen},{_LEASE}"]
        else:
            continue
        found.append(f"--rev-server={net}")  # with no server: questions about our addresses end here
    return found


class Dnsmasq:
    """Blocking file work here is a few small files on a RAM disk."""

    def __init__(self, network: Network, *, link: str, directory: Path, ipv6: bool) -> None:
        self._network = network
        self._link = link
        self._directory = directory
        self._ipv6 = ipv6

    async def ensure(self, *, afresh: bool) -> None:
        """One runs as it should. `afresh`: also where one does, since its sockets are bound to a link that is
        no more. Raises Lacking, Broken (the port is in use; it refuses to start)."""
        program = str(find("dnsmasq"))
        wanted = (program, *self._arguments())
        self._make_directories()
        present = self._running()
        if present and not afresh and command_line(present.pid) == wanted and same_namespace(present.pid):
            present.close()
            return
        await self._end(present)
        self._check_port()
        known = {_mac(file.read_text()) for file in self._dhcp.iterdir()}
        keep_leases(self._directory / "leases", lambda lease: lease.mac in known)
        await run(wanted, timeout=_START)

    async def stop(self) -> None:
        """It runs no more, and its files are gone."""
        await self._end(self._running())
        shutil.rmtree(self._directory, ignore_errors=True)

    def add(self, port: Port) -> None:
        """Give the port its addresses and name. An address leased to a former port is freed first."""
        self._make_directories()
        mine = [address for address in port.addresses if self._ipv6 or ":" not in address]
        names = f"{port.name}.{self._network.domain} {port.name}"
        _write(self._directory / "names" / port.id, "".join(f"{at} {names}\n" for at in mine if port.name))
        leased = [address for address in mine if ":" not in address]
        label = port.name.partition(".")[0]
        lines = [",".join(filter(None, (port.mac, address, label))) for address in leased]
        if _write(self._dhcp / port.id, "".join(f"{line}\n" for line in lines)):
            self._signal(signal.SIGHUP)  # of a changed file it would keep the old lines too
        self._release(lambda lease: lease.address in leased and lease.mac != port.mac)

    def remove(self, id: PortId) -> None:
        """Forget a port. The entry is set aside until all is done, so that a repetition finishes it."""
        with contextlib.suppress(FileNotFoundError):
            (self._directory / "names" / id).unlink()
        aside = self._dhcp / f".{id}"
        with contextlib.suppress(FileNotFoundError):
            (self._dhcp / id).rename(aside)
        with contextlib.suppress(FileNotFoundError):
            mac = _mac(aside.read_text())
            self._signal(signal.SIGHUP)  # dnsmasq does not notice a removed DHCP entry by itself
            self._release(lambda lease: lease.mac == mac)
            aside.unlink()

    @property
    def _dhcp(self) -> Path:
        return self._directory / "dhcp"

    def _arguments(self) -> list[str]:
        user = _user()
        return arguments(self._network, link=self._link, directory=self._directory, user=user, ipv6=self._ipv6)

    def _make_directories(self) -> None:
        for directory in (self._directory, self._dhcp, self._directory / "names"):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)  # whatever our umask
        for parent in self._directory.parents:
            if not parent.stat().st_mode & 0o001:
                raise Lacking(f"dnsmasq, as {_user()}, cannot pass {parent}", hint=f"chmod o+x {parent}")

    def _running(self) -> Process | None:
        mark = f"--pid-file={self._directory / 'pid'}"
        return find_daemon(self._directory / "pid", lambda command: mark in command)

    async def _end(self, process: Process | None) -> None:
        if process is not None:
            try:
                await end(process)
            finally:
                process.close()

    def _signal(self, sig: signal.Signals) -> None:
        if process := self._running():
            process.signal(sig)
            process.close()

    def _release(self, stale: Callable[[Lease], bool]) -> None:
        servers = [gateway for gateway in self._network.gateways if ":" not in gateway]
        for lease in read_leases(self._directory / "leases"):
            server = next((server for server in servers if _within(lease.address, server, self._network)), None)
            if server and stale(lease):
                release(lease, server=server, link=self._link)

    def _check_port(self) -> None:
        """dnsmasq itself only logs that it cannot listen, and would run without DNS."""
        for gateway in self._network.gateways:
            family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
            if family == socket.AF_INET6 and not self._ipv6:
                continue
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind((gateway, _DNS))
                        if kind == socket.SOCK_STREAM:
                            probe.listen(1)
                    except OSError as error:
                        raise Broken(
                            f"dnsmasq cannot listen on {gateway} port {_DNS}: {error.strerror}",
                            hint=f"another DNS server has it (ss -lntup): have it leave out {self._link}",
                        ) from error


def _user() -> str:
    """The first of the unprivileged users that this host has."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in _UNPRIVILEGED if user in known), "nobody")


def _mac(entry: str) -> str:
    return entry.partition(",")[0].strip()


def _within(address: str, gateway: str, network: Network) -> bool:
    subnet = network.subnets[network.gateways.index(gateway)]
    return ip_address(address) in ip_network(subnet)


def _write(file: Path, content: str) -> bool:
    """Whether there was another content before. Readers see the old or the new one."""
    before = file.read_text() if file.exists() else None
    if before == content:
        return False
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(content)
    draft.chmod(0o644)
    draft.replace(file)
    return before is not None
