"""Volumes and pools with real guests: hot attach and detach, growth, discard, formats that a guest cannot change,
buses, a pool on btrfs whose disk vanishes."""

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.kit.daemon import MIB, Daemon, until

VOLUMES, POOLS = "/v1/projects/default/volumes", "/v1/projects/default/pools"


@pytest.fixture(scope="module")
def web(atoll: Daemon) -> Iterator[Daemon]:
    """A guest `web` whose agent answers, and no volume but its own."""
    before = atoll.account()
    atoll.launch("web")
    atoll.ready("web")
    yield atoll
    atoll.delete("web")
    for view in atoll.http("GET", VOLUMES).json:
        atoll.do("DELETE", f"{VOLUMES}/{view['volume']['name']}")
    atoll.settled_at(before)


def volume(atoll: Daemon, name: str) -> Any:
    return atoll.http("GET", f"{VOLUMES}/{name}").json


def disks(atoll: Daemon) -> dict[str, str]:
    """Block devices in the guest by serial number."""
    said = atoll.exec("web", "sh", "-c", "cd /sys/block; for d in vd*; do echo $d $(cat $d/serial); done").out
    return {line.split()[1]: line.split()[0] for line in said.splitlines()}


def device(atoll: Daemon, name: str) -> str:
    serial = volume(atoll, name)["disk"]["serial"]
    found: str = until(lambda: disks(atoll).get(serial), f"the guest sees {name}", 30)
    return found


def test_a_disk_comes_is_mounted_grows_and_goes(web: Daemon) -> None:
    web.atoll("volume", "create", "data", "--size", "256MiB")
    assert "attached to web" in web.atoll("volume", "attach", "data", "web").out
    dev = device(web, "data")
    assert disks(web).keys() == {volume(web, "data")["disk"]["serial"], volume(web, "web-root")["disk"]["serial"]}
    web.exec("web", "sh", "-c", f"mke2fs -q /dev/{dev} && mkdir -p /mnt/d && mount /dev/{dev} /mnt/d")
    refused = web.atoll("volume", "detach", "data", check=False)
    assert (refused.code, "web has volume data mounted at /mnt/d" in refused.err) == (6, True)
    assert web.exec("web", "touch", "/mnt/d/x").code == 0, "it is there as before"
    web.atoll("volume", "grow", "data", "--size", "+256MiB")
    sectors = int(web.exec("web", "cat", f"/sys/block/{dev}/size").out)
    assert (sectors * 512, volume(web, "data")["volume"]["size"]) == (512 * MIB, 512 * MIB)
    for size, why in (("100MiB", "cannot become smaller"), ("900TiB", "more than the whole pool")):
        refused = web.atoll("volume", "grow", "data", "--size", size, check=False)
        assert refused.code
        assert why in refused.err
    web.exec("web", "umount", "/mnt/d")
    web.atoll("volume", "detach", "data")
    assert dev not in disks(web).values()
    web.atoll("volume", "attach", "data", "web", "--cache", "none")
    dev = device(web, "data")
    web.exec("web", "sh", "-c", f"mount /dev/{dev} /mnt/d && ls /mnt/d/x")
    forced = web.json("volume", "detach", "data", "--force")
    assert forced[0]["result"]["mounted"] == ["/mnt/d"], "what the guest had of it is told"
    assert dev not in disks(web).values()
    web.exec("web", "umount", "-l", "/mnt/d")
    web.atoll("volume", "delete", "data")


def test_what_is_discarded_goes_back_to_the_host(web: Daemon) -> None:
    for name, kind in (("thin", "thin"), ("raw", "raw"), ("full", "full")):
        web.atoll("volume", "create", name, "--size", "64MiB", "--format", kind)
        web.atoll("volume", "attach", name, "web")
        dev = device(web, name)
        fresh = volume(web, name)["usage"]
        assert fresh["provisioned"] == 64 * MIB
        assert fresh["used"] < MIB
        assert (fresh["allocated"] >= 64 * MIB) == (kind == "full")
        web.exec("web", "sh", "-c", f"dd if=/dev/urandom of=/dev/{dev} bs=1M count=40 conv=fsync 2>/dev/null")
        written = volume(web, name)["usage"]
        assert written["used"] >= 40 * MIB
        assert 40 * MIB <= written["allocated"] < (66 * MIB if kind == "full" else 44 * MIB)
        web.exec("web", "blkdiscard", f"/dev/{dev}")
        after = volume(web, name)["usage"]
        assert (after["allocated"] < 4 * MIB) == (kind != "full"), (kind, after)
        web.atoll("volume", "detach", name)
        web.atoll("volume", "delete", name)


def qcow2_over(secret: Path) -> bytes:
    """A qcow2 header that names a file of the host as what is below it (docs/interop/qcow2.txt)."""
    name = str(secret).encode()
    head = b"QFI\xfb" + (2).to_bytes(4, "big") + (72).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    head += (16).to_bytes(4, "big") + (32 * MIB).to_bytes(8, "big") + bytes(4) + (1).to_bytes(4, "big")
    head += (1 << 16).to_bytes(8, "big") + (2 << 16).to_bytes(8, "big") + (1).to_bytes(4, "big")
    return (head.ljust(72, b"\0") + name).ljust(4096, b"\0")


def test_a_header_on_a_raw_disk_gains_nothing(web: Daemon) -> None:
    """CVE-2008-2004 and all after it: whatever a guest writes to a raw disk, it is opened as raw."""
    secret = web.state / "secret"
    secret.write_bytes(b"the host's own".ljust(32 * MIB, b"!"))
    header = qcow2_over(secret)
    image = web.state / "probe"
    image.write_bytes(header.ljust(32 * MIB, b"\0"))
    said = subprocess.run(["qemu-img", "info", str(image)], capture_output=True, text=True).stdout
    image.unlink()
    assert "qcow2" in said, "a tool that guesses takes it for one"
    assert str(secret) in said
    for name in ("raw", "full"):
        web.atoll("volume", "create", name, "--size", "32MiB", "--format", name)
        web.atoll("volume", "attach", name, "web")
        web.exec("web", "dd", f"of=/dev/{device(web, name)}", "bs=4096", "conv=fsync", input=header)

    def as_written(size: int) -> None:
        for name in ("raw", "full"):
            dev = device(web, name)
            assert web.exec("web", "head", "-c", "72", f"/dev/{dev}").out.startswith("QFI")
            zero = web.exec("web", "sh", "-c", f"tail -c +4097 /dev/{dev} | tr -d '\\0' | wc -c").out
            assert (int(zero), int(web.exec("web", "cat", f"/sys/block/{dev}/size").out) * 512) == (0, size)

    as_written(32 * MIB)
    web.act("web", "restart", {"grace": 0})
    web.ready("web")
    as_written(32 * MIB)
    for name in ("raw", "full"):
        web.atoll("volume", "grow", name, "--size", "33MiB")
        web.atoll("volume", "detach", name)
        web.atoll("volume", "grow", name, "--size", "34MiB")
        web.atoll("volume", "attach", name, "web")
    as_written(34 * MIB)
    for name in ("raw", "full"):
        web.atoll("volume", "detach", name)
        web.atoll("volume", "delete", name)


def test_other_buses_and_machines(web: Daemon) -> None:
    for name in ("one", "two"):
        web.atoll("volume", "create", name, "--size", "16MiB")
    web.atoll("volume", "attach", "one", "web", "--bus", "scsi")
    web.exec("web", "sh", "-c", "modprobe virtio_scsi && modprobe sd_mod")
    until(lambda: "sda" in web.exec("web", "ls", "/sys/block").out, "the guest sees it", 30)
    serial = web.exec("web", "sh", "-c", "tail -c +5 /sys/block/sda/device/vpd_pg80").out
    assert serial.strip() == volume(web, "one")["disk"]["serial"]
    web.atoll("volume", "detach", "one")
    until(lambda: "sda" not in web.exec("web", "ls", "/sys/block").out, "it is gone", 30)
    refused = web.atoll("volume", "attach", "two", "web", "--bus", "ahci", check=False)
    assert (refused.code, "ahci" in refused.err, "stop it" in refused.err) == (6, True, True)
    assert volume(web, "two")["held"] is None
    options = ("--volume", "one,cache=directsync", "--volume", "two,bus=ahci")
    web.atoll("launch", "tiny", "sata", "-m", "128MiB", *options)
    seen = web.atoll("exec", "sata", "--", "sh", "-c", "cat /sys/bus/pci/devices/*/class; cat /sys/block/vdb/size")
    assert seen.out.split().count("0x010601") == 2, "the board's own AHCI, and that of the disk"
    assert seen.out.split()[-1] == str(16 * MIB // 512)
    web.delete("sata")
    web.launch("micro", machine="microvm")
    refused = web.atoll("volume", "attach", "one", "micro", check=False)
    assert (refused.code, "microvm takes no disk" in refused.err) == (6, True)
    web.delete("micro")
    web.launch("held", start=False)
    web.atoll("volume", "attach", "one", "held")
    assert "attached to instance held" in web.atoll("volume", "delete", "one", check=False).err
    web.delete("held")
    web.atoll("volume", "delete", "one", "two")


class Disk:
    """A btrfs on a file that is mounted where the daemon sees it, and gone with it."""

    def __init__(self, atoll: Daemon, size: int) -> None:
        self.atoll, self.image, self.at = (
            atoll,
            atoll.state / "disk.img",
            atoll.state.with_name(atoll.state.name + "-disk"),
        )
        self.at.mkdir()
        with self.image.open("xb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.btrfs", "-q", str(self.image)], check=True)

    def inside(self, *argv: str) -> None:
        subprocess.run(["nsenter", f"--mount=/proc/{self.atoll.pid}/ns/mnt", *argv], check=True)

    def mount(self) -> None:
        self.inside("mount", "-o", "loop", str(self.image), str(self.at))

    def unmount(self) -> None:
        self.inside("umount", "-l", str(self.at))


@pytest.fixture
def disk(fresh: Daemon) -> Iterator[Disk]:
    (fresh.state / "atoll.toml").write_text('[storage]\nwarn_at = [50, 80]\ncheck_every = "0.2s"\n')
    fresh.start()
    made = Disk(fresh, 1024 * MIB)
    yield made
    fresh.end()
    made.at.rmdir()


def events(atoll: Daemon) -> list[str]:
    """What happened to pools, in order."""
    with contextlib.closing(sqlite3.connect(atoll.state / "local.db", timeout=10)) as db:
        found = db.execute("SELECT value FROM entry WHERE key LIKE '/events/%' ORDER BY key").fetchall()
    kinds = [msgspec.json.decode(value)["kind"] for (value,) in found]
    return [kind for kind in kinds if kind.startswith("pool.")]


def test_a_pool_on_btrfs_that_fills_and_vanishes(disk: Disk) -> None:
    atoll, at = disk.atoll, disk.at
    refused = atoll.atoll("pool", "create", "snap", "--driver", "btrfs", "--path", str(at), check=False)
    assert (refused.code, "not on btrfs" in refused.err) == (6, True)
    assert list(at.iterdir()) == []
    disk.mount()
    atoll.atoll("pool", "create", "snap", "--driver", "btrfs", "--path", str(at))
    atoll.launch("web", root={"pool": "snap"})
    atoll.ready("web")
    atoll.atoll("volume", "create", "data", "--size", "300MiB", "--pool", "snap", "--format", "full")
    atoll.atoll("volume", "attach", "data", "web")
    shown = atoll.json("pool", "show", "snap")
    assert (shown["state"], shown["volumes"], shown["path"]) == ("ready", 2, str(at))
    assert "has volumes: data, web-root" in atoll.atoll("pool", "delete", "snap", check=False).err
    atoll.atoll("volume", "create", "more", "--size", "200MiB", "--pool", "snap", "--format", "full")
    refused = atoll.atoll(
        "volume", "create", "much", "--size", "900MiB", "--pool", "snap", "--format", "full", check=False
    )
    assert (refused.code, "no space in pool snap" in refused.err) == (9, True)
    until(lambda: atoll.json("pool", "show", "snap")["filled"] == 50, "over 50 %", 20)
    atoll.delete("web")
    disk.unmount()
    until(lambda: atoll.json("pool", "show", "snap")["state"] == "unavailable", "it is seen to be gone", 20)
    assert "unavailable" in atoll.atoll("pool", "list").out
    for line in (
        ("volume", "create", "lost", "--size", "1MiB", "--pool", "snap"),
        ("volume", "delete", "more"),
        ("volume", "grow", "more", "--size", "1GiB"),
        ("launch", "tiny", "lost", "--set", "root.pool=snap"),
    ):
        failed = atoll.atoll(*line, check=False)
        assert failed.code, line
        assert "not mounted" in failed.err, failed.err
    assert list(at.iterdir()) == [], "an empty directory is never written into"
    assert {view["volume"]["state"] for view in atoll.http("GET", VOLUMES).json} == {"ready"}
    disk.mount()
    until(lambda: atoll.json("pool", "show", "snap")["state"] == "ready", "it is back", 20)
    atoll.atoll("volume", "delete", "more", "data")
    atoll.atoll("pool", "delete", "snap")
    disk.unmount()
    assert [e for e in events(atoll) if e in ("pool.filling", "pool.unavailable", "pool.available")] == [
        "pool.filling", "pool.unavailable", "pool.available",
    ]  # fmt: skip
