"""Recipes: named functions that return a full run config. A new one is a function with `@recipe`, in any module here.

Nothing in this package imports torch, so that `turnout train RECIPE --help` is instant.
"""

from turnout.recipes.registry import Recipe, get_recipe, recipe, recipe_names

__all__ = ["Recipe", "get_recipe", "recipe", "recipe_names"]
