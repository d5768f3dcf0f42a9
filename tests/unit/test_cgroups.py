"""Control groups in a folder that stands for the kernel's tree, and the real ones where we may make them."""

import asyncio
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from atoll.host import cgroups
from atoll.host.cgroups import Bounds, Cgroups, Usage
from atoll.host.scopes import Scopes

FULL = Bounds(cpu=1.5, cpu_weight=200, memory=1 << 30, pids=100)


def test_v1_settings() -> None:
    assert cgroups.v1_settings(FULL) == [
        ("cpu", "cpu.cfs_quota_us", "150000"),
        ("cpu", "cpu.shares", "2048"),
        ("memory", "memory.limit_in_bytes", "1073741824"),
        ("pids", "pids.max", "100"),
    ]
    assert [text for _, _, text in cgroups.v1_settings(Bounds())] == ["-1", "1024", "-1", "max"]
    assert cgroups.v1_settings(Bounds(cpu=0.001, cpu_weight=1))[:2] == [
        ("cpu", "cpu.cfs_quota_us", "1000"),
        ("cpu", "cpu.shares", "10"),
    ]


def test_v2_settings() -> None:
    assert [text for _, _, text in cgroups.v2_settings(FULL)] == ["150000 100000", "200", "1073741824", "100"]
    assert [text for _, _, text in cgroups.v2_settings(Bounds())] == ["max 100000", "100", "max", "max"]


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_made_read_and_removed(tmp_path: Path, version: str) -> None:
    root = tmp_path / "atoll-0a0b0c"
    roots = {"": root} if version == "v2" else {c: tmp_path / c / "atoll-0a0b0c" for c in cgroups.CONTROLLERS}
    groups = Cgroups(roots)
    joined = [Path(word) for word in groups.enter("g1", FULL) if word.endswith("cgroup.procs")]
    assert len(joined) == (1 if version == "v2" else 4)
    assert {path.name for path in joined} == {"cgroup.procs"}
    assert groups.names() == {"g1"}
    joined[0].write_text("11\n12\n")
    assert groups.pids("g1") == {11, 12}
    if version == "v2":
        (root / "g1" / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
        (root / "g1" / "memory.current").write_text("4096\n")
        (root / "g1" / "memory.events").write_text("oom 3\noom_kill 2\n")
    else:
        (roots["cpuacct"] / "g1" / "cpuacct.usage").write_text("2500000000\n")
        (roots["memory"] / "g1" / "memory.usage_in_bytes").write_text("4096\n")
        (roots["memory"] / "g1" / "memory.oom_control").write_text("under_oom 0\noom_kill 2\n")
    assert groups.usage("g1") == Usage(2.5, 4096, 2)
    assert groups.usage("absent") == Usage()
    assert await groups.remove("absent")


async def test_a_group_that_is_not_empty_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_REMOVE_IN", 0.05)
    groups = Cgroups({"": tmp_path})
    groups.enter("g1", Bounds())
    assert not await groups.remove("g1")


def test_what_the_host_lacks_is_not_written(tmp_path: Path) -> None:
    groups = Cgroups({"cpu": tmp_path / "cpu"}, ("memory", "pids"))
    groups.enter("g1", FULL)
    assert {path.name for path in (tmp_path / "cpu" / "g1").iterdir()} == {"cpu.cfs_quota_us", "cpu.shares"}


V2_MOUNT = "38 31 0:38 / {root} rw,relatime - cgroup2 cgroup2 rw\n"
V1_MOUNT = "31 31 0:29 / {root} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def test_detected(tmp_path: Path) -> None:
    assert cgroups.detect("0a0b0c", "") is None
    assert cgroups.detect("0a0b0c", V2_MOUNT.format(root="/proc/sys")) is None
    (tmp_path / "v2").mkdir()
    (tmp_path / "v1").mkdir()
    two = cgroups.detect("0a0b0c", V2_MOUNT.format(root=tmp_path / "v2"))
    assert two
    assert (tmp_path / "v2" / "atoll-0a0b0c").is_dir()
    mixed = V1_MOUNT.format(root=tmp_path / "v1") + V2_MOUNT.format(root=tmp_path / "v2")
    hybrid = cgroups.detect("0a0b0c", mixed)
    assert hybrid
    assert hybrid.lacking == ("memory", "pids")
    assert all("v1" in str(path) for path in hybrid.enter("g", Bounds())[4:-1])


def test_the_real_ones_hold_a_process() -> None:
    tag = secrets.token_hex(3)
    groups = cgroups.detect(tag)
    assert groups is not None or os.geteuid() != 0, "root may make control groups"
    if groups is None:
        return
    child = subprocess.Popen([*groups.enter("g1", Bounds(memory=64 << 20, pids=10, cpu=0.5)), "sleep", "60"])
    try:
        while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        assert groups.pids("g1") == {child.pid}
        assert groups.usage("g1").memory > 0
        asyncio.run(groups.change("g1", Bounds(memory=128 << 20)))
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert asyncio.run(groups.remove("g1"))
    assert groups.names() == set()
    assert not any(Path(f"/sys/fs/cgroup/{name}/atoll-{tag}").exists() for name in ("memory", "cpu", ""))


def test_scopes_of_one_atoll(tmp_path: Path) -> None:
    for name in ("atoll-0a0b0c-g1.1.scope", "atoll-ffffff-g2.1.scope", "ssh.service"):
        (tmp_path / name).mkdir()
    (tmp_path / "atoll-0a0b0c-g1.1.scope" / "cgroup.procs").write_text("7\n")
    found = Scopes({"": tmp_path}, "0a0b0c")
    assert found.names() == {"g1.1"}
    assert found.pids("g1.1") == {7}
