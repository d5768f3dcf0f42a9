"""Programs of other machines in a container, and what holds one: pure parts."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from atoll.base.errors import Lacking
from atoll.instance.engines.container import emulation, hold


def test_a_registration_is_as_qemu_writes_it() -> None:
    """scripts/qemu-binfmt-conf.sh of QEMU 7.2."""
    assert emulation.line("aarch64", Path("/usr/bin/qemu-aarch64-static")) == (
        ":qemu-aarch64:M::"
        r"\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
        r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
        "/usr/bin/qemu-aarch64-static:F"
    )
    assert r"\x00\x02\x00\x16:" in emulation.line("s390x", Path("/q")), "big-endian"


def test_the_hosts_own_machine_needs_none() -> None:
    assert emulation.cpu_of(os.uname().machine) == "host"
    assert emulation.emulated("host") == ""
    assert emulation.emulated("qemu-arm") == "arm"


@pytest.mark.parametrize("arch", ["vax", "machine99", "../../bin/sh", ""])
def test_a_machine_that_nobody_knows_is_told(arch: str) -> None:
    with pytest.raises(Lacking) as caught:
        emulation.cpu_of(arch)
    assert "qemu-user-static" in caught.value.hint


def test_an_older_kernel_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "qemu_of", lambda arch: Path("/q"))
    monkeypatch.setattr(emulation, "_registered", lambda arch: False)
    monkeypatch.setattr(emulation, "_kernel", lambda: (6, 1))
    with pytest.raises(Lacking, match=r"Linux 6\.7") as caught:
        emulation.cpu_of("riscv64")
    assert "binfmt-support" in caught.value.hint
    monkeypatch.setattr(emulation, "_registered", lambda arch: True)
    assert emulation.cpu_of("riscv64") == "qemu-riscv64"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_holds_a_container_waits_and_buries(machine: str, tmp_path: Path) -> None:
    path = tmp_path / "hold"
    path.write_bytes(hold.program(machine))
    path.chmod(0o755)
    assert struct.unpack_from("<H", path.read_bytes(), 18)[0] == emulation.MACHINES[machine][2]
    runner = [] if machine == os.uname().machine else [f"qemu-{machine}-static"]
    process = subprocess.Popen([*runner, str(path)])
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(Lacking):
        hold.program("vax")
