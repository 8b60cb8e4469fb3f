"""The registry of recipes: `@recipe` enters a function, its module is found by being in this package.

@recipe("recall", "one pair at the start of 128 tokens, asked for at the end")
def recall(seed: int = 0) -> RunConfig: ...

get_recipe("recall").config({"model.layers": "2"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from turnout.config import apply_overrides
from turnout.errors import ConfigError
from turnout.spec import Registry
from turnout.train.config import RunConfig

F = TypeVar("F", bound=Callable[..., RunConfig])

RECIPES = Registry("recipe", "turnout.recipes")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named run config.

    Attributes:
        name: on the command line and in lists.
        summary: one line, what it shows.
        build: the function; its optional parameters are for Python callers.
        needs: settings without a default, {parameter of `build`: dotted key}; only the user knows them.
    """

    name: str
    summary: str
    build: Callable[..., RunConfig]
    needs: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> RunConfig:
        """What `build` returns."""
        return self.build(*args, **kwargs)

    def config(self, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """The config with dotted keys replaced: `{"model.layers": "4"}`.

        Raises:
            ConfigError: a needed setting is missing, a key is unknown (names the nearest), a value is impossible.
        """
        settings = dict(overrides or {})
        arguments = {}
        for parameter, key in self.needs.items():
            if key not in settings:
                raise ConfigError(f"recipe {self.name!r} needs {key}, which has no default; add --{key} VALUE")
            arguments[parameter] = settings.pop(key)
        return apply_overrides(self.build(**arguments), settings)

    def example(self, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Like `config`, to be shown and not run: a needed setting that is missing reads `<needed>`."""
        return self.config({**dict.fromkeys(self.needs.values(), "<needed>"), **(overrides or {})})


def recipe(name: str, summary: str, *, needs: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Decorator that enters a function under `name`; the function itself stays as it is.

    Args:
        name: unique.
        summary: one line, what it shows.
        needs: required parameters of the function and the config keys that set them, `{"path": "task.path"}`.
    """

    def enter(build: F) -> F:
        RECIPES.register(name)(Recipe(name, summary, build, dict(needs or {})))
        return build

    return enter


def recipe_names() -> tuple[str, ...]:
    """All recipes, sorted."""
    return RECIPES.names()


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; an unknown name is a ConfigError that names the nearest."""
    found = RECIPES.get(name)
    if not isinstance(found, Recipe):
        raise ConfigError(f"recipe {name!r} is {found!r}; enter recipes with @recipe")
    return found
