"""The process: reads a tar stream from standard input, writes the tree, and tells on standard output what it found.

Its argument is JSON (`Order`'s fields), its answer one JSON object: `{"facts": ...}` or `{"error": CODE, "message":
...}`. The first process keeps root only to write the maps of the second, which does the work.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass

from atoll.host.unpack import walls
from atoll.host.unpack.survey import survey
from atoll.host.unpack.tarstream import Archive, Hostile
from atoll.host.unpack.tree import Bounds, Full, Tree

_MEMORY = 1 << 30


@dataclass(frozen=True)
class Order:
    """`target`: an empty directory; `first`, `count`: the ids that its files get; `largest`: bytes that all of them
    may have; `reserve`: bytes of the file system that stay free; `cpu`: seconds."""

    target: str
    first: int
    count: int
    largest: int
    reserve: int
    cpu: int


def main() -> None:
    order = Order(**json.loads(sys.argv[-1]))
    walls.die_with_parent()
    tree = os.open(order.target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    ready, its_ready = os.pipe()
    its_go, go = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(ready)
        os.close(go)
        os._exit(_work(order, tree, its_ready, its_go))
    os.close(its_ready)
    os.close(its_go)
    if os.read(ready, 1):
        walls.write_maps(worker, order.first, order.count)
        os.write(go, b"y")
    os.close(go)
    _, status = os.waitpid(worker, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _work(order: Order, tree: int, ready: int, go: int) -> int:
    try:
        walls.die_with_parent()
        walls.unshare(tree)
        os.write(ready, b"y")
        if os.read(go, 1) != b"y":
            return 1
        walls.shut_in()
        walls.bound(memory=_MEMORY, cpu=order.cpu, largest=order.largest)
        walls.drop()
        sys.meta_path.clear()  # a module that is not loaded yet would be the tree's
    except OSError as error:
        return _say(error="lacking", message=f"no cell can be made here: {error.strerror} (user namespaces)")
    try:
        told = _unpack(order)
    except Hostile as error:
        return _say(error="invalid", message=str(error))
    except (MemoryError, RecursionError, OverflowError, ValueError) as error:
        return _say(error="invalid", message=f"it is made to do harm ({type(error).__name__})")
    except Full as error:
        return _say(error="exhausted", message=str(error))
    except OSError as error:
        return _say(error=f"errno {error.errno}", message=error.strerror or str(error))
    except Exception as error:  # its traceback would be sought in the tree
        return _say(error="broken", message=f"{type(error).__name__}: {error}"[:300])
    return _say(facts=told)


def _unpack(order: Order) -> dict[str, object]:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = Tree(root, Bounds(bytes=order.largest, reserve=order.reserve))
    with os.fdopen(0, "rb", buffering=1 << 20) as stream:
        tree.take(Archive(stream))
    found = survey("/")
    walls.sync(root)
    return asdict(tree.counted) | found


def _say(**told: object) -> int:
    os.write(1, json.dumps(told).encode())
    return 0
