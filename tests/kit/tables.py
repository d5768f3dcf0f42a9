"""Tables of the documentation that are made from the code: `python -m tests.kit.tables` writes them into the pages.

Each stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; tests/unit/test_docs.py checks that they are so.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import atoll.image.imports
import atoll.image.verbs
import atoll.storage.verbs.pools
import atoll.storage.verbs.volumes
from atoll.instance.model import MAY_FOLLOW
from atoll.instance.verbs import change, delete, disks, exporting, importing, launch, power
from atoll.operation.verb import Recovery

DOCS = Path(__file__).parents[2] / "docs"
VERBS = (
    launch, power, change, delete, exporting, importing, disks, atoll.image.verbs, atoll.image.imports,
    atoll.storage.verbs.volumes, atoll.storage.verbs.pools,
)  # fmt: skip


def states() -> str:
    rows = (f"| `{state}` | {', '.join(sorted(after)) or 'nothing'} |" for state, after in MAY_FOLLOW.items())
    return "\n".join(["| state | may become |", "| --- | --- |", *rows])


def verbs() -> list[Any]:
    """Every class that is a verb, in the order of their files."""
    found: list[Any] = []
    for module in VERBS:
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and isinstance(getattr(kind, "steps", None), dict):
                found.append(kind)
    return found


def recovery() -> str:
    rows = []
    for verb in sorted(verbs(), key=lambda kind: str(kind.name)):
        parts = []
        for rule in Recovery:
            steps = [f"`{step}`" for step, of in verb.steps.items() if of is rule]
            parts.append(", ".join(steps))
        rows.append(f"| `{verb.name}` | {' | '.join(parts)} |")
    return "\n".join(
        [
            "| verb | taken back at | finished from | resumed, while the daemon does other things |",
            "| --- | --- | --- | --- |",
            *sorted(rows),
        ]
    )


TABLES = {"instance.md": {"states": states}, "operation.md": {"recovery": recovery}}


def filled(page: str, text: str) -> str:
    """The page's text with its tables as the code has them."""
    for name, make in TABLES.get(page, {}).items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        fresh = f"{begin}\n{make()}\n{end}"
        text, count = re.subn(f"{begin}.*?{end}", lambda _, fresh=fresh: fresh, text, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, f"{page} has no place for {name}"
    return text


def main() -> None:
    for page in TABLES:
        path = DOCS / page
        path.write_text(filled(page, path.read_text()))


if __name__ == "__main__":
    main()
