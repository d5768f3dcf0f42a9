"""Fetching from servers that break off, lie, or lead inward."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from atoll.base.errors import Absent, AtollError, Broken, Exhausted, Invalid, Refused, Unreachable
from atoll.base.units import MiB, TiB
from atoll.host.outward import Networks, may_reach, parse_networks
from atoll.host.web import check_url
from atoll.image import fetch as fetching
from atoll.image.digest import digest_of_bytes
from atoll.image.fetch import Fetch
from atoll.image.sink import Sink
from tests.kit.mirror import Mirror, mirror

LOOPBACK = parse_networks(["127.0.0.0/8", "::1"])
CONTENT = os.urandom(3 * MiB + 5)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr(fetching, "_PAUSES", (0.01,) * 10)
    with mirror(CONTENT) as made:
        yield made


def fetch(tmp_path: Path, url: str, *, largest: int = TiB, allowed: Networks = LOOPBACK) -> Fetch:
    return Fetch(
        url, tmp_path / "x.part", tmp_path / "x.note", largest=largest, allowed=allowed, told=lambda *_: None
    )


def whole(tmp_path: Path, sink: Sink, content: bytes = CONTENT) -> None:
    assert (tmp_path / "x.part").read_bytes() == content
    assert (sink.size, sink.digest) == (len(content), digest_of_bytes(content))


async def test_a_file_comes_whole_with_its_digest(tmp_path: Path, web: Mirror) -> None:
    whole(tmp_path, await fetch(tmp_path, web.url + "/file").run())
    assert web.ranges("/file") == [""]


async def test_holes_stay_holes(tmp_path: Path, web: Mirror) -> None:
    web.content = bytes(32 * MiB) + b"end"
    whole(tmp_path, await fetch(tmp_path, web.url + "/file").run(), web.content)
    assert (tmp_path / "x.part").stat().st_blocks * 512 < MiB


async def test_a_broken_connection_is_gone_on_with(tmp_path: Path, web: Mirror) -> None:
    whole(tmp_path, await fetch(tmp_path, web.url + "/cut").run())
    wanted = ["", *(f"bytes={part * web.cut}-" for part in (1, 2, 3))]
    assert web.ranges("/cut") == wanted[: len(web.asked)]
    assert len(web.asked) > 2


async def test_another_daemon_goes_on_where_the_former_one_was(tmp_path: Path, web: Mirror) -> None:
    half = len(CONTENT) // 2
    with pytest.raises(Invalid):
        await fetch(tmp_path, web.url + "/file", largest=half).run()
    (tmp_path / "x.part").write_bytes(CONTENT[:half])
    whole(tmp_path, await fetch(tmp_path, web.url + "/file").run())
    assert web.ranges("/file")[-1] == f"bytes={half}-"


async def test_what_was_replaced_meanwhile_is_fetched_from_its_beginning(tmp_path: Path, web: Mirror) -> None:
    with pytest.raises(Invalid):
        await fetch(tmp_path, web.url + "/file", largest=MiB).run()
    (tmp_path / "x.part").write_bytes(b"of the former file")
    web.content, web.etag = CONTENT[::-1], '"two"'
    whole(tmp_path, await fetch(tmp_path, web.url + "/file").run(), web.content)


async def test_without_a_validator_it_begins_again_and_gives_up(tmp_path: Path, web: Mirror) -> None:
    with pytest.raises(Unreachable):
        await fetch(tmp_path, web.url + "/undated").run()
    assert set(web.ranges("/undated")) == {""}


@pytest.mark.parametrize(
    ("path", "error", "told"),
    [
        ("/grows", Broken, "changes its length"),
        ("/shifted", Broken, "another part"),
        ("/encoded", Broken, "encoded"),
        ("/status/404", Absent, "no such file"),
        ("/status/403", Refused, "403"),
        ("/status/503", Unreachable, "503"),
    ],
)
async def test_servers_that_do_not_serve(
    tmp_path: Path, web: Mirror, path: str, error: type[AtollError], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        await fetch(tmp_path, web.url + path).run()
    assert caught.value.hint or error is Broken


async def test_too_large_and_no_room(tmp_path: Path, web: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Invalid, match="more than 1MiB"):
        await fetch(tmp_path, web.url + "/file", largest=MiB).run()
    monkeypatch.setattr("atoll.image.sink.RESERVE", 1 << 60)
    with pytest.raises(Exhausted):
        await fetch(tmp_path, web.url + "/file").run()


INWARD = ("http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://[::1]:1/", "http://0.0.0.0:1/",
          "http://[::ffff:10.0.0.1]/", "http://192.168.1.1/")  # fmt: skip


@pytest.mark.parametrize("where", INWARD)
async def test_a_redirect_inward_is_refused(tmp_path: Path, web: Mirror, where: str) -> None:
    only = parse_networks(["127.0.0.1"])
    with pytest.raises(Refused, match="inside this host or its network"):
        await fetch(tmp_path, f"{web.url}/to/{quote(where, safe='')}", allowed=only).run()
    assert not (tmp_path / "x.part").exists()


async def test_a_name_is_judged_by_the_address_that_is_connected_to(tmp_path: Path, web: Mirror) -> None:
    """Also the way DNS rebinding would take: no name is believed, whatever it led to a moment ago."""
    named = web.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Refused, match="leads to"):
        await fetch(tmp_path, named + "/file", allowed=()).run()
    assert not web.asked
    whole(tmp_path, await fetch(tmp_path, named + "/file").run())


async def test_redirects_are_followed_and_counted(tmp_path: Path, web: Mirror) -> None:
    url = web.url + "/file"
    for _ in range(3):
        url = f"{web.url}/to/{quote(url, safe='')}"
    whole(tmp_path, await fetch(tmp_path, url).run())
    with pytest.raises(Refused, match="more than 5 times"):
        await fetch(tmp_path, _loop(web)).run()
    for where in ("file:///etc/passwd", "ftp://example.org/x", "http://user:word@example.org/"):
        with pytest.raises(Refused, match="not followed"):
            await fetch(tmp_path, f"{web.url}/to/{quote(where, safe='')}").run()


def _loop(web: Mirror) -> str:
    url = web.url + "/file"
    for _ in range(7):
        url = f"{web.url}/to/{quote(url, safe='')}"
    return url


async def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_PAUSES", (0.01,) * 10)
    with pytest.raises(Unreachable, match="cannot be reached"):
        await fetch(tmp_path, "http://127.0.0.1:9/x").run()


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://a/b", "file:///etc/passwd", "http://", "http://a:b@c/", "http://a/ b", "http://a:99999/",
            "http://a/\n", "http://é/", "HTTP", "http://" + "a" * 5000]
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(Invalid):
        check_url(url)


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("255.255.255.255", False), ("224.0.0.1", False), ("::1", False), ("::", False),
        ("fe80::1%eth0", False), ("fd00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True), ("64:ff9b::a00:1", False), ("64:ff9b::808:808", True), ("2002:7f00:1::", False),
        ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_the_internet(address: str, may: bool) -> None:
    assert may_reach(address, ()) is may
    assert may_reach(address, parse_networks(["0.0.0.0/0", "::/0"]))


async def test_a_slow_server_blocks_nobody(tmp_path: Path, web: Mirror) -> None:
    threading.Timer(0.2, web.gate.set).start()
    whole(tmp_path, await fetch(tmp_path, web.url + "/slow").run())
