"""Files of whole instances that strangers made: what is not exactly as it should be is refused."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.base.errors import Exhausted, Invalid
from atoll.base.units import TiB
from atoll.instance.dock import Dock
from atoll.instance.parcel import Content, Parcel
from atoll.instance.tarred import Reader, measure, total, write
from tests.kit import evil
from tests.kit.parcels import SIZE, chunks, content, disk, manifest, tarred, whole


async def accept(_: Parcel) -> None:
    return None


@pytest.fixture
def dock(tmp_path: Path) -> Dock:
    made = Dock(tmp_path / "parcels", largest=1 << 30)
    made.open()
    return made


async def refused(dock: Dock, tmp_path: Path, raw: bytes) -> Invalid:
    with pytest.raises(Invalid) as caught:
        await dock.receive(chunks(raw), accept)
    assert list((tmp_path / "parcels").iterdir()) == [], "nothing is left"
    assert caught.value.field in ("file", "")
    return caught.value


@pytest.mark.parametrize("step", [1 << 20, 777, 511])
async def test_a_right_one_is_taken_however_it_is_cut_in_pieces(dock: Dock, tmp_path: Path, step: int) -> None:
    raw, volume = disk(tmp_path), disk(tmp_path)
    received = await dock.receive(chunks(whole(manifest(raw, volume), raw, volume), step), accept)
    folder = dock.claim(received.upload, "key")
    assert (folder / "disk-0.qcow2").read_bytes() == raw
    assert dock.parcel("key") == received.parcel
    await dock.clear("key")
    await dock.clear("key")
    assert list((tmp_path / "parcels").iterdir()) == []


async def test_a_new_start_sweeps_what_was_being_sent(dock: Dock, tmp_path: Path) -> None:
    raw = disk(tmp_path)
    await dock.receive(chunks(whole(manifest(raw), raw)), accept)
    dock.open()
    assert list((tmp_path / "parcels").iterdir()) == []


Make = Callable[[bytes], bytes]


def special(name: str, type: bytes, link: str = "", **pax: str) -> Make:
    """A member of another kind where the disk should be."""

    def make(raw: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as tar:
            first = msgspec.json.encode(manifest(raw))
            info = tarfile.TarInfo("atoll.json")
            info.size = len(first)
            tar.addfile(info, io.BytesIO(first))
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.pax_headers = type, link, pax
            info.size = len(raw) if type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(raw))
        return out.getvalue()

    return make


def renamed(file: bytes, name: bytes = b"atoll.json", size: bytes = b"") -> bytes:
    """With another first header, whose checksum holds."""
    head = bytearray(file[:512])
    head[:100] = name.ljust(100, b"\0")
    head[124:136] = size or head[124:136]
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + file[512:]


def told(**changes: Any) -> Make:
    return lambda raw: whole(manifest(raw, **changes), raw)


def listed(**changes: Any) -> Make:
    """With other words about its disk."""

    def make(raw: bytes) -> bytes:
        made = manifest(raw)
        made["disks"][0] |= changes
        return whole(made, raw)

    return make


NONE, PORT = content(b""), {"port": 80, "to": 80}
NIC = {"spec": {}, "mac": "52:54:00:12:34:56"}
CASES: dict[str, tuple[Make, str]] = {
    "a name of other letters": (lambda raw: renamed(whole(manifest(raw), raw), b"atoll.js\xff\xfe"), "should be"),
    "a length below nothing": (lambda raw: renamed(whole(manifest(raw), raw), size=b"\xff" * 12), "has -1 bytes"),
    "a header of noise": (lambda raw: b"\xff" * 512 + whole(manifest(raw), raw), "no instance"),
    "empty": (lambda _: b"", "cut off"),
    "no tar": (lambda raw: raw * 4, "no instance"),
    "zeros": (lambda _: bytes(4096), "no instance"),
    "a tar of another kind": (lambda raw: tarred(("readme", b"hello")), "'readme' where atoll.json"),
    "manifest is no json": (lambda raw: whole(b"{", raw), "cannot be read"),
    "manifest is nested to death": (lambda raw: whole(b"[" * 100_000, raw), "cannot be read"),
    "manifest is huge": (lambda raw: whole(b" " * (2 << 20), raw), "its manifest has"),
    "not ours": (told(format="ova"), "no instance"),
    "of a later version": (told(version=2), "version 2"),
    "a version that is no number": (told(version={"a": 1}), "version"),
    "an unknown field": (told(hook="rm -rf /"), "hook"),
    "no disks": (told(disks=[]), "disks"),
    "a name of a path": (told(name="../etc"), "name"),
    "an id of a path": (told(id="../../etc/passwd"), "id"),
    "a machine with options": (told(machine="pc-q35-7.2,firmware=/etc/shadow"), "machine"),
    "a serial with options": (listed(serial="a,file=/etc/shadow"), "serial"),
    "a cmdline of lines": (told(boot={"kernel": NONE, "initrd": NONE, "cmdline": "a\nb"}), "cmdline"),
    "direct without a kernel": (told(firmware="direct"), "has no kernel"),
    "a MAC twice": (told(nics=[NIC, NIC]), "one MAC"),
    "a port twice": (told(nics=[{**NIC, "spec": {"forwards": [PORT, PORT]}}]), "one port"),
    "a volume of its own in front": (listed(volume="v"), "first disk"),
    "larger than is taken": (listed(size=1 << 40), "are taken"),
    "another length": (listed(content={"length": 5, "sha256": "0" * 64}), "should have 5"),
    "another sha256": (lambda raw: listed(content=content(raw[::-1]))(raw), "is damaged: its sha256"),
    "another size": (listed(size=2 * SIZE), "its manifest says"),
    "a symlink": (special("disk-0.qcow2", tarfile.SYMTYPE, "/etc/shadow"), "no plain file"),
    "a hard link": (special("disk-0.qcow2", tarfile.LNKTYPE, "atoll.json"), "no plain file"),
    "a device": (special("disk-0.qcow2", tarfile.BLKTYPE), "no plain file"),
    "a directory": (special("disk-0.qcow2", tarfile.DIRTYPE), "no plain file"),
    "a sparse map": (special("disk-0.qcow2", tarfile.GNUTYPE_SPARSE), "no plain file"),
    "a name that leads out": (special("../../disk-0.qcow2", tarfile.REGTYPE), "where disk-0.qcow2"),
    "an absolute name": (special("/etc/cron.d/x", tarfile.REGTYPE), "where disk-0.qcow2"),
    "a long name": (special("d" * 300, tarfile.REGTYPE), "no plain file"),
    "an extended header": (special("disk-0.qcow2", tarfile.REGTYPE, path="/etc/shadow"), "no plain file"),
    "one disk too many": (lambda raw: whole(manifest(raw), raw, raw), "something follows"),
    "one disk too few": (lambda raw: whole(manifest(raw, raw), raw), "damaged"),
    "cut in a disk": (lambda raw: whole(manifest(raw), raw)[: 4096 + len(raw) // 2], "cut off"),
    "cut in a header": (lambda raw: whole(manifest(raw), raw)[:100], "cut off"),
    "cut before the end": (lambda raw: whole(manifest(raw), raw)[: 512 * 4 + -(-len(raw) // 512) * 512], "cut off"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_a_wrong_one_is_refused(dock: Dock, tmp_path: Path, case: str) -> None:
    make, why = CASES[case]
    assert why in (await refused(dock, tmp_path, make(disk(tmp_path)))).message


@pytest.mark.parametrize(
    ("name", "why"),
    [("backing", "stands on another file"), ("external", "data"), ("raw", "raw")],
)
async def test_the_inspector_looks_at_every_disk(dock: Dock, tmp_path: Path, name: str, why: str) -> None:
    """CVE-2024-32498 and CVE-2015-5163: a disk that names files of the host."""
    good = disk(tmp_path)
    path, base = tmp_path / "evil", evil.qcow2(tmp_path / "base", "1M")
    if name == "backing":
        evil.qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    elif name == "external":
        evil.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, "1M")
    else:
        path.write_bytes(bytes(SIZE))
    raw = path.read_bytes()
    assert why in (await refused(dock, tmp_path, whole(manifest(good, raw), good, raw))).message


async def test_what_is_against_it_is_said_before_its_disks_come(dock: Dock, tmp_path: Path) -> None:
    raw, came = disk(tmp_path), []

    async def slow() -> Any:
        async for chunk in chunks(whole(manifest(raw), raw), 1024):
            came.append(len(chunk))
            yield chunk

    async def judge(parcel: Parcel) -> None:
        raise Invalid(f"{parcel.name} is not wanted")

    with pytest.raises(Invalid, match="web is not wanted"):
        await dock.receive(slow(), judge)
    assert sum(came) < 8192


async def test_one_that_does_not_fit_is_refused_first(tmp_path: Path) -> None:
    dock = Dock(tmp_path / "parcels", largest=1 << 60)
    dock.open()
    raw = disk(tmp_path)
    told = manifest(raw)
    told["disks"][0]["content"]["length"] = 1000 * TiB
    with pytest.raises(Exhausted):
        await dock.receive(chunks(whole(told, raw)), accept)
    assert list((tmp_path / "parcels").iterdir()) == []


async def test_what_is_written_is_read_by_tar_and_by_us(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_bytes(b"")
    contents = {name: measure(folder / name) for name in ("a", "b")}
    raw = b"".join([chunk async for chunk in write(b"{}", contents, folder)])
    assert len(raw) == total(b"{}", contents)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert tar.getnames() == ["atoll.json", "a", "b"]
        assert {member.mode for member in tar} == {0o600}
    reader = Reader(chunks(raw, 100))
    assert await reader.manifest() == b"{}"
    for name, each in contents.items():
        await reader.member(name, each, tmp_path / name)
    await reader.end()
    assert (tmp_path / "a").read_bytes() == b"x" * 1000


def test_lengths_beyond_8_gib_have_a_header() -> None:
    from atoll.instance.tarred import _header

    info = tarfile.TarInfo.frombuf(_header("disk-0.qcow2", 1 << 43), "ascii", "strict")
    assert (info.name, info.size, info.type) == ("disk-0.qcow2", 1 << 43, tarfile.REGTYPE)
    assert total(b"", {"a": Content(1, "0" * 64)}) == 512 + 512 + 512 + 1024
