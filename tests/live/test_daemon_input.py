"""What people get wrong: each a clear error with a hint and an exit code, nothing left behind."""

import grp
import http.client
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.kit.daemon import INSTANCES, TOP, Daemon, Ran, daemon, until


@pytest.fixture
def clean(atoll: Daemon) -> Iterator[Daemon]:
    before = atoll.account()
    yield atoll
    try:
        atoll.settled_at(before)
    finally:
        atoll.delete(*atoll.all())  # one test's failure is not the next one's


WRONG = (
    (("launch", "tinny", "web"), 4, "tiny"),
    (("launch", "tiny", "Web_1"), 2, "name"),
    (("launch", "tiny", "web", "-m", "12XB"), 2, "12XB"),
    (("launch", "tiny", "web", "-c", "0"), 2, "cpus"),
    (("launch", "tiny", "web", "-c", "many"), 2, "cpus"),
    (("launch", "tiny", "web", "-m", "100TiB"), 9, "100TiB"),
    (("launch", "tiny", "web", "-m", "1MiB"), 2, "128MiB"),
    (("launch", "tiny", "web", "--disk", "1MiB"), 2, "512MiB"),
    (("launch", "tiny", "web", "--machine", "q36"), 2, "q35"),
    (("launch", "tiny", "web", "--network", "defalt"), 4, "default"),
    (("launch", "tiny", "web", "--set", "root.pool=tape"), 4, "pool"),
    (("launch", "tiny", "web", "--set", "colour=red"), 2, "colour"),
    (("start", "nobody"), 4, "nobody"),
    (("show", "nobody"), 4, "nobody"),
    (("image", "build", "tinny"), 4, "tiny"),
    (("lunch", "tiny"), 2, "launch"),
)


@pytest.mark.parametrize(("args", "code", "told"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_a_mistake_is_explained(clean: Daemon, args: tuple[str, ...], code: int, told: str) -> None:
    explained(clean.atoll(*args, check=False), code, told)


def explained(ran: Ran, code: int, told: str) -> None:
    """After whatever progress was told, one error with the next step."""
    assert ran.code == code, ran
    told_last = [line.partition(" ")[0] for line in ran.err.splitlines()[-2:]]
    assert told_last == ["error:", "hint:"], ran.err
    assert told in ran.err, ran.err
    assert "Traceback" not in ran.err


def test_a_taken_name_and_states_that_forbid(clean: Daemon) -> None:
    clean.launch("web", start=False)
    explained(clean.atoll("launch", "tiny", "web", "-m", "128MiB", check=False), 5, "web")
    explained(clean.atoll("pause", "web", check=False), 6, "stopped")
    explained(clean.atoll("restart", "web", check=False), 6, "stopped")
    clean.launch("db", start=False)
    explained(clean.atoll("rename", "db", "web", check=False), 5, "web")
    clean.act("web", "start")
    explained(clean.atoll("delete", "web", check=False), 6, "--force")
    explained(clean.atoll("set", "web", "cpus=64", check=False), 2, "grow")
    clean.atoll("delete", "web", "db", "--force")


def test_a_stale_revision_is_refused(clean: Daemon) -> None:
    clean.launch("web", start=False)
    read = clean.http("GET", f"{INSTANCES}/web")
    clean.atoll("set", "web", "description=first")
    stale = clean.http(
        "PATCH", f"{INSTANCES}/web", {"description": "second"}, headers={"If-Match": read.headers["etag"]}
    )
    assert (stale.status, stale.json["status"]) == (412, 412)
    assert stale.json["hint"]
    assert clean.show("web")["instance"]["spec"]["description"] == "first"
    clean.delete("web")


def test_bodies_that_are_no_requests(clean: Daemon) -> None:
    for body, status in ((b"{", 400), (b'{"spec": 1}', 400), (b'{"spec": {"image": "tiny"}, "x": 1}', 400)):
        got = clean.http("POST", INSTANCES, body)
        assert got.status == status, got
        assert got.headers["content-type"].startswith("application/problem+json")
        assert got.json["detail"]
    assert oversized(clean).startswith(b"HTTP/1.1 413")
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(clean.state / "atoll.sock"))
        raw.settimeout(10)
        raw.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        answer = raw.recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400"), answer
    assert clean.http("GET", "/v1/health").status == 200


def oversized(atoll: Daemon) -> bytes:
    """The answer to 8 MiB that are announced and not sent: nothing of them is waited for."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(atoll.state / "atoll.sock"))
        raw.settimeout(10)
        raw.sendall(f"POST {INSTANCES} HTTP/1.1\r\nHost: x\r\nContent-Length: {8 << 20}\r\n\r\n".encode())
        return raw.recv(100)


def refused_start(atoll: Daemon, code: int, *options: str) -> str:
    process = atoll.run(*options)
    try:
        assert process.wait(60) == code
    finally:
        process.kill()
    return atoll.said()


def test_a_second_daemon_on_one_state_directory(atoll: Daemon) -> None:
    second = Daemon(atoll.state, atoll.net)
    said = refused_start(second, 6, "--listen", "none")
    assert "another daemon runs" in said
    assert "hint: " in said
    assert atoll.http("GET", "/v1/health").status == 200


def test_a_port_in_use(fresh: Daemon) -> None:
    assert fresh.net is not None
    with fresh.net.entered():
        taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        port = taken.getsockname()[1]
        said = refused_start(fresh, 6, "--listen", f"127.0.0.1:{port}")
    assert f"port {port}" in said
    assert "in use" in said
    assert not (fresh.state / "atoll.sock").exists()
    fresh.start()


def test_no_daemon_says_how_to_start_it(fresh: Daemon) -> None:
    for args in (("list",), ("launch", "tiny"), ("console", "web"), ("events",)):
        explained(fresh.atoll(*args, check=False), 3, "atoll up")


@pytest.mark.parametrize(
    ("missing", "package"),
    [("qemu-system-x86_64", "qemu-system-x86"), ("dnsmasq", "dnsmasq-base"), ("qemu-img", "qemu-utils")],
)
def test_a_missing_program_names_its_package(fresh: Daemon, tmp_path: Path, missing: str, package: str) -> None:
    links = tmp_path / "bin"
    links.mkdir()
    for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if program.name != missing and not (links / program.name).exists():
                (links / program.name).symlink_to(program)
    fresh.env |= {"PATH": str(links), "ATOLL_TEST_PATH": str(links)}
    fresh.start()
    before = fresh.records()
    got = fresh.atoll("launch", "tiny", "web", "-m", "128MiB", check=False)
    explained(got, 10, package)
    until(lambda: fresh.records() == before, lambda: str(fresh.records()), 10)
    assert (fresh.qemus(), fresh.taps(), fresh.cgroups(), fresh.all()) == ({}, [], [], {})


@pytest.fixture
def served(base: Path) -> Iterator[tuple[Daemon, int]]:
    with daemon(base) as made:
        assert made.net is not None
        with made.net.entered(), socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        made.run("--listen", f"127.0.0.1:{port}")
        until(made.answers, "the daemon answers", 60)
        yield made, port


def test_over_the_network_only_with_a_token(served: tuple[Daemon, int]) -> None:
    atoll, port = served
    assert atoll.net is not None

    def remote(*args: str, **env: str) -> Ran:
        argv = atoll.command([*atoll.cli("--server", f"https://127.0.0.1:{port}", *args)])
        done = subprocess.run(argv, env={**atoll.env, **env}, cwd="/", capture_output=True, text=True, timeout=60)
        return Ran(done.returncode, done.stdout, done.stderr)

    def status(token: str) -> int:
        context = ssl._create_unverified_context()
        with atoll.net.entered():  # type: ignore[union-attr]
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request("GET", INSTANCES, headers=headers)
            got = connection.getresponse()
            got.read()
            connection.close()
        return got.status

    certificate = atoll.state / "tls" / "tls.crt"
    assert status("") == 401
    assert status("wrong") == 401
    trusting = {"ATOLL_CA": str(certificate)}
    explained(remote("list", **trusting), 12, "token")
    secret = atoll.atoll("token", "create", "laptop", "-q").out.strip()
    assert status(secret) == 200
    assert remote("list", ATOLL_TOKEN=secret, **trusting).code == 0
    untrusted = remote("list", ATOLL_TOKEN=secret)
    assert untrusted.code != 0
    assert "certificate" in untrusted.err
    for path in (*atoll.state.glob("*.db*"), *atoll.state.glob("*log")):
        assert secret.encode() not in path.read_bytes(), "only its hash is kept"
    listed = msgspec.json.decode(atoll.atoll("token", "list", "-o", "json").out)
    assert [token["name"] for token in listed] == ["laptop"]
    atoll.atoll("token", "revoke", "laptop")
    assert status(secret) == 401
    explained(remote("list", ATOLL_TOKEN=secret, **trusting), 12, "token")
    assert os.stat(atoll.state / "atoll.sock").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("state", "code"), [("file", 1), ("file/below", 1), ("/proc/none", 4)])
def test_a_state_directory_that_cannot_be(tmp_path: Path, state: str, code: int) -> None:
    (tmp_path / "file").write_text("")
    for verb in ("daemon", "up"):
        argv = Daemon.cli("--state", str(tmp_path / state), verb)
        done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=60)
        assert done.returncode in (code, 1), done
        assert done.stderr.startswith("error: "), done
        assert "Traceback" not in done.stderr


def test_up_says_what_its_daemon_said(fresh: Daemon) -> None:
    (fresh.state / "atoll.toml").write_text('[listen]\ntcp = "nowhere"\n')
    done = subprocess.run(
        fresh.command([*fresh.cli("up")]), env=fresh.env, cwd="/", capture_output=True, text=True, timeout=60
    )
    explained(Ran(done.returncode, done.stdout, done.stderr), 2, "nowhere")


def test_members_of_a_group_may_use_the_socket(fresh: Daemon) -> None:
    fresh.start("--group", "games")
    member = ["setpriv", "--reuid=61234", f"--regid={grp.getgrnam('games').gr_gid}", "--clear-groups"]
    stranger = ["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups"]
    argv = fresh.cli("list", "-o", "json")
    seen = [
        subprocess.run([*who, *argv], env=fresh.env, cwd="/", capture_output=True, text=True, timeout=60)
        for who in (member, stranger)
    ]
    assert (seen[0].returncode, seen[0].stdout.strip()) == (0, "[]"), seen[0]
    assert seen[1].returncode != 0
    secrets = [path for path in fresh.state.glob("*.db*") if path.stat().st_mode & 0o077]
    assert secrets == [], "beside the socket nothing is theirs"
