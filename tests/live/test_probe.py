"""The probe with a real QEMU, a real kernel and this host's real parts."""

import asyncio
import os
import subprocess
import time
from pathlib import Path

import pytest

from atoll.host.debs import Wanted, obtain, unpack
from atoll.host.probe.accel import boot, device_trouble
from atoll.host.probe.facts import facts
from atoll.host.probe.parts import parts
from atoll.host.probe.settled import AccelProbe

pytestmark = pytest.mark.timeout(600)
PATIENCE = 180.0
"""Under TCG, beside other tests; a boot takes 2 to 4 s alone."""


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's cloud kernel, from its package, which is downloaded and not installed."""
    place = tmp_path_factory.mktemp("kernel")
    wanted = Wanted(("linux-image-cloud-amd64",), assumed=("kmod", "linux-base", "initramfs-tools"))
    for deb in asyncio.run(obtain(wanted, place)).values():
        for member, content in unpack(deb):
            if content is not None and "/boot/vmlinuz-" in member.name:
                (place / "vmlinuz").write_bytes(content.read())
                return place / "vmlinuz"
    raise AssertionError("no kernel in the package")


def guests() -> list[str]:
    """The probe's QEMUs that this process has, as they are in /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = (part.split() for part in entry.read_text().rsplit(")", 1))
            line = entry.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and (b"initramfs" in line or ("qemu" in name[1] and fields[0] == "Z")):
            found.append(f"{entry.parent.name} {fields[0]}")
    return found


async def test_tcg_boots_to_user_space(kernel: Path) -> None:
    seen = await boot("tcg", kernel, deadline=PATIENCE, silence=PATIENCE)
    assert (seen.good, seen.story) == (True, "user space runs")
    assert guests() == []


async def test_the_verdict_is_proven_by_a_boot(kernel: Path, tmp_path: Path) -> None:
    """Whichever way it falls here: KVM because a guest ran on it, or TCG with what became of that guest."""
    probe = AccelProbe(tmp_path / "accel.json", lambda: [kernel])
    probe.start()
    at_once = probe.current()
    assert at_once.kind == "tcg"
    verdict = await probe.settled()
    assert guests() == []
    trouble = device_trouble()
    if trouble is not None:
        assert (verdict.kind, verdict.reason, verdict.probed) == ("tcg", trouble[0], False)
        return
    assert verdict.probed
    assert ("a guest kernel reached user space" if verdict.kind == "kvm" else "under TCG in") in verdict.reason
    assert AccelProbe(tmp_path / "accel.json", lambda: [kernel]).current() == verdict


async def test_a_file_that_is_no_kernel_does_not_boot(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"no kernel at all" * 1000)
    seen = await boot("tcg", tmp_path / "vmlinuz", deadline=5, silence=2)
    assert not seen.good
    assert seen.story.startswith("no user space (")
    assert guests() == []


async def test_cancelling_a_boot_leaves_nothing(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    task = asyncio.create_task(boot("tcg", kernel))
    while not guests():
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert guests() == []
    assert os.listdir(tmp_path) == []


async def test_facts_of_this_host() -> None:
    found = await facts()
    assert found.cpu.threads == os.cpu_count()
    assert found.memory.total > found.memory.available > 0
    assert found.memory.numa
    assert found.rights.uid == os.geteuid()
    assert found.qemu is not None
    assert found.qemu.versioned("q35").startswith("pc-q35-")
    assert found.qemu.binaries["x86_64"].endswith("qemu-system-x86_64")
    assert {"nft", "dnsmasq", "qemu-img", "ip"} <= set(found.tools)
    assert all(found.tools[tool] for tool in ("nft", "dnsmasq", "qemu-img"))


def left_behind() -> list[str]:
    """Links, tables and queues with the names that the probe gives in its own namespaces, found in ours."""
    told = {
        argv: subprocess.run(argv.split(), capture_output=True, check=True).stdout.decode()
        for argv in ("ip -o link", "nft list tables", "tc qdisc show dev lo")
    }
    links = [
        line for line in told["ip -o link"].splitlines() if line.split()[1].split("@")[0].strip(":") in ("p0", "p1")
    ]
    tables = [line for line in told["nft list tables"].splitlines() if line.split()[2:] == ["t"]]
    queues = [line for line in told["tc qdisc show dev lo"].splitlines() if "noqueue" not in line]
    return links + tables + queues


async def test_parts_of_this_host_are_found_quickly_and_nothing_changes(tmp_path: Path) -> None:
    modules = set(os.listdir("/sys/module"))
    began = time.monotonic()
    found = {part.name: part for part in await parts(tmp_path)}
    assert time.monotonic() - began < 3
    assert left_behind() == []
    assert set(os.listdir("/sys/module")) == modules
    assert os.listdir(tmp_path) == []
    assert found["QEMU"].state == "present"
    assert {found[name].state for name in ("bridge", "tap", "veth", "nftables NAT")} == {"present"}
    for part in found.values():
        assert bool(part.costs) == (part.state != "present"), part
