"""What failures look like, and that every one has an exit code."""

import click
import msgspec
import pytest

from atoll.base.errors import BY_CODE, Absent, Bug
from atoll.cli import errors
from atoll.cli.docs import CODES
from atoll.cli.main import main


def test_every_error_has_an_exit_code_of_its_own() -> None:
    codes = {code: errors.EXIT[code] for code in BY_CODE}
    assert len(set(codes.values())) == len(codes)
    assert 0 not in codes.values()
    assert not set(codes.values()) & {errors.EXEC_FAILED, errors.CTRL_C, errors.PIPE_CLOSED}


def test_every_exit_code_is_documented() -> None:
    assert CODES.keys() == errors.EXIT.keys()
    assert all(CODES[code] for code in BY_CODE)


@pytest.mark.parametrize(
    ("error", "code", "exit", "hint"),
    [
        (Absent("no web", hint="did you mean wab?"), "absent", 4, "did you mean wab?"),
        (ValueError("x"), "bug", 70, "ATOLL_TRACEBACK=1 shows where"),
        (TimeoutError(), "unreachable", 3, "look before trying again: the outcome is unknown"),
        (FileNotFoundError(2, "No such file", "/x"), "broken", 1, ""),
        (click.UsageError("Bad thing."), "invalid", 2, "atoll --help"),
    ],
)
def test_anything_becomes_a_failure(error: Exception, code: str, exit: int, hint: str) -> None:
    failure = errors.describe(error)
    assert (failure.code, failure.exit, failure.hint) == (code, exit, hint)


def test_json_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.report(Bug("it broke"), as_json=True) == 70
    told = msgspec.json.decode(capsys.readouterr().err)
    assert told == {"error": {"code": "bug", "message": "it broke", "exit": 70, "hint": "", "field": ""}}


def test_text_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    errors.report(Absent("no \x1b[2Jweb"))
    assert capsys.readouterr().err == "error: no \\x1b[2Jweb\n"


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("lanch tiny", "no such command 'lanch'", "did you mean launch?"),
        ("image biuld x", "no such command 'biuld'", "did you mean build?"),
        ("launch --memroy 1G tiny", "no such option '--memroy'", "did you mean --memory"),
        ("launch", "missing argument 'IMAGE'", "atoll launch --help"),
        ("list -o xml", "invalid value for '-o' / '--output'", "atoll list --help"),
        ("launch tiny web -c 0", "'0' cannot be cpus", "it must be a whole number >= 1"),
        ("launch tiny web -m 12XB", "'12XB' is not a size", "write it as 512MiB, 10GiB or 1.5T"),
        ("launch tiny Web", "'Web' cannot be the name of an instance", "1 to 63 lower-case letters"),
        ("launch tiny --set limit.cpu=2", "there is no setting 'limit.cpu'", "did you mean limits.cpu"),
        ("launch tiny --set restart=often", "'often' cannot be restart", "one of no, on-failure, always"),
        ("set web machine=pc", "machine is not set this way", "it is fixed at birth"),
        ("list --state runing", "there is no state 'runing'", "one of creating, stopped"),
        ("delete", "say which instances to delete", "atoll delete NAME..., or atoll delete --all"),
        ("delete web --all", "give names or --all, not both", ""),
        ("cp a b", "neither side is in an instance", "write it as NAME:/path"),
        ("cp web:etc/motd .", "'etc/motd' is not a whole path in web", "write web:/tmp/etc/motd"),
        ("rename web Web", "'Web' cannot be the new name", ""),
        ("exec web -e X ls", "'X' is not of the form key=value", ""),
        ("events --since x", "'x' is not an event's id", ""),
        ("--server http://x:1 list", "'http://x:1' is not an https:// address", ""),
        ("--server https://x:1 up", "atoll up works on this machine only", ""),
    ],
)
def test_bad_command_lines(line: str, said: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert hint in shown.err
    assert "Traceback" not in shown.err


def test_no_daemon(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--state", str(tmp_path), "list", "-o", "json"]) == errors.EXIT["unreachable"]
    told = msgspec.json.decode(capsys.readouterr().err)["error"]
    assert (told["code"], told["hint"]) == ("unreachable", "start it: atoll up")
