"""Tell an init system how we stand (sd_notify(3)): a datagram to the socket that it named, if it named one."""

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """`READY=1` or `STOPPING=1`. Without an init system that asks, nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        to.sendall(state.encode())
