"""Containers through a real daemon: the same verbs as VMs, and found again whatever happens to the daemon."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.kit.daemon import INSTANCES, MIB, TOP, Daemon, until
from tests.kit.tty import Terminal


def test_it_is_launched_listed_entered_stopped_and_gone(clean: Daemon) -> None:
    out = clean.atoll("launch", "tiny", "cell", "--container", "-m", "64MiB").out
    assert out.startswith("cell is running at 10.")
    assert "container" in clean.atoll("list").out
    assert clean.exec("cell", "cat", "/proc/1/comm").out == "init\n"
    assert clean.exec("cell", "hostname").out == "cell\n"
    assert clean.exec("cell", "sh", "-c", "exit 7", check=False).code == 7
    missing = clean.exec("cell", "no-such-program", check=False)
    assert missing.code == 127
    assert "no program" in missing.err
    assert clean.atoll("exec", "cell", "--", "sh", "-c", "kill -9 $$", check=False).code == 137
    clean.act("cell", "stop", {"grace": 20})
    status = clean.show("cell")["status"]
    assert (status["state"], status["exit"]["reason"], status["exit"]["clean"]) == (
        "stopped", "the guest shut down", True,
    )  # fmt: skip
    clean.act("cell", "start")
    assert clean.exec("cell", "true").code == 0


def test_what_is_written_stays_and_another_does_not_see_it(clean: Daemon) -> None:
    clean.contain("one")
    clean.contain("two")
    clean.exec("one", "sh", "-c", "echo mine > /root/file; chown 1000:1000 /root/file")
    assert clean.exec("two", "ls", "/root/file", check=False).code == 1
    clean.act("one", "restart", {"grace": 0})
    assert clean.exec("one", "stat", "-c", "%u:%g", "/root/file").out == "1000:1000\n"
    first, second = (Path(f"/proc/{clean.init_of(name)}/uid_map").read_text().split() for name in ("one", "two"))
    assert first[1] != second[1], "ids of its own"
    assert int(first[1]) >= 600_000_000


def test_files_go_in_and_out(clean: Daemon, tmp_path: Path) -> None:
    clean.contain("cell")
    (tmp_path / "in").write_bytes(bytes(range(256)) * 5000)
    clean.atoll("cp", str(tmp_path / "in"), "cell:/root/copy")
    assert clean.exec("cell", "stat", "-c", "%u %s", "/root/copy").out == "0 1280000\n"
    clean.atoll("cp", "cell:/root/copy", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    clean.exec("cell", "ln", "-s", "/etc/hostname", "/root/link")
    clean.exec("cell", "ln", "-s", "/proc/1/root/etc", "/root/out")
    host = clean.atoll("cp", "cell:/root/link", str(tmp_path / "name")) and (tmp_path / "name").read_text()
    assert host == "cell\n", "its own, by a link of its own"
    for path in ("/dev/zero", "/root", "/root/none"):
        assert clean.atoll("cp", f"cell:{path}", str(tmp_path / "no"), check=False).code != 0


def test_paused_resumed_measured_and_logged(clean: Daemon) -> None:
    clean.contain("cell")
    clean.act("cell", "pause")
    refused = clean.exec("cell", "true", check=False)
    assert "paused" in refused.err
    clean.act("cell", "resume")
    clean.exec(
        "cell", "sh", "-c", "echo to the console >/dev/console; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    )
    stats = clean.http("GET", f"{INSTANCES}/cell/stats").json
    assert stats["cpu_seconds"] > 0.01
    assert MIB // 8 < stats["memory"] < 64 * MIB
    until(lambda: "to the console" in clean.atoll("log", "cell").out, "its log has it", 10)
    clean.act("cell", "pause")
    clean.act("cell", "stop", {"grace": 10})
    assert clean.state_of("cell") == "stopped"


def test_it_outlives_the_daemon_and_is_found_again(clean: Daemon) -> None:
    for name in ("stays", "still", "killed"):
        clean.contain(name)
    clean.act("still", "pause")
    pids = {name: clean.init_of(name) for name in ("stays", "still", "killed")}
    clean.kill()
    os.kill(pids["killed"], signal.SIGKILL)
    until(lambda: len(clean.monitors()) == 2, "its monitor ends", 20)
    clean.start()
    assert clean.init_of("stays") == pids["stays"]
    assert clean.exec("stays", "ping", "-c", "1", "-W", "5", "10.0.0.1", check=False).code == 1
    assert (clean.state_of("stays"), clean.state_of("still")) == ("running", "paused")
    killed = clean.until_state("killed", "stopped", 20)["status"]
    assert (killed["exit"]["reason"], killed["exit"]["clean"]) == ("killed by SIGKILL", False)
    clean.act("still", "resume")
    assert clean.exec("still", "true").code == 0


def test_deaths_are_news_and_the_restart_policy_acts(clean: Daemon) -> None:
    clean.contain("web", restart="on-failure")
    clean.contain("other")
    os.kill(clean.monitor_of("other"), signal.SIGKILL)
    status = clean.until_state("other", "stopped", 10)["status"]
    assert status["reason"] == "its monitor (lxc-start) was killed from outside"
    init = clean.init_of("web")
    os.kill(init, signal.SIGKILL)
    until(lambda: clean.show("web")["status"]["restarts"] == 1, "it is started again", 20)
    clean.until_state("web", "running", 20)
    assert clean.init_of("web") != init
    clean.exec("web", "poweroff", check=False)
    status = clean.until_state("web", "stopped", 20)["status"]
    assert status["exit"]["clean"] is True, "it shut itself down: nothing to start again"


def test_containers_and_a_vm_reach_each_other_by_name(clean: Daemon) -> None:
    clean.launch("machine")
    clean.contain("cell")
    clean.contain("mate")
    assert clean.exec("cell", "ping", "-c", "1", "-W", "10", "mate").code == 0
    clean.exec("cell", "httpd", "-h", "/var/www")
    clean.ready("machine")
    until(
        lambda: clean.exec("machine", "wget", "-q", "-O", "-", "http://cell/", check=False).code == 0, "by name", 60
    )
    assert clean.exec("cell", "ping", "-c", "1", "-W", "10", "machine").code == 0
    clean.delete("machine")


def test_nics_come_and_go_while_it_runs(clean: Daemon) -> None:
    clean.contain("cell")
    added = clean.do("POST", f"{INSTANCES}/cell/nics", {"network": "default"})["result"]
    address = added["addresses"].split(",")[0]
    assert address in clean.exec("cell", "ip", "addr", "show", "eth1").out
    clean.do("DELETE", f"{INSTANCES}/cell/nics/{added['mac'].replace(':', '-')}")
    assert clean.exec("cell", "ip", "link", "show", "eth1", check=False).code != 0
    assert len(clean.taps()) == 1


async def test_a_program_on_a_terminal_gets_its_size_its_keys_and_signals(clean: Daemon) -> None:
    await asyncio.to_thread(clean.contain, "cell")
    argv = clean.cli("exec", "cell", "-t", "-u", "1000", "-w", "/tmp", "-e", "COLOUR=blue", "--", "sh")
    async with Terminal(argv, env=clean.env) as terminal:
        await terminal.until("$")
        terminal.type("stty size; id -u; pwd; echo $COLOUR$TERM; tty\r")
        await terminal.until("/dev/pts/")
        for text in ("24 80", "1000", "/tmp", "bluexterm"):
            assert text in terminal.text
        terminal.type("sleep 100\r")
        await asyncio.to_thread(until, lambda: "sleep 100" in clean.exec("cell", "ps").out, "it runs", 30)
        terminal.type("\x03")
        terminal.type("exit 5\r")
        assert await terminal.ended() == 5


def test_a_program_by_pipes_streams_and_gets_signals(clean: Daemon) -> None:
    clean.contain("cell")
    ran = clean.atoll(
        "exec", "cell", "-i", "--", "sh", "-c", "tr a-z A-Z; echo err >&2; exit 3", check=False, input=b"abc"
    )
    assert (ran.code, ran.out, ran.err.strip()) == (3, "ABC", "err")
    line = clean.cli(
        "exec",
        "cell",
        "-i",
        "-n",
        "--",
        "sh",
        "-c",
        "trap 'echo got it; exit 4' TERM; echo up; while :; do sleep 1; done",
    )
    with subprocess.Popen(
        line, cwd=TOP, env=clean.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        program.send_signal(signal.SIGTERM)
        assert program.stdout.readline() == b"got it\n"
        assert program.wait(20) == 4
    line = clean.cli("exec", "cell", "-i", "-n", "--", "sleep", "1234")
    with subprocess.Popen(line, cwd=TOP, env=clean.env, stdin=subprocess.DEVNULL) as left:
        until(lambda: "sleep 1234" in clean.exec("cell", "ps").out, "it runs", 20)
        left.kill()
        left.wait()
    until(lambda: "sleep 1234" not in clean.exec("cell", "ps").out, "who leaves ends it", 20)
    assert "no user" in clean.atoll("exec", "cell", "-i", "-u", "nobody-here", "--", "true", check=False).err


def test_an_init_that_dies_at_once_leaves_its_last_words(clean: Daemon) -> None:
    spec = {"image": "tiny", "kind": "container", "memory": 64 * MIB}
    missing = {**spec, "container": {"command": ["/no/such/init"]}}
    answer = clean.http("POST", INSTANCES, {"name": "none", "spec": missing})
    ended = clean.http("GET", f"/v1/operations/{answer.json['id']}?wait=60").json
    assert ended["status"] == "failed"
    assert "/no/such/init: No such file or directory" in ended["problem"]["message"]
    assert clean.state_of("none") == "absent"
    dying = {"command": ["/bin/sh", "-c", "echo these are my last words; exit 3"]}
    clean.contain("brief", container=dying, restart="no")
    status = clean.until_state("brief", "stopped", 20)["status"]
    assert status["reason"] == "its first program failed with exit code 3"
    assert status["exit"]["code"] == 3
    assert "these are my last words" in " ".join(status["exit"]["lines"])


def test_a_thousandth_of_a_machine(clean: Daemon) -> None:
    """Launched by the API, with its network, to its init running."""
    began = time.monotonic()
    clean.contain("quick")
    assert time.monotonic() - began < 5, "what it takes exactly, make bench measures"
