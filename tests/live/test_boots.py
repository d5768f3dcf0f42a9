"""A normal Debian, booted directly and by its own bootloader; a CD; cloud-init from its seed to its end."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.boots import CD_SAYS, add_iso, debian_base, make_iso
from tests.kit.daemon import Daemon, daemon, until

BOOT = 240.0
GOOD = """\
packages: []
write_files:
  - path: /srv/page
    content: served
runcmd:
  - [sh, -c, "cat /srv/page > /srv/ran"]
"""
BAD = "runcmd:\n  - [sh, -c, 'exit 3']\n"
INVALID = "#cloud-config\nusers:\n  - name: web\n   shell: /bin/sh\n"


@pytest.fixture(scope="module")
def reef(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with debian-12, and the image `hello` of a CD."""
    with daemon(debian_base()) as made:
        add_iso(made.state, make_iso(tmp_path_factory.mktemp("iso")), "hello")
        yield made.start()


def log(reef: Daemon, name: str) -> str:
    return reef.atoll("log", name, check=False).out


def launched(reef: Daemon, *words: str) -> Any:
    return reef.atoll("launch", *words, "-m", "512MiB", "--ready-timeout", "8m", timeout=600, check=False)


@pytest.mark.timeout(900)
def test_a_server_by_direct_boot_and_cloud_init(reef: Daemon, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(GOOD)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    given = ("--cloud-init", str(tmp_path / "web.yaml"), "--ssh-key", str(tmp_path / "key.pub"), "--disk", "5GiB")
    ran = launched(reef, "debian/12", "web", *given)
    assert ran.code == 0, (ran, log(reef, "web"))
    view = reef.show("web")
    assert view["instance"]["hardware"]["firmware"] == "direct"
    assert "served" not in str(view), "what is given for cloud-init is a secret"
    assert reef.exec("web", "cat", "/srv/ran", "/etc/hostname").out == "served" + "web\n"
    [blocks] = reef.exec("web", "stat", "-f", "-c", "%b", "/").out.split()
    assert int(blocks) * 4096 > 4 << 30, "its root file system has grown with its disk"
    told = reef.atoll("show", "web").out
    assert "cloud-init: done" in told
    [socket] = [word for word in told.split() if word.endswith("vnc.sock")]
    assert Path(socket).is_socket()
    reef.atoll("screenshot", "web", str(tmp_path / "screen.png"))
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    typed = reef.atoll("shell", "web", input=b"echo $((40 + 2))-$(id -un); exit\n")
    assert "42-root" in typed.out, typed
    assert reef.net is not None
    [address] = [a for a in view["instance"]["hardware"]["nics"][0]["addresses"] if "." in a]
    asked = ["ssh", "-F", "none", "-i", str(tmp_path / "key"), "-o", "StrictHostKeyChecking=no"]
    asked += ["-o", f"UserKnownHostsFile={tmp_path / 'hosts'}", "-o", "BatchMode=yes", f"debian@{address}"]
    assert "uid=1000" in reef.net.run(*asked, "id; sudo -n true; getent hosts web", timeout=60)
    before = reef.exec("web", "ip", "-o", "addr").out
    assert all(a in before for a in view["instance"]["hardware"]["nics"][0]["addresses"]), before
    reef.atoll("stop", "web", "--grace", "60s")
    assert "shut down" in reef.show("web")["status"]["exit"]["reason"]
    reef.delete("web")
    assert not list((reef.state / "instances").glob("[0-9a-f]*"))


@pytest.mark.timeout(900)
def test_the_same_disk_by_bios_and_by_uefi(reef: Daemon, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    reef.atoll("launch", "debian-12", "new", "--firmware", "uefi", "-m", "512MiB", "--no-wait")
    ran = launched(reef, "debian-12", "old", "--firmware", "bios", "--cloud-init", str(tmp_path / "bad.yaml"))
    assert ran.code != 0
    assert "old runs, but its cloud-init failed" in ran.err, (ran, log(reef, "old"))
    assert "cloud-init: failed (" in reef.atoll("show", "old").out
    reef.ready("new")
    assert reef.exec("old", "test", "-d", "/sys/firmware/efi", check=False).code == 1
    assert "SecureBoot" in reef.exec("new", "ls", "/sys/firmware/efi/efivars").out
    hardware = reef.show("new")["instance"]["hardware"]
    assert (hardware["firmware"], hardware["uefi"]) == ("uefi", "ovmf-4m")
    [own] = (reef.state / "instances").glob("*/variables.fd")
    assert own.parent.name == reef.show("new")["instance"]["id"]
    reef.delete("old", "new")


def test_a_cd_boots_where_the_disk_is_empty(reef: Daemon) -> None:
    reef.atoll("launch", "--empty", "--disk", "1GiB", "--cdrom", "hello", "--name", "cd")
    old = ["--hardware", "compatible", "--firmware", "uefi"]
    for number in range(4):
        reef.atoll("volume", "create", f"v{number}", "--size", "16MiB")
        old += ["--volume", f"v{number}"]
    reef.atoll("launch", "--empty", "old", "--disk", "1GiB", "--cdrom", "hello", *old)
    for name in ("cd", "old"):
        until(lambda name=name: CD_SAYS in log(reef, name), lambda name=name: log(reef, name), BOOT)  # type: ignore[misc]
    found = log(reef, "old").partition(CD_SAYS)[0]
    assert "(hd4)" in found, "four disks on the board's AHCI, one on a controller of its own"
    assert "(hd5)" not in found
    for name in ("v0", "v3"):
        refused = reef.atoll("volume", "detach", name, check=False)
        assert (refused.code, "neither comes nor goes while it runs" in refused.err) == (6, True), refused
    refused = reef.atoll("image", "delete", "hello", check=False)
    assert refused.code
    assert "cd" in refused.err
    for name in ("cd", "old"):
        reef.atoll("eject", name)
        assert reef.show(name)["instance"]["spec"]["cdrom"] == ""
    reef.atoll("stop", "cd", "--force")
    reef.atoll("insert", "cd", "hello")
    reef.atoll("start", "cd", "--no-wait")  # a log of its own
    until(lambda: CD_SAYS in log(reef, "cd"), lambda: log(reef, "cd"), BOOT)
    refused = reef.atoll("insert", "cd", "debian-12", check=False)
    assert "holds no ISO" in refused.err
    reef.delete("cd", "old")
    reef.atoll("volume", "delete", *(f"v{number}" for number in range(4)))


def test_what_can_never_boot_is_refused_at_once(reef: Daemon, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(INVALID)
    before = reef.account()
    for words, said in (
        (("debian-12", "--cloud-init", str(tmp_path / "wrong.yaml")), "line 4, column 4"),
        (("hello",), "hello is an ISO image"),
        (("--empty", "--cdrom", "hello"), "an empty disk needs a size"),
        (("debian-12", "--cdrom", "debian-12"), "holds no ISO"),
        (("debian-12", "--machine", "microvm", "--firmware", "bios"), "a microvm boots a kernel directly"),
        (("debian-12", "--ssh-key", "/no/such"), "there is no file /no/such"),
    ):
        ran = reef.atoll("launch", *words, check=False)
        assert ran.code, words
        assert said in ran.err, ran
    assert reef.account() == before
