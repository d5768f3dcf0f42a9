"""The filter on a network's own wire (nftables' bridge family), as pure functions: each guarded port sends under
its own MAC and addresses, and a port in security groups sends and gets what they let pass.

Every port has a chain for each, reached through a map by its link's name, so that a packet's way does not grow with
the number of ports. A chain's name ends in a digest of its rules: from the maps alone one sees what is in force.

A group is one pair of chains however many ports are in it, and a set of its members' addresses. What is under way
is remembered in sets that the rules themselves fill: connection tracking of bridged frames is a module that not
every kernel has. These forget a flow after an hour (TCP) or three minutes (UDP) of silence.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv6Address, ip_network

from atoll.host.nft import Command, Expression, extension, field, is_, meta
from atoll.network.addresses import link_local
from atoll.network.groups import GroupPlan, GroupRule
from atoll.network.model import Port

FAMILY = "bridge"
MAPS = ("guards", "egress", "ingress")
ACCEPT: Expression = {"accept": None}
DROP: Expression = {"drop": None}
RETURN: Expression = {"return": None}
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_TARGET = {"payload": {"base": "th", "offset": 64, "len": 128}}
"""The address that neighbours ask for or tell of (RFC 4861, 4.3 and 4.4): nftables 1.0 has no name for it."""
_CHADDR = {"payload": {"base": "th", "offset": 288, "len": 48}}
"""In whose name DHCP is asked (RFC 2131, 2), behind UDP's header."""
_HIDING = [0, 43, 44, 51, 60, 135, 139, 140]
"""IPv6 extension headers: a fragment that begins with one may leave what it is all about to the next (RFC 7113)."""
_OF_BRIDGES = {"range": ["01:80:c2:00:00:00", "01:80:c2:00:00:0f"]}
"""Frames for the next bridge alone (IEEE 802.1D, 7.12.6). It learns from them who is where all the same, past what
looks at frames that it forwards."""
_TO_ALL, _TO_DHCPV6 = "255.255.255.255", "ff02::1:2"
_UNNAMED = "0.0.0.0"  # noqa: S104 - nothing is bound to it: who has no address yet has this one
_ALWAYS_6 = [1, 2, 3, 4, 129, 130, 131, 132, 133, 134, 135, 136, 143]
"""Errors, echo answers, discovery and multicast listeners: IPv6 is none without them (RFC 4890)."""
_ALWAYS_4 = [0, 3, 11, 12]
_FLOWS = 65536
_TCP_LASTS, _UDP_LASTS = 3600, 180
Rules = list[list[Expression]]


def contents(table: str, gateways: Sequence[str]) -> tuple[list[Command], str]:
    """What the table has without any port, and the name of an empty set that says so."""
    made: list[Command] = [
        {"add": {"map": {**_in(table), "name": name, "type": "ifname", "map": "verdict"}}} for name in MAPS
    ]
    for protocol, lasts in (("tcp", _TCP_LASTS), ("udp", _UDP_LASTS)):
        for way in ("sent", "got"):
            made += [_flows(table, f"{way}_{protocol}{version}", version, lasts) for version in (4, 6)]
    for name in ("took_in", "took_out", "always_in", "always_out"):
        made.append(_chain(table, name))
    for hook, priority in (("prerouting", -300), ("input", -300), ("postrouting", 0)):
        about = {"type": "filter", "hook": hook, "prio": priority, "policy": "accept"}
        made.append({"add": {"chain": {**_in(table), "name": hook, **about}}})
    made += _rules(table, "prerouting", [[_by("iifname", "guards")], [_by("iifname", "egress")]])
    made += _rules(table, "input", [[is_(field("ether", "daddr"), _OF_BRIDGES), _by("iifname", "guards")]])
    made += _rules(table, "postrouting", [[_by("oifname", "ingress")]])
    made += _rules(table, "took_in", [*_remember("got"), [ACCEPT]])
    made += _rules(table, "took_out", [*_remember("sent"), [ACCEPT]])
    servers = [_TO_ALL, *(gateway for gateway in gateways if ":" not in gateway)]
    to_dhcp = [
        [is_(field("ip", "daddr"), {"set": servers}), is_(field("udp", "dport"), 67), ACCEPT],
        [is_(field("ip6", "daddr"), _TO_DHCPV6), is_(field("udp", "dport"), 547), ACCEPT],
    ]
    dns = [
        [is_(field("ip6" if ":" in gateway else "ip", "daddr"), gateway), is_(field(name, "dport"), 53), ACCEPT]
        for gateway in gateways
        for name in ("udp", "tcp")
    ]
    made += _rules(table, "always_out", [*_always(), *to_dhcp, *dns, *_known("got")])
    from_dhcp = [
        [is_(field("udp", "sport"), {"set": [67, 547]}), is_(field("udp", "dport"), {"set": [68, 546]}), ACCEPT]
    ]
    made += _rules(table, "always_in", [*_always(), *from_dhcp, *_known("sent")])
    mark = "mark_" + _digest(made)
    return [*made, {"add": {"set": {**_in(table), "name": mark, "type": "mark"}}}], mark


def port_chains(table: str, link: str, port: Port, *, pinned: bool) -> dict[str, tuple[str, list[Command]]]:
    """By map: the name of the port's chain and the commands that make it; maps without one are left out.

    `pinned`: its network gives it its addresses, so that it may have no others.
    """
    wanted: dict[str, Rules] = {}
    if port.settings.guard:
        wanted["guards"] = _guard(port, pinned=pinned)
    if port.settings.groups:
        for name, way in (("egress", "out"), ("ingress", "in")):
            jumps = [[_jump(group_chain(group, way))] for group in port.settings.groups]
            wanted[name] = [[_jump(f"always_{way}")], *jumps, [DROP]]
    found = {}
    for name, rules in wanted.items():
        chain = f"{name}_{link}_{_digest(rules)}".replace("-", "_")
        targets = [_chain(table, group_chain(g, way)) for g in port.settings.groups for way in ("in", "out")]
        found[name] = (chain, [*targets, _chain(table, chain), _flush(table, chain), *_rules(table, chain, rules)])
    return found


def port_commands(
    table: str, link: str, wanted: dict[str, tuple[str, list[Command]]], present: dict[str, str]
) -> list[Command]:
    """What leads from the chains that are `present` (by map) to those `wanted`; none where they are the same."""
    done: list[Command] = []
    for name in MAPS:
        old, (new, make) = present.get(name, ""), wanted.get(name, ("", []))
        if old == new:
            continue
        done += make
        if old:
            done.append({"delete": {"element": {**_in(table), "name": name, "elem": [link]}}})
        if new:
            done.append({"add": {"element": {**_in(table), "name": name, "elem": [[link, _jump(new)]]}}})
        if old:
            done += [_flush(table, old), {"delete": {"chain": {**_in(table), "name": old}}}]
    return done


def group_chain(group: str, way: str) -> str:
    """`way`: in or out."""
    return f"g_{_short(group)}_{way}"


def group_set(group: str, version: int) -> str:
    return f"g_{_short(group)}_{version}"


def group_commands(table: str, plan: GroupPlan, before: GroupPlan | None) -> list[Command]:
    """What leads from a group as it was applied `before` (None: unknown) to `plan`, touching only what differs."""
    done: list[Command] = []
    if before is None:
        for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
            about = {**_in(table), "name": group_set(plan.id, version)}
            done += [{"add": {"set": {**about, "type": kind}}}, {"flush": {"set": about}}]
    old = before.addresses if before else frozenset[str]()
    for act, addresses in (("delete", old - plan.addresses), ("add", plan.addresses - old)):
        for version in (4, 6):
            if some := sorted(a for a in addresses if (":" in a) == (version == 6)):
                done.append({act: {"element": {**_in(table), "name": group_set(plan.id, version), "elem": some}}})
    if before is None or before.rules != plan.rules:
        for way, direction in (("in", "ingress"), ("out", "egress")):
            chain = group_chain(plan.id, way)
            rules = [made for rule in plan.rules if rule.direction == direction for made in _of_rule(rule, way)]
            done += [_chain(table, chain), _flush(table, chain), *_rules(table, chain, rules)]
    return done


def groups_commands(table: str, plans: Iterable[GroupPlan], before: Mapping[str, GroupPlan]) -> list[Command]:
    """As `group_commands`, of several, whose rules may name each other."""
    wanted = list(plans)
    named = {rule.group for plan in wanted for rule in plan.rules if rule.group}
    known = before.keys() | {plan.id for plan in wanted}
    found = []
    for plan in [*wanted, *(GroupPlan(id=id, rules=()) for id in sorted(named - known))]:
        found += group_commands(table, plan, before.get(plan.id))
    # Sets first.
    return sorted(found, key=lambda command: "set" not in command.get("add", command))


def _guard(port: Port, *, pinned: bool) -> Rules:
    mac, fours = port.mac, [a for a in port.addresses if ":" not in a]
    sixes = [a for a in port.addresses if ":" in a] + [link_local(mac)]
    rules: Rules = [
        [is_(field("ether", "saddr"), mac, "!="), DROP],
        [is_(field("arp", "saddr ether"), mac, "!="), DROP],
    ]
    if pinned:
        # A probe asks without an address whether one is free (RFC 5227): one's own, or its owner would give way.
        probed = is_(field("arp", "daddr ip"), {"set": fours or [_UNNAMED]}, "!=")
        rules.append([is_(field("arp", "saddr ip"), {"set": [_UNNAMED, *fours]}, "!="), DROP])
        rules.append([is_(field("arp", "saddr ip"), _UNNAMED), probed, DROP])
    rules += [
        [is_(field("ether", "type"), "arp"), RETURN],
        # VLAN tags and all that is neither: the rules below would not see what is in them.
        [is_(field("ether", "type"), {"set": ["ip", "ip6"]}, "!="), DROP],
        [is_(field("udp", "sport"), {"set": [67, 547]}), DROP],
        [is_(field("icmpv6", "type"), {"set": [134, 137]}), DROP],
        [is_(extension("frag", "nexthdr"), {"set": _HIDING}), DROP],
        # A lease is given back, or its address declared unusable, by whoever bears its MAC.
        [is_(field("udp", "dport"), 67), is_({"&": [field("ip", "frag-off"), 0x3FFF]}, 0, "!="), DROP],
        [is_(field("udp", "dport"), 67), is_(_CHADDR, int(mac.replace(":", ""), 16), "!="), DROP],
    ]
    if not pinned:
        return [*rules, [RETURN]]
    own = [hex(int(IPv6Address(address))) for address in sixes]
    unnamed = [is_(field("ip6", "saddr"), "::"), is_(field("icmpv6", "type"), {"set": [133, 135, 143]})]
    asking = [is_(field("ip", "saddr"), _UNNAMED), is_(field("udp", "dport"), 67)]
    return [
        *rules,
        [*asking, RETURN],
        [is_(field("ip", "saddr"), {"set": [_UNNAMED, *fours]}, "!="), DROP],
        [is_(field("ip", "saddr"), _UNNAMED), DROP],
        [
            is_(field("ip6", "saddr"), "::"),
            is_(field("icmpv6", "type"), 135),
            is_(_TARGET, {"set": own}, "!="),
            DROP,
        ],
        [*unnamed, RETURN],
        [is_(field("ip6", "saddr"), {"set": sixes}, "!="), DROP],
        [is_(field("icmpv6", "type"), 136), is_(_TARGET, {"set": own}, "!="), DROP],
        [RETURN],
    ]


def _of_rule(rule: GroupRule, way: str) -> Rules:
    match: list[Expression] = []
    if rule.port is not None:
        ports = rule.port if rule.last is None else {"range": [rule.port, rule.last]}
        match.append(is_(field(rule.protocol, "dport"), ports))
    elif rule.protocol != "any":
        numbers = {"tcp": [_TCP], "udp": [_UDP], "icmp": [_ICMP, _ICMPV6]}[rule.protocol]
        match.append(is_(meta("l4proto"), {"set": numbers}))
    took: Expression = {"goto": {"target": f"took_{way}"}}
    side = "saddr" if way == "in" else "daddr"
    if rule.group:
        return [
            [is_(field(ip, side), f"@{group_set(rule.group, version)}"), *match, took]
            for ip, version in (("ip", 4), ("ip6", 6))
        ]
    if rule.cidr:
        net = ip_network(rule.cidr)
        prefix = {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}
        return [[is_(field("ip6" if net.version == 6 else "ip", side), prefix), *match, took]]
    return [[*match, took]]


def _always() -> Rules:
    """What no group can forbid: addresses are found, errors told, answers to a ping given, fragments completed."""
    later = {"&": [field("ip", "frag-off"), 0x1FFF]}
    return [
        [is_(field("ether", "type"), "arp"), ACCEPT],
        # Also what has a VLAN tag: no rule would see what is behind it.
        [is_(field("ether", "type"), {"set": ["ip", "ip6"]}, "!="), DROP],
        [is_(field("icmp", "type"), {"set": _ALWAYS_4}), ACCEPT],
        [is_(field("icmpv6", "type"), {"set": _ALWAYS_6}), ACCEPT],
        [is_(field("ip", "protocol"), 2), ACCEPT],
        [is_(later, 0, "!="), ACCEPT],
        [is_(extension("frag", "frag-off"), 0, "!="), ACCEPT],
    ]


def _flow(protocol: str, version: int, *, reverse: bool) -> Expression:
    ip, ends = "ip6" if version == 6 else "ip", ["s", "d"][:: -1 if reverse else 1]
    parts = [field(ip, f"{end}addr") for end in ends] + [field(protocol, f"{end}port") for end in ends]
    return {"concat": parts}


def _remember(way: str) -> Rules:
    return [
        [{"set": {"op": "update", "elem": _flow(name, v, reverse=False), "set": f"@{way}_{name}{v}"}}]
        for name in ("tcp", "udp")
        for v in (4, 6)
    ]


def _known(way: str) -> Rules:
    return [
        [is_(_flow(name, v, reverse=True), f"@{way}_{name}{v}"), ACCEPT] for name in ("tcp", "udp") for v in (4, 6)
    ]


def _flows(table: str, name: str, version: int, lasts: int) -> Command:
    address = "ipv6_addr" if version == 6 else "ipv4_addr"
    kind = [address, address, "inet_service", "inet_service"]
    about = {"flags": ["timeout"], "timeout": lasts, "size": _FLOWS}
    return {"add": {"set": {**_in(table), "name": name, "type": kind, **about}}}


def _rules(table: str, chain: str, rules: Iterable[list[Expression]]) -> list[Command]:
    return [{"add": {"rule": {**_in(table), "chain": chain, "expr": rule}}} for rule in rules]


def _chain(table: str, name: str) -> Command:
    return {"add": {"chain": {**_in(table), "name": name}}}


def _flush(table: str, chain: str) -> Command:
    return {"flush": {"chain": {**_in(table), "name": chain}}}


def _in(table: str) -> dict[str, str]:
    return {"family": FAMILY, "table": table}


def _by(key: str, name: str) -> Expression:
    return {"vmap": {"key": meta(key), "data": f"@{name}"}}


def _jump(chain: str) -> Expression:
    return {"jump": {"target": chain}}


def _short(group: str) -> str:
    return group.replace("-", "")[:16]


def _digest(made: object) -> str:
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]
