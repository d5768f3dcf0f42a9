"""Recipes by name. A name may hold a slash (`debian/12`); the image it makes is then `debian-12`."""

from collections.abc import Mapping

from atoll.image.recipes import debian, tiny
from atoll.image.recipes.recipe import Recipe

RECIPES: Mapping[str, Recipe] = {"tiny": tiny.build, **debian.RECIPES}
