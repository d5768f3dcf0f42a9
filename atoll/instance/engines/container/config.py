"""liblxc's configuration of one container, as a pure function of its plan. Format: lxc.container.conf(5)."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import msgspec

from atoll.base.errors import Invalid
from atoll.instance.engines.container.emulation import emulated
from atoll.instance.model import BootPlan, ContainerPlan
from atoll.storage.model import FOREIGN_BASE, FOREIGN_IDS

Line = tuple[str, str]
DEVICES = (
    "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 1:8 rwm",
    "c 1:9 rwm", "c 136:* rwm",
)  # fmt: skip
"""Those a container may open: null, zero, full, tty, console, ptmx, random, urandom, pts. It may make nodes of
others, which do nothing."""
FUSE = "c 10:229 rwm"
DROPPED = (
    "audit_control", "block_suspend", "mac_admin", "mac_override", "sys_module", "sys_rawio", "sys_time", "syslog",
    "wake_alarm",
)  # fmt: skip
MASKED = ("proc/kcore", "proc/keys", "proc/timer_list", "proc/sched_debug", "proc/latency_stats")
HIDDEN = ("proc/acpi", "proc/scsi", "sys/firmware", "sys/kernel/debug", "sys/kernel/tracing", "sys/dev/block")
FORBIDDEN = (
    "acct", "add_key", "bpf", "delete_module", "finit_module", "init_module", "ioperm", "iopl", "kexec_file_load",
    "kexec_load", "keyctl", "lookup_dcookie", "open_by_handle_at", "perf_event_open", "quotactl", "request_key",
    "swapoff", "swapon", "userfaultfd",
)  # fmt: skip
"""System calls that no container needs, and through which some got out."""
_NO_SUCH_CALL, _NOT_PERMITTED = 38, 1


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where on this host. `apparmor`: whether the kernel has it, with the tools to load a profile."""

    root: Path
    console: Path
    up: Path
    go: Path
    seccomp: Path
    apparmor: bool = False


def seccomp(*, nesting: bool) -> str:
    """liblxc's denylist, version 2. What systemd tries and goes without is not there (ENOSYS); the rest may not."""
    kinder = {"add_key", "bpf", "keyctl", "request_key"}
    lines = ["2", "denylist", "reject_force_umount", "[all]"]
    named = (name for name in FORBIDDEN if not (nesting and name in kinder))
    lines += [f"{name} errno {_NO_SUCH_CALL if name in kinder else _NOT_PERMITTED}" for name in named]
    return "\n".join([*lines, ""])


def extents(plan: ContainerPlan) -> tuple[tuple[int, int, int], ...]:
    """How the tree's owners on disk become the container's."""
    return ((FOREIGN_BASE, plan.ids, FOREIGN_IDS),)


def lines(plan: BootPlan, place: Place, groups: Iterable[Line], *, v2: bool) -> list[Line]:
    """Raises Invalid where a value could be taken for another line."""
    assert plan.container is not None
    found = [
        ("lxc.uts.name", plan.name),
        ("lxc.arch", plan.hardware.arch),
        ("lxc.rootfs.path", f"dir:{place.root}"),
        ("lxc.console.logfile", str(place.console)),
        ("lxc.console.size", "1MB"),
        ("lxc.pty.max", "1024"),
        ("lxc.tty.max", "0"),
        ("lxc.hook.version", "1"),
        ("lxc.hook.start-host", _hook(plan, place)),
        ("lxc.seccomp.profile", str(place.seccomp)),
        ("lxc.cap.drop", " ".join(DROPPED)),
        *_identity(plan.container),
        *_mounts(plan.container),
        *_apparmor(plan.container, place),
        *_devices(plan.container, v2=v2),
        *groups,
        *nics(plan),
    ]
    for key, value in found:
        if "\n" in key + value:
            raise Invalid(f"{key} cannot be {value!r}")
    return found


def is_prepared(plan: BootPlan) -> bool:
    """Whether something is done in it between its setting up and its first program."""
    assert plan.container is not None
    own = plan.container.spec
    return bool(own.mounts or own.hold or emulated(plan.hardware.cpu))


def _hook(plan: BootPlan, place: Place) -> str:
    """Tells its first process's pid when all is set up, and waits where something is to be done in it."""
    told = f"echo $LXC_PID >{shlex.quote(str(place.up))}"
    if not is_prepared(plan):
        return f"/bin/{told}"
    return f"/bin/sh -c {shlex.quote(f'{told}; read go <{shlex.quote(str(place.go))}')}"


def text(lines: Iterable[Line]) -> str:
    return "".join(f"{key} = {value}\n" for key, value in lines)


def _identity(plan: ContainerPlan) -> list[Line]:
    if not plan.ids:
        return []
    return [("lxc.idmap", f"{kind} 0 {plan.ids} {FOREIGN_IDS}") for kind in "ug"]


def _mounts(plan: ContainerPlan) -> list[Line]:
    if plan.spec.nesting:  # a container within needs a whole proc and sys somewhere, to make its own
        return [
            ("lxc.mount.auto", "proc:rw sys:rw cgroup:mixed"),
            ("lxc.mount.entry", "proc dev/.lxc/proc proc create=dir,optional 0 0"),
            ("lxc.mount.entry", "sysfs dev/.lxc/sys sysfs create=dir,optional 0 0"),
            ("lxc.mount.entry", "/dev/fuse dev/fuse none bind,create=file,optional 0 0"),
        ]
    masks = [("lxc.mount.entry", f"/dev/null {path} none bind,ro,optional 0 0") for path in MASKED]
    hidden = [
        ("lxc.mount.entry", f"tmpfs {path} tmpfs ro,nosuid,nodev,noexec,size=4k,optional 0 0") for path in HIDDEN
    ]
    return [("lxc.mount.auto", "proc:mixed sys:mixed cgroup:mixed"), *masks, *hidden]


def _apparmor(plan: ContainerPlan, place: Place) -> list[Line]:
    if not place.apparmor:
        return []
    nested = [("lxc.apparmor.allow_nesting", "1")] if plan.spec.nesting else []
    return [("lxc.apparmor.profile", "generated"), *nested]


def _devices(plan: ContainerPlan, *, v2: bool) -> list[Line]:
    key = "lxc.cgroup2.devices" if v2 else "lxc.cgroup.devices"
    allowed = (*DEVICES, FUSE) if plan.spec.nesting else DEVICES
    return [(f"{key}.deny", "a"), *((f"{key}.allow", rule) for rule in allowed)]


def nic_name(slot: int) -> str:
    """Slot 1 is eth0: the root has slot 0."""
    return f"eth{slot - 1}"


def nics(plan: BootPlan) -> list[Line]:
    """Each is our end of a veth pair, which liblxc moves in. Without one there is the loopback alone."""
    found: list[Line] = [] if plan.nics else [("lxc.net.0.type", "empty")]
    for number, nic in enumerate(plan.nics):
        if nic.plugged.backend != "veth":
            raise Invalid(f"a container has no network backend {nic.plugged.backend}")
        key = f"lxc.net.{number}"
        found += [
            (f"{key}.type", "phys"),
            (f"{key}.link", nic.plugged.peer),
            (f"{key}.name", nic_name(nic.slot)),
            (f"{key}.flags", "up"),
        ]
        found += [(f"{key}.ipv4.address", each) for each in nic.plugged.addresses if ":" not in each]
        if number == 0:
            found += [(f"{key}.ipv4.gateway", each) for each in nic.plugged.gateways if ":" not in each]
    return found
