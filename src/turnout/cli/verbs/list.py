"""`turnout list`: names with one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from turnout.cli.flags import Call, Flags
from turnout.cli.numbers import setting
from turnout.cli.result import Result, Table
from turnout.spec import Registry

Entries = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Name what there is, with one line about each.

    Args:
        what: recipes, routers, selectors, directions, flows, locals, patterns, tasks, runs or claims; without it
            everything but the claims.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)
    what: (
        Literal[
            "recipes", "routers", "selectors", "directions", "flows", "locals", "patterns", "tasks", "runs", "claims"
        ]
        | None
    ) = None
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """List one kind, or all."""
    sources: dict[str, Callable[[], Entries]] = {
        "recipes": _recipes,
        "routers": _routers,
        "selectors": _selectors,
        "directions": _directions,
        "flows": _flows,
        "locals": _locals,
        "patterns": _patterns,
        "tasks": _tasks,
        "runs": lambda: _runs(call.options.runs),
        "claims": _claims,
    }
    what = call.options.what
    kinds = [kind for kind in sources if kind != "claims"] if what is None else [what]
    found = {kind: sources[kind]() for kind in kinds}
    parts: list[str | Table] = []
    for kind, entries in found.items():
        rows = [(entry["name"], entry["summary"]) for entry in entries]
        parts.append(Table((kind, ""), rows) if rows else f"no {kind}")
        if what is None:
            parts.append("")
    return Result(found[what] if what is not None else found, parts[: -1 if what is None else None])


def _recipes() -> Entries:
    from turnout.recipes import get_recipe, recipe_names

    return [{"name": name, "summary": get_recipe(name).summary} for name in recipe_names()]


def _routers() -> Entries:
    from turnout.routers.query import QUERY_ROUTERS

    return _registered(QUERY_ROUTERS)


def _selectors() -> Entries:
    from turnout.routers.content import CONTENT_SELECTORS

    return _registered(CONTENT_SELECTORS)


def _directions() -> Entries:
    from turnout.routers.direction import DIRECTION_ROUTERS

    return _registered(DIRECTION_ROUTERS)


def _flows() -> Entries:
    from turnout.layers.flow import FLOWS

    return _registered(FLOWS)


def _locals() -> Entries:
    from turnout.layers.local import LOCAL_TRACKS

    return _registered(LOCAL_TRACKS)


def _patterns() -> Entries:
    from turnout.routers.pattern import PATTERNS

    return _registered(PATTERNS)


def _registered(registry: Registry) -> Entries:
    return [
        {"name": _with_options(registry, name), "summary": _first_line(registry.get(name))} for name in registry.names()
    ]


def _with_options(registry: Registry, name: str) -> str:
    """A spec with every option at its default: `conv:kernel=16,form=signed`."""
    options = {key: p.default for key, p in registry.options(name).items() if p.default is not p.empty}
    words = [f"{key}={setting(value)}" for key, value in options.items()]
    return f"{name}:{','.join(words)}" if words else name


def _tasks() -> Entries:
    from turnout.tasks import task_kinds

    return [{"name": name, "summary": _first_line(config)} for name, config in task_kinds().items()]


def _runs(root: str) -> Entries:
    from turnout.train.live import number, percent
    from turnout.train.rundir import RunDir, list_runs

    entries = []
    for name in list_runs(root):
        summary = RunDir.open(Path(root) / name).summary()
        state = "not finished"
        if summary is not None:
            state = (
                f"{summary.get('task')}, {summary.get('arm')}: accuracy {number(summary.get('accuracy'), '.4f')}, "
                f"loss {number(summary.get('loss'))}, usage {percent(summary.get('usage'))}"
            )
        entries.append({"name": name, "summary": state})
    return entries


def _claims() -> Entries:
    from turnout.cli.verbs.claims import claims_package

    rows = claims_package().table()
    return [{"name": row["id"], "summary": f"{row['statement']}: {row['verdict']}"} for row in rows]


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
