"""The table of parts, and the rules by which a part counts as present, missing or unknown."""

import asyncio
import os
import platform
from pathlib import Path
from typing import NamedTuple

import pytest

from atoll.base.clock import now
from atoll.base.errors import Broken
from atoll.host.probe.accel import Accel
from atoll.host.probe.cgroups import Cgroups
from atoll.host.probe.parts import PARTS
from atoll.host.probe.ways import (
    Bench,
    Controller,
    Found,
    Kvm,
    Listed,
    Node,
    Reflink,
    Setting,
    Tool,
    Tried,
    loadable_modules,
    look,
)
from atoll.host.run import PACKAGES

NO_CGROUPS = Cgroups(version="none")


def place(
    state: Path = Path("/"), accel: Accel | None = None, cgroups: Cgroups = NO_CGROUPS, loadable: str = ""
) -> Bench:
    return Bench(state, accel, cgroups, frozenset(loadable.split()), ())


def test_every_row_says_what_it_costs_and_how_to_get_it() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        assert part.costs, part.name
        assert part.get or (isinstance(part.way, Tool) and part.way.program in PACKAGES), part.name


async def test_a_tried_part_is_what_the_command_says() -> None:
    assert await Tried(("true",)).look(place()) == ("present", "")
    assert await Tried(("sh", "-c", "echo 'Error: Unknown device type.' >&2; exit 2")).look(place()) == (
        "missing",
        "Error: Unknown device type.",
    )
    refused = Tried(("sh", "-c", "echo 'RTNETLINK answers: Operation not permitted' >&2; exit 2"))
    assert (await refused.look(place()))[0] == "unknown"


async def test_a_module_that_would_load_is_not_tried() -> None:
    way = Tried(("false",), ("no_such_module",))
    assert await way.look(place(loadable="no_such_module")) == (
        "present",
        "module no_such_module is loaded at first use",
    )
    assert (await way.look(place()))[0] == "missing"
    assert (await Node("/dev/no-such", ("no_such_module",)).look(place(loadable="no_such_module")))[0] == "present"
    assert (await Listed("/proc/misc", "none", ("no_such",)).look(place(loadable="no_such")))[0] == "present"


async def test_nodes_lists_settings_and_tools(tmp_path: Path) -> None:
    assert await Node("/dev/null").look(place()) == ("present", "")
    assert await Node("/dev/no-such").look(place()) == ("missing", "/dev/no-such is absent")
    assert await Listed("/proc/filesystems", "proc").look(place()) == ("present", "")
    assert await Listed("/proc/filesystems", "no-such").look(place()) == ("missing", "")
    (tmp_path / "on").write_text("1\n")
    assert (await Setting(f"{tmp_path}/on", "1").look(place()))[0] == "present"
    assert (await Setting(f"{tmp_path}/on", "0").look(place()))[0] == "missing"
    assert (await Setting(f"{tmp_path}/none", "0").look(place()))[0] == "missing"
    assert (await Setting(f"{tmp_path}/none", "0", absent="present").look(place()))[0] == "present"
    assert (await Tool("sh").look(place()))[0] == "present"
    assert await Tool("no-such").look(place()) == ("missing", "no-such is missing")


@pytest.mark.parametrize(
    ("cgroups", "state"),
    [
        (Cgroups(version="v2", controllers=("cpu", "io"), writable=True), "present"),
        (Cgroups(version="v1", controllers=("blkio", "cpu"), writable=True), "present"),
        (Cgroups(version="v2", controllers=("cpu", "io")), "missing"),
        (NO_CGROUPS, "missing"),
    ],
)
async def test_controllers_go_by_their_v2_name(cgroups: Cgroups, state: str) -> None:
    assert (await Controller("io").look(place(cgroups=cgroups)))[0] == state


async def test_kvm_is_believed_only_when_proven() -> None:
    def verdict(kind: str, probed: bool) -> Accel:
        return Accel(kind="kvm" if kind == "kvm" else "tcg", reason="because", probed=probed, checked=now())

    assert await Kvm().look(place(accel=verdict("kvm", True))) == ("present", "because")
    assert await Kvm().look(place(accel=verdict("tcg", True))) == ("missing", "because")
    assert (await Kvm().look(place(accel=verdict("tcg", False))))[0] != "present"
    assert (await Kvm().look(place()))[0] != "present"


async def test_reflink_leaves_nothing_behind(tmp_path: Path) -> None:
    assert (await Reflink().look(place(tmp_path)))[0] in ("present", "missing")
    assert os.listdir(tmp_path) == []
    assert (await Reflink().look(place(tmp_path / "absent")))[0] == "unknown"


class Slow(NamedTuple):
    async def look(self, _: Bench) -> Found:
        await asyncio.sleep(60)
        return "present", ""


class Failing(NamedTuple):
    error: Exception

    async def look(self, _: Bench) -> Found:
        raise self.error


async def test_lateness_and_trouble_are_unknown() -> None:
    assert await look(Slow(), place(), deadline=0.05) == ("unknown", "no answer in 0.1 s")
    assert await look(Failing(Broken("ip broke")), place(), deadline=1) == ("unknown", "ip broke")
    absent = FileNotFoundError(2, "No such file or directory", "/proc/misc")
    assert await look(Failing(absent), place(), deadline=1) == (
        "unknown",
        "/proc/misc: No such file or directory",
    )


def test_loadable_modules_are_read_from_the_kernels_list(tmp_path: Path) -> None:
    assert list(loadable_modules(tmp_path)) == []
    home = tmp_path / platform.release()
    home.mkdir()
    (home / "modules.dep").write_text(
        "kernel/net/8021q/8021q.ko: kernel/net/802/mrp.ko\n"
        "kernel/drivers/vhost/vhost-net.ko.xz: kernel/drivers/vhost/vhost.ko.xz\n"
        "kernel/net/sched/sch_htb.ko.zst:\n"
    )
    assert list(loadable_modules(tmp_path)) == ["8021q", "vhost_net", "sch_htb"]
