"""The one door to the kernel's links, addresses and routes (rtnetlink by pyroute2, taps by ioctl).

Every call opens a netlink socket of its own in a worker thread: 0.6 ms in all, nothing to keep or to lose.
(pyroute2's asyncio classes cannot run on uvloop, whose datagram transports refuse netlink sockets.)

All links made here carry one group number, so that everything an Atoll made is found and deleted by it, and an
alias that says what they are for.
"""

import asyncio
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_interface, ip_network
from typing import Any, TypeAlias, TypeVar

import msgspec
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_GETLINK

from atoll.base.errors import AtollError, Broken, Lacking, Refused, Unreachable

Result = TypeVar("Result")
Netlink: TypeAlias = Any
"""An open IPRoute, whose methods are made at run time."""

MAX_NAME = 15
"""Bytes of a link's name (IFNAMSIZ less its NUL)."""
_TIMEOUT = 20.0  # seconds; deleting a bridge waits for an RCU grace period, which a busy host makes long
_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFF_UP = 0x1
_IFA_F_NODAD = 0x02
_LLDP = 1 << 0x0E  # of the addresses 01:80:c2:00:00:00 to 0f
_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS: a third of the work of a dump
_UNICAST, _MAIN_TABLE = 1, 254
_GONE = frozenset({errno.ENODEV, errno.ENOENT})


class Link(msgspec.Struct, frozen=True):
    """A link as the kernel has it. `master`: the index of the bridge it belongs to, 0 for none."""

    index: int
    name: str
    kind: str
    alias: str
    mac: str
    mtu: int
    group: int
    master: int
    up: bool


class Links:
    """Links of one Atoll, all in `group`. Every act may be repeated; deleting an absent link succeeds.

    Raises Lacking (a right or kernel part is missing), Refused (held by a process), Unreachable (no answer in
    time) and Broken (also where a link of that name is somebody else's).
    """

    def __init__(self, group: int) -> None:
        self.group = group

    async def get(self, name: str) -> Link | None:
        return await _work(lambda ip: _get(ip, name))

    async def ours(self) -> list[Link]:
        return [link for link in await _work(_dump) if link.group == self.group]

    async def attached(self, bridge: str) -> list[Link]:
        """The links that belong to a bridge; none where it is absent."""

        def work(ip: Netlink) -> list[Link]:
            master = _get(ip, bridge)
            return _dump(ip, master=master.index) if master else []

        return await _work(work)

    async def make_bridge(self, name: str, *, mac: str, mtu: int, alias: str, addresses: Sequence[str]) -> bool:
        """A bridge that is up, forwards at once (no STP) and has exactly `addresses` (CIDRs with a host part)
        beside its link-local one. True where it had to be made anew."""

        def work(ip: Netlink) -> bool:
            link = self._owned(_get(ip, name), name, "bridge")
            made = link is None
            if made:
                ip.link("add", ifname=name, kind="bridge", group=self.group, address=mac, mtu=mtu, br_stp_state=0)
            index = _present(ip, name).index if link is None else link.index
            wanted = Link(index, name, "bridge", alias, mac, mtu, self.group, 0, True)
            if link != wanted:
                ip.link("set", index=index, address=mac, mtu=mtu, ifalias=alias, group=self.group, state="up")
            _set_addresses(ip, index, set(addresses))
            return made

        return await _work(work)

    async def make_tap(self, name: str, *, bridge: str, owner: int | None, mtu: int, alias: str) -> None:
        """A persistent tap that is up on `bridge`, which user `owner` may open (None: our own)."""
        uid = os.geteuid() if owner is None else owner

        def work(ip: Netlink) -> None:
            link = self._owned(_get(ip, name), name, "tun", alias=alias)
            if link is None or _owner(ip, link.index) != uid:
                _make_tap(name, uid)
            link, master = _present(ip, name), _present(ip, bridge)
            wanted = Link(link.index, name, "tun", alias, link.mac, mtu, self.group, master.index, True)
            if link != wanted:
                settings = {"group": self.group, "ifalias": alias, "mtu": mtu}
                _join(ip, link.index, master.index)
                ip.link("set", index=link.index, state="up", **settings)

        await _work(work)

    async def make_veth(
        self, name: str, *, peers: Sequence[str], mac: str, bridge: str, mtu: int, alias: str
    ) -> str:
        """A pair: `name` is up on `bridge`, the other end has `mac` and the first free name of `peers`, which is
        returned; "" where it is in another network namespace already."""

        def work(ip: Netlink) -> str:
            link = self._owned(_get(ip, name), name, "veth", alias=alias)
            if link is None:
                peer = next((each for each in peers if _get(ip, each) is None), "")
                if not peer:
                    raise Broken(f"every link name for the guest's end of {name} is taken", hint="ip link show")
                other = {"ifname": peer, "address": mac, "mtu": mtu, "group": self.group}
                ip.link("add", ifname=name, kind="veth", peer=other, group=self.group, mtu=mtu)
            else:
                peer = _other_end(ip, name)
            link, master = _present(ip, name), _present(ip, bridge)
            wanted = Link(link.index, name, "veth", alias, link.mac, mtu, self.group, master.index, True)
            if link != wanted:
                settings = {"group": self.group, "ifalias": alias, "mtu": mtu, "master": master.index}
                ip.link("set", index=link.index, state="up", **settings)
            return peer

        return await _work(work)

    async def make_ifb(self, name: str, *, alias: str) -> None:
        """A link that is up, through whose queue other links' traffic is led. It has no addresses."""

        def work(ip: Netlink) -> None:
            if self._owned(_get(ip, name), name, "ifb") is None:
                ip.link("add", ifname=name, kind="ifb", group=self.group)
            index = _present(ip, name).index
            ip.link("set", index=index, ifalias=alias, group=self.group, state="up")

        await _work(work)

    async def make_macvtap(self, name: str, *, parent: str, mac: str, mtu: int, alias: str) -> None:
        """A macvtap that is up on a link of the host: guests beside the host on its wire."""

        def work(ip: Netlink) -> None:
            link = self._owned(_get(ip, name), name, "macvtap", alias=alias)
            if link is None:
                parent_link = _present(ip, parent)
                about = {"macvtap_mode": "bridge", "group": self.group, "address": mac, "mtu": mtu}
                ip.link("add", ifname=name, kind="macvtap", link=parent_link.index, **about)
            index = _present(ip, name).index
            ip.link("set", index=index, ifalias=alias, group=self.group, mtu=mtu, state="up")

        await _work(work)

    async def attach(self, name: str, bridge: str) -> None:
        """A link becomes a port of a bridge, as a tap does."""

        def work(ip: Netlink) -> None:
            _join(ip, _present(ip, name).index, _present(ip, bridge).index)

        await _work(work)

    async def delete(self, names: Iterable[str]) -> None:
        def work(ip: Netlink) -> None:
            for name in names:
                try:
                    ip.link("del", ifname=name)
                except NetlinkError as error:
                    if error.code not in _GONE:
                        raise

        await _work(work)

    async def delete_all(self) -> None:
        """Every link of our group, in one message."""

        def work(ip: Netlink) -> None:
            try:
                ip.link("del", group=self.group)
            except NetlinkError as error:
                if error.code not in _GONE:
                    raise

        await _work(work)

    def _owned(self, link: Link | None, name: str, kind: str, *, alias: str = "") -> Link | None:
        """A tap between its creation and its first settings has no group yet: its name makes it ours."""
        if link is None:
            return None
        taken = alias and link.alias not in ("", alias)
        if link.kind != kind or link.group not in (0, self.group) or taken:
            what = link.alias or link.kind
            raise Broken(
                f"a link named {name} exists already and is not ours ({what})", hint=f"ip link show {name}"
            )
        return link


def names() -> list[str]:
    """Of all links, in 5 us each, where their details take 150."""
    return [name for _, name in socket.if_nameindex()]


async def routes() -> list[str]:
    """The subnets this host reaches by its main table, on links or through gateways, without default routes.

    Those shorter than /8 are left out: they are halves of a default route, as some VPNs write it.
    """

    def work(ip: Netlink) -> list[str]:
        found = []
        for route in ip.route("dump", table=_MAIN_TABLE, type=_UNICAST):
            target, length = route.get("dst"), route["dst_len"]
            if target and length >= 8 and not target.startswith("fe80:"):
                found.append(str(ip_network(f"{target}/{length}")))
        return list(dict.fromkeys(found))

    return await _work(work)


async def _work(work: Callable[[Netlink], Result]) -> Result:
    def act() -> Result:
        # A loop of its own: pyroute2 would take the policy's, which is uvloop where that is installed.
        loop = asyncio.SelectorEventLoop()
        try:
            with IPRoute(use_event_loop=loop, strict_check=True) as ip:  # type: ignore[no-untyped-call]
                return work(ip)
        finally:
            loop.run_until_complete(asyncio.sleep(0))  # the socket's transport closes at the loop's next turn
            loop.close()

    try:
        async with asyncio.timeout(_TIMEOUT):
            return await asyncio.to_thread(act)
    except TimeoutError:
        raise Unreachable(f"the kernel did not answer about its links within {_TIMEOUT:.0f} s") from None
    except NetlinkError as error:
        raise _translate(error.code, str(error.args[-1])) from error
    except OSError as error:
        raise _translate(error.errno or 0, str(error)) from error


def _translate(code: int, message: str) -> AtollError:
    if code in (errno.EPERM, errno.EACCES):
        return Lacking("changing this host's links needs CAP_NET_ADMIN", hint="run the daemon as root")
    if code == errno.EOPNOTSUPP:
        return Lacking(f"this kernel cannot make such a link ({message})", hint="modprobe bridge tun")
    if code == errno.EBUSY:
        return Refused("the link is held by a running process")
    return Broken(f"the kernel refused a change of its links: {message} ({errno.errorcode.get(code, code)})")


def _get(ip: Netlink, name: str) -> Link | None:
    try:
        return _link(ip.link("get", ifname=name, ext_mask=_SKIP_STATISTICS)[0])
    except NetlinkError as error:
        if error.code in _GONE:
            return None
        raise


def _present(ip: Netlink, name: str) -> Link:
    link = _get(ip, name)
    if link is None:
        raise Broken(f"link {name} is gone", hint="another program removed it: try again")
    return link


def _join(ip: Netlink, index: int, bridge: int) -> None:
    """LLDP is then treated as every other frame: else the bridge would learn from it who is behind the port, and
    the packet filter would not see it (br_handle_frame)."""
    ip.link("set", index=index, master=bridge)
    ip.link("set", index=index, kind="bridge_slave", group_fwd_mask=_LLDP)


def _other_end(ip: Netlink, name: str) -> str:
    """Of a veth pair; "" where it is in another namespace."""
    found = ip.link("get", ifname=name)[0]
    if found.get("link_netnsid") is not None:
        return ""
    return str(ip.link("get", index=found.get("link"))[0].get("ifname"))


def _dump(ip: Netlink, **where: int) -> list[Link]:
    # "dump" would filter here, after parsing every link of the host (0.2 ms each); this asks the kernel to.
    command = {"get": (RTM_GETLINK, "dump")}
    return [_link(found) for found in ip.link("get", ext_mask=_SKIP_STATISTICS, command_map=command, **where)]


def _link(found: Any) -> Link:
    return Link(
        index=found["index"],
        name=found.get("ifname"),
        kind=found.get(("linkinfo", "kind")) or "",
        alias=found.get("ifalias") or "",
        mac=found.get("address") or "",
        mtu=found.get("mtu") or 0,
        group=found.get("group") or 0,
        master=found.get("master") or 0,
        up=bool(found["flags"] & _IFF_UP),
    )


def _set_addresses(ip: Netlink, index: int, wanted: set[str]) -> None:
    present = set()
    for found in ip.addr("dump", index=index):
        address = f"{found.get('address')}/{found['prefixlen']}"
        present.add(address)
        if address not in wanted and not address.startswith("fe80:"):
            ip.addr("del", index=index, address=found.get("address"), prefixlen=found["prefixlen"])
    for address in sorted(wanted - present):
        interface = ip_interface(address)
        # A bridge without ports has no carrier: duplicate address detection would never end.
        flags = {"flags": _IFA_F_NODAD} if interface.version == 6 else {}
        ip.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags)


def _owner(ip: Netlink, index: int) -> Any:
    return ip.link("get", index=index)[0].get(("linkinfo", "data", "tun_owner"))


def _make_tap(name: str, owner: int) -> None:
    try:
        tun = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Lacking(f"{_TUN} is missing", hint="modprobe tun") from error
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        fcntl.ioctl(tun, _TUNSETOWNER, owner)
        fcntl.ioctl(tun, _TUNSETPERSIST, 1)
    finally:
        os.close(tun)
