"""Configs are frozen dataclasses; this file turns them into plain dictionaries and back, and applies overrides.

    from_dict(type(c), to_dict(c)) == c          for every config c
    apply_overrides(c, flatten(c)) == c

Field annotations are the schema. Supported: bool, int, float, str, `Literal`, `X | None`, tuples, unions, nested
dataclasses and tagged unions. A *tagged* config is a dataclass with a class attribute `kind: ClassVar[str]`; it is
stored as `{"kind": ..., **fields}`, and a field annotated `A | B | C` with tagged classes reads back the one that
`kind` names. Annotations are resolved at run time: import their names for real, not under `TYPE_CHECKING`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from turnout.errors import ConfigError, UnsupportedError, nearest

C = TypeVar("C")

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NONE = frozenset({"none", "null"})
_SCALAR_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    types.NoneType: "none",
}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-able dictionary of a config: nested dictionaries, tuples as lists, `kind` first where there is one."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"to_dict needs a config dataclass instance, got {config!r}")
    kind = _kind(type(config))
    plain: dict[str, Any] = {} if kind is None else {"kind": kind}
    for name in _hints(type(config)):
        plain[name] = _plain(getattr(config, name))
    return plain


def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from what `to_dict` wrote. A missing key takes its default.

    Args:
        cls: the config class.
        values: keys are field names; a `kind` key must match where the class has one.
    Raises:
        ConfigError: unknown key (names the nearest), missing required key, wrong type or a value the class rejects.
    """
    return typing.cast(C, _build(cls, values, ""))


def apply_overrides(config: C, overrides: Mapping[str, Any]) -> C:
    """Copy `config` with dotted keys replaced: `apply_overrides(cfg, {"model.layers": "4"})`.

    Strings are parsed by the field's annotation (`"none"` for an optional field, `"1,2,3"` for a tuple, JSON for a
    nested config); other values are checked against it. Overrides of one config are applied together, so that values
    that are only valid as a pair can be changed as a pair. `task.kind` switches a tagged union to another class, whose
    other fields start from their defaults.

    Raises:
        ConfigError: unknown key (names the nearest in the whole config), wrong type or a value the class rejects.
    """
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, _Branch())
            if not isinstance(branch, _Branch):
                raise ConfigError(
                    f"{key} and {key.rpartition('.')[0]} are both set; set the whole or its parts, not both"
                )
        if last in branch:
            raise ConfigError(f"{key} is set twice, as a whole and by parts; set the whole or its parts, not both")
        branch[last] = value
    known = flatten(config)
    return typing.cast(C, _override(config, tree, "", list(known)))


def flatten(config: Any) -> dict[str, Any]:
    """Every leaf of a config by its dotted key, in field order: `{"model.layers": 4, "task.kind": "recall", ...}`."""
    flat: dict[str, Any] = {}
    kind = _kind(type(config))
    if kind is not None:
        flat["kind"] = kind
    for name in _hints(type(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def convert(value: Any, annotation: Any, where: str, *, parse: bool = False) -> Any:
    """Check one value against a type annotation and return it in that type.

    An int becomes a float where a float is wanted, a list becomes a tuple; nothing else is converted silently.

    Args:
        value: a plain (JSON) value, or a value already of the wanted type.
        annotation: a supported annotation, see the head of this file.
        where: how messages name the value, for example `model.layers`.
        parse: also read strings as the annotation says (`"4"` as an int).
    Raises:
        ConfigError: the value does not fit; the message says what was expected.
        UnsupportedError: the annotation is not one that a config may use.
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(annotation), annotation, where, parse)
    if origin is Literal:
        return _convert_literal(value, get_args(annotation), where, parse)
    if origin is tuple:
        return _convert_tuple(value, annotation, where, parse)
    if _is_config(annotation):
        return value if isinstance(value, annotation) else _build(annotation, _json(value, where, parse), where)
    if annotation in _SCALAR_WORDS:
        return _convert_scalar(value, annotation, where, parse)
    raise UnsupportedError(
        f"{where} is annotated {describe(annotation)}, which a config cannot hold; "
        "use bool, int, float, str, Literal, a tuple, an optional or a nested dataclass"
    )


def describe(annotation: Any) -> str:
    """An annotation in words, for messages: `an integer or none`, `one of 'relu', 'gelu'`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each {describe(args[0])}"
        return f"a list of {len(args)}: " + ", ".join(describe(option) for option in args)
    if annotation in _SCALAR_WORDS:
        return _SCALAR_WORDS[annotation]
    return getattr(annotation, "__name__", str(annotation))


class _Branch(dict[str, Any]):
    """Overrides of a nested config; a type of its own so that a plain dict can be a value."""


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _hints(cls: Any) -> dict[str, Any]:
    """Constructor fields of a config class and their resolved annotations, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _kind(cls: type) -> str | None:
    kind = getattr(cls, "kind", None)
    return kind if isinstance(kind, str) and "kind" not in _hints(cls) else None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _build(cls: type, values: Any, where: str) -> Any:
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__} must be a table of settings ({cls.__name__}), got {values!r}")
    hints, kind = _hints(cls), _kind(cls)
    given = dict(values)
    if kind is not None and given.pop("kind", kind) != kind:
        raise ConfigError(f"{prefix}kind={values['kind']!r}, but {cls.__name__} is of kind {kind!r}")
    for key in given:
        if key not in hints:
            raise ConfigError(f"unknown setting {prefix}{key}{nearest(str(key), hints)}")
    required = [field.name for field in dataclasses.fields(cls) if field.init and _has_no_default(field)]
    missing = [name for name in required if name not in given]
    if missing:
        raise ConfigError(f"{where or cls.__name__} needs {', '.join(missing)}; set {prefix}{missing[0]}")
    arguments = {key: convert(value, hints[key], f"{prefix}{key}") for key, value in given.items()}
    return _construct(functools.partial(cls, **arguments), where)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _construct(make: functools.partial[Any], where: str) -> Any:
    """Run a constructor; what it rejects is reported with the place in the whole config."""
    try:
        return make()
    except ConfigError as error:
        if not where:
            raise
        raise ConfigError(f"{where}: {error}") from error


def _override(config: Any, tree: Mapping[str, Any], where: str, known: list[str]) -> Any:
    prefix = f"{where}." if where else ""
    hints, kind = _hints(type(config)), _kind(type(config))
    changes: dict[str, Any] = {}
    for name, value in tree.items():
        at = f"{prefix}{name}"
        if name == "kind" and kind is not None:
            if value != kind:
                raise ConfigError(f"{at}={value!r}, but this config is of kind {kind!r} and cannot change")
            continue
        if name not in hints:
            same_level = [prefix + field for field in hints]
            raise ConfigError(f"unknown setting {at}{nearest(at, {*same_level, *known})}")
        if isinstance(value, _Branch):
            changes[name] = _override_nested(getattr(config, name), hints[name], value, at, known)
        else:
            changes[name] = convert(value, hints[name], at, parse=True)
    return _construct(functools.partial(dataclasses.replace, config, **changes), where)


def _override_nested(current: Any, annotation: Any, tree: _Branch, where: str, known: list[str]) -> Any:
    options = [option for option in _members(annotation) if _is_config(option)]
    if not options:
        key = f"{where}.{next(iter(tree))}"
        raise ConfigError(f"unknown setting {key}{nearest(key, known)}")
    if dataclasses.is_dataclass(current) and tree.get("kind", _kind(type(current))) == _kind(type(current)):
        return _override(current, tree, where, known)
    # Another kind, or a config where there was none: start from the defaults.
    cls = _choose(options, tree, where)
    hints = _hints(cls)
    fresh: dict[str, Any] = {}
    for key, value in tree.items():
        at = f"{where}.{key}"
        if isinstance(value, _Branch) and key in hints:
            fresh[key] = _override_nested(None, hints[key], value, at, known)
        else:
            fresh[key] = convert(value, hints[key], at, parse=True) if key in hints else value
    return _build(cls, fresh, where)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _choose(options: list[Any], values: Any, where: str) -> Any:
    """The dataclass of a union that `values["kind"]` names; the only one when there is one."""
    if len(options) == 1:
        return options[0]
    kinds = {_kind(option): option for option in options}
    if None in kinds or len(kinds) < len(options):
        raise UnsupportedError(f"{where}: every dataclass of a union needs its own class attribute `kind`")
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind is None:
        raise ConfigError(f"{where} needs {where}.kind, one of: {', '.join(sorted(map(str, kinds)))}; got {values!r}")
    if kind not in kinds:
        raise ConfigError(f"unknown {where}.kind {kind!r}{nearest(str(kind), map(str, kinds))}")
    return kinds[kind]


def _json(value: Any, where: str, parse: bool) -> Any:
    if not (parse and isinstance(value, str)):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}={value!r} is not JSON ({error}); set its parts: {where}.<name>=...") from error


def _reject(value: Any, annotation: Any, where: str) -> ConfigError:
    return ConfigError(f"{where}={value!r} ({type(value).__name__}); expected {describe(annotation)}")


def _convert_union(value: Any, options: tuple[Any, ...], annotation: Any, where: str, parse: bool) -> Any:
    if types.NoneType in options and (value is None or (parse and isinstance(value, str) and value.lower() in _NONE)):
        return None
    rest = [option for option in options if option is not types.NoneType]
    configs = [option for option in rest if _is_config(option)]
    if isinstance(value, tuple(configs)):
        return value
    if len(configs) == len(rest) or (configs and isinstance(value, Mapping)):
        plain = _json(value, where, parse)
        return _build(_choose(configs, plain, where), plain, where)
    if len(rest) == 1 and get_origin(rest[0]) is Literal:
        return convert(value, rest[0], where, parse=parse)
    # The value's own type comes first, and text is kept as a string only when nothing else reads it.
    for option in sorted(rest, key=lambda option: (isinstance(value, str) or type(value) is not option, option is str)):
        try:
            return convert(value, option, where, parse=parse)
        except ConfigError:
            continue
    raise _reject(value, annotation, where)


def _convert_literal(value: Any, options: tuple[Any, ...], where: str, parse: bool) -> Any:
    for option in options:
        if (type(value) is type(option) and value == option) or (parse and value == str(option)):
            return option
    words = [str(option) for option in options]
    raise ConfigError(f"{where}={value!r} is not a choice{nearest(str(value), words)}")


def _convert_tuple(value: Any, annotation: Any, where: str, parse: bool) -> tuple[Any, ...]:
    args = get_args(annotation)
    if parse and isinstance(value, str):
        nested = any(_is_config(member) for arg in args for member in _members(arg))
        inner = value.strip().removeprefix("(").removeprefix("[").removesuffix(")").removesuffix("]")
        value = _json(value, where, parse) if nested else [part.strip() for part in inner.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise _reject(value, annotation, where)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _reject(value, annotation, where)
    pairs = enumerate(zip(value, args, strict=True))
    return tuple(convert(item, arg, f"{where}[{i}]", parse=parse) for i, (item, arg) in pairs)


def _convert_scalar(value: Any, kind: Any, where: str, parse: bool) -> Any:
    if parse and isinstance(value, str) and kind is not str:
        value = _parse_scalar(value, kind, where)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and math.isnan(value)):
        raise _reject(value, kind, where)
    return value


def _parse_scalar(text: str, kind: Any, where: str) -> Any:
    word = text.strip().lower()
    try:
        if kind is bool and word in _TRUE | _FALSE:
            return word in _TRUE
        if kind is types.NoneType and word in _NONE:
            return None
        if kind in (int, float):
            return kind(word)
    except ValueError as error:
        raise _reject(text, kind, where) from error
    raise _reject(text, kind, where)
