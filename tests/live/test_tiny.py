"""The recipe `tiny`, built and booted by a plain QEMU: what the image itself promises, without an engine."""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from atoll.base.units import GiB
from atoll.host.run import find, run
from atoll.image.recipes import tiny
from atoll.image.recipes.recipe import Built

BOOT = 120.0  # seconds: an emulated machine beside others may be slow
ANSWER = 30.0
NEVER = "http://127.0.0.1:9"  # a proxy where nobody listens


def cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("ATOLL_TEST_CACHE") or home / "atoll-tests")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return asyncio.run(tiny.build(tmp_path_factory.mktemp("tiny"), cache(), lambda _what, _percent: None))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NEVER)
    monkeypatch.setenv("https_proxy", NEVER)


class Guest:
    """A running QEMU: its console, its monitor and its agent, each over one end of a socket pair."""

    def __init__(self, process: asyncio.subprocess.Process, ends: dict[str, socket.socket]) -> None:
        self.process = process
        self.console = b""
        self._ends = ends

    async def open(self) -> None:
        self.agent_in, self.agent_out = await asyncio.open_connection(sock=self._ends["agent"])
        self._monitor_in, self._monitor_out = await asyncio.open_connection(sock=self._ends["monitor"])
        console, self.keyboard = await asyncio.open_connection(sock=self._ends["console"])
        self.monitor("qmp_capabilities")
        self._reader = asyncio.create_task(self._read(console))

    async def _read(self, console: asyncio.StreamReader) -> None:
        while data := await console.read(4096):
            self.console += data

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader
        for writer in (self.agent_out, self._monitor_out, self.keyboard):
            writer.close()

    async def ready(self) -> None:
        """Until the agent answers."""
        sync = {"execute": "guest-sync-delimited", "arguments": {"id": 1}}
        self.agent_out.write(b"\xff" + json.dumps(sync).encode() + b"\n")
        async with asyncio.timeout(BOOT):
            await self.agent_in.readuntil(b"\xff")
            assert json.loads(await self.agent_in.readline()) == {"return": 1}

    async def ask(self, command: str, **arguments: Any) -> Any:
        self.agent_out.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        answer = json.loads(await asyncio.wait_for(self.agent_in.readline(), ANSWER))
        assert "return" in answer, answer
        return answer["return"]

    async def shell(self, line: str) -> str:
        """What a shell prints in the guest; it must succeed."""
        words = {"path": "/bin/sh", "arg": ["-c", line], "capture-output": True}
        pid = (await self.ask("guest-exec", **words))["pid"]
        while not (status := await self.ask("guest-exec-status", pid=pid))["exited"]:
            await asyncio.sleep(0.02)
        text = base64.b64decode(status.get("out-data", "")).decode()
        assert status["exitcode"] == 0, (line, text, base64.b64decode(status.get("err-data", "")))
        return text

    async def until(self, line: str, wanted: str) -> None:
        """Until that prints what is wanted."""
        async with asyncio.timeout(ANSWER):
            while not re.search(wanted, await self.shell(f"{line} || :")):
                await asyncio.sleep(0.1)

    async def shows(self, wanted: bytes) -> None:
        async with asyncio.timeout(BOOT):
            while wanted not in self.console:
                await asyncio.sleep(0.05)

    def monitor(self, command: str, **arguments: Any) -> None:
        """Send it; what follows in the guest tells whether it worked."""
        self._monitor_out.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    async def ends(self) -> float:
        """Seconds until QEMU has ended by itself, with success."""
        began = time.monotonic()
        assert await asyncio.wait_for(self.process.wait(), ANSWER) == 0
        return time.monotonic() - began


@asynccontextmanager
async def boot(
    built: Built, disk: Path, *, memory: str = "256M", cpus: str = "1", more: tuple[str, ...] = ()
) -> AsyncIterator[Guest]:
    pairs = {name: socket.socketpair() for name in ("agent", "monitor", "console")}
    fds = {name: theirs.fileno() for name, (_, theirs) in pairs.items()}
    argv = [
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-M", "q35", "-cpu", "max"),
        *("-m", memory, "-smp", cpus, "-kernel", str(built.files["kernel"]), "-initrd", str(built.files["initrd"])),
        *("-append", f"{built.cmdline} mitigations=off no_timer_check atoll.hostname=web-1"),
        *("-blockdev", f"driver=qcow2,node-name=root,file.driver=file,file.filename={disk}"),
        *("-device", "virtio-blk-pci,drive=root", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,fd={fds['agent']}"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,id=monitor,fd={fds['monitor']}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"socket,id=console,fd={fds['console']}", "-serial", "chardev:console"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *more,
    ]
    program = find("qemu-system-x86_64")
    process = await asyncio.create_subprocess_exec(program, *argv, pass_fds=tuple(fds.values()))
    for _, theirs in pairs.values():
        theirs.close()
    guest = Guest(process, {name: ours for name, (ours, _) in pairs.items()})
    await guest.open()
    try:
        yield guest
    except BaseException:
        print(guest.console.decode(errors="replace"))
        raise
    finally:
        await guest.close()


async def overlay(built: Built, path: Path, size: str = "") -> Path:
    base = ["-F", built.disk_format, "-b", str(built.files["disk"])]
    await run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(path), *([size] if size else [])])
    return path


def digests(built: Built) -> dict[str, str]:
    return {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in built.files.items()}


async def test_the_same_packages_give_the_same_image_without_a_network(
    built: Built, tmp_path: Path, offline: None
) -> None:
    said: list[tuple[str, int | None]] = []
    again = await tiny.build(tmp_path, cache(), lambda what, percent: said.append((what, percent)))
    assert digests(again) == digests(built)
    assert said[-1] == ("built", 100)
    assert set(os.listdir(tmp_path)) == {path.name for path in again.files.values()}


async def test_the_file_system_is_sound_and_all_roots(built: Built, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    await run(["qemu-img", "convert", "-O", "raw", str(built.files["disk"]), str(raw)], timeout=BOOT)
    await run(["e2fsck", "-f", "-n", str(raw)])
    for folder in ("/", "/usr/bin", "/etc/init.d"):
        lines = (await run(["debugfs", "-R", f"ls -l {folder}", str(raw)])).text.splitlines()
        owners = {tuple(line.split()[3:5]) for line in lines if line.strip()}
        assert owners == {("0", "0")}


async def test_it_serves(built: Built, tmp_path: Path) -> None:
    async with boot(built, await overlay(built, tmp_path / "disk.qcow2"), cpus="2") as guest:
        await guest.ready()
        assert await guest.shell("hostname; id -un; nproc") == "web-1\nroot\n2\n"
        await guest.until("ip -4 addr show eth0", r"inet 10\.0\.2\.15/24")
        await guest.until("ip route", "default via 10.0.2.2")
        await guest.until("cat /etc/resolv.conf", r"nameserver 10\.0\.2\.3")
        await guest.until("ip -6 addr show eth0", "inet6 fe80:")
        page = await guest.shell("httpd -h /var/www && wget -q -O - http://localhost/")
        assert "virtual server" in page
        await guest.shell("ping -c 1 -W 5 10.0.2.2 && which vi nc ps")
        addresses = {each["name"]: each for each in await guest.ask("guest-network-get-interfaces")}
        assert "10.0.2.15" in [each["ip-address"] for each in addresses["eth0"]["ip-addresses"]]
        assert await guest.ask("guest-fsfreeze-freeze") == 1
        assert await guest.ask("guest-fsfreeze-thaw") == 1
        await guest.ask("guest-set-time", time=1_800_000_000_000_000_000)
        assert (await guest.shell("date +%s")).startswith("18000000")
        await guest.shows(b"root@web-1")
        guest.keyboard.write(b"echo typed $((40 + 2)); exit\n")
        await guest.shows(b"typed 42")
        before = guest.console.count(b"root@web-1")
        async with asyncio.timeout(ANSWER):
            while guest.console.count(b"root@web-1") <= before:  # logged in again
                await asyncio.sleep(0.05)


async def test_the_disk_grows_and_files_stay(built: Built, tmp_path: Path) -> None:
    disk = await overlay(built, tmp_path / "disk.qcow2", "2G")
    async with boot(built, disk) as guest:
        await guest.ready()
        await guest.until("stat -f -c '%b %S' /", r"^(4[5-9]|5[0-9])\d{4} 4096")
        handle = await guest.ask("guest-file-open", path="/root/kept", mode="w")
        await guest.ask("guest-file-write", handle=handle, **{"buf-b64": base64.b64encode(b"kept\n").decode()})
        await guest.ask("guest-file-close", handle=handle)
        await guest.until("pidof acpid", r"\d")
        guest.monitor("system_powerdown")
        await guest.ends()
    await run(["qemu-img", "check", "-q", str(disk)])
    raw = tmp_path / "disk.raw"
    await run(["qemu-img", "convert", "-O", "raw", str(disk), str(raw)], timeout=BOOT)
    assert raw.stat().st_size == 2 * GiB
    # Cleanly unmounted: e2fsck would ask to replay the journal of one that was not.
    assert "needs_recovery" not in (await run(["debugfs", "-R", "stats", str(raw)])).text
    await run(["e2fsck", "-f", "-n", str(raw)])
    async with boot(built, disk, memory="128M") as guest:
        await guest.ready()
        assert await guest.shell("cat /root/kept") == "kept\n"
        guest.agent_out.write(b'{"execute": "guest-shutdown"}\n')
        await guest.ends()


async def test_what_is_plugged_in_later_goes_to_work(built: Built, tmp_path: Path) -> None:
    ports = (
        "-device",
        "pcie-root-port,id=port0,chassis=1,slot=1",
        "-device",
        "pcie-root-port,id=port1,chassis=2,slot=2",
    )
    room = ("-object", "memory-backend-ram,id=dimm,size=256M", "-netdev", "user,id=net1,net=10.9.0.0/24", *ports)
    disk = await overlay(built, tmp_path / "disk.qcow2")
    async with boot(built, disk, memory="256M,slots=2,maxmem=1G", cpus="1,sockets=2,maxcpus=2", more=room) as guest:
        await guest.ready()
        await guest.until("pidof acpid", r"\d")
        null = {"node-name": "null", "driver": "null-co", "size": 1 << 20, "read-zeroes": True}
        guest.monitor("blockdev-add", **null)
        guest.monitor("device_add", driver="virtio-blk-pci", drive="null", bus="port0", id="disk")
        await guest.until("cat /proc/partitions", r"1024 vdb")
        guest.monitor("device_add", driver="virtio-net-pci", netdev="net1", bus="port1", romfile="", id="nic")
        await guest.until("ip -4 addr", r"inet 10\.9\.0\.15/24")
        place = {"socket-id": 1, "core-id": 0, "thread-id": 0}
        guest.monitor("device_add", driver="max-x86_64-cpu", id="cpu", **place)
        await guest.until("nproc", "^2$")
        guest.monitor("device_add", driver="pc-dimm", memdev="dimm", id="memory")
        await guest.until("grep MemTotal /proc/meminfo", r" 4\d{5} kB")
