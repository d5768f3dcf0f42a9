"""Networks as people use them: real guests, the command line, and the daemon killed in between."""

import contextlib
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.daemon import SMALL, Daemon, daemon, until
from tests.kit.frames import Wire
from tests.kit.netns import Namespace, namespace

MEMORY = f"{SMALL >> 20}MiB"
LAST = b"\xab" * 32
"""In a ping whose content is that byte."""
HOST, OUTSIDE = "198.51.100.1", "198.51.100.2"


@pytest.fixture(scope="module")
def host(base: Path) -> Iterator[Daemon]:
    """A daemon with networks and two guests: `one` on default and lan, `two` on lan alone."""
    with daemon(base) as made:
        made.start()
        made.atoll("network", "create", "lan", "--mode", "isolated", "--subnet", "10.77.1.0/24", "--mtu", "1400")
        made.atoll(
            "launch", "tiny", "one", "-m", MEMORY, "--network", "default", "--nic", "network=lan", "--no-wait"
        )
        made.atoll(
            "launch", "tiny", "two", "-m", MEMORY, "--nic", "network=lan,address=10.77.1.77,mac=02:aa:00:00:00:77"
        )
        made.ready("one")
        made.exec("two", "httpd", "-h", "/var/www")
        yield made


@pytest.fixture(scope="module")
def outside(host: Daemon) -> Iterator[Namespace]:
    """A place that knows the host, and no way to its guests."""
    assert host.net is not None
    with namespace("outside") as there:
        host.net.run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", there.name)
        for where, link, address in ((host.net, "wan", HOST), (there, "eth0", OUTSIDE)):
            where.run("ip", "addr", "add", f"{address}/24", "dev", link)
            where.run("ip", "link", "set", link, "up")
        yield there


def nics(host: Daemon, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.json("nic", "list", name)
    return found


def pings(host: Daemon, name: str, target: str, *options: str) -> bool:
    return host.exec(name, "ping", "-c", "1", "-W", "2", *options, target, check=False).code == 0


def test_two_nics_names_and_a_fixed_address(host: Daemon) -> None:
    [first, second] = nics(host, "one")
    [only] = nics(host, "two")
    assert (only["mac"], only["addresses"]) == ("02:aa:00:00:00:77", ["10.77.1.77"])
    inside = host.exec("one", "ip", "-4", "addr").out
    assert first["addresses"][0] in inside
    assert second["addresses"][0] in inside
    assert host.exec("one", "cat", "/sys/class/net/eth1/mtu").out.strip() == "1400"
    until(lambda: pings(host, "one", "10.77.1.77"), "guests of one network reach each other", 30)
    said = host.exec("two", "nslookup", "one", "10.77.1.1").out
    assert second["addresses"][0] in said


def test_isolation_by_what_does_not_arrive(host: Daemon, outside: Namespace, held: contextlib.ExitStack) -> None:
    seen = Wire(outside)
    held.callback(seen.close)
    host.exec("two", "ip", "route", "add", "default", "via", "10.77.1.1", check=False)
    for target in (OUTSIDE, HOST, "10.77.1.1", nics(host, "one")[0]["addresses"][0]):
        assert not pings(host, "two", target), target
    assert pings(host, "one", OUTSIDE), "one with a NIC on default does reach it"
    assert pings(host, "one", OUTSIDE, "-p", "ab")
    mine = socket.inet_aton("10.77.1.77")
    assert [frame for frame in seen.until(LAST) if mine in frame] == []


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_a_guest_cannot_pass_for_another(host: Daemon, held: contextlib.ExitStack) -> None:
    """From inside a real guest: another address, another MAC, the gateway's ARP. Seen from the host's end of the
    other guest's wire."""
    assert host.net is not None
    [tap] = [name for name in host.taps() if _mac_behind(host, name) == nics(host, "one")[1]["mac"]]
    seen = Wire(host.net, tap)
    held.callback(seen.close)
    other = nics(host, "one")[1]["addresses"][0]
    host.exec("two", "ip", "addr", "add", "10.77.1.99/24", "dev", "eth0")
    assert not pings(host, "two", other, "-I", "10.77.1.99")
    host.exec("two", "ip", "addr", "del", "10.77.1.99/24", "dev", "eth0")
    host.exec("two", "arping", "-U", "-c", "2", "-I", "eth0", "10.77.1.1", check=False)
    host.exec(
        "two", "sh", "-c", "ip link set eth0 down; ip link set eth0 address 02:aa:00:00:00:66; ip link set eth0 up"
    )
    assert not pings(host, "two", other)
    host.exec(
        "two", "sh", "-c", "ip link set eth0 down; ip link set eth0 address 02:aa:00:00:00:77; ip link set eth0 up"
    )
    assert pings(host, "two", other, "-p", "ab")
    false = (bytes.fromhex("02aa00000066"), socket.inet_aton("10.77.1.99"), b"\x08\x06\x00\x01\x08\x00\x06\x04\x00")
    came = seen.until(LAST)
    gateway = socket.inet_aton("10.77.1.1")
    asked = [
        f
        for f in came
        if f[12:14] == b"\x08\x06" and f[28:32] == gateway and f[22:28] == bytes.fromhex("02aa00000077")
    ]
    assert asked == [], "it claimed the gateway's address"
    assert [frame for frame in came if false[0] in frame[:12] or false[1] in frame] == []


def _mac_behind(host: Daemon, tap: str) -> str:
    assert host.net is not None
    alias = host.net.run("cat", f"/sys/class/net/{tap}/ifalias").strip()
    for view in host.http("GET", "/v1/projects/default/networks").json:
        for port in view["ports"]:
            if alias.endswith(port["id"]):
                return str(port["mac"])
    return ""


def carrier(host: Daemon, name: str) -> str:
    return host.exec(name, "cat", "/sys/class/net/eth1/carrier").out.strip()


def test_a_nic_comes_and_goes_while_the_guest_runs(host: Daemon) -> None:
    host.atoll("network", "create", "extra")
    pid = host.pid_of("two")
    host.atoll("nic", "add", "two", "network=extra")
    added = nics(host, "two")[1]
    until(lambda: added["addresses"][0] in host.exec("two", "ip", "-4", "addr").out, "it has its address", 60)
    host.atoll("nic", "link", "two", "extra", "down")
    until(lambda: carrier(host, "two") == "0", "its cable is out", 20)
    host.atoll("nic", "link", "two", "1", "up")
    until(lambda: carrier(host, "two") == "1", "its cable is in", 20)
    assert "two" in host.atoll("network", "delete", "extra", check=False).err
    host.atoll("nic", "remove", "two", added["mac"])
    assert "eth1" not in host.exec("two", "ls", "/sys/class/net").out
    assert len(nics(host, "two")) == 1
    host.atoll("network", "delete", "extra")
    assert host.pid_of("two") == pid


def fetched(where: Namespace, url: str) -> bool:
    code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=1.5).read())"
    return "virtual server" in where.run("python3", "-c", code, check=False)


def test_forwards_groups_and_limits_outlive_the_daemon(host: Daemon, outside: Namespace) -> None:
    assert host.net is not None
    host.exec("one", "httpd", "-h", "/var/www")
    host.atoll("network", "forward", "add", "one", "8080:80")
    host.atoll("network", "group", "create", "web", "--rule", "ingress tcp/80 from 198.51.100.0/24")
    host.atoll("nic", "set", "one", "0", "group=web,down=300Mbit")
    ways = [(outside, f"http://{HOST}:8080/"), (host.net, f"http://{HOST}:8080/")]
    until(lambda: all(fetched(*way) for way in ways), "from outside and from the host", 20)
    assert not fetched(host.net, "http://127.0.0.1:8080/"), "loopback comes from the gateway's address"
    host.atoll("network", "group", "allow", "web", "ingress tcp/80")
    ways += [(host.net, "http://127.0.0.1:8080/"), (host.net, "http://[::1]:8080/")]
    until(lambda: all(fetched(*way) for way in ways), "from everywhere", 20)
    rules = host.rules()
    host.kill()
    assert fetched(*ways[0]), "packets are led without a daemon"
    host.start()
    until(lambda: all(fetched(*way) for way in ways), "and the new daemon serves loopback again", 20)
    assert sorted(_still(host.rules())) == sorted(_still(rules))
    host.atoll("network", "group", "revoke", "web", "ingress tcp/80", "ingress tcp/80 from 198.51.100.0/24")
    assert not fetched(*ways[0])
    assert "one" in host.atoll("network", "group", "delete", "web", check=False).err
    host.atoll("nic", "set", "one", "0", "group=,down=0")
    host.atoll("network", "group", "delete", "web")
    assert fetched(*ways[0])
    host.atoll("network", "forward", "remove", "one", "8080")
    assert not any(fetched(*way) for way in ways)


def _still(rules: list[str]) -> list[str]:
    """Without the flows under way, which come and go."""
    verdicts = ("drop", "accept", "return", "jump", "goto", "dnat", "masquerade", "vmap", "reject")
    return [line for line in rules if any(word in line for word in verdicts)]


def rate(host: Daemon, outside: Namespace, megabytes: int, *, up: bool) -> float:
    """Mbit/s of a TCP transfer between the guest `one` and the outside."""
    code = (
        "import socket,sys,time\n"
        "s=socket.create_server(('',7001)); print('ready',flush=True); c,_=s.accept()\n"
        "n=0; began=0\n"
        "while True:\n"
        "    d=c.recv(1<<20)\n"
        "    if not d: break\n"
        "    if not began: began=time.monotonic()\n"
        "    n+=len(d)\n"
        "print(n*8/1e6/(time.monotonic()-began))\n"
        if up
        else "import array,fcntl,socket,termios,time\n"
        "s=socket.create_server(('',7001)); print('ready',flush=True); c,_=s.accept(); began=time.monotonic()\n"
        f"c.sendall(bytes({megabytes}<<20)); left=array.array('i',[1])\n"
        "while left[0]: time.sleep(.005); fcntl.ioctl(c,termios.TIOCOUTQ,left)\n"  # until all is acknowledged
        f"print(({megabytes}<<20)*8/1e6/(time.monotonic()-began))\n"
    )
    with subprocess.Popen(outside.argv("python3", "-c", code), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == "ready"
        there = (
            f"dd if=/dev/zero bs=64k count={megabytes * 16} | nc {OUTSIDE} 7001"
            if up
            else f"nc {OUTSIDE} 7001 >/dev/null"
        )
        host.exec("one", "sh", "-c", there, check=False)
        found = server.stdout.read().strip()
    return float(found)


def test_a_cap_holds_both_ways_and_follows_a_change(host: Daemon, outside: Namespace) -> None:
    free = rate(host, outside, 16, up=False)
    host.atoll("nic", "set", "one", "0", "down=40Mbit,up=20Mbit")
    down, up = rate(host, outside, 12, up=False), rate(host, outside, 6, up=True)
    assert free > 60, "without a limit it is much faster"
    assert 40 * 0.85 < down < 40 * 1.06, (free, down, up)
    assert 20 * 0.85 < up < 20 * 1.06, (free, down, up)
    host.atoll("nic", "set", "one", "0", "up=0,down=0")
    assert rate(host, outside, 16, up=False) > 60


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("network create x --subnet 10.77.1.0/25", 6, "overlaps 10.77.1.0/24 of network lan"),
        ("network create x --subnet 198.51.100.0/26", 6, "which this host routes"),
        ("network create x --subnet 10.5.0.0/30", 2, "too large or too small"),
        ("network create x --subnet 10.5.0.1/24", 2, "not a subnet"),
        ("network create x --mode bridged", 2, "--uplink"),
        ("network create x --mode bridged --uplink nothere", 4, "no link nothere"),
        ("network create x --uplink br0", 2, "no uplink"),
        ("network create lan", 5, "already exists"),
        ("network delete lan", 6, "used by one, two"),
        ("network delete default", 6, "default network stays"),
        ("network delete nothere", 4, "there is no network"),
        ("nic add two network=lan,address=10.77.2.5", 2, "outside network lan"),
        ("nic add two network=lan,address=10.77.1.1", 2, "network's own"),
        ("nic add two network=lan,address=10.77.1.255", 2, "network's own"),
        ("nic add one network=lan,address=10.77.1.77", 5, "10.77.1.77 is two's"),
        ("nic add one network=default,mac=02:aa:00:00:00:77", 5, "02:aa:00:00:00:77 is two's"),
        ("nic add one network=default,mac=01:aa:00:00:00:77", 2, "cannot be the MAC"),
        ("nic add one network=default,fast=yes", 2, "no setting of a NIC"),
        ("nic add one network=default,group=nothere", 4, "no group nothere"),
        ("nic remove one 7", 2, "no NIC"),
        ("network forward add two 8081:80", 2, "no port of the host can lead to network lan"),
        ("network forward add one 8081", 2, "no forward"),
        ("network group create x --rule sideways", 2, "no rule"),
        ("network group create x --rule 'ingress icmp/80'", 2, "has no ports"),
        ("network group create x --rule 'ingress any from group:nothere'", 4, "no group nothere"),
        ("network group create x --rule 'ingress tcp/90-80'", 2, "no range"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(
    host: Daemon, outside: Namespace, line: str, code: int, words: str
) -> None:
    before = host.account()
    ran = host.atoll(*shlex.split(line), check=False)
    assert (ran.code, words in ran.err) == (code, True), ran
    assert "hint:" in ran.err
    host.settled_at(before)


def test_a_port_in_use_is_told_and_taken_back(host: Daemon, held: contextlib.ExitStack) -> None:
    assert host.net is not None
    with host.net.entered():
        held.enter_context(socket.create_server(("198.51.100.1", 8082)))
    before = host.account()
    ran = host.atoll("network", "forward", "add", "one", "8082:80", check=False)
    assert ran.code == 6
    assert "8082/tcp of this host is in use" in ran.err
    host.settled_at(before)
    assert nics(host, "one")[0]["forwards"] == []


def test_a_foreign_firewall_is_shown(host: Daemon) -> None:
    assert host.net is not None
    assert "in its way" not in host.atoll("network", "show", "default").out
    chain = "{ type filter hook forward priority 0; policy drop; }"
    host.net.run("nft", f"add table ip filter; add chain ip filter FORWARD {chain}")
    try:
        assert "DOCKER-USER" in host.atoll("network", "show", "default").out
    finally:
        host.net.run("nft", "delete", "table", "ip", "filter")


def test_on_a_bridge_of_the_hosts_and_beside_it(host: Daemon, held: contextlib.ExitStack) -> None:
    """Somebody else's bridge gets a port and nothing else; a link that is none gets a macvtap."""
    net = host.net
    assert net is not None
    server = held.enter_context(namespace("office"))
    net.run("ip", "link", "add", "office", "type", "bridge")
    net.run("ip", "link", "set", "office", "up")
    net.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", server.name)
    net.run("ip", "link", "set", "up0", "master", "office", "up")
    server.run("ip", "addr", "add", "203.0.113.1/24", "dev", "eth0")
    server.run("ip", "link", "set", "eth0", "up")
    before = net.run("ip", "-o", "link", "show", "master", "office")
    host.atoll("network", "create", "office", "--mode", "bridged", "--uplink", "office")
    host.atoll("nic", "add", "two", "network=office")
    until(lambda: "eth1" in host.exec("two", "ls", "/sys/class/net").out, "it has the NIC", 20)
    host.exec("two", "ip", "addr", "add", "203.0.113.2/24", "dev", "eth1")
    assert pings(host, "two", "203.0.113.1")
    host.atoll("nic", "remove", "two", "office")
    host.atoll("network", "delete", "office")
    assert net.run("ip", "-o", "link", "show", "master", "office") == before
    net.run("ip", "link", "del", "office")


def test_what_goes_goes_with_everything(host: Daemon) -> None:
    assert host.net is not None
    host.delete("one", "two")
    host.atoll("network", "delete", "lan")
    assert host.atoll("network", "list", "-q").out.split() == ["default"]
    left = host.net.run("ip", "-o", "link")
    assert f"at{host.tag}-b2" not in left
    assert host.taps() == []
    keys = [key for key in host.records() if "default" not in key]
    assert [key for key in keys if key.split()[1].startswith(("/ports", "/macs", "/host-ports"))] == []
