"""The one door to the packet filter: nftables' JSON (libnftables-json(5)), each call one transaction.

It goes to libnftables rather than to the `nft` program: the same text, without a process each.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

from atoll.base.errors import Absent, AtollError, Broken, Lacking, Unreachable
from atoll.host import libnftables

Command = dict[str, Any]
"""One object of libnftables-json: `{"add": {"table": {...}}}`."""
Expression = dict[str, Any]
"""A part of a rule: a match, a statement."""

_TIMEOUT = 20.0  # seconds; replacing a table waits for an RCU grace period


async def apply(commands: Sequence[Command]) -> list[dict[str, Any]]:
    """Carry out all of `commands` or none, and return what they list.

    Raises Lacking (no libnftables, no right, no kernel support), Absent (it names what is not there), Broken
    (refused), Unreachable (no answer in time).
    """
    try:
        async with asyncio.timeout(_TIMEOUT):
            code, output, complaint = await asyncio.to_thread(libnftables.run, list(commands))
    except TimeoutError:
        raise Unreachable(f"the packet filter did not answer within {_TIMEOUT:.0f} s") from None
    if code:
        raise _translate(complaint)
    return list(json.loads(output)["nftables"]) if output.strip() else []


def made_anew(family: str, name: str, contents: Sequence[Command], *, absent: bool = False) -> list[Command]:
    """What makes the table anew with `contents`: in one step, so that no packet sees it half made. `absent`: it is
    not there or has nothing in it, which takes half the time: there is no deletion to wait for."""
    add: Command = {"add": {"table": {"family": family, "name": name}}}
    # Deleting an absent table is an error; adding a present one is not.
    return [add, *([] if absent else [{"delete": add["add"]}, add]), *contents]


async def delete_table(*families: str, name: str) -> None:
    """Those of that name in each family, in one step: each costs a grace period. Absent is success."""
    gone = [{"family": family, "name": name} for family in families]
    await apply(
        [command for table in gone for command in ({"add": {"table": table}}, {"delete": {"table": table}})]
    )


async def tables() -> list[tuple[str, str]]:
    """(family, name) of each. libnftables reads every rule of the host for it: 4 ms a table."""
    listed = [entry["table"] for entry in await apply([{"list": {"tables": None}}]) if "table" in entry]
    return [(table["family"], table["name"]) for table in listed]


async def comments(family: str, table: str) -> list[str]:
    """The comment of each of a table's rules ("" without one); none where the table is absent."""
    try:
        listed = await apply([{"list": {"table": {"family": family, "name": table}}}])
    except Absent:
        return []
    return [entry["rule"].get("comment", "") for entry in listed if "rule" in entry]


async def has_set(family: str, table: str, name: str) -> bool:
    """Whether there is a set (or map) of that name: unlike a list of the table, as cheap however large that is."""
    try:
        await apply([{"list": {"set": {"family": family, "table": table, "name": name}}}])
    except Absent:
        return False
    return True


async def elements(family: str, table: str, name: str) -> list[Any]:
    """Of a map, as pairs; none where it is absent."""
    try:
        listed = await apply([{"list": {"map": {"family": family, "table": table, "name": name}}}])
    except Absent:
        return []
    return [element for entry in listed if "map" in entry for element in entry["map"].get("elem", ())]


def is_(left: Expression, right: Any, operator: str = "==") -> Expression:
    return {"match": {"op": operator, "left": left, "right": right}}


def meta(key: str) -> Expression:
    return {"meta": {"key": key}}


def field(protocol: str, name: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": name}}


def extension(name: str, part: str) -> Expression:
    """A part of an IPv6 extension header; a packet without that header matches nothing."""
    return {"exthdr": {"name": name, "field": part}}


def link(key: str, name: str, operator: str = "==") -> Expression:
    """`key`: iifname or oifname."""
    return is_(meta(key), name, operator)


async def forward_drops() -> list[str]:
    """The chains that drop forwarded packets by policy: an accept elsewhere does not overrule them."""
    listed = await apply([{"list": {"chains": None}}])
    return sorted(f"{chain['family']} {chain['table']} {chain['name']}" for chain in _dropping(listed))


def _dropping(listed: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    chains = (entry["chain"] for entry in listed if "chain" in entry)
    return (chain for chain in chains if chain.get("hook") == "forward" and chain.get("policy") == "drop")


def _translate(complaint: bytes) -> AtollError:
    text = " ".join(complaint.decode(errors="replace").split())[:500]
    if "Operation not permitted" in text or "Permission denied" in text:
        return Lacking("changing the packet filter needs CAP_NET_ADMIN", hint="run the daemon as root")
    if "not supported" in text:
        return Lacking(f"this kernel's packet filter lacks a part: {text}", hint="modprobe nf_tables nft_chain_nat")
    if "No such file or directory" in text:
        return Absent(f"the packet filter has no such table or chain: {text}")
    return Broken(f"the packet filter refused a change: {text}", hint="nft list ruleset")
