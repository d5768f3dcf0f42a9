"""What cloud-init is told, and what of it is refused."""

import io
from typing import Any

import msgspec
import pycdlib
import pytest

from atoll.base import clock
from atoll.base.errors import Absent, AtollError, Invalid
from atoll.base.ids import NetworkId
from atoll.instance import seed
from atoll.instance.model import CloudInit
from atoll.instance.seed import Lan
from atoll.instance.seeds import SeedBook
from atoll.network.model import Mode, Network
from atoll.store.memory import MemoryStore

NETWORK = Network(
    id=NetworkId("n"), project="default", name="default", driver="bridge",
    subnets=("10.9.8.0/24", "fd00:1:2:3::/64"),
    gateways=("10.9.8.1", "fd00:1:2:3::1"), domain="default.internal", created=clock.now(),
)  # fmt: skip
LAN = Lan("02:00:00:00:00:01", ("10.9.8.10", "fd00:1:2:3::a"), NETWORK)
KEY = "ssh-ed25519 AAAA me"
BOMB = "#cloud-config\na: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a, *a, *a]\n" for n in range(200))


def read(disk: bytes) -> dict[str, bytes]:
    found, iso = {}, pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(disk))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    for name in ("meta-data", "user-data", "vendor-data", "network-config"):
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, rr_path=f"/{name}")
        found[name] = out.getvalue()
    iso.close()
    return found


def test_the_disk_tells_who_it_is() -> None:
    given = CloudInit(user_data="#cloud-config\nruncmd: [ls]\n")
    parts = read(seed.iso(seed.files(given, id="i-1", name="web", keys=[KEY], lans=[LAN])))
    assert msgspec.json.decode(parts["meta-data"]) == {
        "instance-id": "i-1", "local-hostname": "web", "public-keys": [KEY],
    }  # fmt: skip
    assert parts["user-data"].decode() == given.user_data
    assert b"disable_root: false" in parts["vendor-data"]
    assert msgspec.json.decode(parts["network-config"])["version"] == 2


def test_planned_addresses_are_as_they_are_and_others_by_dhcp() -> None:
    bare = Lan("02:00:00:00:00:02", (), NETWORK)
    cards = seed.network_config([LAN, bare])["ethernets"]
    first: dict[str, Any] = cards["nic0"]
    assert first["addresses"] == ["10.9.8.10/24", "fd00:1:2:3::a/64"]
    assert [(r["to"], r["via"]) for r in first["routes"]] == [("0.0.0.0/0", "10.9.8.1"), ("::/0", "fd00:1:2:3::1")]
    assert first["nameservers"] == {"addresses": list(NETWORK.gateways), "search": ["default.internal"]}
    assert cards["nic1"] == {"match": {"macaddress": bare.mac}, "dhcp4": True, "dhcp6": False}


def test_without_a_gateway_there_is_no_route() -> None:
    alone = msgspec.structs.replace(NETWORK, gateways=())
    card = seed.network_config([Lan(LAN.mac, LAN.addresses, alone)])["ethernets"]["nic0"]
    assert card["routes"] == []
    assert "nameservers" not in card


def test_the_gateway_of_an_isolated_network_leads_nowhere() -> None:
    isolated = msgspec.structs.replace(NETWORK, mode=Mode.ISOLATED)
    card = seed.network_config([Lan(LAN.mac, LAN.addresses, isolated)])["ethernets"]["nic0"]
    assert card["routes"] == []
    assert card["nameservers"]["addresses"] == list(NETWORK.gateways)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (CloudInit(user_data="#cloud-config\nusers:\n  - a: w\n   b: x\n"), "not valid YAML: line 4, column 4"),
        (CloudInit(user_data="#cloud-config\na: [1, 2\n"), "line 3, column 1"),
        (CloudInit(user_data="#cloud-config\n- a\n- b\n"), "line 2, column 1: keys with values"),
        (CloudInit(user_data="#cloud-config\nb: '\x07'\n"), "line 2, column 5"),
        (CloudInit(user_data="#cloud-config\na: \tb\n\tc: d\n"), "line 3, column 1"),
        (CloudInit(user_data="packages: [nginx]\n"), "begins with 'packages: [nginx]'"),
        (CloudInit(vendor_data="#cloud-config\na: b: c\n"), "vendor-data is not valid YAML: line 2, column 5"),
        (CloudInit(network_config="version: 2\n  x: 1\n"), "network-config is not valid YAML: line 2, column 4"),
        (CloudInit(user_data="#!/bin/sh\n" + "x" * 30000, vendor_data="#!" + "y" * 30000), "more than 48KiB"),
        (CloudInit(user_data="#cloud-config\na: " + "[" * 20000 + "\n"), "user-data is not valid YAML"),
    ],
)  # fmt: skip
def test_what_cloud_init_could_not_read(given: CloudInit, said: str) -> None:
    with pytest.raises(AtollError) as caught:
        seed.check(given)
    assert said in caught.value.message
    assert caught.value.field.startswith("cloud_init")


@pytest.mark.parametrize(
    "text", ["", "#cloud-config\n", "#cloud-config\n{}\n", "#!/bin/sh\nexit 0\n", "#include\nhttps://x/\n", BOMB]
)
def test_what_cloud_init_can_read(text: str) -> None:
    seed.check(CloudInit(user_data=text))


async def test_secrets_belong_to_a_project_and_go() -> None:
    book = SeedBook(MemoryStore())
    id = await book.put("blue", CloudInit(user_data="#!/bin/sh\n"))
    kept = await book.put("blue", CloudInit(user_data="#!/bin/true\n"))
    assert (await book.get("blue", id)).user_data == "#!/bin/sh\n"
    assert await book.get("blue", "") == CloudInit()
    with pytest.raises(Absent):
        await book.get("red", id)
    await book.sweep({kept})
    with pytest.raises(Absent):
        await book.get("blue", id)
    assert await book.get("blue", kept)
    with pytest.raises(Invalid):
        await book.put("blue", CloudInit(user_data="no"))


async def test_a_project_has_one_key_pair() -> None:
    store = MemoryStore()
    pair = await SeedBook(store).keys("blue")
    assert pair == await SeedBook(store).keys("blue") != await SeedBook(store).keys("red")
    assert pair.public.startswith("ssh-ed25519 ")
    assert "OPENSSH PRIVATE KEY" in pair.private
