"""The layers of a disk, from the header of its file.

A guest's QEMU may write to its own volume, and so to its header: what stands there is checked, never followed
blindly. No tool is asked, and nothing is guessed: a layer without a format is an error, and so is one that lies
where no layer of this pool can lie.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from atoll.base.errors import Absent, Broken, Invalid
from atoll.host.inspector.qcow2 import header
from atoll.host.inspector.window import window
from atoll.storage.model import Layer

DEEPEST = 32
FORMATS = frozenset({"raw", "qcow2"})


def read_layers(path: Path, format: str, within: Sequence[Path]) -> tuple[Layer, ...]:
    """Of the file at `path`, top first; those below it read-only. `within`: the directories in which layers below
    it may lie; none: anywhere. Blocks. Raises Absent (any of them), Broken.
    """
    layers = [Layer(str(path), format)]
    while layers[-1].format == "qcow2":
        if len(layers) > DEEPEST:
            raise Broken(f"{path} stands on more than {DEEPEST} layers")
        below = _below(Path(layers[-1].uri), within)
        if below is None:
            break
        if below.uri in {layer.uri for layer in layers}:
            raise Broken(f"{path} stands on itself")
        layers.append(below)
    if not os.path.exists(layers[-1].uri):
        raise Absent(f"there is no file {layers[-1].uri}")
    return tuple(layers)


def _below(path: Path, within: Sequence[Path]) -> Layer | None:
    try:
        with window(path) as seen:
            found = header(seen)
    except Invalid as error:
        raise Broken(f"{path} is damaged: {error.message}") from error
    if found.data_file or found.encrypted:
        raise Broken(f"{path} is not as it was made: it names {found.data_file[:200]!r} for its data")
    if not found.backing:
        return None
    if found.backing_format not in FORMATS:
        said = found.backing_format[:40]
        raise Broken(f"{path} does not say which format the layer below it has ({said!r}): it is not guessed")
    there = os.path.normpath(path.parent / found.backing)
    real = Path(os.path.realpath(there))
    if within and not any(real.is_relative_to(os.path.realpath(folder)) for folder in within):
        raise Broken(f"{path} is not as it was made: it stands on {there[:200]}", hint="restore it from a backup")
    return Layer(there, found.backing_format, read_only=True)
