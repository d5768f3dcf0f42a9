"""Recipes by name. A name may hold a slash (`debian/12`); the image it makes is then `debian-12`."""

from collections.abc import Mapping

from atoll.image.recipes import debian, tiny, ubuntu
from atoll.image.recipes.recipe import Recipe


def recipes(archive: ubuntu.Archive) -> Mapping[str, Recipe]:
    """All, with Ubuntu's from that archive."""
    return {"tiny": tiny.build, **debian.RECIPES, **ubuntu.recipes(archive)}


RECIPES: Mapping[str, Recipe] = recipes(ubuntu.Archive())
"""As they are without settings."""
