"""Words of a command line to a verb's options, typed by the dataclass that declares them.

    --length 64  --length=64  --dry-run        a field `length: int | None`, a field `dry_run: bool`
    --model.layers 4  --seed=1                 a config override, for verbs that take them
    RUN                                        the fields that `positional` names, in order; a tuple takes the rest

The types and messages are those of turnout.config, so a flag fails as a config field does.
"""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from turnout.config import convert, flatten
from turnout.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """What every verb takes.

    Args:
        json: print exactly one JSON document.
        debug: print the traceback of an error.
    """

    positional: ClassVar[tuple[str, ...]] = ()
    overridable: ClassVar[bool] = False
    json: bool = False
    debug: bool = False


O_co = TypeVar("O_co", bound=Flags, covariant=True)
O = TypeVar("O", bound=Flags)  # noqa: E741


@dataclass(frozen=True, slots=True)
class Call(Generic[O_co]):
    """One parsed command line.

    Attributes:
        options: the verb's own.
        overrides: dotted config key to text.
        command: the whole line, for manifests.
    """

    options: O_co
    overrides: dict[str, str]
    command: str

    def refuse_overrides(self, why: str) -> None:
        """Raise ConfigError when settings were given where they would have no effect."""
        if self.overrides:
            raise ConfigError(f"--{next(iter(self.overrides))} has no effect here: {why}; leave it out")


def parse(cls: type[O], verb: str, words: Sequence[str]) -> Call[O]:
    """Read the words after `turnout VERB`.

    Raises:
        ConfigError: unknown, repeated or missing flag (names the nearest), wrong type, too many words.
    """
    hints = _hints(cls)
    given: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            plain += rest
            break
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise ConfigError(f"unknown option {word}; options start with two dashes, see turnout {verb} --help")
            plain.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        name = key.replace("-", "_")
        own = name in hints and name not in cls.positional
        if not own:
            _check_override(cls, verb, key, name, hints)
        if own and hints[name] is bool and not equals:
            value = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"option --{key} needs a value; write --{key} VALUE or --{key}=VALUE")
            value = rest.pop(0)
        target: dict[str, Any] = given if own else overrides
        if name in target:
            raise ConfigError(f"option --{key} is given twice ({target[name]!r} and {value!r}); keep one")
        target[name] = convert(value, hints[name], f"--{key}", parse=True) if own else value
    given |= _positionals(cls, verb, plain, hints)
    return Call(cls(**given), overrides, shlex.join(["turnout", verb, *words]))


def setting_names() -> list[str]:
    """Dotted keys of a default run config that the command line may set. `name` is the verb's own flag."""
    from turnout.train.config import RunConfig

    return [key for key in flatten(RunConfig()) if key != "name"]


def _check_override(cls: type[Flags], verb: str, key: str, name: str, hints: dict[str, Any]) -> None:
    """Refuse a flag that is neither the verb's nor, by its first part, a config setting."""
    flags = [flag.replace("_", "-") for flag in hints if flag not in cls.positional]
    settings = setting_names() if cls.overridable else []
    heads = {setting.partition(".")[0] for setting in settings}
    if name.partition(".")[0] in heads:
        return
    hint = nearest(key, [*flags, *settings])
    # All settings in one message help nobody.
    raise ConfigError(f"unknown option --{key}{hint if 'did you mean' in hint else f'; see turnout {verb} --help'}")


def _positionals(cls: type[Flags], verb: str, plain: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    left = list(plain)
    for name in cls.positional:
        many = typing.get_origin(hints[name]) is tuple
        if many:
            given[name], left = tuple(left), []
        elif left:
            given[name] = convert(left.pop(0), hints[name], name.upper(), parse=True)
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    missing = [name for name in required if not given.get(name)]
    if missing:
        raise ConfigError(f"turnout {verb} needs {missing[0].upper()}; see turnout {verb} --help")
    if left:
        takes = " ".join(name.upper() for name in cls.positional) or "no further words"
        raise ConfigError(f"unexpected {left[0]!r}; turnout {verb} takes {takes}, see turnout {verb} --help")
    return given


def _hints(cls: type[Flags]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
