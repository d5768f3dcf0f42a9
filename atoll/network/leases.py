"""dnsmasq's lease file and the message that makes it forget a lease.

Without that, dnsmasq refuses a new port the address that a former one still holds a lease for, and goes on
answering to the former one's name.
"""

import ipaddress
import secrets
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from atoll.base.errors import Broken

_COOKIE = bytes.fromhex("63825363")
_MESSAGE_TYPE, _SERVER_IDENTIFIER, _END = 53, 54, 255  # RFC 2132
_RELEASE = 7
_SERVER_PORT = 67


class Lease(msgspec.Struct, frozen=True):
    mac: str
    address: str


def read_leases(file: Path) -> list[Lease]:
    """IPv4 leases; none where there is no file."""
    return [lease for line in _lines(file) if (lease := _parse(line))]


def keep_leases(file: Path, wanted: Callable[[Lease], bool]) -> None:
    """Rewrite the file without the leases that are not wanted. For when no dnsmasq runs."""
    lines = _lines(file)
    kept = [line for line in lines if (lease := _parse(line)) is None or wanted(lease)]
    if kept != lines:
        file.write_text("".join(kept))


def release(lease: Lease, *, server: str, link: str) -> None:
    """Send a DHCPRELEASE (RFC 2131, 4.4.6) in the client's name to the server on `link` of this host."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
            client.sendto(release_message(lease, server), (server, _SERVER_PORT))
    except OSError as error:
        raise Broken(f"the lease of {lease.address} could not be released: {error.strerror}") from error


def release_message(lease: Lease, server: str) -> bytes:
    address, mac = ipaddress.IPv4Address(lease.address).packed, bytes.fromhex(lease.mac.replace(":", ""))
    head = struct.pack("!BBBBIHH", 1, 1, len(mac), 0, secrets.randbits(32), 0, 0) + address + bytes(12)
    options = bytes([_MESSAGE_TYPE, 1, _RELEASE, _SERVER_IDENTIFIER, 4]) + ipaddress.IPv4Address(server).packed
    message = head + mac.ljust(16, b"\0") + bytes(192) + _COOKIE + options + bytes([_END])
    return message.ljust(300, b"\0")  # BOOTP's least size, RFC 1542


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _parse(line: str) -> Lease | None:
    """`EXPIRY MAC ADDRESS NAME CLIENT-ID`; other lines hold the DUID and IPv6."""
    words = line.split()
    if len(words) != 5 or words[1].count(":") != 5 or words[2].count(".") != 3:
        return None
    return Lease(words[1].lower(), words[2])
