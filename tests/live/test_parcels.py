"""Whole instances leave one daemon and come to another: data, volume, settings; and daemons that die."""

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.daemon import INSTANCES, MIB, SMALL, TOP, Daemon, daemon, until

VOLUMES = "/v1/projects/default/volumes"


@pytest.fixture(scope="module")
def other(base: Path) -> Iterator[Daemon]:
    """Another Atoll: another state directory, another network."""
    with daemon(base) as made:
        made.start()
        made.launch("first")
        made.delete("first")
        yield made


@pytest.fixture(scope="module")
def file(atoll: Daemon) -> Iterator[Path]:
    """What `web` was exported to: data on its own disk and on a volume, a label, a note, a forward."""
    before = atoll.account()
    nic = {"network": "default", "forwards": [{"port": 18080, "to": 80}]}
    atoll.do("POST", VOLUMES, {"name": "data", "size": 64 * MIB, "format": "raw"})
    spec = {"image": "tiny", "memory": SMALL, "labels": {"tier": "front"}, "description": "of mine", "nics": [nic]}
    body = {"name": "web", "spec": spec, "volumes": [{"volume": "data"}]}
    atoll.do("POST", INSTANCES, body)
    atoll.ready("web")
    atoll.exec("web", "sh", "-c", "mke2fs -q /dev/vdb && mkdir -p /mnt/d && mount /dev/vdb /mnt/d")
    atoll.exec("web", "sh", "-c", "echo kept > /root/mine; echo beside > /mnt/d/mine; umount /mnt/d; sync")
    path = atoll.state / "web.atoll"
    refused = atoll.atoll("export", "web", str(path), check=False)
    assert (refused.code, "atoll stop web" in refused.err) == (6, True)
    atoll.atoll("stop", "web")
    told = atoll.json("export", "web", str(path))
    assert told["size"] == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    yield path
    atoll.delete("web")
    atoll.do("DELETE", f"{VOLUMES}/data")
    path.unlink()
    atoll.settled_at(before)


def test_the_file_is_a_plain_tar_with_its_manifest_first(file: Path) -> None:
    with tarfile.open(file, "r:") as tar:
        assert tar.getnames() == ["atoll.json", "kernel", "initrd", "disk-0.qcow2", "disk-1.qcow2"]
        first = tar.extractfile("atoll.json")
        assert first is not None
        told = msgspec.json.decode(first.read())
    assert (told["format"], told["version"], told["name"]) == ("atoll-instance", 1, "web")
    assert {disk.get("volume", "") for disk in told["disks"]} == {"", "data"}


def test_it_comes_to_another_atoll_as_it_was(atoll: Daemon, other: Daemon, file: Path) -> None:
    before = other.account()
    was = atoll.show("web")["instance"]
    with subprocess.Popen(
        atoll.cli("export", "web", "-"), cwd=TOP, env=atoll.env, stdout=subprocess.PIPE
    ) as sending:
        assert sending.stdout is not None
        came = other.atoll("import", "-", input=sending.stdout.read())
        assert sending.wait() == 0
    assert "web imported" in came.out
    now = other.show("web")
    assert now["status"]["state"] == "stopped"
    assert now["instance"]["id"] == was["id"]
    for name in ("labels", "description", "memory", "cpus"):
        assert now["instance"]["spec"][name] == was["spec"][name]
    assert now["instance"]["spec"]["nics"][0]["forwards"] == was["spec"]["nics"][0]["forwards"]
    [old], [new] = was["hardware"]["nics"], now["instance"]["hardware"]["nics"]
    assert new["mac"] == old["mac"]
    for part in ("machine", "firmware"):
        assert now["instance"]["hardware"][part] == was["hardware"][part]
    serials = [[disk["serial"] for disk in each["hardware"]["disks"]] for each in (was, now["instance"])]
    assert serials[0] == serials[1]
    other.act("web", "start")
    other.ready("web")
    assert other.exec("web", "cat", "/root/mine").out == "kept\n"
    assert (
        other.exec("web", "sh", "-c", "mkdir -p /mnt/d; mount /dev/vdb /mnt/d; cat /mnt/d/mine").out == "beside\n"
    )
    other.delete("web")
    other.do("DELETE", f"{VOLUMES}/data")
    other.settled_at(before)


def test_a_copy_beside_it_gets_what_is_free(atoll: Daemon, file: Path) -> None:
    before = atoll.account()
    came = atoll.atoll("import", str(file), "--name", "copy")
    for told in ("its id is web's here", "the MAC", "port 18080/tcp", "there is a volume data here"):
        assert told in came.err
    copy, web = atoll.show("copy")["instance"], atoll.show("web")["instance"]
    assert copy["id"] != web["id"]
    assert copy["hardware"]["nics"][0]["mac"] != web["hardware"]["nics"][0]["mac"]
    assert copy["spec"]["nics"][0].get("forwards", []) == []
    again = atoll.atoll("import", str(file), check=False)
    assert (again.code, "--name NAME" in again.err) == (5, True)
    atoll.delete("copy")
    atoll.do("DELETE", f"{VOLUMES}/data-2")
    atoll.settled_at(before)


def killed_at(made: Daemon, moment: str, *args: str) -> tuple[int, str]:
    """Exit code and words of a command whose daemon dies at that moment and comes again."""
    made.crash_at(moment)
    with subprocess.Popen(
        made.cli(*args), cwd=TOP, env=made.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as asking:
        made.wait_dead()
        made.start()
        _, err = asking.communicate(timeout=120)
        return asking.returncode, err.decode()


@pytest.mark.parametrize("moment", ["volumes/journalled", "disk/journalled", "disk/enter"])
def test_an_import_killed_in_the_middle_leaves_nothing(other: Daemon, file: Path, moment: str) -> None:
    before = other.account()
    code, said = killed_at(other, f"instance.import/{moment}", "import", str(file))
    assert (code, "in the middle of instance.import" in said) == (14, True), said
    other.settled_at(before)


def test_a_daemon_killed_while_the_file_comes_leaves_nothing(other: Daemon, file: Path) -> None:
    before = other.account()
    command = other.cli("import", "-")
    with subprocess.Popen(
        command, cwd=TOP, env=other.env, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as sending:
        assert sending.stdin is not None
        sending.stdin.write(file.read_bytes()[: file.stat().st_size // 2])
        sending.stdin.flush()
        until(lambda: list((other.state / "parcels").glob(".up-*")), "it comes in", 30)
        other.kill()
        sending.stdin.close()
        assert sending.wait(60)
    other.start()
    other.settled_at(before)
    cut = other.atoll("import", "-", input=file.read_bytes()[: file.stat().st_size // 2], check=False)
    assert (cut.code, "cut off" in cut.err) == (2, True), cut.err
    other.settled_at(before)


@pytest.mark.parametrize("moment", ["copy/journalled", "send/journalled", "clear/journalled"])
def test_an_export_killed_in_the_middle_leaves_nothing(atoll: Daemon, file: Path, moment: str) -> None:
    before = atoll.account()
    target = file.with_name("other.atoll")
    code, said = killed_at(atoll, f"instance.export/{moment}", "export", "web", str(target))
    finished = moment == "clear/journalled"
    assert code == (0 if finished else 14), said
    assert target.exists() == finished, "what came whole is kept"
    target.unlink(missing_ok=True)
    atoll.settled_at(before)
    assert not list(file.parent.glob(".atoll-*"))
