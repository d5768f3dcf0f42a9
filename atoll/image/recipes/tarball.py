"""A tree as a tar archive: sorted, of one time, all root's, so that the same tree gives the same bytes."""

import io
import tarfile
from pathlib import Path

from atoll.image.recipes.tree import Kind, Tree

_TYPES = {Kind.DIRECTORY: tarfile.DIRTYPE, Kind.FILE: tarfile.REGTYPE, Kind.LINK: tarfile.SYMTYPE}


def write(tree: Tree, to: Path, *, time: int) -> None:
    """Blocking. `time`: of every file, in seconds since 1970."""
    with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as archive:
        for path, node in tree:
            member = tarfile.TarInfo(path)
            member.type, member.mode, member.mtime, member.linkname = (
                _TYPES[node.kind],
                node.mode,
                time,
                node.target,
            )
            data = node.source.read_bytes() if node.kind is Kind.FILE else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
