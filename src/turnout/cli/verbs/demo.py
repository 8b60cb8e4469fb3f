"""`turnout demo`: train the demo recipe, write its report, and print what was learned and what it saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from turnout.cli.flags import Call, Flags
from turnout.cli.numbers import SAVINGS_COLUMNS, savings_rows, summary_rows
from turnout.cli.result import Result, Table
from turnout.cli.verbs.report import report_writer
from turnout.cli.verbs.train import train_run
from turnout.recipes import get_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Train a small model that learns by curriculum which tokens need attention; minutes on two CPU cores.

    Args:
        name: of the run folder; without it every call makes a new one.
        runs: folder of all runs.
    """

    overridable: ClassVar[bool] = True
    name: str | None = None
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Train, report, and print the tables."""
    write = report_writer()
    config = get_recipe("demo").config(call.overrides)
    folder, summary = train_run(config, call.options.runs, call.options.name, call)
    page = write([folder.path])
    savings = folder.read_json("savings.json") or {"rows": []}
    parts: list[str | Table] = [Table(("result", "value"), summary_rows(summary))]
    if savings["rows"]:
        title = f"one call at {summary['length']} tokens on {savings['device']}; ratios: above 1x the arm is cheaper"
        parts.append(Table(SAVINGS_COLUMNS, savings_rows(savings["rows"]), title))
    parts += [f"run     {folder.path}", f"report  {page}"]
    return Result({"run": folder.path, "report": page, "summary": summary, "savings": savings}, parts)
