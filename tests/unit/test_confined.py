"""The cell of tools that read strangers' files: what they cannot do."""

import os
from pathlib import Path

import pytest

from atoll.base.errors import Broken, Unreachable
from atoll.base.units import MiB
from atoll.host import disks
from atoll.host.confined import CHANGE, Bounds, confined, lent, name_of, new_uid, piped
from tests.kit import evil

ROOT = os.geteuid() == 0


async def test_it_has_a_user_of_its_own_and_no_rights() -> None:
    ran = await confined(("cat", "/proc/self/status"))
    told = dict(line.split(":\t", 1) for line in ran.text.splitlines() if ":\t" in line)
    assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == 0
    assert told["NoNewPrivs"] == "1"
    if ROOT:
        assert set(told["Uid"].split()) != {"0"}
        assert int(told["CapBnd"], 16) == 0
        assert told["Groups"].strip() == ""


async def test_it_has_no_network() -> None:
    ran = await confined(("cat", "/proc/net/dev"))
    assert [line.split(":")[0].strip() for line in ran.text.splitlines()[2:]] == ["lo"]


async def test_it_is_bounded() -> None:
    hog = ("dd", "if=/dev/zero", "of=/dev/null", "bs=512M", "count=1")
    assert (await confined(hog)).code == 0
    assert (await confined(hog, bounds=Bounds(memory=256 * MiB))).code != 0
    assert (await confined(("sh", "-c", "while :; do :; done"), bounds=Bounds(cpu=1))).code < 0
    with pytest.raises(Unreachable):
        await confined(("sleep", "60"), timeout=0.3)


async def test_it_writes_nothing_and_reads_only_what_it_is_lent(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    secret.chmod(0o600)
    mine = tmp_path / "mine"
    mine.write_text("of a stranger")
    mine.chmod(0o600)
    uid = new_uid()
    with lent(mine, uid) as fd:
        assert (await confined(("cat", name_of(fd)), fds=(fd,), uid=uid)).text == "of a stranger"
        if ROOT:
            assert (await confined(("cat", str(secret)), fds=(fd,), uid=uid)).code != 0
        assert (await confined(("sh", "-c", f"echo x > {name_of(fd)}"), fds=(fd,), uid=uid)).code != 0
    assert mine.stat().st_uid == os.geteuid()
    with lent(mine, uid, write=True) as fd:
        assert (
            await confined(("sh", "-c", f"echo x > {name_of(fd)}"), fds=(fd,), uid=uid, bounds=CHANGE)
        ).code == 0
    assert mine.read_text() == "x\n"


async def test_a_pipe_ends_with_its_reader(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(8 * MiB))
    with source.open("rb") as file:
        found = [chunk async for chunk in piped(("cat",), file.fileno(), bounds=Bounds(), timeout=30)]
        assert sum(map(len, found)) == 8 * MiB
    with source.open("rb") as file, pytest.raises(Broken, match="xz"):
        async for _ in piped(("xz", "-dc"), file.fileno(), bounds=Bounds(), timeout=30):
            pass


@pytest.mark.skipif(not ROOT, reason="an ordinary user's tools are that user")
async def test_qemu_img_follows_no_name_in_a_file_cve_2024_4467(tmp_path: Path) -> None:
    """Even unchecked: a data file and a backing file that are named are not ours to read in the cell."""
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"s" * MiB)
    secret.chmod(0o600)
    path = tmp_path / "x.qcow2"
    evil.qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path, "1M")
    assert (await disks.info(path, "qcow2")).backing == str(secret)  # told, not opened
    data = tmp_path / "y.qcow2"
    evil.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={secret}", data, "1M")
    with pytest.raises(Broken, match="Permission denied"):
        await disks.measure(data, "qcow2", to="raw")
    with pytest.raises(Broken, match="another file"):
        await disks.resize(data, "qcow2", 8 * MiB)
