"""The packet filter of a network with NAT, as a pure function.

What passes:
- guests to each other and to everywhere beyond the host, their IPv4 (and unique local IPv6) addresses masqueraded;
- from beyond, also from other networks, only what belongs to a connection that a guest began;
- guests to the host itself: DHCP, DNS at the network's own addresses, ICMP, answers, and `host_ports`. Nothing
  else: a guest is a tenant, and services of the host that listen on all addresses are not meant for it;
- the host to guests: everything.
What does not pass is refused, not dropped, so that people see at once what happens.
"""

import hashlib
import json
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from atoll.host.nft import Command

Expression = dict[str, Any]

ACCEPT: Expression = {"accept": None}
MASQUERADE: Expression = {"masquerade": None}
ICMP, ICMPV6 = 1, 58
"""By number: names are looked up in /etc/protocols, which a small Debian has not."""
REFUSE: Expression = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
FAMILY = "inet"


def nat_rules(
    table: str, bridge: str, subnets: Sequence[str], gateways: Sequence[str], host_ports: Sequence[int] = ()
) -> tuple[list[Command], list[str]]:
    """The contents of the network's table, and the comments of its rules, by which they are known again."""
    rules = [
        # Between ports of the bridge: seen here where bridge-nf-call-iptables is on.
        ("forward", [_link("iifname", bridge), _link("oifname", bridge), ACCEPT]),
        ("forward", [_link("oifname", bridge), _tracked(), ACCEPT]),
        ("forward", [_link("oifname", bridge), REFUSE]),
        ("input", [_link("iifname", bridge, "!="), ACCEPT]),
        ("input", [_tracked(), ACCEPT]),
        ("input", [_is(_meta("l4proto"), {"set": [ICMP, ICMPV6]}), ACCEPT]),
        ("input", [_is(_field("udp", "dport"), 67), ACCEPT]),
    ]
    for address in gateways:
        ip = "ip6" if ":" in address else "ip"
        for protocol in ("udp", "tcp"):
            ports = [53, *host_ports]
            to_us = [_is(_field(ip, "daddr"), address), _is(_field(protocol, "dport"), {"set": ports})]
            rules.append(("input", [*to_us, ACCEPT]))
    rules.append(("input", [REFUSE]))
    for subnet in subnets:
        net = ip_network(subnet)
        ip, prefix = "ip6" if net.version == 6 else "ip", _prefix(subnet)
        source, away = _is(_field(ip, "saddr"), prefix), _is(_field(ip, "daddr"), prefix, "!=")
        # Not on the bridge itself: there it would touch bridged multicast and broadcast.
        rules.append(("postrouting", [_link("oifname", bridge, "!="), source, away, MASQUERADE]))
    contents = [_chain(table, "forward", 0), _chain(table, "input", 0), _chain(table, "postrouting", 100, "nat")]
    mark = "atoll " + hashlib.sha256(json.dumps([contents, rules]).encode()).hexdigest()[:16]
    return contents + [_rule(table, chain, expression, mark) for chain, expression in rules], [mark] * len(rules)


def _chain(table: str, hook: str, priority: int, kind: str = "filter") -> Command:
    about = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
    return {"add": {"chain": {"family": FAMILY, "table": table, "name": hook, **about}}}


def _rule(table: str, chain: str, expression: list[Expression], comment: str) -> Command:
    about = {"family": FAMILY, "table": table, "chain": chain, "expr": expression, "comment": comment}
    return {"add": {"rule": about}}


def _is(left: Expression, right: Any, operator: str = "==") -> Expression:
    return {"match": {"op": operator, "left": left, "right": right}}


def _meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def _field(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}


def _link(key: str, name: str, operator: str = "==") -> Expression:
    return _is(_meta(key), name, operator)


def _tracked() -> Expression:
    return _is({"ct": {"key": "state"}}, {"set": ["established", "related"]}, "in")


def _prefix(subnet: str) -> Expression:
    net = ip_network(subnet)
    return {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}
