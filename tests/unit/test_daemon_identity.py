"""Who this host is: made once, never quietly made anew."""

from pathlib import Path

import pytest

from atoll.base.errors import Broken
from atoll.daemon import compose, identity
from atoll.store.memory import MemoryStore


def test_it_stays(tmp_path: Path) -> None:
    assert identity.load(tmp_path) == identity.load(tmp_path)


def test_one_that_was_lost_is_not_made_anew(tmp_path: Path) -> None:
    """Another id would be another Atoll: its guests, links and cgroups would be nobody's."""
    identity.load(tmp_path)
    (tmp_path / "local.db").touch()
    (tmp_path / "host.json").unlink()
    with pytest.raises(Broken, match=r"host\.json"):
        identity.load(tmp_path)


async def test_a_restart_of_the_host_is_owed_until_its_instances_were_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = MemoryStore()
    boot = "first"
    monkeypatch.setattr(identity, "boot_id", lambda: boot)
    assert await compose.started(local) == (1, False)
    assert await compose.started(local) == (2, False)
    boot = "second"
    assert await compose.started(local) == (3, True)
    assert await compose.started(local) == (4, True), "the daemon ended before it had started them"
    await compose.boot_done(local)
    assert await compose.started(local) == (5, False)
