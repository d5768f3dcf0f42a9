"""The one door to the kernel's network settings under /proc/sys/net (those of the caller's network namespace)."""

import contextlib
import os
from pathlib import Path

from atoll.base.errors import Broken, Lacking

_NET = Path("/proc/sys/net")


def read(name: str) -> str | None:
    """The value of `ipv4/ip_forward` and the like; None where this kernel has no such setting."""
    try:
        return (_NET / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Nothing is written where it holds already. Raises Lacking (no right, no such setting) and Broken."""
    if read(name) == value:
        return
    try:
        (_NET / name).write_text(value)
    except FileNotFoundError as error:
        raise Lacking(f"this kernel has no setting net/{name}") from error
    except PermissionError as error:
        raise Lacking(f"net/{name} cannot be set to {value}", hint="run the daemon as root") from error
    except OSError as error:
        raise Broken(f"net/{name} cannot be set to {value}: {error.strerror}") from error


def has_ipv6() -> bool:
    """Whether new links may get IPv6 addresses."""
    return read("ipv6/conf/all/disable_ipv6") == "0" and read("ipv6/conf/default/disable_ipv6") == "0"


def forward_ipv4() -> None:
    """Let the host route between its links. It is one switch for the whole network namespace: it stays on when
    the last network goes, since by then others (Docker, libvirt) may rely on it."""
    write("ipv4/ip_forward", "1")


def forward_ipv6() -> None:
    """As `forward_ipv4`. A host that forwards ignores router advertisements, and so would lose a default route
    that it learnt from one, unless its links are told first to accept them all the same (accept_ra 2); links to
    come are not told."""
    if read("ipv6/conf/all/forwarding") == "1":
        return
    for link in sorted(set(os.listdir(_NET / "ipv6/conf")) - {"all", "default"}):
        if read(f"ipv6/conf/{link}/accept_ra") == "1":
            with contextlib.suppress(Lacking):  # a link may vanish meanwhile; a missing right shows below
                write(f"ipv6/conf/{link}/accept_ra", "2")
    write("ipv6/conf/all/forwarding", "1")
