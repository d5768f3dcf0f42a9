"""Recipes by name."""

from collections.abc import Mapping

from atoll.image.recipes import tiny
from atoll.image.recipes.recipe import Recipe

RECIPES: Mapping[str, Recipe] = {"tiny": tiny.build}
