"""Daemons for live tests: one prepared state directory a session, one daemon for whatever changes little."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.network.naming import run_directory
from tests.kit.daemon import Daemon, daemon, make_base
from tests.kit.lab import Lab
from tests.kit.netns import namespace


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with the image tiny, to begin others as a copy of."""
    assert os.geteuid() == 0, "live tests make network namespaces and control groups: run them as root"
    for tool in ("ip", "nft", "dnsmasq", "qemu-system-x86_64", "qemu-img", "nsenter", "setpriv"):
        assert shutil.which(tool), f"live tests need {tool}: make setup"
    state = tmp_path_factory.mktemp("base")
    make_base(state)
    return state


@pytest.fixture
def fresh(base: Path) -> Iterator[Daemon]:
    """A daemon of this test alone, not started."""
    with daemon(base) as made:
        yield made


@pytest.fixture(scope="session")
def atoll(base: Path) -> Iterator[Daemon]:
    """A running daemon shared by tests that leave it as it was. Its network is up: that stays while it runs."""
    with daemon(base) as made:
        made.start()
        made.launch("first")
        made.delete("first")
        yield made


@pytest.fixture
def clean(atoll: Daemon) -> Iterator[Daemon]:
    """The shared daemon, which has afterwards what it had before."""
    before = atoll.account()
    yield atoll
    atoll.delete(*[name for name, view in atoll.all().items() if view["instance"]["spec"]["kind"] == "container"])
    atoll.settled_at(before)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A host of network namespaces, to try networks in."""
    tmp_path.chmod(0o755)
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(namespace("host"))
        made = Lab(host, tmp_path, stack)
        with host.entered():
            yield made
            shutil.rmtree(run_directory(made.tag).parent, ignore_errors=True)
