"""The probe's guest, its verdicts, and the verdict's life in a daemon: cache, background, cancellation."""

import asyncio
import os
import platform
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from atoll.base.errors import Lacking
from atoll.host.probe import accel as module
from atoll.host.probe.accel import Accel, accel, command, device_trouble, guest_group, judge
from atoll.host.probe.guest import INIT, initramfs
from atoll.host.probe.settled import AccelProbe

GOOD = b"SeaBIOS\n[    1.2] Run /init as init process\n\nATOLL PROBE: user space runs  \n"


def test_init_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    source = Path(module.__file__).with_name("init.S")
    subprocess.run(["gcc", "-c", str(source), "-o", "init.o"], cwd=tmp_path, check=True)
    link = ["ld", "-Ttext=0x400000", "--oformat", "binary", "init.o", "-o", "init"]
    subprocess.run(link, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == INIT


def test_init_is_a_whole_static_executable() -> None:
    assert INIT[:5] == b"\x7fELF\x02"
    _, machine, _, entry, offset = struct.unpack_from("<HHIQQ", INIT, 16)
    kind, _, start, address, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", INIT, offset)
    assert (machine, kind, start, filesz) == (62, 1, 0, len(INIT))
    assert address <= entry < address + filesz
    assert memsz - filesz == 8192  # the XSAVE area


def test_the_initramfs_is_a_cpio_archive() -> None:
    listed = subprocess.run(["cpio", "-tv"], input=initramfs(), capture_output=True, check=True).stdout.decode()
    assert [line.split()[0] + " " + line.split()[-1] for line in listed.splitlines()] == [
        "drwxr-xr-x dev",
        "crw------- dev/console",
        "-rwxr-xr-x init",
    ]
    assert "5,   1" in listed


@pytest.mark.parametrize(
    ("text", "ending", "good", "story"),
    [
        (GOOD, "", True, "user space runs"),
        (b"ATOLL PROBE: xsave fails      \n", "", False, "xsave fails"),
        (b"Probing EDD... ok", "silent for 6 s", False, "no user space (silent for 6 s); the last words were: Pro"),
        (
            b"a\nKVM internal error. Suberror: 1\nRAX=0\n",
            "",
            False,
            "(QEMU ended); the last words were: KVM internal",
        ),
        (b"[0.9] Kernel panic - not syncing: init\nmore\n", "", False, "were: [0.9] Kernel panic - not syncing"),
        (b"", "given up after 20 s", False, "no user space (given up after 20 s); the last words were: nothing"),
        (b"\xff\xfe\n", "", False, "no user space"),
    ],
)
def test_a_console_is_judged(text: bytes, ending: str, good: bool, story: str) -> None:
    found, told = judge(text, ending)
    assert found is good
    assert story in told


def test_the_guest_has_nothing_but_a_serial_port() -> None:
    line = command("kvm", Path("/k"))
    assert "q35,accel=kvm" in line
    assert "-nodefaults" in line
    assert "-device" not in line


def test_device_trouble_has_a_reason_and_a_hint(tmp_path: Path) -> None:
    assert device_trouble(tmp_path / "kvm") == (
        f"{tmp_path}/kvm is absent",
        "enable VT-x or AMD-V in the firmware (nested, inside a hypervisor); modprobe kvm_intel or kvm_amd",
    )
    (tmp_path / "there").touch()
    assert device_trouble(tmp_path / "there") is None
    busy = device_trouble(Path("/"))  # a directory cannot be opened for writing
    assert busy is not None
    assert "Is a directory" in busy[0]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a device that opens, and a PATH whose QEMU is a script to be written."""
    (tmp_path / "kvm").touch()
    (tmp_path / "kvm").chmod(0o666)
    (tmp_path / "vmlinuz").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path


def pretend(host: Path, script: str) -> None:
    """QEMU does this; `$2` is the value of -machine, which names the accelerator."""
    qemu = host / "bin" / "qemu-system-x86_64"
    qemu.write_text(f"#!/bin/sh\necho boot >> {host}/boots\n{script}\n")
    qemu.chmod(0o755)


def number(path: Path) -> int:
    return int(path.read_text().strip() or 0) if path.exists() else 0


def boots(host: Path) -> int:
    return len((host / "boots").read_text().splitlines()) if (host / "boots").exists() else 0


SAYS_GOOD = "echo 'ATOLL PROBE: user space runs  '"
ONLY_TCG = f'case "$2" in *tcg*) {SAYS_GOOD};; *) echo hm; exec sleep 60;; esac'


async def test_kvm_that_works(host: Path) -> None:
    pretend(host, SAYS_GOOD)
    verdict = await accel([host / "vmlinuz"], device=host / "kvm")
    assert (verdict.kind, verdict.probed) == ("kvm", True)


async def test_kvm_that_hangs_is_blamed_once_tcg_works(host: Path) -> None:
    pretend(host, ONLY_TCG)
    verdict = await accel([host / "vmlinuz"], device=host / "kvm", silence=0.5)
    assert (verdict.kind, verdict.probed, boots(host)) == ("tcg", True, 2)
    assert "the last words were: hm; the same kernel boots under TCG" in verdict.reason


async def test_a_kernel_that_never_boots_proves_nothing(host: Path) -> None:
    pretend(host, "echo 'could not load kernel' >&2; exit 1")
    verdict = await accel([host / "vmlinuz", host / "absent"], device=host / "kvm")
    assert (verdict.kind, verdict.probed) == ("tcg", False)
    assert "could not load kernel" in verdict.reason


async def test_nothing_to_probe_with(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "none-such")
    pretend(host, SAYS_GOOD)
    verdict = await accel([], device=host / "kvm")
    assert (verdict.kind, verdict.probed, boots(host)) == ("tcg", False, 0)
    assert "there is no kernel to boot" in verdict.reason
    assert "absent" in (await accel([host / "vmlinuz"], device=host / "none")).reason
    monkeypatch.setenv("PATH", str(host / "empty"))
    missing = await accel([host / "vmlinuz"], device=host / "kvm")
    assert (missing.reason, missing.hint) == (
        "qemu-system-x86_64 is missing",
        "apt-get install qemu-system-x86",
    )


def probe(host: Path, kernels: Iterable[Path] | None = None, silence: float = 6.0) -> AccelProbe:
    given = tuple(kernels) if kernels is not None else (host / "vmlinuz",)
    return AccelProbe(host / "state" / "accel.json", lambda: given, device=host / "kvm", silence=silence)


async def test_the_verdict_is_there_at_once_and_kept(host: Path) -> None:
    pretend(host, f"sleep 0.3; {SAYS_GOOD}")
    first = probe(host)
    assert first.current().reason == "KVM is not probed yet"
    first.start()
    assert (first.current().kind, first.current().reason) == ("tcg", "KVM is being probed")
    verdicts = await asyncio.gather(*(first.settled() for _ in range(5)))
    assert {verdict.kind for verdict in verdicts} == {"kvm"}
    assert boots(host) == 1

    second = probe(host)
    assert second.current() == verdicts[0]
    assert await second.settled() == verdicts[0]
    assert boots(host) == 1
    assert (await second.again()).kind == "kvm"
    assert boots(host) == 2


@pytest.mark.parametrize("junk", [b"", b"\xff{", b"[]", b'{"key": "x"}', b'{"key": "x", "accel": {"kind": "xen"}}'])
async def test_a_corrupted_cache_is_no_cache(host: Path, junk: bytes) -> None:
    pretend(host, SAYS_GOOD)
    (host / "state").mkdir()
    (host / "state" / "accel.json").write_bytes(junk)
    again = probe(host)
    assert again.current().reason == "KVM is not probed yet"
    assert (await again.settled()).kind == "kvm"
    assert probe(host).current().kind == "kvm"


async def test_another_qemu_means_another_probe(host: Path) -> None:
    pretend(host, SAYS_GOOD)
    assert (await probe(host).settled()).kind == "kvm"
    pretend(host, ONLY_TCG)
    changed = probe(host, silence=0.3)
    assert changed.current().reason == "KVM is not probed yet"
    assert (await changed.settled()).kind == "tcg"


async def test_a_device_that_goes_away_overrules_the_cache(host: Path) -> None:
    pretend(host, SAYS_GOOD)
    one = probe(host)
    await one.settled()
    (host / "kvm").unlink()
    assert (one.current().kind, (await one.settled()).kind) == ("tcg", "tcg")
    assert "is absent" in one.current().reason


async def test_what_proves_nothing_is_tried_again_only_with_something_new(host: Path) -> None:
    pretend(host, "exit 1")
    kernels = [host / "vmlinuz"]
    one = AccelProbe(host / "accel.json", lambda: kernels, device=host / "kvm")
    assert not (await one.settled()).probed
    tried = boots(host)
    assert not (await one.settled()).probed
    assert boots(host) == tried
    assert not (host / "accel.json").exists()
    pretend(host, f'case "$*" in *better*) {SAYS_GOOD};; esac')
    (host / "better").touch()
    kernels.insert(0, host / "better")
    assert (await one.settled()).kind == "kvm"


async def test_closing_kills_a_probe_under_way(host: Path) -> None:
    pretend(host, f"echo $$ > {host}/pid; exec sleep 60")
    one = probe(host)
    one.start()
    while not (pid := number(host / "pid")):
        await asyncio.sleep(0.02)
    waiting = asyncio.create_task(one.settled())
    await asyncio.sleep(0)
    await one.close()
    assert (await waiting).reason == "KVM is not probed yet"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await one.close()


async def test_a_cancelled_waiter_leaves_the_probe_to_the_others(host: Path) -> None:
    pretend(host, f"sleep 0.3; {SAYS_GOOD}")
    one = probe(host)
    impatient = asyncio.create_task(one.settled())
    await asyncio.sleep(0.1)
    impatient.cancel()
    assert (await one.settled()).kind == "kvm"
    assert boots(host) == 1


async def test_a_cache_that_cannot_be_written_costs_nothing_else(host: Path) -> None:
    pretend(host, SAYS_GOOD)
    (host / "state").write_text("a file where the directory should be")
    assert (await probe(host).settled()).kind == "kvm"


def test_a_verdict_is_plain_data() -> None:
    assert Accel.__struct_fields__ == ("kind", "reason", "hint", "probed", "checked", "seconds")


def test_guests_open_the_device_as_their_own_users(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o666)
    assert guest_group(device) is None
    os.chown(device, 0, 61_234)
    device.chmod(0o660)
    assert guest_group(device) == 61_234
    for group, mode in ((0, 0o660), (61_234, 0o600), (61_234, 0o640), (0, 0o664)):
        os.chown(device, 0, group)
        device.chmod(mode)
        with pytest.raises(Lacking, match=f"root alone .mode {mode:04o}") as caught:
            guest_group(device)
        assert "chgrp kvm" in caught.value.hint


async def test_kvm_that_guests_may_not_open_is_none(host: Path) -> None:
    if os.geteuid() != 0:
        return  # an ordinary user's guests are his own
    pretend(host, SAYS_GOOD)
    (host / "kvm").chmod(0o600)
    verdict = await accel([host / "vmlinuz"], device=host / "kvm")
    assert (verdict.kind, verdict.probed) == ("tcg", False)
    assert "root alone" in verdict.reason
