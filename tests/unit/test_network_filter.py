"""What the filter, the meter and the groups decide, as pure functions; groups and wishes on record."""

import asyncio
import json

import msgspec
import pytest

from atoll.base.clock import now
from atoll.base.errors import Absent, Exists, Invalid, Refused
from atoll.base.ids import NetworkId, PortId
from atoll.base.units import parse_rate, show_rate
from atoll.cli.nicspec import parse_forward, parse_nic, parse_port, parse_rule, show_rule
from atoll.network import filter, meter
from atoll.network.addresses import check_address, check_mac
from atoll.network.book import NetworkBook
from atoll.network.enforce import plans, reach
from atoll.network.groupbook import GroupBook
from atoll.network.groups import OUTWARDS, Group, GroupPlan, GroupRule, check_rule
from atoll.network.model import Bandwidth, Forward, Mode, Port, PortSettings, PortWish
from atoll.network.promises import check_promises
from atoll.network.rules import forward_rules, host_rules
from atoll.store.memory import MemoryStore
from atoll.store.txn import commit_afresh

PORT = Port(
    id=PortId("p"),
    network=NetworkId("n"),
    instance="i",
    mac="02:00:00:00:00:01",
    addresses=("10.7.8.10", "fd00::ff:fe00:1"),
)
IN = GroupRule(direction="ingress", protocol="tcp", port=80)


def group(name: str, *rules: GroupRule, project: str = "default") -> Group:
    return Group(id=f"id-{name}", project=project, name=name, rules=rules, created=now())


def test_a_port_like_before_changes_nothing() -> None:
    wanted = filter.port_chains("t", "tap", PORT, pinned=True)
    present = {name: chain for name, (chain, _) in wanted.items()}
    assert list(wanted) == ["guards"]
    assert filter.port_commands("t", "tap", wanted, present) == []
    moved = msgspec.structs.replace(PORT, addresses=("10.7.8.11",))
    other = filter.port_chains("t", "tap", moved, pinned=True)
    commands = filter.port_commands("t", "tap", other, present)
    assert {next(iter(command)) for command in commands} == {"add", "flush", "delete"}
    assert commands[-1] == {"delete": {"chain": {"family": "bridge", "table": "t", "name": present["guards"]}}}
    assert [c for c in filter.port_commands("t", "tap", {}, present) if "add" in c] == []


def test_a_port_of_no_planned_addresses_is_held_to_its_mac_only() -> None:
    pinned = json.dumps(filter.port_chains("t", "tap", PORT, pinned=True)["guards"])
    loose = json.dumps(filter.port_chains("t", "tap", PORT, pinned=False)["guards"])
    assert PORT.mac in pinned
    assert PORT.mac in loose
    assert "10.7.8.10" in pinned
    assert "10.7.8.10" not in loose
    assert (
        filter.port_chains(
            "t", "tap", msgspec.structs.replace(PORT, settings=PortSettings(guard=False)), pinned=True
        )
        == {}
    )


def test_a_group_changes_by_what_differs() -> None:
    before = GroupPlan(id="g", rules=(IN,), addresses=frozenset({"10.7.8.10", "10.7.8.11", "fd00::1"}))
    assert filter.group_commands("t", before, before) == []
    joined = msgspec.structs.replace(before, addresses=before.addresses - {"10.7.8.10"} | {"10.7.8.12"})
    assert [next(iter(command)) for command in filter.group_commands("t", joined, before)] == ["delete", "add"]
    ruled = msgspec.structs.replace(before, rules=(IN, OUTWARDS))
    touched = json.dumps(filter.group_commands("t", ruled, before))
    assert "elem" not in touched
    assert "flush" in touched


def test_what_groups_reach_through_their_rules() -> None:
    names = {"a": "b", "b": "c", "c": "a", "d": ""}
    groups = {
        f"id-{n}": group(n, *([GroupRule(direction="ingress", group=peer)] if peer else []))
        for n, peer in names.items()
    }
    assert reach(["id-a"], groups) == {"id-a", "id-b", "id-c"}
    assert reach(["id-d", "gone"], groups) == {"id-d"}
    groups["id-e"] = group("e", GroupRule(direction="ingress", group="a"), project="lab")
    assert reach(["id-e"], groups) == {"id-e"}, "another project's group of that name is another group"
    [made] = plans(["id-a"], groups, {"id-a": {"10.0.0.1"}})
    assert (made.rules[0].group, made.addresses) == ("id-b", frozenset({"10.0.0.1"}))
    [lonely] = plans(["id-e"], groups, {})
    assert lonely.rules == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "icmp", "port": 80},
        {"last": 90},
        {"protocol": "tcp", "port": 90, "last": 80},
        {"cidr": "10.0.0.1/8"},
        {"cidr": "nowhere"},
        {"cidr": "10.0.0.0/8", "group": "web"},
    ],
)
def test_rules_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        check_rule(GroupRule(direction="ingress", **wrong))  # type: ignore[arg-type]


async def test_groups_on_record() -> None:
    book = GroupBook(MemoryStore())
    web = await book.create("default", "web", id="1")
    assert web.rules == (OUTWARDS,)
    assert await book.create("default", "web", id="1") == web
    with pytest.raises(Exists):
        await book.create("default", "web")
    with pytest.raises(Absent):
        await book.create("default", "db", rules=[GroupRule(direction="ingress", group="nothere")])
    db = await book.create("default", "db", rules=[GroupRule(direction="ingress", group="web")])
    await book.change("default", "web", add=[IN, IN])
    changed = await book.change("default", "web", add=[IN], remove=[OUTWARDS, OUTWARDS])
    assert changed.rules == (IN,)
    with pytest.raises(Refused, match="group db"):
        await book.delete(changed, [])
    with pytest.raises(Refused, match="one"):
        await book.delete(db, ["one"])
    await book.delete(db, [])
    await book.delete(db, [])
    await book.delete(changed, [])
    assert await book.all() == []


async def test_wishes_are_kept_or_told_why_not() -> None:
    store = MemoryStore()
    book = NetworkBook(store)
    network = await book.create("default", "blue", "bridge", subnets=["10.77.0.0/24", "fd00::/64"])

    async def plug(name: str, **wish: object) -> Port:
        made = PortWish(**wish)  # type: ignore[arg-type]
        port, _ = await commit_afresh(
            store, lambda: book.plan_port(network, project="default", instance=name, name=name, wish=made)
        )
        return port

    web = await plug("web", address="10.77.0.11", mac="02-AA-00-00-00-01")
    assert (web.addresses[0], web.mac) == ("10.77.0.11", "02:aa:00:00:00:01")
    assert (await plug("a")).addresses[0] == "10.77.0.10"
    assert (await plug("b")).addresses[0] == "10.77.0.12"
    with pytest.raises(Exists, match=r"10.77.0.11 is web's"):
        await plug("c", address="10.77.0.11")
    with pytest.raises(Exists, match="is web's"):
        await plug("c", mac=web.mac)
    led = await plug("d", settings=PortSettings(forwards=(Forward(80, 80), Forward(80, 53, "udp"))))
    with pytest.raises(Exists, match="leads to d"):
        await plug("e", settings=PortSettings(forwards=(Forward(80, 8080),)))
    with pytest.raises(Invalid, match="twice"):
        await plug("e", settings=PortSettings(forwards=(Forward(81, 1), Forward(81, 2))))
    _, claims = await book.change_port(network.id, led.id, PortSettings(forwards=(Forward(80, 53, "udp"),)))
    await store.commit(claims)
    await plug("e", settings=PortSettings(forwards=(Forward(80, 8080),)))


@pytest.mark.parametrize("address", ["10.7.8.0", "10.7.8.255", "10.7.8.1", "10.7.9.5", "fd00::5", "ten", "10.7.8"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(Invalid):
        check_address(address, ["10.7.8.0/24", "fd00::/64"], ["10.7.8.1"], name="blue")


@pytest.mark.parametrize(
    "mac", ["01:00:00:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "02:00", "02:00:00:00:00:0g"]
)
def test_macs_that_cannot_be(mac: str) -> None:
    with pytest.raises(Invalid):
        check_mac(mac)


def test_modes_differ_by_what_they_let_pass() -> None:
    def made(mode: Mode) -> str:
        return json.dumps(host_rules("t", "br", ["10.7.8.0/24"], ["10.7.8.1"], [80], mode=mode)[0])

    assert "masquerade" in made(Mode.NAT)
    assert '"!="' in made(Mode.ROUTED)
    assert '"output"' in made(Mode.ISOLATED)
    assert "dnat" not in made(Mode.ISOLATED)
    assert "80" not in json.dumps(host_rules("t", "br", [], ["10.7.8.1"], [80], mode=Mode.ISOLATED)[0])


def test_forwards_lead_to_every_address() -> None:
    port = msgspec.structs.replace(PORT, settings=PortSettings(forwards=(Forward(8080, 80),)))
    rules, comments = forward_rules("t", [port])
    assert len(rules) == len(comments) == 2
    assert [rule["add"]["rule"]["expr"][-1]["dnat"]["family"] for rule in rules] == ["ip", "ip6"]


def test_a_guarantee_needs_something_to_share() -> None:
    both = Bandwidth(ceiling=10**8, guaranteed=10**7)
    [shared, *_] = meter.port_lines("m", "tap", "u", 5, PORT.mac, both, 10**9)
    assert "rate 10000000bit ceil 100000000bit" in shared
    [capped, *_] = meter.port_lines("m", "tap", "u", 5, PORT.mac, Bandwidth(ceiling=10**8), 0)
    assert "rate 100000000bit ceil 100000000bit" in capped
    [least, *_] = meter.port_lines("m", "tap", "u", 5, PORT.mac, Bandwidth(ceiling=2 * 10**9), 10**9)
    assert "ceil 1000000000bit" in least, "no more than the network has"


def test_what_people_write() -> None:
    assert parse_nic("network=lan,group=a+b,down=100Mbit,down-min=1M,burst=64KiB,link=down,guard=off") == {
        "network": "lan",
        "groups": ["a", "b"],
        "down": {"ceiling": 10**8, "guaranteed": 10**6, "burst": 65536},
        "link": False,
        "guard": False,
    }
    assert parse_nic("group=,up=0") == {"groups": [], "up": {}}
    assert parse_forward("8080:80/udp") == {"port": 8080, "to": 80, "protocol": "udp"}
    assert parse_port("53") == {"port": 53, "protocol": "tcp"}
    for text in (
        "ingress tcp/80-90 from 10.0.0.0/8",
        "egress any",
        "ingress any from group:web",
        "egress udp/53 to ::/0",
    ):
        assert show_rule(msgspec.convert(parse_rule(text), GroupRule)) == text
    for wrong in ("80", "80:", "0:80", "80:70000", "a:b", "80:80/icmp"):
        with pytest.raises(Invalid):
            parse_forward(wrong)
    for wrong in ("nothing", "network", "speed=1", "up=fast", "link=maybe"):
        with pytest.raises(Invalid):
            parse_nic(wrong)


@pytest.mark.parametrize(
    ("text", "rate"), [("100Mbit", 10**8), ("1.5G", 15 * 10**8), ("64kbit", 64000), ("9600", 9600)]
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(show_rate(rate)) == rate


def limited(id: str, *, down: Bandwidth) -> Port:
    return msgspec.structs.replace(PORT, id=PortId(id), settings=PortSettings(down=down))


async def test_no_more_is_promised_than_a_network_has() -> None:
    book = NetworkBook(MemoryStore())
    lan = await book.create("default", "lan", "bridge", bandwidth=10**8)
    free = await book.create("default", "free", "bridge")
    first, mine = limited("a", down=Bandwidth(guaranteed=60 * 10**6)), Bandwidth(guaranteed=40 * 10**6)
    check_promises(lan, first, [])
    check_promises(lan, limited("b", down=mine), [first])
    check_promises(lan, limited("a", down=Bandwidth(guaranteed=10**8)), [first])
    with pytest.raises(Refused, match="60Mbit are promised") as told:
        check_promises(lan, limited("b", down=Bandwidth(guaranteed=50 * 10**6)), [first])
    assert "at most 40Mbit" in told.value.hint
    with pytest.raises(Invalid, match="no bandwidth of which"):
        check_promises(free, first, [])
    with pytest.raises(Invalid, match="cannot both be"):
        check_promises(lan, limited("b", down=Bandwidth(ceiling=10**6, guaranteed=10**7)), [])


async def test_subnets_that_overlap_are_told_apart_also_at_once() -> None:
    book = NetworkBook(MemoryStore())
    asked = [
        book.create("default", f"n{n}", "bridge", subnets=[subnet])
        for n, subnet in enumerate(("10.9.0.0/16", "10.9.1.0/24", "10.9.2.0/24", "10.9.1.0/25"))
    ]
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each).__name__ for each in done] == ["Network", "Refused", "Refused", "Refused"]
