"""Raw frames for tests of what passes a wire: made by hand, sent and received in a guest's namespace."""

import socket
import struct
import time
from ipaddress import ip_address

from tests.kit.netns import Namespace

BROADCAST = "ff:ff:ff:ff:ff:ff"
_ALL = 3  # ETH_P_ALL


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(source: str, kind: int, content: bytes, to: str = BROADCAST) -> bytes:
    return (mac(to) + mac(source) + struct.pack("!H", kind) + content).ljust(60, b"\0")


def ip4(source: str, to: str, content: bytes, protocol: int = 17) -> bytes:
    """With a true checksum: where bridged packets pass the packet filter, a false one never gets there."""
    ends = ip_address(source).packed + ip_address(to).packed
    words = [0x4500, 20 + len(content), 0, 0, 64 << 8 | protocol, *struct.unpack("!4H", ends)]
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!5HH", *words[:5], total ^ 0xFFFF) + ends + content


def ip6(source: str, to: str, content: bytes, protocol: int = 58) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(content), protocol, 255)
        + ip_address(source).packed
        + ip_address(to).packed
        + content
    )


def udp(source: int, to: int, content: bytes) -> bytes:
    return struct.pack("!HHHH", source, to, 8 + len(content), 0) + content


def arp(sender: str, sender_ip: str, target_ip: str, *, reply: bool = True) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2 if reply else 1)
    return head + mac(sender) + ip_address(sender_ip).packed + mac(BROADCAST) + ip_address(target_ip).packed


def icmp6(kind: int, content: bytes) -> bytes:
    return struct.pack("!BBHI", kind, 0, 0, 0) + content


class Wire:
    """A guest's own interface, raw. Its sockets stay in the namespace when the block that made them is left."""

    def __init__(self, where: Namespace, link: str = "eth0") -> None:
        with where.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._socket.bind((link, 0))

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def until(self, last: bytes, timeout: float = 20) -> list[bytes]:
        """Every frame that came before the one with `last` in it. Raises AssertionError where that never comes."""
        found: list[bytes] = []
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv(65536)
            except TimeoutError:
                break
            if last in frame:
                return found
            found.append(frame)
        raise AssertionError(f"{last!r} did not come; {len(found)} others did")

    def close(self) -> None:
        self._socket.close()
