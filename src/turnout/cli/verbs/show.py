"""`turnout show`: the resolved config of a recipe, or what a run reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turnout.cli.find import find_config, find_run, is_run, resume_hint
from turnout.cli.flags import Call, Flags
from turnout.cli.numbers import setting, summary_rows
from turnout.cli.result import Result, Table
from turnout.config import flatten, to_dict
from turnout.train.live import train_line
from turnout.train.rundir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Print a recipe's config with all defaults filled in (settings may be changed), or a run's result.

    Args:
        what: a recipe, or a run.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("what",)
    overridable: ClassVar[bool] = True
    what: str
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Print one of the two."""
    options = call.options
    if is_run(options.what, options.runs):
        call.refuse_overrides("a run's settings are what they were")
        return _show_run(find_run(options.what, options.runs))
    config = find_config(options.what, call.overrides, options.runs)
    return Result(to_dict(config), [f"{key} = {setting(value)}" for key, value in flatten(config).items()])


def _show_run(folder: RunDir) -> Result:
    summary, manifest = folder.summary(), folder.manifest
    lines = folder.metrics("train")
    last = lines[-1] if lines else None
    data = {
        "name": folder.name,
        "path": folder.path,
        "finished": summary is not None,
        "summary": summary,
        "last": last,
        "manifest": manifest,
    }
    parts: list[str | Table] = []
    if summary is not None:
        parts.append(Table(("result", "value"), summary_rows(summary), f"{folder.name}: {summary['task']}, finished"))
    else:
        parts.append(f"{folder.name}: not finished; {resume_hint(folder)}")
        parts.append(train_line(last, None, None) if last else "no step logged yet")
    parts.append(f"made    {manifest.get('created')} by: {manifest.get('command')}")
    parts.append(f"on      {manifest.get('device_name')}, commit {manifest.get('commit')}")
    parts.append(f"run     {folder.path}")
    return Result(data, parts)
