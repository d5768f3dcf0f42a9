"""The packet filter between a network and everything else, as a pure function.

What passes, where the network has NAT:
- guests to each other and to everywhere beyond the host, their IPv4 (and unique local IPv6) addresses masqueraded;
- from beyond, also from other networks, what belongs to a connection that a guest began, and forwarded ports;
- guests to the host itself: DHCP, DNS at the network's own addresses, ICMP, answers, and `host_ports`. Nothing
  else: a guest is a tenant, and services of the host that listen on all addresses are not meant for it;
- the host to guests: everything.
Routed: nothing is masqueraded, and from beyond everything passes (ports' groups are for the rest). Isolated: guests
to each other, DHCP and DNS; the host does not reach them either.
What does not pass is refused, not dropped, so that people see at once what happens.
"""

import hashlib
import json
from collections.abc import Sequence
from ipaddress import ip_network

from atoll.host.nft import Command, Expression, field, is_, link, meta
from atoll.network.model import Mode, Port

ACCEPT: Expression = {"accept": None}
MASQUERADE: Expression = {"masquerade": None}
ICMP, ICMPV6 = 1, 58
"""By number: names are looked up in /etc/protocols, which a small Debian has not."""
NEIGHBOURS = [133, 134, 135, 136]
"""Router and neighbour discovery, without which IPv6 is none (RFC 4861)."""
REFUSE: Expression = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
FAMILY = "inet"
FORWARDS = "forwards"
_NUMBERS = {"tcp": 6, "udp": 17}
Rules = list[tuple[str, list[Expression]]]


def host_rules(
    table: str,
    bridge: str,
    subnets: Sequence[str],
    gateways: Sequence[str],
    host_ports: Sequence[int] = (),
    *,
    mode: Mode = Mode.NAT,
) -> tuple[list[Command], list[str]]:
    """The contents of the network's table, and the comments of its rules, by which they are known again."""
    isolated = mode is Mode.ISOLATED
    rules = _forward(bridge, mode) + _input(bridge, gateways, () if isolated else host_ports, mode)
    chains = [_chain(table, "forward", 0), _chain(table, "input", 0)]
    if isolated:
        rules += _output(bridge)
        chains.append(_chain(table, "output", 0))
    else:
        rules += _nat(bridge, subnets, masquerade=mode is Mode.NAT)
        chains.append({"add": {"chain": {"family": FAMILY, "table": table, "name": FORWARDS}}})
        chains += [_chain(table, hook, -100, "nat") for hook in ("prerouting", "output")]
        chains.append(_chain(table, "postrouting", 100, "nat"))
    mark = "atoll " + hashlib.sha256(json.dumps([chains, rules]).encode()).hexdigest()[:16]
    return chains + [_rule(table, chain, expression, mark) for chain, expression in rules], [mark] * len(rules)


def _forward(bridge: str, mode: Mode) -> Rules:
    # Between ports of the bridge: seen here where bridge-nf-call-iptables is on.
    found: Rules = [("forward", [link("iifname", bridge), link("oifname", bridge), ACCEPT])]
    if mode is Mode.ISOLATED:
        return [
            *found,
            ("forward", [link("oifname", bridge), REFUSE]),
            ("forward", [link("iifname", bridge), REFUSE]),
        ]
    if mode is Mode.ROUTED:
        return found
    forwarded = is_({"ct": {"key": "status"}}, "dnat", "in")
    return [
        *found,
        ("forward", [link("oifname", bridge), _tracked(), ACCEPT]),
        ("forward", [link("oifname", bridge), forwarded, ACCEPT]),
        ("forward", [link("oifname", bridge), REFUSE]),
    ]


def _input(bridge: str, gateways: Sequence[str], host_ports: Sequence[int], mode: Mode) -> Rules:
    rules: Rules = [("input", [link("iifname", bridge, "!="), ACCEPT])]
    if mode is Mode.ISOLATED:
        rules.append(("input", [is_(field("icmpv6", "type"), {"set": NEIGHBOURS}), ACCEPT]))
    else:
        rules += [
            ("input", [_tracked(), ACCEPT]),
            ("input", [is_(meta("l4proto"), {"set": [ICMP, ICMPV6]}), ACCEPT]),
        ]
    rules.append(("input", [is_(field("udp", "dport"), 67), ACCEPT]))
    for address in gateways:
        ip = "ip6" if ":" in address else "ip"
        for protocol in ("udp", "tcp"):
            to_us = [is_(field(ip, "daddr"), address), is_(field(protocol, "dport"), {"set": [53, *host_ports]})]
            rules.append(("input", [*to_us, ACCEPT]))
    return [*rules, ("input", [REFUSE])]


def _output(bridge: str) -> Rules:
    """The host's answers as DHCP and DNS server, no more."""
    return [
        ("output", [link("oifname", bridge, "!="), ACCEPT]),
        ("output", [is_(field("udp", "sport"), {"set": [53, 67]}), ACCEPT]),
        ("output", [is_(field("tcp", "sport"), 53), ACCEPT]),
        # 143: multicast listener reports.
        ("output", [is_(field("icmpv6", "type"), {"set": [*NEIGHBOURS, 143]}), ACCEPT]),
        ("output", [REFUSE]),
    ]


def _nat(bridge: str, subnets: Sequence[str], *, masquerade: bool) -> Rules:
    local = is_({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    jump: Expression = {"jump": {"target": FORWARDS}}
    loopback = {"prefix": {"addr": "127.0.0.0", "len": 8}}
    rules: Rules = [
        ("prerouting", [local, jump]),
        # Loopback addresses cannot leave the host: the daemon's own proxy serves those.
        ("output", [local, is_(field("ip", "daddr"), loopback, "!="), jump]),
        ("output", [local, is_(field("ip6", "daddr"), "::1", "!="), jump]),
    ]
    for subnet in subnets:
        net = ip_network(subnet)
        ip, prefix = "ip6" if net.version == 6 else "ip", _prefix(subnet)
        source, away = is_(field(ip, "saddr"), prefix), is_(field(ip, "daddr"), prefix, "!=")
        if masquerade:
            # Not on the bridge itself: there it would touch bridged multicast and broadcast.
            rules.append(("postrouting", [link("oifname", bridge, "!="), source, away, MASQUERADE]))
        # A guest that reaches another one by a forward must be answered through us.
        forwarded = is_({"ct": {"key": "status"}}, "dnat", "in")
        rules.append(("postrouting", [link("oifname", bridge), source, forwarded, MASQUERADE]))
    return rules


def forward_rules(table: str, ports: Sequence[Port]) -> tuple[list[Command], list[str]]:
    """The rules that lead the host's ports to guests, and their comments."""
    rules, comments = [], []
    for port in ports:
        for each in port.settings.forwards:
            for address in port.addresses:
                six = ":" in address
                expression = [
                    is_(meta("nfproto"), "ipv6" if six else "ipv4"),
                    is_(meta("l4proto"), _NUMBERS[each.protocol]),
                    is_(field(each.protocol, "dport"), each.port),
                    {"dnat": {"family": "ip6" if six else "ip", "addr": address, "port": each.to}},
                ]
                comment = f"forward {port.id} {each.protocol} {each.port} {address} {each.to}"
                rules.append(_rule(table, FORWARDS, expression, comment))
                comments.append(comment)
    return rules, comments


def _chain(table: str, hook: str, priority: int, kind: str = "filter") -> Command:
    about = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"add": {"chain": {"family": FAMILY, "table": table, "name": hook, **about}}}


def _rule(table: str, chain: str, expression: list[Expression], comment: str) -> Command:
    about = {"family": FAMILY, "table": table, "chain": chain, "expr": expression, "comment": comment}
    return {"add": {"rule": about}}


def _tracked() -> Expression:
    return is_({"ct": {"key": "state"}}, {"set": ["established", "related"]}, "in")


def _prefix(subnet: str) -> Expression:
    net = ip_network(subnet)
    return {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}
