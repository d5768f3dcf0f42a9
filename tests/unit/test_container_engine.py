"""The pure parts of the container engine: configuration, limits, how it ended, who is still there."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from atoll.base.errors import Absent, Invalid, Refused
from atoll.base.ids import Bytes, Generation, InstanceId
from atoll.base.units import MiB
from atoll.instance.engines.adoption import decide
from atoll.instance.engines.container import adopt, config, exitreason, groups, inside
from atoll.instance.engines.container.adopt import Trace
from atoll.instance.engines.container.config import Place
from atoll.instance.engines.container.groups import Groups, Limit
from atoll.instance.engines.container.rundir import Handle
from atoll.instance.model import BootPlan, ContainerPlan, ContainerSpec, Limits, MountSpec, NicPlan
from atoll.network.model import Plugged
from tests.kit.plans import boot_plan, hardware

HYBRID = """
25 30 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
26 30 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 30 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
28 30 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
UNIFIED = "28 30 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
LIMIT = Limit(cpus="0,1", count=2, memory=Bytes(64 * MiB), limits=Limits(cpu=0.5, cpu_weight=50, swap=Bytes(MiB)))
PLACE = Place(
    root=Path("/mnt"),
    console=Path("/run/c/console.log"),
    up=Path("/run/c/up"),
    go=Path("/run/c/go"),
    seccomp=Path("/run/c/seccomp"),
)
VETH = Plugged(
    "veth",
    link="atabcdefxyz",
    peer="atabcdef-v1",
    addresses=("10.1.2.3/24", "fd00::1/64"),
    gateways=("10.1.2.1",),
)


def plan(**spec: Any) -> BootPlan:
    own = ContainerPlan(ids=700_000_000, spec=ContainerSpec(**spec))
    return boot_plan(
        name="web", hardware=hardware(machine="lxc"), nics=(NicPlan("52:54:00:00:00:01", 1, VETH),), container=own
    )


def lines(v2: bool = False, **spec: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in config.lines(plan(**spec), PLACE, [("lxc.cgroup.x", "1")], v2=v2):
        found.setdefault(key, []).append(value)
    return found


def test_a_container_is_held_back_in_every_way() -> None:
    found = lines()
    assert found["lxc.idmap"] == ["u 0 700000000 65536", "g 0 700000000 65536"]
    assert found["lxc.mount.auto"] == ["proc:mixed sys:mixed cgroup:mixed"]
    assert "sys_module" in found["lxc.cap.drop"][0]
    assert found["lxc.cgroup.devices.deny"] == ["a"]
    assert "lxc.cgroup2.devices.deny" in lines(v2=True)
    assert any("proc/kcore" in entry for entry in found["lxc.mount.entry"])
    assert found["lxc.net.0.type"] == ["phys"]
    assert found["lxc.net.0.link"] == ["atabcdef-v1"]
    assert found["lxc.net.0.ipv4.address"] == ["10.1.2.3/24"]
    assert found["lxc.net.0.ipv4.gateway"] == ["10.1.2.1"]
    assert "open_by_handle_at errno 1" in config.seccomp(nesting=False)
    assert "keyctl" not in config.seccomp(nesting=True)


def test_privileged_and_nesting_say_so_and_mounts_are_waited_for() -> None:
    bare = plan()
    assert bare.container is not None
    own = replace(bare.container, ids=0)
    privileged = dict(config.lines(replace(bare, container=own), PLACE, [], v2=False))
    assert "lxc.idmap" not in privileged
    assert lines(nesting=True)["lxc.mount.auto"] == ["proc:rw sys:rw cgroup:mixed"]
    waits = lines(mounts=(MountSpec(source="/a", path="/b"),))
    assert "read go" in waits["lxc.hook.start-host"][0]


def test_no_value_makes_a_line_of_its_own() -> None:
    evil = replace(plan(), name="web\nlxc.hook.pre-start = /bin/evil")
    with pytest.raises(Invalid):
        config.lines(evil, PLACE, [], v2=False)


def test_limits_on_v1_and_v2() -> None:
    old = Groups("abc123", groups.parse(HYBRID, ""))
    assert old.version == "v1"
    assert ("lxc.cgroup.cpu.cfs_quota_us", "50000") in old.config(LIMIT)
    assert ("cpu", "cpu.shares", "512") in groups.v1_settings(LIMIT)
    assert ("memory", "memory.memsw.limit_in_bytes", str(65 * MiB)) in groups.v1_settings(LIMIT)
    given, lacking = old.settings(LIMIT)
    assert "pids.max" in lacking, "this host has no pids controller"
    assert all(controller in ("cpu", "memory") for controller, _, _ in given)
    new = Groups("abc123", groups.parse(UNIFIED, "cpu memory pids cpuset io"))
    assert new.version == "v2"
    found = dict(new.config(replace(LIMIT, device="8:0", limits=Limits(disk_read=MiB, processes=7))))
    assert found["lxc.cgroup2.cpu.max"] == "200000 100000"
    assert found["lxc.cgroup2.memory.swap.max"] == "0"
    assert found["lxc.cgroup2.pids.max"] == "7"
    assert found["lxc.cgroup2.io.max"] == f"8:0 rbps={MiB} wbps=max"


def test_where_systemd_is_init_each_has_a_scope() -> None:
    scoped = Groups("abc123", groups.parse(UNIFIED, "cpu"), scoped=True)
    assert ("lxc.cgroup.relative", "1") in scoped.lines("id.1")
    assert scoped.folder("id.1") == "system.slice/atoll-abc123-ct-id.1.scope/ct"


def test_cpus_are_those_with_the_fewest_containers() -> None:
    assert groups.pick(2, [0, 1, 2, 3], {0: 3, 1: 1, 2: 0, 3: 5}) == (1, 2)
    assert groups.pick(1, [4, 5], {}) == (4,)


OOM = "killed by the host's kernel: it was out of memory"
DOWN = 'Interrupt(2) - Container "x" is halting\nChild <5> ended on signal Interrupt(2)'
SEEN = "DEBUG start - ../src/lxc/start.c:signal_handler:464 - Container init process 5 exited\n"


@pytest.mark.parametrize(
    ("log", "facts", "reason", "clean", "code"),
    [
        (SEEN, {}, "its first program ended", True, 0),
        (
            SEEN + "INFO error - x:1 - Child <5> ended on error (3)",
            {},
            "its first program failed with exit code 3",
            False,
            3,
        ),
        (SEEN + "INFO error - x:1 - Child <5> ended on signal Killed(9)", {}, "killed by SIGKILL", False, 137),
        (SEEN + "Child <5> ended on signal Killed(9)", {"oom_kills": 1}, OOM, False, 137),
        (SEEN + DOWN, {}, "the guest shut down", True, 0),
        (SEEN + "Child <5> ended on signal Terminated(15)", {"asked": True}, "the guest shut down", True, 143),
        (SEEN, {"forced": True}, "ended by force", True, 137),
        ("", {}, "its monitor (lxc-start) was killed from outside", False, None),
        ("", {"rebooted": True}, "the host was restarted", False, None),
    ],
)
def test_how_it_ended(log: str, facts: dict[str, object], reason: str, clean: bool, code: int | None) -> None:
    remains = msgspec.structs.replace(exitreason.read(log), **facts)
    assert exitreason.judge(remains) == (reason, clean, code)


def test_what_attach_made_of_a_program() -> None:
    name = "lxc-attach: 0f0f0f0f-0000-0000-0000-000000000000.1: "
    failed = (
        f'{name}../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec "x"\n'
    )
    with pytest.raises(Absent):
        inside.judged("x", 127, b"", failed.encode())
    assert inside.judged("x", 127, b"", b"sh: y: not found").code == 127, "the program's own"
    with pytest.raises(Refused):
        inside.judged("x", 126, b"", failed.replace("No such file or directory", "Permission denied").encode())
    killed = inside.judged("x", 137, b"out", b"")
    assert (killed.signal, killed.stdout) == (9, b"out")


ID = InstanceId("0f0f0f0f-0000-4000-8000-000000000001")


def trace(generation: int, *, init: int = 0, monitor: bool = False) -> Trace:
    handle = Handle(boot_plan(id=ID), "boot", monitor=10 + generation if init else 0, init=init)
    pids = frozenset({10 + generation}) if monitor else frozenset()
    return Trace(id=ID, generation=Generation(generation), handle=handle, monitors=pids)


def test_the_newest_whole_generation_is_held_and_all_others_go() -> None:
    old, new, half = trace(1, init=5, monitor=True), trace(2, init=6, monitor=True), trace(3, monitor=True)
    decision = decide([half, old, new])
    assert decision.hold == (new,)
    assert set(decision.clear) == {old, half}
    dead = trace(4, init=7)
    assert decide([dead]).report == (dead,)


def test_a_monitor_is_known_by_its_command_line() -> None:
    names = Path("/run/atoll/abc123/ct")
    line = ["/usr/bin/lxc-start", "-n", f"{ID}.3", "-P", str(names), "-F"]
    assert adopt.marked(line, names) == (ID, 3)
    assert adopt.marked(line, Path("/run/atoll/other/ct")) is None
    assert adopt.marked(["vi", f"{ID}.3"], names) is None
