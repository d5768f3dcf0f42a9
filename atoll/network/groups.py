"""Security groups as plain values: what may reach, and be reached by, the ports that are in them."""

from ipaddress import ip_network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from atoll.base.clock import Timestamp
from atoll.base.errors import Invalid
from atoll.base.names import LABEL
from atoll.network.model import PortNumber

MAX_RULES = 256
NameOrNone = Annotated[str, Meta(pattern=f"^({LABEL.strip('^$')})?$")]


class GroupRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What passes one way; answers to it pass too. `port`, `last`: of the receiver; `last` makes it a range.

    `cidr` or `group` (by name): who is at the other end; neither: anybody.
    """

    direction: Literal["ingress", "egress"]
    protocol: Literal["any", "tcp", "udp", "icmp"] = "any"
    port: PortNumber | None = None
    last: PortNumber | None = None
    cidr: Annotated[str, Meta(max_length=64)] = ""
    group: NameOrNone = ""

    def __str__(self) -> str:
        ports = "" if self.port is None else f" {self.port}" + (f"-{self.last}" if self.last else "")
        peer = self.cidr or (f"group {self.group}" if self.group else "anybody")
        return f"{self.direction} {self.protocol}{ports} {'from' if self.direction == 'ingress' else 'to'} {peer}"


Rules = Annotated[tuple[GroupRule, ...], Meta(max_length=MAX_RULES)]
OUTWARDS = GroupRule(direction="egress")
"""What a new group begins with: its guests may reach anybody, and nobody reaches them."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    project: str
    name: str
    rules: tuple[GroupRule, ...] = (OUTWARDS,)
    description: str = ""
    created: Timestamp


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A group as a network driver needs it: `rules` name other groups by id; `addresses` are those of every port in
    it, on whichever network."""

    id: str
    rules: tuple[GroupRule, ...]
    addresses: frozenset[str] = frozenset()


def check_rule(rule: GroupRule) -> GroupRule:
    """In its usual form. Raises Invalid where it says what cannot be."""
    if rule.port is None and rule.last is not None:
        raise Invalid("a range of ports needs its first", hint="port and last", field="rules.port")
    if rule.port is not None and rule.protocol not in ("tcp", "udp"):
        raise Invalid(f"{rule.protocol} has no ports", hint="protocol tcp or udp", field="rules.protocol")
    if rule.port is not None and rule.last is not None and rule.last < rule.port:
        raise Invalid(f"{rule.port}-{rule.last} is no range", hint="the smaller number first", field="rules.last")
    if rule.cidr and rule.group:
        raise Invalid("a rule is about addresses or about a group", hint="make two rules", field="rules.cidr")
    if not rule.cidr:
        return rule
    try:
        return msgspec.structs.replace(rule, cidr=str(ip_network(rule.cidr)))
    except ValueError as error:
        raise Invalid(f"{rule.cidr!r} is no subnet: {error}", hint="as in 10.0.0.0/8", field="rules.cidr") from None
