"""A root file system in the making.

Nothing is ever written to the paths it names: contents lie in numbered files of a spool directory, so that no
package can place anything outside, whatever its paths and links say. Everything belongs to root.
"""

import posixpath
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from atoll.base.errors import Broken
from atoll.host import debs

_MERGED = {"bin": "usr/bin", "sbin": "usr/bin", "usr/sbin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}
"""All programs in one directory, all libraries under /usr: the old places are links to it."""
_LINKS = 16  # more in a row than this is a loop


class Kind(StrEnum):
    DIRECTORY = "directory"
    FILE = "file"
    LINK = "link"


class Node(msgspec.Struct, frozen=True):
    """`source`: the host's file with a file's content. `target` of a link as it is written."""

    kind: Kind
    mode: int = 0o755
    source: Path = Path()
    target: str = ""


class Tree:
    """Nodes by path, without a leading slash. A node's directories come with it."""

    def __init__(self, spool: Path) -> None:
        spool.mkdir(parents=True, exist_ok=True)
        self._spool = spool
        self._count = 0
        self.nodes: dict[str, Node] = {}

    def add(self, path: str, node: Node) -> None:
        parts = canonical(path).split("/")
        for depth in range(1, len(parts)):
            self.nodes.setdefault("/".join(parts[:depth]), Node(Kind.DIRECTORY))
        self.nodes["/".join(parts)] = node

    def directory(self, path: str, mode: int = 0o755) -> None:
        self.add(path, Node(Kind.DIRECTORY, mode))

    def link(self, path: str, target: str) -> None:
        self.add(path, Node(Kind.LINK, 0o777, target=target))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._count += 1
        source = self._spool / str(self._count)
        source.write_bytes(data)
        source.chmod(mode)
        self.add(path, Node(Kind.FILE, mode, source))

    def merge_links(self) -> None:
        for path, target in _MERGED.items():
            self.directory(target)
            self.nodes[path] = Node(Kind.LINK, 0o777, target=posixpath.relpath(target, posixpath.dirname(path)))

    def unpack(self, package: Path, wants: Callable[[str], bool]) -> None:
        """The files and links of a Debian package whose canonical path is wanted. Blocking."""
        for member, content in debs.unpack(package):
            if member.isdir():
                continue
            path = canonical(member.name)
            if not wants(path):
                continue
            if content is not None:
                self.file(path, content.read(), member.mode & 0o7777)
            elif member.issym():
                self.link(path, member.linkname)
            elif member.islnk() and (linked := self.nodes.get(canonical(member.linkname))):
                self.add(path, linked)
            else:
                raise Broken(f"{package.name} holds /{path}, which is neither a file nor a link")

    def find(self, path: str) -> tuple[str, Node] | None:
        """What a path leads to after its last links, and where that is."""
        for _ in range(_LINKS):
            path = canonical(path)
            node = self.nodes.get(path)
            if node is None or node.kind is not Kind.LINK:
                return (path, node) if node else None
            path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), node.target))
        return None

    def read(self, path: str) -> bytes:
        found = self.find(path)
        if found is None or found[1].kind is not Kind.FILE:
            raise Broken(f"the packages hold no /{path.lstrip('/')}")
        return found[1].source.read_bytes()

    def take(self, other: "Tree", path: str, at: str = "") -> None:
        """That file of another tree, here; where it is reached through a link, the file under the link's name."""
        found = other.find(path)
        if found is None:
            raise Broken(f"the packages hold no /{path.lstrip('/')}")
        self.add(at or path, found[1])

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        """In an order in which each directory comes before what is in it."""
        return iter(sorted(self.nodes.items()))


def canonical(path: str) -> str:
    """Without a leading slash or `./`, in the merged directories. Raises `Broken` for one that climbs."""
    plain = path.removeprefix("./").strip("/")
    if not plain or any(part in ("", ".", "..") for part in plain.split("/")):
        raise Broken(f"{path!r} is not a path that a package may hold")
    for old, new in _MERGED.items():
        if plain.startswith(f"{old}/"):
            return canonical(f"{new}/{plain.removeprefix(f'{old}/')}")
    return plain
