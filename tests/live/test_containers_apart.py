"""What keeps containers apart from the host and from each other: tried from inside."""

import subprocess
from pathlib import Path

from tests.kit.daemon import INSTANCES, MIB, Daemon


def group(atoll: Daemon, name: str, controller: str, file: str) -> str:
    """What a file of a container's control group says."""
    id = atoll.show(name)["instance"]["id"]
    [found] = [p for p in map(Path, atoll.cgroups()) if f"ct-{id}" in p.name and not p.name.endswith(".m")
               and controller in p.parts]  # fmt: skip
    return (found / file).read_text().strip()


ESCAPES = """
try() { "$@" >/dev/null 2>&1 && echo "could: $*"; }
try sh -c 'echo 7 > /proc/sys/kernel/panic'
try sh -c 'echo h > /proc/sysrq-trigger'
mount -o remount,rw /proc/sys 2>/dev/null
try sh -c 'echo 7 > /proc/sys/kernel/panic'
umount /proc/kcore 2>/dev/null
try mount -t ext4 /dev/vda /mnt
try mknod /tmp/disk b 254 0
try sh -c 'dd if=/dev/vda count=1'
try dmesg
try sh -c 'head -c 1 /proc/kcore | grep -q .'
try sh -c 'ls /sys/firmware | grep -q .'
try sh -c 'ls /sys/kernel/debug | grep -q .'
date -s 2001-01-01 >/dev/null 2>&1
[ "$(date +%Y)" -gt 2001 ] || echo "could: set the clock"
try insmod /tmp/x.ko
try chroot /proc/1/root/.. ls /tmp/atoll
try sh -c 'echo 1 > /sys/fs/cgroup/memory/release_agent'
echo done
"""


def test_no_way_out_was_found(clean: Daemon) -> None:
    clean.contain("cell")
    before = Path("/proc/sys/kernel/panic").read_text()
    assert clean.exec("cell", "sh", "-c", ESCAPES).out == "done\n"
    assert Path("/proc/sys/kernel/panic").read_text() == before
    status = Path(f"/proc/{clean.init_of('cell')}/status").read_text()
    assert "Seccomp:\t2" in status
    assert (
        clean.exec(
            "cell", "sh", "-c", "grep -c . /proc/self/uid_map; cat /proc/self/cgroup | grep -c atoll", check=False
        ).out
        == "1\n0\n"
    )
    mounts = clean.exec("cell", "cat", "/proc/mounts").out
    assert str(clean.state) not in mounts


def test_a_neighbour_s_address_cannot_be_taken(clean: Daemon) -> None:
    for name in ("good", "evil", "third"):
        clean.contain(name)
    address = clean.show("good")["instance"]["hardware"]["nics"][0]["addresses"][0]
    assert clean.exec("evil", "ping", "-c", "1", "-W", "5", address).code == 0
    clean.exec("good", "ip", "addr", "flush", "dev", "eth0")
    clean.exec("evil", "ip", "addr", "add", f"{address}/24", "dev", "eth0")
    assert clean.exec("third", "ping", "-c", "1", "-W", "2", address, check=False).code == 1
    clean.exec("evil", "ip", "link", "set", "eth0", "address", "02:00:00:00:00:66")
    assert clean.exec("evil", "ping", "-c", "1", "-W", "2", "third", check=False).code != 0


def test_bombs_go_off_inside(clean: Daemon) -> None:
    clean.contain("bomb", limits={"processes": 60})
    clean.contain("calm")
    killed = clean.exec("bomb", "sh", "-c", "tail /dev/zero; echo $?", check=False)
    assert "137" in killed.out or killed.code == 137
    assert clean.state_of("bomb") == "running"
    clean.exec("bomb", "sh", "-c", "f() { f | f & }; f; sleep 1", check=False)
    assert int(group(clean, "bomb", "pids", "pids.current")) <= 60
    assert group(clean, "bomb", "pids", "pids.max") == "60"
    assert clean.exec("calm", "echo", "well").out == "well\n"
    assert subprocess.run(["true"]).returncode == 0
    clean.act("bomb", "stop", {"grace": 0})


def test_limits_follow_while_it_runs(clean: Daemon) -> None:
    clean.contain("cell", cpus=1, limits={"cpu": 0.5, "memory_soft": 32 * MIB, "disk_write": 8 * MIB})
    assert clean.exec("cell", "nproc").out == "1\n"
    assert group(clean, "cell", "cpu", "cpu.cfs_quota_us") == "50000"
    assert group(clean, "cell", "memory", "memory.soft_limit_in_bytes") == str(32 * MIB)
    assert group(clean, "cell", "blkio", "blkio.throttle.write_bps_device").endswith(str(8 * MIB))
    changed = clean.atoll("set", "cell", "memory=96MiB", "cpus=2", "limits.cpu_weight=50", "limits.processes=99")
    assert "restart" not in changed.out
    assert clean.exec("cell", "nproc").out == "2\n"
    assert group(clean, "cell", "memory", "memory.limit_in_bytes") == str(96 * MIB)
    assert group(clean, "cell", "cpu", "cpu.shares") == "512"
    assert group(clean, "cell", "pids", "pids.max") == "99"
    clean.atoll("set", "cell", "memory=48MiB")
    assert group(clean, "cell", "memory", "memory.limit_in_bytes") == str(48 * MIB)
    init = clean.init_of("cell")
    clean.kill()
    clean.start()
    assert clean.init_of("cell") == init
    clean.atoll("set", "cell", "limits.cpu=0.25")
    assert group(clean, "cell", "cpu", "cpu.cfs_quota_us") == "25000"


def test_a_privileged_one_is_marked_everywhere(clean: Daemon) -> None:
    clean.atoll("launch", "tiny", "king", "--container", "--privileged", "-m", "64MiB")
    assert "PRIVILEGED" in clean.atoll("list").out
    assert "PRIVILEGED" in clean.atoll("show", "king").out
    assert Path(f"/proc/{clean.init_of('king')}/uid_map").read_text().split()[1] == "0"
    opened = clean.exec("king", "sh", "-c", "mknod /tmp/disk b 254 0 && dd if=/tmp/disk count=1", check=False)
    assert opened.code != 0, "its devices are held back"
    assert clean.exec("king", "sh", "-c", "echo 7 > /proc/sys/kernel/panic", check=False).code != 0


def test_a_nested_one_may_mount_proc(clean: Daemon) -> None:
    clean.contain("nest", container={"nesting": True})
    line = "unshare -U -r -m -p -f sh -c 'mount -t proc proc /mnt && ls -d /mnt/self'"
    assert clean.exec("nest", "sh", "-c", line).out == "/mnt/self\n"


def test_what_cannot_be_is_refused(clean: Daemon) -> None:
    def refused(**spec: object) -> str:
        body = {"name": "no", "spec": {"image": "tiny", "kind": "container", "memory": 64 * MIB, **spec}}
        answer = clean.http("POST", INSTANCES, body)
        if answer.status == 202:
            answer = clean.http("GET", f"/v1/operations/{answer.json['id']}?wait=60")
            assert answer.json["status"] == "failed", answer
            return str(answer.json["problem"]["message"])
        assert answer.status in (400, 409, 422), answer
        return str(answer.json["detail"])

    assert "memory at least" in refused(memory=MIB)
    assert "cdrom" in refused(cdrom="tiny")
    assert "machine" in refused(machine="q35")
    assert "most the host's" in refused(cpus=1000)
    assert "mounted on /proc" in refused(container={"mounts": [{"source": "/srv", "path": "/proc"}]})
    assert "privileged" in refused(kind="vm", memory=128 * MIB, container={"privileged": True})
    assert "for containers" in refused(kind="vm", memory=128 * MIB, limits={"processes": 5})
    assert clean.state_of("no") == "absent"


def test_directories_of_the_host_come_and_go(clean: Daemon, tmp_path: Path) -> None:
    for name in ("data", "fixed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    clean.atoll(
        "launch", "tiny", "cell", "--container", "-m", "64MiB", "--mount", f"{tmp_path}/fixed:/srv/fixed:ro"
    )
    assert clean.exec("cell", "cat", "/srv/fixed/file").out == "fixed"
    assert clean.exec("cell", "touch", "/srv/fixed/new", check=False).code != 0
    clean.exec("cell", "sh", "-c", "ln -s /etc /link; mkdir /inner")
    clean.atoll("mount", "add", "cell", f"{tmp_path}/data:/a/new/place")
    assert clean.exec("cell", "cat", "/a/new/place/file").out == "data"
    clean.exec("cell", "sh", "-c", "echo written > /a/new/place/more; stat -c %u /a/new/place/file")
    written = tmp_path / "data/more"
    assert (written.read_text(), written.stat().st_uid) == ("written\n", 0)
    assert "has something on" in clean.atoll("mount", "add", "cell", "/srv:/a/new/place", check=False).err
    assert clean.atoll("mount", "add", "cell", f"{tmp_path}/none:/b", check=False).code != 0
    assert [m["path"] for m in clean.show("cell")["instance"]["spec"]["container"]["mounts"]] == [
        "/srv/fixed", "/a/new/place",
    ]  # fmt: skip
    clean.act("cell", "restart", {"grace": 0})
    assert clean.exec("cell", "cat", "/a/new/place/more").out == "written\n"
    clean.atoll("mount", "remove", "cell", "/a/new/place")
    assert clean.exec("cell", "ls", "/a/new/place").out == ""
    assert written.exists()
    assert "nothing mounted" in clean.atoll("mount", "remove", "cell", "/a/new/place", check=False).err
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    clean.atoll("mount", "add", "cell", f"{tmp_path}/data:/link/inside")
    assert clean.exec("cell", "cat", "/etc/inside/file").out == "data", "its own links lead where they lead in it"
    assert not Path("/etc/inside").exists()
