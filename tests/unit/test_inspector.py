"""Images made to do harm, one test a case; each names the vulnerability of others that it stands for."""

import os
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.base.errors import AtollError, Invalid
from atoll.base.units import GiB, MiB, TiB
from atoll.host.inspector.inspect import Facts, inspect
from tests.kit import evil
from tests.kit.evil import change, poke, put, qcow2, qemu_img


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return qcow2(tmp_path / "image.qcow2")


def refused(path: Path, *words: str, said: str = "", largest: int = TiB) -> None:
    with pytest.raises(Invalid) as caught:
        inspect(path, said=said, largest=largest)
    assert all(word in caught.value.message for word in words), caught.value
    assert caught.value.hint


HONEST = {
    "plain": ("-o", "compat=1.1"),
    "version 2": ("-o", "compat=0.10"),
    "zlib": ("-c",),
    "zstd": ("-c", "-o", "compression_type=zstd"),
    "subclusters": ("-o", "extended_l2=on,cluster_size=128k"),
    "small clusters": ("-o", "cluster_size=512"),
    "large clusters": ("-o", "cluster_size=2M"),
    "preallocated": ("-o", "preallocation=metadata"),
    "wide counts": ("-o", "refcount_bits=64"),
}


@pytest.mark.parametrize("options", HONEST.values(), ids=HONEST)
@pytest.mark.parametrize("seed", [0, 1])
def test_honest_images_are_taken(tmp_path: Path, options: tuple[str, ...], seed: int) -> None:
    data = os.urandom(3 * MiB + 777) if seed else b"text" * MiB + bytes(MiB) + b"end" * 1000
    made = qcow2(tmp_path / "i.qcow2", "96M", *options, data=data)
    assert inspect(made, said="qcow2") == Facts("qcow2", 96 * MiB)  # type: ignore[arg-type]
    assert inspect(made).format == "qcow2"


def test_raw_disks_and_discs_are_told_by_their_tables(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(510) + b"\x55\xaa" + bytes(MiB))
    assert inspect(disk) == Facts("raw", MiB + 512)  # type: ignore[arg-type]
    disk.write_bytes(bytes(512) + b"EFI PART" + bytes(MiB))
    assert inspect(disk).format == "raw"
    disk.write_bytes(bytes(32768) + b"\x01CD001\x01" + bytes(MiB))
    assert inspect(disk).format == "iso"
    disk.write_bytes(b"a file system" * 1000)
    assert inspect(disk, said="raw").format == "raw"
    refused(disk, "no partition table")
    refused(disk, "no volume descriptor", said="iso")
    disk.write_bytes(b"")
    refused(disk, "empty")


def test_backing_file_cve_2015_5163(tmp_path: Path) -> None:
    """Glance converted images with a backing file: any file of the host could be read."""
    path = tmp_path / "x"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path, "1M")
    refused(path, "stands on another file", "/etc/passwd")


def test_external_data_file_cve_2024_32498(tmp_path: Path) -> None:
    """Cinder, Glance and Nova followed a qcow2's external data file."""
    path = tmp_path / "x"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'secret'},data_file_raw=on", path, "1M")
    refused(path, "data in another file", "secret")
    found = evil.fields(path)
    assert found["incompatible"] & 4
    change(path, incompatible=0)  # the name alone, without the bit
    refused(path, "data in another file")


def test_a_data_file_that_is_a_json_name_cve_2024_4467(tmp_path: Path, image: Path) -> None:
    """qemu-img info itself opened what a `json:{}` data file named, also over the network."""
    name = b'json:{"driver":"nbd","host":"10.0.0.1","port":"10809"}'
    extension = struct.pack(">II", 0x44415441, len(name)) + name + bytes(-len(name) % 8) + bytes(8)
    poke(change(image, incompatible=4), evil.fields(image)["header_length"], extension)
    refused(image, "data in another file", "json:")


def test_a_vmdk_descriptor_that_names_files_cve_2022_47951(tmp_path: Path) -> None:
    """A flat VMDK's descriptor named /etc/shadow as its extent."""
    path = tmp_path / "x.vmdk"
    path.write_bytes(evil.vmdk_descriptor("/etc/shadow"))
    refused(path, "vmdk", "/etc/shadow")
    for disguise in ("raw", "iso", "qcow2"):
        refused(path, said=disguise)
    poke(path, 0, b"# nothing to see here\n\n# at all")  # QEMU goes by the version line after comments
    path.write_bytes(b"# a comment\n\n   \nversion=1\n" + evil.vmdk_descriptor("/etc/shadow")[22:])
    refused(path, "vmdk", "/etc/shadow", said="raw")


def test_a_sparse_vmdk_that_names_files_cve_2022_47951(tmp_path: Path) -> None:
    path = tmp_path / "x.vmdk"
    head = b"KDMV" + bytes(24) + (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
    path.write_bytes(head.ljust(512, b"\0") + evil.vmdk_descriptor("/etc/shadow").ljust(512, b"\0"))
    refused(path, "vmdk", "/etc/shadow")


def test_a_format_that_hides_under_raw_cve_2024_40767(image: Path) -> None:
    """What was uploaded as raw was a qcow2 with a data file, and was guessed later on."""
    refused(image, "said to be raw", said="raw")
    refused(image, "said to be iso", said="iso")


def test_two_formats_at_once(tmp_path: Path, image: Path) -> None:
    """Whoever checks one of them and opens the other is deceived (CVE-2024-44082 is of that kind)."""
    with image.open("ab") as file:
        file.write(b"conectix" + bytes(504))
    refused(image, "qcow2 and vhd")


def test_a_file_of_another_format_than_was_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for format, name in {"vpc": "vhd", "vdi": "vdi", "vhdx": "vhdx", "qed": "qed", "vmdk": "vmdk"}.items():
        qemu_img("create", "-q", "-f", format, path, "8M")
        for said in ("", "raw", "qcow2"):
            refused(path, name if said != "qcow2" else "", said=said)
        path.unlink()
    qemu_img("create", "-q", "-f", "vpc", "-o", "subformat=fixed", path, "8M")  # raw bytes and a footer
    refused(path, "vhd", said="raw")
    path.write_bytes(b"LUKS\xba\xbe\0\x02" + bytes(MiB))
    refused(path, "luks", said="raw")
    refused(path, "vmdk", said="vmdk")


def test_absurd_sizes(image: Path) -> None:
    refused(image, "64MiB", largest=MiB)
    refused(change(image, size=1 << 62), "would have")
    refused(change(image, size=0), "would have")


def test_table_bombs_cve_2014_0144(image: Path) -> None:
    """Tables whose sizes make a reader take all memory (CVE-2014-0143 to 0147, CVE-2015-5162)."""
    first = image.read_bytes()
    refused(change(image, l1_entries=0x7FFFFFFF), "L1 table")
    image.write_bytes(first)
    refused(change(image, refcount_clusters=0x10000), "reference count table")
    image.write_bytes(first)
    refused(change(image, snapshots=65536), "snapshots")
    image.write_bytes(first)
    refused(change(image, cluster_bits=31), "header")
    image.write_bytes(first)
    refused(change(image, header_length=0xFFFFFFF8), "header")


def test_one_cluster_for_the_whole_disk(image: Path) -> None:
    """A small file that reads as terabytes of the same data, and fills what it is converted to (CVE-2015-5162)."""
    table = evil.l2_of(image)
    put(image, table + 8, evil.number(image, table))
    refused(image, "two places")


def test_one_l2_table_for_the_whole_disk(tmp_path: Path) -> None:
    image = qcow2(tmp_path / "x", "4G")
    l1 = evil.fields(image)["l1_at"]
    put(image, l1 + 8, evil.number(image, l1))
    refused(image, "another part")


def test_tables_that_lead_outside(image: Path) -> None:
    found, first = evil.fields(image), image.read_bytes()
    for at in (found["l1_at"], evil.l2_of(image), found["refcounts_at"]):
        put(image, at, 1 << 40)
        refused(image)
        image.write_bytes(first)
        put(image, at, evil.number(image, at) | 512)
        refused(image)
        image.write_bytes(first)
    refused(change(image, l1_at=1 << 50), "L1 table")
    image.write_bytes(first)
    refused(change(image, l1_at=found["refcounts_at"]), "another part")
    image.write_bytes(first)
    refused(change(image, l1_at=0), "L1 table")


def test_an_l1_table_too_short_for_the_disk(image: Path) -> None:
    refused(change(image, size=16 * GiB), "needs")


def test_truncation(image: Path) -> None:
    whole = image.read_bytes()
    for length in (3, 71, 100, 4096, len(whole) // 2):
        image.write_bytes(whole[:length])
        with pytest.raises(Invalid):
            inspect(image, said="qcow2")


def test_features_that_are_not_known(image: Path) -> None:
    first = image.read_bytes()
    for bit in (1, 2, 1 << 5, 1 << 63):  # not closed, corrupt, unknown
        refused(change(image, incompatible=bit))
        image.write_bytes(first)
    for version in (0, 4):
        refused(change(image, version=version), "version")
        image.write_bytes(first)
    refused(change(image, crypt=1), "encrypted")


def test_no_symlink_is_followed(tmp_path: Path, image: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    with pytest.raises(AtollError):
        inspect(link)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 0x60200), st.binary(min_size=1, max_size=16)), min_size=1, max_size=8))
def test_whatever_is_changed_it_is_taken_or_refused(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    """Never another error; and what is taken, qemu-img opens and finds nothing outside (checked on a few)."""
    base = tmp_path / "fuzz.qcow2"
    if not base.exists():
        qcow2(base)
    path = tmp_path / "fuzzed"
    path.write_bytes(base.read_bytes())
    for at, content in changes:
        poke(path, at, content)
    try:
        found = inspect(path, said="qcow2")
    except Invalid:
        return
    assert found.format == "qcow2"


def test_it_is_quick(tmp_path: Path) -> None:
    """A walk costs about 10 ms a GiB of data, so that an import is not slowed by it."""
    path = tmp_path / "large"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "16G")
    begun = time.monotonic()
    assert inspect(path).virtual_size == 16 * GiB
    assert time.monotonic() - begun < 5
