"""Mechanism specs: one string names a mechanism and its options, in configs, on the command line and in legends.

    spec    = name [":" option {"," option}]        linear      random:p=0.01,seed=3      conv:kernel=16,form=signed
    option  = key "=" value
    value   = true | false | integer | decimal | text | "(" text ")"

Parentheses keep a text whole: `shuffled:of=(random:p=0.01,seed=3)`, `label=(3)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from turnout.config import convert
from turnout.errors import ConfigError, nearest

Option = bool | int | float | str
F = TypeVar("F", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_INTEGER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """A parsed spec: the mechanism's name and its options, in the order written."""

    name: str
    options: dict[str, Option] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return format_spec(self)


def parse_spec(text: str) -> Spec:
    """Read a spec string; `parse_spec(format_spec(spec)) == spec`.

    Raises:
        ConfigError: not of the form at the head of this file, or an option is given twice.
    """
    name, colon, rest = text.strip().partition(":")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"spec {text!r} must start with a name; write name or name:key=value,key=value")
    options: dict[str, Option] = {}
    for part in _split(rest, text) if colon else ():
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not _NAME.fullmatch(key) or not value:
            raise ConfigError(f"spec {text!r} has the option {part!r}; write key=value, separated by commas")
        if key in options:
            raise ConfigError(f"spec {text!r} gives {key} twice; keep one")
        options[key] = _parse_value(value, text)
    return Spec(name, options)


def format_spec(spec: Spec) -> str:
    """Write a spec as one string, the inverse of `parse_spec`.

    Raises:
        ConfigError: a name, key or value has no written form (a NaN, unbalanced parentheses).
    """
    parts = [f"{key}={_format_value(value)}" for key, value in spec.options.items()]
    text = spec.name + (":" + ",".join(parts) if parts else "")
    again = parse_spec(text)
    if again != spec or list(map(type, again.options.values())) != list(map(type, spec.options.values())):
        raise ConfigError(f"{spec!r} cannot be written as a spec; {text!r} would read back as {again!r}")
    return text


class Registry:
    """Mechanisms of one kind by name; the modules of `package` register theirs when first asked for.

        ROUTERS = Registry("router", "turnout.routers.query")

        @ROUTERS.register("random")
        class RandomRouter(nn.Module):
            def __init__(self, width: int, groups: int, *, p: float, seed: int = 0) -> None: ...

        ROUTERS.build("random:p=0.01", width=64, groups=1)

    Args:
        kind: what messages call an entry, for example `router`.
        package: dotted name of the package whose modules hold the entries; all are imported on first use.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Callable[..., Any]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that enters a class (or function) under `name`."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{self.kind} name {name!r} cannot be written in a spec; use letters, digits, - and _")

        def enter(entry: F) -> F:
            if name in self._entries:
                raise ConfigError(f"{self.kind} {name!r} is registered twice: {self._entries[name]!r} and {entry!r}")
            self._entries[name] = entry
            return entry

        return enter

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._load()
        return tuple(sorted(self._entries))

    def get(self, name: str) -> Callable[..., Any]:
        """The class registered under `name`; an unknown name is a ConfigError that names the nearest."""
        self._load()
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def build(self, spec: str | Spec, **context: Any) -> Any:
        """Construct the mechanism that `spec` names: `entry(**context, **options)`.

        A spec may set the keyword-only parameters that are not in `context`; their annotations say the types.

        Raises:
            ConfigError: unknown mechanism or option (names the nearest), wrong type, or a required option is missing.
        """
        spec = parse_spec(spec) if isinstance(spec, str) else spec
        entry = self.get(spec.name)
        allowed = {name: parameter for name, parameter in self.options(spec.name).items() if name not in context}
        for key in spec.options:
            if key not in allowed:
                what = f"{self.kind} {spec.name!r} has no option {key!r}"
                raise ConfigError(what + nearest(key, allowed))
        missing = [name for name, p in allowed.items() if p.default is p.empty and name not in spec.options]
        if missing:
            raise ConfigError(f"{self.kind} {spec.name!r} needs {missing[0]}; write {spec.name}:{missing[0]}=...")
        options = {
            key: convert(value, allowed[key].annotation, f"{self.kind} {spec.name}:{key}", parse=True)
            for key, value in spec.options.items()
        }
        return entry(**context, **options)

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword-only constructor parameters of an entry, annotations resolved."""
        entry = self.get(name)
        code = inspect.unwrap(inspect.getattr_static(entry, "__init__") if isinstance(entry, type) else entry)
        scope = getattr(code, "__globals__", vars(sys.modules[entry.__module__]))
        parameters = inspect.signature(entry).parameters.values()
        return {p.name: _resolved(p, scope) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True


def _resolved(parameter: inspect.Parameter, scope: dict[str, Any]) -> inspect.Parameter:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = eval(annotation, scope)
    return parameter.replace(annotation=annotation)


def _split(text: str, whole: str) -> Iterator[str]:
    """Parts between the commas that are not inside parentheses."""
    depth, start = 0, 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth < 0:
            break
        if char == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    if depth != 0:
        raise ConfigError(f"spec {whole!r} has unbalanced parentheses")
    yield text[start:]


def _parse_value(text: str, whole: str) -> Option:
    if text.startswith("(") and text.endswith(")"):
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        if not math.isfinite(float(text)):
            raise ConfigError(f"spec {whole!r} has the number {text}, which is too large; use a finite number")
        return float(text)
    return text


def _format_value(value: Option) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    plain = value == value.strip() and value != "" and not set(value) & set(",()")
    return value if plain and _parse_value_is_text(value) else f"({value})"


def _parse_value_is_text(value: str) -> bool:
    return value not in ("true", "false") and not _DECIMAL.fullmatch(value)
