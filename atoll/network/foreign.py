"""Firewalls that are not ours and drop what our networks carry: found, and explained. They are never changed."""

from pathlib import Path

from atoll.base.errors import Lacking
from atoll.host import nft, sysctl

_LEGACY = Path("/proc/net/ip_tables_names")
_BRIDGED = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables")


async def foreign_firewalls(bridge: str) -> list[str]:
    """What keeps the traffic of `bridge` from being forwarded, with what to do about it. For people."""
    found = [_dropped(chain, bridge) for chain in await nft.forward_drops()]
    names = {name for _, name in await nft.tables()}
    if "firewalld" in names:
        found.append(
            f"firewalld refuses forwarded traffic of links it does not know: "
            f"firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload"
        )
    if tables := _legacy():
        found.append(
            f"there are old iptables rules (table {', '.join(tables)}), which nftables does not show: "
            "see iptables-legacy -S FORWARD; a policy of DROP there also drops guests' traffic"
        )
    return found


async def bridge_firewalls() -> list[str]:
    """What may drop frames between ports of a bridge: rules for forwarded packets, where bridged ones pass them."""
    if not any(sysctl.read(name) == "1" for name in _BRIDGED):
        return []
    return [
        f"the packet filter chain {chain!r} drops bridged frames too, since bridge-nf-call-iptables is 1: "
        "sysctl net.bridge.bridge-nf-call-iptables=0"
        for chain in await nft.forward_drops()
    ]


async def warnings() -> list[str]:
    """For the host as a whole; nothing where there is no right to look."""
    try:
        return await foreign_firewalls("BRIDGE")
    except Lacking:
        return []


def _dropped(chain: str, bridge: str) -> str:
    about = f"the packet filter chain {chain!r} drops what is forwarded"
    family, table, name = chain.split(" ", 2)
    if family in ("ip", "ip6") and table == "filter" and name == "FORWARD":
        tool, into = "iptables" if family == "ip" else "ip6tables", "DOCKER-USER or FORWARD"
        return (
            f"{about} (Docker sets this): {tool} -I DOCKER-USER -i {bridge} -j ACCEPT; "
            f"{tool} -I DOCKER-USER -o {bridge} -j ACCEPT (the chain is {into})"
        )
    return (
        f"{about}: nft insert rule {chain} iifname {bridge} accept; nft insert rule {chain} oifname {bridge} accept"
    )


def _legacy() -> list[str]:
    try:
        return _LEGACY.read_text().split()
    except OSError:
        return []
