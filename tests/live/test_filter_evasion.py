"""Ways around a guard that rules about plain packets do not see: fragments, headers in between, frames that a
bridge keeps for itself, other people's names inside of what is asked."""

import struct
from ipaddress import ip_address

from atoll.network.addresses import link_local
from tests.kit.frames import arp, ether, icmp6, ip4, ip6, mac, udp
from tests.kit.lab import Lab
from tests.live.test_filter import LAST, MARK, Pair, held, pair

__all__ = ["held", "pair"]  # fixtures
_ANY_ALIVE = "ff02::1"
_OPTIONS, _FRAGMENT = 60, 44


def fragment(following: int, content: bytes, *, offset: int = 0, more: bool = True) -> bytes:
    """An IPv6 fragment header and what it carries. `offset`: in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, 7) + content


def options(following: int, content: bytes) -> bytes:
    """An empty header of destination options before `content`."""
    return bytes([following, 0, 1, 4, 0, 0, 0, 0]) + content


def bootp(hardware: str) -> bytes:
    """A DHCP message in the name of `hardware`, told by MARK."""
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 7, 0, 0) + bytes(16) + mac(hardware).ljust(16, b"\0")
    return head + MARK.ljust(192, b"\0") + bytes.fromhex("63825363")


def asked_by(pair: Pair, hardware: str) -> bytes:
    return ether(pair.one.port.mac, 0x0800, ip4("0.0.0.0", "255.255.255.255", udp(68, 67, bootp(hardware))))


def split(packet: bytes, *, more: bool = True) -> bytes:
    """The same IPv4 packet as the first of several fragments, its checksum made good."""
    head = bytearray(packet[:20])
    head[6:8] = struct.pack("!H", 0x2000 if more else 0)
    head[10:12] = b"\0\0"
    total = sum(struct.unpack("!10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = struct.pack("!H", total ^ 0xFFFF)
    return bytes(head) + packet[20:]


def evasions(pair: Pair) -> dict[str, bytes]:
    me, you = pair.one.port.mac, pair.two.port.mac
    mine, yours = pair.four
    six, local = pair.two.port.addresses[1], link_local(me)
    router = icmp6(134, bytes(8) + MARK)
    served = udp(547, 546, MARK.ljust(24))
    wanted = icmp6(135, ip_address(six).packed)
    packet = ip4(mine, yours, udp(4000, 4001, MARK))
    return {
        "a tag without a VLAN": ether(me, 0x8100, b"\x00\x00\x08\x00" + packet),
        "two tags": ether(me, 0x88A8, b"\x00\x05\x81\x00\x00\x06\x08\x00" + packet),
        "a frame of the old kind": ether(me, 38, b"\xaa\xaa\x03\x00\x00\x00\x08\x00" + MARK),
        "a router behind options": ether(me, 0x86DD, ip6(local, _ANY_ALIVE, options(58, router), _OPTIONS)),
        "a router in fragments": ether(
            me, 0x86DD, ip6(local, _ANY_ALIVE, fragment(58, router.ljust(32, b"\0")), _FRAGMENT)
        ),
        "a router whose first fragment ends before it": ether(
            me, 0x86DD, ip6(local, _ANY_ALIVE, fragment(_OPTIONS, options(58, b"")), _FRAGMENT)
        ),
        "its second fragment": ether(
            me, 0x86DD, ip6(local, _ANY_ALIVE, fragment(_OPTIONS, router, offset=1, more=False), _FRAGMENT)
        ),
        "a DHCPv6 server behind options": ether(me, 0x86DD, ip6(local, _ANY_ALIVE, options(17, served), _OPTIONS)),
        "a DHCPv6 server in fragments": ether(
            me, 0x86DD, ip6(local, _ANY_ALIVE, fragment(_OPTIONS, options(17, served)), _FRAGMENT)
        ),
        "a DHCP server in fragments": ether(me, 0x0800, split(ip4(mine, yours, udp(67, 68, MARK.ljust(24))))),
        "a question by DHCP in another's name": asked_by(pair, you),
        "that as its own address": ether(me, 0x0800, ip4(mine, yours, udp(68, 67, bootp(you)))),
        "that in fragments": ether(
            me, 0x0800, split(ip4("0.0.0.0", "255.255.255.255", udp(68, 67, MARK.ljust(24))))
        ),
        "a probe for another's address": ether(me, 0x0806, arp(me, "0.0.0.0", yours, reply=False)),
        "a claim of another's IPv6 address": ether(me, 0x86DD, ip6("::", _ANY_ALIVE, wanted)),
    }


async def test_there_is_no_way_around_a_guard(pair: Pair) -> None:
    assert [what for what, frame in evasions(pair).items() if pair.arrives(frame)] == []


async def test_its_own_question_by_dhcp_passes(pair: Pair) -> None:
    assert pair.arrives(asked_by(pair, pair.one.port.mac))


async def test_frames_for_bridges_alone_do_not_draw_anothers_traffic(lab: Lab, pair: Pair) -> None:
    """A bridge learns who is where also from frames that it forwards to nobody (LLDP, slow protocols)."""
    you = pair.two.port.mac
    assert pair.two.pings(pair.four[0])  # known to be at its own port
    before = at(lab, you)
    for last in (0x00, 0x02, 0x03, 0x0E, 0x0F):
        pair.sends.send(ether(you, 0x88CC, MARK, to=f"01:80:c2:00:00:{last:02x}"))
    pair.sends.send(pair.own(LAST))
    pair.sees.until(LAST)
    assert at(lab, you) == before


def at(lab: Lab, address: str) -> list[str]:
    """The ports where the bridge believes a MAC to be."""
    learnt = [line.split() for line in lab.host.run("bridge", "fdb", "show").splitlines()]
    return [words[2] for words in learnt if words[0] == address and "permanent" not in words]
