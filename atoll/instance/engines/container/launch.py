"""A container's start: what liblxc is given, and how it is known that its first program runs."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atoll.base.clock import monotonic
from atoll.base.errors import Invalid, Unreachable
from atoll.host.files import translated
from atoll.host.process import Process
from atoll.instance.engines.container import config, exitreason, hold, tools
from atoll.instance.engines.container.config import Place
from atoll.instance.engines.container.groups import V2, Groups, Limit, pick
from atoll.instance.engines.container.guest import born
from atoll.instance.engines.container.helper import ROOT, Bind, Root, Start, Text
from atoll.instance.engines.container.rundir import Handle, RunDir
from atoll.instance.engines.kept import tail
from atoll.instance.model import BootPlan, MountSpec

UP_IN = 60.0
_STARTED, _FAILED = b":post_start:", b"Failed to exec"


class Died(Exception):
    """It ended before its first program ran."""


def cpus(count: int, load: Mapping[int, int]) -> tuple[int, ...]:
    return pick(count, sorted(os.sched_getaffinity(0)), load)


def limit(plan: BootPlan, chosen: tuple[int, ...]) -> Limit:
    return Limit(
        cpus=",".join(map(str, chosen)),
        count=plan.cpus,
        memory=plan.memory,
        limits=plan.limits,
        device=device_of(Path(plan.disks[0].attachment.layers[0].uri.removeprefix("file://"))),
    )


def device_of(path: Path) -> str:
    """The whole disk that a file lies on, as "major:minor"; "" where there is none that the kernel counts."""
    with contextlib.suppress(OSError):
        number = path.stat().st_dev
        name = f"{os.major(number)}:{os.minor(number)}"
        folder = Path("/sys/dev/block") / name
        if (folder / "partition").exists():
            return (folder.resolve().parent / "dev").read_text().strip()
        return name if folder.exists() else ""
    return ""


def configure(plan: BootPlan, run: RunDir, groups: Groups, chosen: tuple[int, ...]) -> None:
    """Write what liblxc reads."""
    assert plan.container is not None
    place = Place(
        root=Path(ROOT), console=run.console, up=run.up, go=run.go, seccomp=run.seccomp, apparmor=_has_apparmor()
    )
    if config.is_prepared(plan):
        os.mkfifo(run.go, 0o600)
    if plan.container.spec.hold:
        hold.lay(run.path)
    own = [*groups.lines(run.name), *groups.config(limit(plan, chosen))]
    with translated("write a container's configuration"):
        run.seccomp.write_text(config.seccomp(nesting=plan.container.spec.nesting))
        run.config.write_text(config.text(config.lines(plan, place, own, v2=groups.version == V2)))


def order(plan: BootPlan, run: RunDir, groups: Groups) -> Start:
    assert plan.container is not None
    layers = [layer.uri.removeprefix("file://") for layer in plan.disks[0].attachment.layers]
    extents = config.extents(plan.container)
    scope = [
        "/usr/bin/systemd-run",
        "--scope",
        "--quiet",
        f"--unit={groups.unit(run.name)}",
        "-p",
        "Delegate=yes",
        "--",
    ]
    command = (hold.PROGRAM,) if plan.container.spec.hold else plan.container.spec.command
    return Start(
        root=Root(at=str(run.mounts), volume=layers[0], lowers=tuple(layers[1:]), extents=extents),
        texts=texts(plan),
        owner=plan.container.ids,
        argv=(*(scope if groups.scoped else ()), *tools.start(run, command)),
        env=tools.ENV,
        log=str(run.path / "monitor.log"),
    )


def bind(mount: MountSpec, ids: int) -> Bind:
    """A host's directory has the host's ids: those below 65536 are the container's."""
    if "\x00" in mount.path or mount.path.rstrip("/") == "":
        raise Invalid(f"nothing can be mounted on {mount.path}", field="mounts")
    return Bind(source=mount.source, path=mount.path, extents=((0, ids, 65536),), read_only=mount.read_only)


def texts(plan: BootPlan) -> tuple[Text, ...]:
    """Who it is; and where names are looked up, unless its image sees to that."""
    found = [Text(path="/etc/hostname", content=f"{plan.name}\n")]
    first = next((nic.plugged for nic in plan.nics if nic.plugged.gateways), None)
    if first is not None:
        names = [f"search {first.domain}"] if first.domain else []
        servers = [f"nameserver {gateway}" for gateway in first.gateways]
        found.append(Text(path="/etc/resolv.conf", content="\n".join([*names, *servers, ""]), keep=True))
    return tuple(found)


def _has_apparmor() -> bool:
    with contextlib.suppress(OSError):
        on = Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
        return on and any(Path(folder, "apparmor_parser").exists() for folder in ("/sbin", "/usr/sbin"))
    return False


class Up:
    """The pipe on which liblxc tells the pid of the first process, right before it becomes its program."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._fd = run, -1
        self._opened: list[int] = []

    def __enter__(self) -> Self:
        self._fd = os.open(self._run.up, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        for fd in (self._fd, *self._opened):
            os.close(fd)

    async def pid(self, monitor: Process) -> int:
        """Once it is set up: its first process, which is not a program yet. Raises Died."""
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._fd, told.set)
        gone = monitor.watch()
        heard = asyncio.ensure_future(told.wait())
        ends: set[asyncio.Future[Any]] = {gone, heard}
        try:
            await asyncio.wait(ends, timeout=UP_IN, return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard.cancel()
            loop.remove_reader(self._fd)
        with contextlib.suppress(BlockingIOError, ValueError, IndexError):
            return int(os.read(self._fd, 64).split()[0])
        raise Died

    def go(self) -> None:
        """Let it begin, where it waits for that."""
        if self._run.go.exists():
            fd = os.open(self._run.go, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(fd, b"go\n")
            self._opened.append(fd)

    async def started(self, handle: Handle, monitor: Process, pid: int) -> Handle:
        """Once its first program runs. Raises Died, Unreachable."""
        gone, until = monitor.watch(), monotonic() + UP_IN
        while _STARTED not in (said := tail(self._run.log, 16 << 10)):
            if gone.done() or _FAILED in said:
                break
            if monotonic() > until:
                raise Unreachable(f"{handle.plan.name} was not started within {UP_IN:.0f} s")
            await asyncio.sleep(0.001)
        else:
            return born(handle, monitor, pid)
        raise Died


def why(run: RunDir) -> str:
    """What liblxc says of a failed start, for people."""
    log = tail(run.log, 32 << 10).decode(errors="replace")
    found = exitreason.failures(log)
    failed = next((line for line in found if "Failed to exec" in line), "")
    if failed:
        program = failed.partition('"')[2].rstrip('"')
        return f"{program or 'its first program'}: {failed.split(' - ')[0]}"
    return (found[0] if found else tail(run.path / "monitor.log", 500).decode(errors="replace").strip())[:300]
