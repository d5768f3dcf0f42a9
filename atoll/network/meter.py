"""Bandwidth of ports, as pure functions that give lines of tc(8).

Both ways a network's limited traffic passes a link of its own (ifb), whose queue (HTB) has a class for each limited
port below one for the network: so ports share what the network has, each with its guarantee and its ceiling. A
port's traffic is known there by its MAC, which its guard makes sure of.
"""

from atoll.network.model import Bandwidth

NETWORK = 1
"""The class of the whole network; ports' numbers begin above it."""
FIRST = 2
LAST = 0xFFF0
_UNBOUND = 100_000_000_000  # bits a second: more than a host moves between guests
_LEAST = 8000
_MTU_BURST = 3200
WAYS = {"u": "ingress", "d": "egress"}
"""Way -> where on the tap its traffic is taken: what comes from a guest is the tap's ingress."""


def queue_lines(meter: str, tap: str) -> list[str]:
    """The queue of a network's metering link, and the place on a tap where its traffic is led away. They fail where
    these are there already."""
    return [f"qdisc add dev {meter} root handle 1: htb r2q 100", f"qdisc add dev {tap} clsact"]


def device_lines(link: str, bandwidth: int) -> list[str]:
    """The class of the whole network. `bandwidth`: bits a second, 0: unbound. May be repeated."""
    rate = bandwidth or _UNBOUND
    return [
        f"class replace dev {link} parent 1: classid 1:{NETWORK:x} htb rate {rate}bit burst {burst(rate)} "
        f"cburst {burst(rate)} quantum 60000",
    ]


def port_lines(
    meter: str, tap: str, way: str, number: int, mac: str, wanted: Bandwidth, bandwidth: int
) -> list[str]:
    """Lead the port's traffic of one way through its class."""
    most = bandwidth or _UNBOUND
    ceiling = min(wanted.ceiling or most, most)
    rate = min(wanted.guaranteed or (ceiling if not bandwidth else _LEAST), ceiling)
    bytes_ = wanted.burst or burst(ceiling)
    end = "src" if way == "u" else "dst"
    return [
        f"class replace dev {meter} parent 1:{NETWORK:x} classid 1:{number:x} htb rate {rate}bit ceil {ceiling}bit "
        f"burst {bytes_} cburst {bytes_} quantum 60000",
        f"filter add dev {meter} parent 1: protocol all pref {number} u32 match ether {end} {mac} "
        f"flowid 1:{number:x}",
        f"filter add dev {tap} {WAYS[way]} protocol all pref 1 u32 match u32 0 0 "
        f"action mirred egress redirect dev {meter}",
    ]


def remove_lines(meter: str, tap: str, way: str, number: int) -> list[str]:
    """Take that back; each line may fail for want of what it removes. `tap` "": it is gone."""
    lines = [f"filter del dev {tap} {WAYS[way]} protocol all pref 1"] if tap else []
    return [
        *lines,
        f"filter del dev {meter} parent 1: protocol all pref {number}",
        f"class del dev {meter} classid 1:{number:x}",
    ]


def burst(rate: int) -> int:
    """Bytes of 5 ms at this rate: what a timer of 250 Hz needs to keep up; a large frame at least."""
    return max(rate // 8 // 200, _MTU_BURST)
