"""A guest's ordinary life, through the command line: launched, used in every way, changed, moved between states."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.kit.daemon import MIB, SMALL, TOP, Daemon, until
from tests.kit.tty import Terminal

PAIR = ("left", "right")


@pytest.fixture(scope="module")
def pair(atoll: Daemon) -> Iterator[Daemon]:
    """Two guests whose agents answer. Tests leave them running and so named."""
    before = atoll.account()
    atoll.atoll("launch", "tiny", PAIR[0], "-c", "1", "-m", "128MiB", "--set", "labels.role=test")
    atoll.atoll("launch", "tiny", PAIR[1], "-m", "128MiB")
    yield atoll
    atoll.atoll("delete", *atoll.all(), "--force")
    atoll.settled_at(before)


def test_list_and_show_tell_what_was_launched(pair: Daemon) -> None:
    listed = pair.json("list")
    assert [view["instance"]["name"] for view in listed] == list(PAIR)
    left = pair.json("show", "left")
    assert left["status"]["state"] == "running"
    assert left["instance"]["spec"]["labels"] == {"role": "test"}
    [nic] = left["instance"]["hardware"]["nics"]
    told = pair.exec("left", "ip", "-4", "addr", "show", "eth0").out
    assert nic["addresses"][0] in told
    assert nic["mac"] in pair.exec("left", "cat", "/sys/class/net/eth0/address").out
    table = pair.atoll("list").out
    assert "left" in table
    assert "running" in table
    assert nic["addresses"][0] in table
    assert pair.exec("left", "hostname").out == "left\n"
    line = pair.qemus()[pair.pid_of("left")]
    assert "left.g1" in line, "name and generation are visible in ps"


def reaches(pair: Daemon, one: str, other: str) -> bool:
    return bool(pair.exec(one, "ping", "-c", "1", "-W", "2", other, check=False).code == 0)


def test_each_reaches_the_other_by_name(pair: Daemon) -> None:
    for one, other in (PAIR, PAIR[::-1]):
        until(partial(reaches, pair, one, other), f"{one} reaches {other}", 30)
    whole = f"right.{domain(pair)}"
    assert pair.exec("left", "ping", "-c", "5", "-W", "5", whole).code == 0


def domain(atoll: Daemon) -> str:
    """Of the default network, as its guests are told."""
    return atoll.exec("left", "sed", "-n", "s/^search //p", "/etc/resolv.conf").out.split()[0]


def test_exec_keeps_codes_and_streams_apart(pair: Daemon) -> None:
    ran = pair.exec("left", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "err\n")
    assert pair.exec("left", "wc", "-c", input=b"x" * 300_000).out.split() == ["300000"]
    assert pair.exec("left", "sh", "-c", "kill -9 $$", check=False).code == 137
    missing = pair.exec("left", "no-such-program", check=False)
    assert missing.code == 127
    assert "no-such-program" in missing.err
    absent = pair.exec("nobody", "true", check=False)
    assert absent.code == 125


def test_files_go_in_and_out_unchanged(pair: Daemon, tmp_path: Path) -> None:
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(os.urandom(MIB))
    pair.atoll("cp", str(sent), "left:/root/data")
    pair.atoll("cp", "left:/root/data", str(back))
    assert back.read_bytes() == sent.read_bytes()
    assert pair.exec("left", "wc", "-c", "/root/data").out.split()[0] == str(MIB)
    refused = pair.atoll("cp", "left:/no/such/file", str(tmp_path / "none"), check=False)
    assert refused.code != 0
    assert "/no/such/file" in refused.err
    assert not (tmp_path / "none").exists()


async def test_the_console_answers_a_person(pair: Daemon) -> None:
    argv = [sys.executable, "-m", "atoll.cli.main", "console", "left"]
    async with Terminal(argv, env=pair.env) as terminal:
        await terminal.until("console of left")
        terminal.type("\r")
        await terminal.until("root@left", 60)
        terminal.type("echo $((6 * 7)) answers\r")
        await terminal.until("42 answers", 60)
        terminal.type(b"\x1d")
        assert await terminal.ended() == 0
    assert "42 answers" in pair.atoll("log", "left").out


def test_stats_count(pair: Daemon) -> None:
    def numbers() -> dict[str, float]:
        got: dict[str, float] = pair.http("GET", "/v1/projects/default/instances/left/stats").json
        return got

    before = numbers()
    pair.exec("left", "sh", "-c", "dd if=/dev/zero of=/root/zeros bs=1M count=2 conv=fsync; rm /root/zeros")
    pair.exec("left", "ping", "-c", "2", "-i", "0.2", "right")
    after = numbers()
    assert after["cpu_seconds"] > before["cpu_seconds"]
    assert after["disk_written"] >= before["disk_written"] + 2 * MIB
    assert after["net_sent"] > before["net_sent"]
    assert after["net_received"] > before["net_received"]
    assert after["memory"] > 32 * MIB
    assert "left" in pair.atoll("stats", "left").out


def uptime(atoll: Daemon, name: str) -> float:
    return float(atoll.exec(name, "cat", "/proc/uptime").out.split()[0])


def test_paused_it_uses_no_cpu_and_resumed_it_is_the_same(pair: Daemon) -> None:
    def ticks() -> int:
        fields = Path(f"/proc/{pair.pid_of('left')}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    boot = pair.exec("left", "cat", "/proc/sys/kernel/random/boot_id").out
    pair.atoll("pause", "left")
    assert pair.state_of("left") == "paused"
    refused = pair.exec("left", "true", check=False)
    assert refused.code == 125
    assert "paused" in refused.err
    stood = ticks()
    pair.exec("right", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    assert ticks() - stood <= 10, "its clock stands"
    pair.atoll("resume", "left")
    assert pair.state_of("left") == "running"
    assert pair.exec("left", "cat", "/proc/sys/kernel/random/boot_id").out == boot


def test_a_new_name_is_known_to_its_network(pair: Daemon) -> None:
    pid = pair.pid_of("right")
    pair.atoll("rename", "right", "better")
    assert pair.state_of("right") == "absent"
    until(
        lambda: pair.exec("left", "ping", "-c", "1", "-W", "2", "better", check=False).code == 0, "the new name", 30
    )
    assert pair.exec("left", "ping", "-c", "1", "-W", "2", "right", check=False).code != 0
    pair.atoll("rename", "better", "right")
    assert list(pair.qemus()).count(pid) == 1


def test_cpus_and_memory_grow_while_it_runs(pair: Daemon) -> None:
    def memory() -> int:
        return int(pair.exec("right", "awk", "/MemTotal/ {print $2}", "/proc/meminfo").out)

    before = memory()
    pair.atoll("set", "right", "cpus=2", f"memory={(SMALL + 128 * MIB) // MIB}MiB")
    assert pair.show("right")["status"]["restart_for"] == []
    until(lambda: pair.exec("right", "nproc").out == "2\n", "two CPUs", 30)
    until(lambda: memory() > before + 100 * 1024, "more memory", 30)
    pair.atoll("set", "right", "limits.cpu=1.5", "description=größer 🏝")
    shown = pair.json("show", "right")["instance"]["spec"]
    assert (shown["limits"]["cpu"], shown["description"]) == (1.5, "größer 🏝")
    [quota] = {Path(p).joinpath("cpu.cfs_quota_us").read_text().strip() for p in of_cpu(pair, "right")}
    assert quota == "150000"


def of_cpu(atoll: Daemon, name: str) -> list[str]:
    id = atoll.show(name)["instance"]["id"]
    return [p for p in atoll.cgroups() if id in p and Path(p, "cpu.cfs_quota_us").exists()]


def test_restarted_and_started_it_keeps_its_disk(pair: Daemon) -> None:
    pair.exec("right", "sh", "-c", "echo kept > /root/note; sync")
    pid = pair.pid_of("right")
    pair.atoll("restart", "right", "--grace", "2m")
    pair.ready("right")
    view = pair.show("right")
    assert (view["status"]["state"], view["status"]["generation"]) == ("running", 2)
    assert pair.pid_of("right") != pid
    assert pair.exec("right", "cat", "/root/note").out == "kept\n"
    pair.atoll("stop", "right", "--grace", "2m")
    view = pair.show("right")
    assert (view["status"]["state"], view["status"]["exit"]["clean"]) == ("stopped", True)
    assert view["status"]["exit"]["reason"] == "the guest shut down", "not by force"
    assert len(pair.taps()) == len(pair.qemus()) == 1
    assert pair.exec("right", "true", check=False).code == 125
    pair.atoll("start", "right")
    pair.ready("right")
    assert pair.exec("right", "cat", "/root/note").out == "kept\n"
    assert pair.show("right")["status"]["generation"] == 3


def test_the_history_tells_every_change_and_who_made_it(pair: Daemon) -> None:
    listed = pair.json("history", "right")
    verbs = [entry["verb"] for entry in listed]
    assert {"instance.launch", "instance.rename", "instance.set", "instance.restart", "instance.stop"} <= set(verbs)
    assert all(entry["actor"] == {"kind": "uid", "name": "0"} for entry in listed if "launch" in entry["verb"])
    assert all(entry["host"] and entry["request_id"] for entry in listed)


def test_events_are_followed_and_resumed(pair: Daemon) -> None:
    with following(pair, "--since", "0", "--kind", "instance.running") as news:
        first = next(each for each in news if each["subject"]["name"] == "left")
    assert first["kind"] == "instance.running"
    with following(pair, "--since", first["id"], "--kind", "instance.") as news:
        pair.atoll("pause", "left")
        pair.atoll("resume", "left")
        seen = []
        for each in news:
            seen.append(each)
            if [each["kind"] for each in seen[-2:]] == ["instance.paused", "instance.running"]:
                break
    ids = [int(each["id"]) for each in seen]
    assert ids == sorted(set(ids)), "in order, none twice"
    assert ids[0] > int(first["id"])


@contextmanager
def following(atoll: Daemon, *options: str) -> Iterator[Iterator[Any]]:
    """What `atoll events` prints, as it comes."""
    process = subprocess.Popen(
        atoll.cli("events", "-o", "json", *options), stdout=subprocess.PIPE, env=atoll.env, cwd=TOP
    )
    stop = threading.Timer(60, process.kill)
    stop.start()
    try:
        assert process.stdout is not None
        yield (msgspec.json.decode(line) for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130, "ctrl-C ends it"
    finally:
        stop.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
