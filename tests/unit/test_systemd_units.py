"""The unit files: a stop of the daemon is never a stop of its guests."""

import configparser
from pathlib import Path

import pytest

from atoll.host.scopes import GUESTS_UNIT

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"


def read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", sorted(UNITS.iterdir()), ids=lambda path: path.name)
def test_nothing_ends_with_another_unit(path: Path) -> None:
    for section in read(path).values():
        assert not {"Requires", "BindsTo", "PartOf", "Requisite", "StopPropagatedFrom"} & section.keys()


def test_guests_are_stopped_while_the_daemon_and_their_scopes_are_there() -> None:
    unit = read(UNITS / GUESTS_UNIT)
    assert unit["Unit"]["After"] == "atoll.service"
    assert unit["Service"]["ExecStop"].endswith("atoll down --guests")


def test_the_daemon_leaves_processes_alone() -> None:
    assert read(UNITS / "atoll.service")["Service"]["KillMode"] == "process"
