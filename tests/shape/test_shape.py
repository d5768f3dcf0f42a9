"""The shape of the code is a test: who may import whom, and how long a file or a function may be."""

import ast
from pathlib import Path

import pytest

from atoll.base.errors import BY_CODE, AtollError

TOP = Path(__file__).parents[2]
ROOT = TOP / "atoll"
FLOORS = [
    "base", "host store", "operation", "storage network", "image", "instance", "client", "api cli", "daemon",
]  # fmt: skip
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
ONLY_CLIENT = {"cli": {"base", "client", "cli"}}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py")
ALL = sorted([*ROOT.rglob("*.py"), *(TOP / "tests").rglob("*.py"), *(TOP / "bench").rglob("*.py")])
LINES, FUNCTION = 400, 60


def name_of(path: Path) -> str:
    return str(path.relative_to(TOP))


def imported(path: Path) -> set[str]:
    """The floors of Atoll that a file imports, wherever in it the import stands."""
    tree = ast.parse(path.read_text())
    found = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    found |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return {m.split(".")[1] for m in found if m.startswith("atoll.")}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0]
    if here in ("__main__.py",):
        return
    wrong = {there for there in imported(path) if there != here and FLOOR[there] >= FLOOR[here]}
    assert not wrong, f"{name_of(path)}: {here} may not import {wrong}"
    if here in ONLY_CLIENT:
        assert imported(path) <= ONLY_CLIENT[here], f"{name_of(path)}: {here} uses only the client"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES, f"{name_of(path)} says more than one thing"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            long = node.end_lineno - node.lineno + 1
            assert long <= FUNCTION, f"{name_of(path)}: {node.name} has {long} lines"


def test_every_floor_is_named() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(FLOOR)


def test_no_folder_is_empty() -> None:
    for folder in [p for p in ROOT.rglob("*") if p.is_dir() and p.name != "__pycache__"]:
        assert [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc" and p.name != "__init__.py"], (
            folder
        )


def test_every_error_has_an_http_status_and_an_exit_code() -> None:
    from atoll.api.errors import STATUS
    from atoll.cli.errors import EXIT

    leaves = set(AtollError.__subclasses__())
    assert set(BY_CODE.values()) == leaves
    assert set(STATUS) == leaves
    assert set(EXIT) >= set(BY_CODE)
