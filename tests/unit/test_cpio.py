"""The archive as cpio itself reads it."""

import re
import stat
from pathlib import Path

import pytest

from atoll.base.errors import Invalid
from atoll.host.cpio import Entry, archive, character_device, directory, file, symlink
from atoll.host.run import run

TREE = (
    directory("dev"),
    character_device("dev/console", 5, 1),
    directory("bin", 0o700),
    file("bin/hello", b"#!/bin/sh\necho hello\n", 0o755),
    file("bin/empty", b""),
    symlink("bin/hi", "hello"),
)


async def listing(data: bytes) -> dict[str, list[str]]:
    text = (await run(["cpio", "-itvn", "--quiet"], input=data)).text
    return {
        line.split()[-1] if " -> " not in line else line.split()[-3]: line.split() for line in text.splitlines()
    }


async def test_cpio_lists_it() -> None:
    seen = await listing(archive(TREE))
    assert list(seen) == [entry.path for entry in TREE]
    assert {name: words[0] for name, words in seen.items()} == {
        "dev": "drwxr-xr-x",
        "dev/console": "crw-------",
        "bin": "drwx------",
        "bin/hello": "-rwxr-xr-x",
        "bin/empty": "-rw-r--r--",
        "bin/hi": "lrwxrwxrwx",
    }
    assert all(words[2:4] == ["0", "0"] for words in seen.values())
    assert re.sub(r"\s", "", " ".join(seen["dev/console"][4:6])) == "5,1"


@pytest.mark.parametrize("size", range(9))
async def test_files_of_every_alignment_come_back(tmp_path: Path, size: int) -> None:
    name, data = "n" * (size + 1), bytes(range(size))
    await run(["cpio", "-id", "--quiet"], input=archive([file(name, data), file("last", b"x")]), cwd=tmp_path)
    assert (tmp_path / name).read_bytes() == data
    assert (tmp_path / "last").read_bytes() == b"x"


async def test_the_same_entries_give_the_same_whole_blocks() -> None:
    assert archive(TREE) == archive(list(TREE))
    assert len(archive(TREE)) % 512 == 0


@pytest.mark.parametrize("path", ["", "/etc", "a//b", "../a", "a/./b", "a/"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(Invalid):
        archive([Entry(path, stat.S_IFREG | 0o644)])


def test_a_path_comes_once() -> None:
    with pytest.raises(Invalid):
        archive([file("a", b""), file("a", b"")])
