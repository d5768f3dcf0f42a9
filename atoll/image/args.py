"""What each image verb takes: the API's request bodies with the project and name of their path."""

import msgspec


class BuildArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Build `recipe` under `name`. `refresh`: of the newest packages, though what is in the cache would do."""

    project: str
    name: str
    recipe: str
    refresh: bool = False


class ImageArgs(msgspec.Struct, frozen=True, kw_only=True):
    """delete."""

    project: str
    name: str


class RenameImageArgs(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str
    to: str


class PruneArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Remove what no name and no instance uses."""

    project: str
