"""The acceleration verdict over time: cached in a file, found out in the background, never in anybody's way."""

import asyncio
import contextlib
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from atoll.base.clock import monotonic, now
from atoll.base.errors import AtollError
from atoll.base.units import KiB
from atoll.host.probe.accel import DEADLINE, KVM, SILENCE, VERSION, Accel, accel, device_trouble
from atoll.host.probe.cpu import parse_cpuinfo
from atoll.host.run import find


class _Cached(msgspec.Struct, frozen=True):
    key: str
    accel: Accel


def machine_key() -> str:
    """What a verdict depends on: kernel, CPU with microcode, QEMU, and the probe itself.

    QEMU's binary (path, size, time of change) stands for its version, known without running it.
    Raises `Lacking` without QEMU.
    """
    qemu = find("qemu-system-x86_64").resolve()
    stat = qemu.stat()
    with Path("/proc/cpuinfo").open() as text:
        cpu = parse_cpuinfo(text.read(16 * KiB))  # the first processor is enough, and the rest slow on large hosts
    parts = (VERSION, platform.release(), cpu.model, cpu.microcode, qemu, stat.st_size, stat.st_mtime_ns)
    return "|".join(map(str, parts))


def _key_or_none() -> str | None:
    try:
        return machine_key()
    except (AtollError, OSError):
        return None


_Subject = tuple[str | None, tuple[Path, ...]]
"""What a probe tries: this machine, and the kernels."""


class AccelProbe:
    """Owns the probe of one daemon. `close` it: a probe under way is then killed and reaped.

    `cache` is the file that keeps the verdict; `kernels` is asked before each probe for kernels to boot, best
    first, and answers at once. A verdict that proves nothing ("no kernel yet", "no QEMU") is not kept in the file,
    and found out anew once QEMU or the kernels have changed.
    """

    def __init__(
        self,
        cache: Path,
        kernels: Callable[[], Iterable[Path]] = tuple,
        *,
        device: Path = KVM,
        deadline: float = DEADLINE,
        silence: float = SILENCE,
    ) -> None:
        self._cache = cache
        self._kernels = kernels
        self._device = device
        self._patience = (deadline, silence)
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0
        self._known = self._load()
        self._tried: _Subject | None = None

    def current(self) -> Accel:
        """The verdict at once: known, or TCG with the reason (no device, being probed, not probed yet)."""
        if trouble := device_trouble(self._device):
            return Accel(kind="tcg", reason=trouble[0], hint=trouble[1], checked=now())
        probing = self._task is not None
        if self._known is not None and not probing:
            return self._known
        return Accel(
            kind="tcg",
            reason="KVM is being probed" if probing else "KVM is not probed yet",
            checked=now(),
            seconds=round(monotonic() - self._began, 3) if probing else 0.0,
        )

    def start(self) -> None:
        """Probe in the background, unless that is under way, the verdict is known, or nothing has changed since."""
        if self._task is not None or (self._known is not None and self._known.probed):
            return
        subject = (_key_or_none(), tuple(self._kernels()))
        if self._known is None or subject != self._tried:
            self._tried = subject
            self._began = monotonic()
            self._task = asyncio.create_task(self._probe(subject[1]), name="probe-accel")

    async def settled(self) -> Accel:
        """The verdict, after a probe where it takes one. A cancelled caller leaves the probe to the others."""
        if device_trouble(self._device) is None:
            self.start()
        if (task := self._task) is not None:
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        return self.current()

    async def again(self) -> Accel:
        """Forget the verdict and probe afresh, as when the administrator has changed something."""
        await self.close()
        self._known = None
        self._cache.unlink(missing_ok=True)
        return await self.settled()

    async def close(self) -> None:
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait({task})
            self._task = None

    async def _probe(self, kernels: tuple[Path, ...]) -> None:
        deadline, silence = self._patience
        try:
            verdict = await accel(kernels, device=self._device, deadline=deadline, silence=silence)
            self._known = verdict
            if verdict.probed:
                self._save(verdict)
        finally:
            self._task = None

    def _load(self) -> Accel | None:
        """The kept verdict; None where there is none, it is unreadable, or something it depends on has changed."""
        try:
            kept = msgspec.json.decode(self._cache.read_bytes(), type=_Cached)
            return kept.accel if kept.key == _key_or_none() else None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _save(self, verdict: Accel) -> None:
        """Keep the verdict, whole or not at all. A full disk costs a probe at the next start, nothing else."""
        key = _key_or_none()
        if key is None:
            return
        beside = self._cache.with_name(f"{self._cache.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(_Cached(key, verdict)))
            beside.replace(self._cache)
