"""Images that people bring, through a real daemon: files, URLs, what strangers make, and nothing left behind."""

import gzip
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.kit import evil
from tests.kit.daemon import MIB, SMALL, Daemon, daemon, until
from tests.kit.imported import IMAGES, as_before, content, refused, sha256
from tests.kit.mirror import Mirror, mirror
from tests.kit.wire import request


@pytest.fixture(scope="module")
def world(base: Path) -> Iterator[Daemon]:
    with daemon(base) as made:
        (made.state / "atoll.toml").write_text('[images]\nprivate = ["127.0.0.0/8"]\nmax_size = "640MiB"\n')
        made.start()
        yield made


@pytest.fixture
def atoll(world: Daemon) -> Iterator[Daemon]:
    """As it was before: every test takes its images away again."""
    with as_before(world):
        yield world


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return evil.qcow2(tmp_path / "disk.qcow2", "64M", data=os.urandom(24 * MIB))


def test_a_file_comes_in_and_goes_out_as_it_was(atoll: Daemon, disk: Path, tmp_path: Path) -> None:
    atoll.atoll("image", "import", str(disk), "--name", "mine", "--sha256", sha256(disk))
    [image] = [one for one in atoll.http("GET", IMAGES).json if one["name"] == "mine"]
    file = image["manifest"]["files"]["disk"]
    assert (file["format"], file["virtual_size"], file["digest"]) == ("qcow2", 64 * MIB, f"sha256:{sha256(disk)}")
    assert image["manifest"]["firmware"] == "any"
    out = tmp_path / "out.qcow2"
    atoll.atoll("image", "export", "mine", str(out))
    assert out.read_bytes() == disk.read_bytes()
    again = atoll.atoll("image", "import", str(disk), "--name", "mine", check=False)
    refused(again, 5, "already exists", "--replace")


def test_a_raw_disk_a_disc_and_compressed_ones(atoll: Daemon, tmp_path: Path) -> None:
    raw = bytes(510) + b"\x55\xaa" + os.urandom(MIB) + bytes(8 * MIB)
    (tmp_path / "raw").write_bytes(raw)
    (tmp_path / "raw.gz").write_bytes(gzip.compress(raw))
    for tool in ("xz", "zstd"):
        subprocess.run([tool, "-qk", str(tmp_path / "raw")], check=True)
    digests = set()
    for name in ("raw", "raw.gz", "raw.xz", "raw.zst"):
        atoll.atoll("image", "import", str(tmp_path / name), "--name", "raw", "--replace")
        digests.add(atoll.json("image", "show", "raw")["digest"])
    assert len(digests) == 1
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "readme").write_text("a disc")
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", str(tmp_path / "cd.iso"), str(tree)], check=True)
    with (tmp_path / "cd.iso").open("rb") as stdin:
        atoll.atoll("image", "import", "-", "--name", "cd", input=stdin.read())
    found = atoll.json("image", "show", "cd")["manifest"]
    assert (found["kind"], list(found["files"])) == ("iso", ["iso"])
    refused(atoll.atoll("launch", "cd", "web", check=False), 2, "ISO")


def strange(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """What is refused, and a word of why."""
    backed, split, text, short = (tmp_path / name for name in ("backed", "split", "text", "short"))
    evil.qemu_img("create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", backed, "1M")
    evil.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'd'}", split, "1M")
    text.write_bytes(evil.vmdk_descriptor("/etc/shadow"))
    whole = evil.qcow2(tmp_path / "whole", data=os.urandom(MIB))
    short.write_bytes(whole.read_bytes()[: MIB // 2])
    large = evil.qcow2(tmp_path / "large", "2G")
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(510) + b"\x55\xaa" + bytes(700 * MIB), 1))
    return {
        "CVE-2015-5163": (backed, "stands on another file"),
        "CVE-2024-32498": (split, "data in another file"),
        "CVE-2022-47951": (text, "/etc/shadow"),
        "truncated": (short, "truncated"),
        "absurd": (large, "2GiB"),
        "bomb": (bomb, "more than 640MiB"),
    }


def test_what_strangers_make_is_refused_and_nothing_of_it_stays(atoll: Daemon, tmp_path: Path) -> None:
    before = content(atoll)
    for case, (path, why) in strange(tmp_path).items():
        refused(atoll.atoll("image", "import", str(path), "--name", "x", check=False), 2, why)
        assert content(atoll) == before, case
    disk = evil.qcow2(tmp_path / "disk")
    lied = atoll.atoll("image", "import", str(disk), "--name", "x", "--sha256", "0" * 64, check=False)
    refused(lied, 2, sha256(disk))
    refused(atoll.atoll("image", "import", str(disk), "--name", "x", "--format", "raw", check=False), 2, "qcow2")
    refused(atoll.atoll("image", "import", str(tmp_path / "none"), "--name", "x", check=False), 4, "no file")
    assert content(atoll) == before


def test_a_sender_that_breaks_off_leaves_nothing(atoll: Daemon) -> None:
    before = content(atoll)
    with pytest.raises(Exception):  # noqa: B017, PT011  # the daemon waits for bytes that never come
        request(
            atoll.state / "atoll.sock",
            "PUT",
            f"{IMAGES}/x/content",
            b"QFI\xfb" * 1000,
            headers={"Content-Length": "1000000", "Content-Type": "application/octet-stream"},
            timeout=1,
        )
    until(lambda: content(atoll) == before, lambda: f"gone: {content(atoll)}", 10)


@pytest.fixture
def web(world: Daemon, disk: Path) -> Iterator[Mirror]:
    with mirror(disk.read_bytes(), world.net) as made:
        yield made


def test_a_url_is_fetched_also_over_connections_that_break(atoll: Daemon, web: Mirror, disk: Path) -> None:
    ran = atoll.atoll("image", "import", f"{web.url}/cut", "--name", "far", "--sha256", sha256(disk))
    assert "fetching from 127.0.0.1" in ran.err
    assert [range for range in web.ranges("/cut") if range]
    assert atoll.json("image", "show", "far")["manifest"]["files"]["disk"]["digest"] == f"sha256:{sha256(disk)}"


def test_urls_that_lie_are_refused(atoll: Daemon, web: Mirror) -> None:
    before = content(atoll)
    inward = quote("http://169.254.169.254/latest/", safe="")
    cases = {
        f"/to/{inward}": (6, "169.254.169.254"),
        "/grows": (1, "changes its length"),
        "/status/404": (4, "no such file"),
        f"/to/{quote('file:///etc/passwd', safe='')}": (6, "not followed"),
    }
    for path, (code, told) in cases.items():
        refused(atoll.atoll("image", "import", web.url + path, "--name", "x", check=False), code, told)
        assert content(atoll) == before
    lied = atoll.atoll("image", "import", web.url + "/file", "--name", "x", "--sha256", "0" * 64, check=False)
    refused(lied, 2, "should be 0000")
    assert content(atoll) == before


def test_what_is_not_the_internet_is_refused_unless_allowed(fresh: Daemon, disk: Path) -> None:
    fresh.start()
    with mirror(disk.read_bytes(), fresh.net) as web:
        ran = fresh.atoll("image", "import", web.url + "/file", "--name", "x", check=False)
    refused(ran, 6, "127.0.0.1", "images.private")
    assert not web.asked


def test_a_download_outlives_its_daemon(atoll: Daemon, web: Mirror, disk: Path) -> None:
    """Killed in the middle, the next daemon goes on where it was; the operation is the same."""
    accepted = atoll.http("POST", f"{IMAGES}/far/import", {"url": web.url + "/slow", "sha256": sha256(disk)}).json
    until(lambda: part_size(atoll) > 4 * MIB, lambda: f"a good part of it is here, not {part_size(atoll)}", 20)
    atoll.kill()
    here = part_size(atoll)
    atoll.start()
    until(lambda: len(web.ranges("/slow")) == 2, "it goes on", 20)
    until(lambda: atoll.http("GET", "/v1/health").json["ready"], "nobody waits for it", 10)
    assert web.ranges("/slow")[1] == f"bytes={here}-"
    web.gate.set()
    ended = atoll.http("GET", f"/v1/operations/{accepted['id']}?wait=30").json
    assert ended["status"] == "done", (ended, atoll.said())


def part_size(atoll: Daemon) -> int:
    return sum(path.stat().st_size for path in (atoll.state / "images" / "incoming").glob("*.part"))


def test_a_download_can_be_cancelled(atoll: Daemon, web: Mirror) -> None:
    before = content(atoll)
    accepted = atoll.http("POST", f"{IMAGES}/far/import", {"url": web.url + "/slow"}).json
    until(lambda: web.asked, lambda: f"it is asked: {accepted} {atoll.said()}", 20)
    atoll.atoll("operation", "cancel", accepted["id"])
    ended = atoll.http("GET", f"/v1/operations/{accepted['id']}?wait=30").json
    assert ended["status"] == "cancelled"
    assert content(atoll) == before


def test_a_newer_image_keeps_the_older_for_its_users(atoll: Daemon, disk: Path, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny.qcow2"
    atoll.atoll("image", "export", "tiny", str(tiny))
    atoll.atoll("image", "import", str(tiny), "--name", "server")
    old = atoll.json("image", "show", "server")["digest"]
    atoll.launch("web", image="server", start=False, memory=SMALL)
    refused(atoll.atoll("image", "delete", "server", check=False), 6, "default/web")
    atoll.atoll("image", "import", str(disk), "--name", "server", "--replace")
    assert atoll.json("image", "show", "server")["digest"] != old
    atoll.atoll("image", "prune")
    assert atoll.show("web")["instance"]["image"] == old
    blob = sha256(tiny)
    assert (atoll.state / "images" / "blobs" / f"sha256-{blob}").exists()
    atoll.delete("web")
    atoll.do("DELETE", f"{IMAGES}?unused=true")
    atoll.do("DELETE", f"{IMAGES}/server")


def test_a_guest_that_writes_a_qcow2_header_gains_nothing(atoll: Daemon, tmp_path: Path) -> None:
    """CVE-2026-24708 and its like: the header goes to the first bytes of the guest's own disk, in front of its file
    system. The next start, the pool and an export take the disk for what it was made as."""
    head = evil.qcow2(tmp_path / "head", data=b"")
    evil.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", head)
    atoll.launch("web", memory=SMALL)
    atoll.ready("web")
    atoll.exec("web", "sh", "-c", "cat > /tmp/h && dd if=/tmp/h of=/dev/vda bs=512 count=2 conv=notrunc && sync",
               input=head.read_bytes()[:1024])  # fmt: skip
    atoll.act("web", "stop", {"grace": 0})
    atoll.kill()  # nobody knows the layers any more but their files
    atoll.start()
    atoll.act("web", "start")
    atoll.ready("web")
    said = atoll.exec("web", "head", "-c", "4", "/dev/vda").out
    assert said.startswith("QFI")
    assert (
        "root:"
        not in atoll.exec("web", "sh", "-c", "head -c 1048576 /dev/vda | strings | head -100", check=False).out
    )
    atoll.delete("web")
