"""Help texts, made from the dataclasses themselves: names, defaults and the lines of their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from turnout.cli.flags import Flags
from turnout.cli.numbers import setting
from turnout.config import to_dict

_INDENT = 30
_SECTION = re.compile(r"^\s*(Args|Attributes):\s*$")


def overview(verbs: Mapping[str, str]) -> str:
    """`turnout --help`."""
    lines = ["usage: turnout VERB [...]", "", "Routed attention: which tokens attend, and what that really saves.", ""]
    lines += [f"  {verb:<11} {summary}" for verb, summary in verbs.items()]
    lines += [
        "",
        "Every verb takes --help, --json (one JSON document) and --debug (tracebacks).",
        "Start with `turnout demo`, or `turnout train text --task.path FILE` on a text of your own.",
    ]
    return "\n".join(lines)


def verb_help(verb: str, cls: type[Flags], words: list[str]) -> str:
    """`turnout VERB --help`; for a verb that takes settings, those of the recipe among `words` or the defaults."""
    docs = field_docs(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    words_of = [_metavar(name, fields[name], required) for name in cls.positional]
    usage = " ".join(["usage: turnout", verb, *words_of, "[options]", *(["[--SETTING VALUE ...]"] * cls.overridable)])
    lines = [usage, "", *_paragraphs(cls), ""]
    lines += [line for name in cls.positional for line in _entry(name.upper(), docs.get(name, ""))]
    for name, field in sorted(fields.items(), key=lambda item: item[0] in ("json", "debug")):
        if name not in cls.positional:
            default = field.default
            value = "" if default is False else f" {name.upper() if default in (None, '') else default}"
            lines += _entry(f"--{name.replace('_', '-')}{value}", docs.get(name, ""))
    if cls.overridable:
        lines += ["", *settings_help(verb, words)]
    return "\n".join(lines)


def settings_help(verb: str, words: list[str]) -> Iterator[str]:
    """Every setting of a run config with its default and what it means."""
    from turnout.recipes import get_recipe, recipe_names
    from turnout.train.config import RunConfig

    name = next((word for word in words if word in recipe_names()), "demo" if verb == "demo" else None)
    config = RunConfig() if name is None else get_recipe(name).example()
    yield f"Settings and their defaults in recipe {name}:" if name else "Settings and their defaults:"
    yield from _settings(config, "")
    if name is None:
        yield ""
        yield f"Recipes change defaults: turnout {verb} RECIPE --help. Recipes: {', '.join(recipe_names())}."


def field_docs(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say about each field.

    Read from the section `Args:` or `Attributes:`, entries `name: text` or `name, other: text`; one line may hold
    several, `heads: query heads; kv_heads: key/value heads`.
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _documented(base, [field.name for field in dataclasses.fields(cls)])
    return docs


def _documented(cls: type, names: list[str]) -> dict[str, str]:
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    start = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    text = "\n".join(_until_dedent(lines[start + 1 :]))
    word = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    heading = re.compile(rf"(?:^ *|; )((?:{word})(?:, (?:{word}))*): ", re.MULTILINE)
    pieces = heading.split(text)[1:]
    docs: dict[str, str] = {}
    for heads, body in zip(pieces[::2], pieces[1::2], strict=True):
        docs |= dict.fromkeys(heads.split(", "), " ".join(body.split()).removesuffix("."))
    return docs


def _until_dedent(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if line and not line.startswith(" "):
            return
        yield line


def _settings(config: Any, prefix: str) -> Iterator[str]:
    docs = field_docs(type(config))
    plain = to_dict(config)
    if "kind" in plain:
        yield from _entry(f"--{prefix}kind {plain['kind']}", f"one of {', '.join(_kinds(prefix))}")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield ""
            yield from _settings(value, f"{prefix}{field.name}.")
        elif prefix or field.name != "name":
            yield from _entry(f"--{prefix}{field.name} {setting(value)}", docs.get(field.name, ""))


def _kinds(prefix: str) -> list[str]:
    """Kinds that the tagged union at `prefix` of a run config may have."""
    import typing

    from turnout.train.config import RunConfig

    members = typing.get_args(typing.get_type_hints(RunConfig)[prefix.rstrip(".")])
    return [member.kind for member in members]


def _entry(head: str, doc: str) -> list[str]:
    width = max(_INDENT + 30, min(120, shutil.get_terminal_size((110, 24)).columns))
    body = textwrap.wrap(doc, width - _INDENT)
    head = f"  {head}"
    if len(head) >= _INDENT - 1 or not body:
        return [head, *(" " * _INDENT + line for line in body)]
    return [head.ljust(_INDENT) + body[0], *(" " * _INDENT + line for line in body[1:])]


def _metavar(name: str, field: dataclasses.Field[Any], required: set[str]) -> str:
    shown = f"{name.upper()} ..." if "tuple" in str(field.type) else name.upper()
    return shown if name in required else f"[{shown}]"


def _paragraphs(cls: type) -> list[str]:
    """The docstring up to its fields."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    end = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    return "\n".join(lines[:end]).strip().splitlines()
