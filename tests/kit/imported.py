"""What live tests of images share: what lies there, how a refusal reads, as it was before."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from tests.kit.daemon import Daemon, Ran

IMAGES = "/v1/projects/default/images"


def content(atoll: Daemon) -> list[str]:
    return sorted(str(path) for path in (atoll.state / "images").rglob("*") if path.is_file())


@contextlib.contextmanager
def as_before(atoll: Daemon) -> Iterator[None]:
    """What a test brought is taken away again, and nothing of it is left."""
    before = content(atoll)
    yield
    for image in atoll.http("GET", IMAGES).json:
        if image["name"] != "tiny":
            atoll.do("DELETE", f"{IMAGES}/{image['name']}")
    assert content(atoll) == before


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(ran: Ran, code: int, *told: str) -> None:
    assert ran.code == code, ran
    lines = [line.partition(" ")[0] for line in ran.err.splitlines()[-2:]]
    assert lines == ["error:", "hint:"], ran.err
    for words in told:
        assert words in ran.err, ran.err
