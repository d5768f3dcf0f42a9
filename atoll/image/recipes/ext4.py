"""Making an ext4 disk from a tree, without root, loop devices or mounting, the same bytes each time.

mke2fs makes it empty and debugfs fills it: everything then belongs to root, whoever builds it, and has the one
time given. (`mke2fs -d` would copy the builder's uid and today's change time.)
"""

import re
from pathlib import Path

from atoll.base.errors import Broken
from atoll.base.ids import Bytes
from atoll.base.units import MiB
from atoll.host.run import run
from atoll.image.recipes.tree import Kind, Tree

# Spelled out: /etc/mke2fs.conf differs between hosts, and kernels older than this host's tools must mount it.
_FEATURES = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
_JOURNAL = 16  # MiB
_PLAIN = re.compile(r"[^\s\"'\\]+")
_BANNER = re.compile(r"debugfs \d[^\n]*\n?")
_TIMEOUT = 120.0


async def make(tree: Tree, image: Path, *, size: Bytes, uuid: str, label: str, time: int) -> None:
    """A raw image of `size` bytes (sparse), one file system over the whole disk. `time`: seconds of the epoch."""
    script = image.with_suffix(".debugfs")
    script.write_text("".join(f"{line}\n" for line in _commands(tree)))
    # Both tools take the current time from this variable where it is set.
    env = {"E2FSPROGS_FAKE_TIME": str(time), "MKE2FS_CONFIG": "/dev/null"}
    options = f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    with image.open("wb") as stream:
        stream.truncate(size)
    try:
        layout = ["-b", "4096", "-I", "256", "-i", "16384", "-O", _FEATURES, "-J", f"size={_JOURNAL}"]
        names = ["-L", label, "-U", uuid, "-E", options]
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", *layout, *names, str(image), f"{size // MiB}M"]
        await run(argv, env=env, timeout=_TIMEOUT)
        filled = await run(["debugfs", "-w", "-f", str(script), str(image)], env=env, timeout=_TIMEOUT)
    finally:
        script.unlink()
    # debugfs goes on after an error, and ends with 0.
    if complaint := _BANNER.sub("", filled.stderr.decode(errors="replace")).strip():
        raise Broken(f"the file system could not be filled: {complaint.splitlines()[0]}")


def _commands(tree: Tree) -> list[str]:
    """What debugfs shall do. Its `write` knows only names in the current directory."""
    lines: list[str] = []
    here = ""
    for path, node in tree:
        folder, _, name = path.rpartition("/")
        if folder != here:
            here = folder
            lines.append(f"cd /{_word(folder) if folder else ''}")
        match node.kind:
            case Kind.DIRECTORY:
                lines.append(f"mkdir {_word(name)}")
                if node.mode != 0o755:
                    lines.append(f"set_inode_field {_word(name)} mode 0{0o040000 | node.mode:o}")
            case Kind.FILE:
                lines.append(f"write {_word(str(node.source))} {_word(name)}")
            case Kind.LINK:
                lines.append(f"symlink {_word(name)} {_word(node.target)}")
    return lines


def _word(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise Broken(f"{text!r} cannot be written to a file system here: it holds spaces or quotes")
    return text
