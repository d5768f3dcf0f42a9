"""Tables, sections and settings as text."""

from collections.abc import Iterator

import pytest

from atoll.base.errors import Invalid
from atoll.cli import keys, output
from atoll.cli.execute import exec_
from atoll.cli.host import facts
from atoll.cli.output import Column, Section
from atoll.cli.settings import Settings, default_state
from atoll.client import Changes, InstanceSpec

COLUMNS = [Column("NAME", lambda row: row[0]), Column("SIZE", lambda row: row[1], right=True)]


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.write_table(COLUMNS, [("web", "1GiB"), ("日本", "10MiB"), ("a\x1bb\nc", "1B")]) == 3
    assert capsys.readouterr().out == "NAME       SIZE\nweb        1GiB\n日本      10MiB\na\\x1bb c     1B\n"


def test_a_large_table_streams(capsys: pytest.CaptureFixture[str]) -> None:
    shown_before_the_end = []

    def rows() -> Iterator[tuple[str, str]]:
        for number in range(3000):
            if number == 2500:
                shown_before_the_end.append(capsys.readouterr().out.count("\n"))
            yield f"vm{number}", "1GiB"

    assert output.write_table(COLUMNS, rows()) == 3000
    assert shown_before_the_end[0] > 1000


def test_sections(capsys: pytest.CaptureFixture[str]) -> None:
    sections = [
        Section("", [("name", "web"), ("note", "")]),
        Section("empty", [("x", "")]),
        Section("nic", [("0", ("a", "b"))]),
    ]
    output.write_sections(sections)
    assert capsys.readouterr().out == "name: web\n\nnic\n  0: a\n     b\n"


@pytest.mark.parametrize(
    ("format", "shown"),
    [
        ("json", '[\n  {\n    "a": "ü"\n  }\n]\n'),
        ("yaml", "- a: ü\n"),
        ("table", "NAME  SIZE\nü       1B\n"),
    ],
)
def test_formats(format: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": "ü"}]
    columns = [Column("NAME", lambda row: row["a"]), Column("SIZE", lambda _: "1B", right=True)]
    output.emit_rows(Settings(output=format), rows, columns, name=lambda row: row["a"], none="nothing")
    assert capsys.readouterr().out == shown


def test_nothing_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_rows(Settings(output="table"), [], COLUMNS, name=str, none="no instances yet")
    output.emit_rows(Settings(output="json"), [], COLUMNS, name=str, none="no instances yet")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[]\n", "no instances yet\n")


def test_durations() -> None:
    assert output.between("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.120Z") == "120ms"
    assert output.between("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:04.200Z") == "4.2s"
    assert output.between("2026-01-01T00:00:00.000Z", "2026-01-01T00:03:05.000Z") == "3m 5s"
    assert output.between("2026-01-01T00:00:00.000Z", None) == "-"


def test_settings_as_people_write_them() -> None:
    pairs = [
        "cpus=2",
        "memory=1GiB",
        "limits.cpu=1.5",
        "autostart.delay=5m",
        "labels.a.b=c=d",
        "restart=always",
        "host=",
    ]
    assert keys.parse(pairs, InstanceSpec) == {
        "cpus": 2,
        "memory": 1 << 30,
        "limits": {"cpu": 1.5},
        "autostart": {"delay": 300.0},
        "labels": {"a.b": "c=d"},
        "restart": "always",
        "host": None,
    }
    assert keys.parse(["limits.cpu=", "labels.role="], Changes) == {"limits": {"cpu": None}, "labels": {"role": ""}}


def test_every_key_can_be_named() -> None:
    known = keys.known_keys(InstanceSpec)
    assert {"cpus", "memory", "root.size", "limits.cpu", "restart", "autostart.order", "labels."} <= known.keys()
    for struct in (InstanceSpec, Changes):
        for key in keys.known_keys(struct):
            with pytest.raises(Invalid) as refused:
                keys.parse([f"{key[:-1]}#=x"], struct)
            assert refused.value.hint


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("cpus=two", "a whole number"),
        ("cpus=0", "it must be a whole number >= 1"),
        ("forkable=maybe", "true or false"),
        ("machine=vax", "one of auto, q35, pc, microvm"),
        ("autostart.delay=soon", "write it as 90s, 5m or 2h"),
    ],
)
def test_wrong_values(pair: str, hint: str) -> None:
    with pytest.raises(Invalid) as refused:
        keys.parse([pair], InstanceSpec)
    assert refused.value.hint == hint
    assert refused.value.field == pair.partition("=")[0]


@pytest.mark.parametrize(
    ("given", "parted"),
    [
        ("web ls -l", "web -- ls -l"),
        ("-e A=B web ls -e", "-e A=B web -- ls -e"),
        ("web --timeout 5s ls", "web --timeout 5s -- ls"),
        ("-n web", "-n web"),
    ],
)
def test_exec_knows_where_the_program_begins(given: str, parted: str) -> None:
    assert exec_._parted(given.split()) == parted.split()


def test_facts_of_any_shape() -> None:
    told = {"kernel": "6.1", "memory": {"total": 8 << 30, "numa": [{"id": 0, "memory": 8 << 30}]}, "parts": [
        {"name": "nbd", "state": "missing", "costs": "no NBD export", "get": ""}], "kvm": False}  # fmt: skip
    sections = facts(told)
    assert sections[0] == Section("", [("kernel", ["6.1"]), ("kvm", ["no"])])
    assert sections[1].rows[0] == ("total", ["8GiB"])
    assert sections[2] == Section("parts", [("nbd", ["state: missing", "costs: no NBD export"])])


def test_where_state_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_STATE", "/x")
    assert default_state() == "/x"
    monkeypatch.delenv("ATOLL_STATE")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_state() == "/var/lib/atoll"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/home/a/data")
    assert default_state() == "/home/a/data/atoll"
