"""`turnout sweep`: many seeds or settings of a recipe, one table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result, Table
from turnout.errors import ConfigError
from turnout.recipes import get_recipe
from turnout.train.live import number, percent

if TYPE_CHECKING:
    from turnout.train.sweep import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Train every combination of settings: --optim.lr "1e-3|3e-3" --model.layers "2|4" --seeds 3 are twelve runs.

    Called again it goes on: finished runs are read, unfinished ones resumed. The table is also written to sweep.csv
    and sweep.json in the sweep's folder.

    Args:
        recipe: its name (turnout list recipes).
        seeds: this many seeds of every setting, from 0.
        jobs: runs at a time.
        on: where: local processes, slurm (extra slurm) or ray (extra ray).
        name: of the sweep's folder; without it the recipe's name.
        runs: folder of all sweeps and runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("recipe",)
    overridable: ClassVar[bool] = True
    recipe: str
    seeds: int | None = None
    jobs: int = 1
    on: Literal["local", "slurm", "ray"] = "local"
    name: str | None = None
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Run what is missing and print the table; exit 1 when a run failed."""
    from turnout.train.sweep import RESULTS, points, run_sweep, varying

    options = call.options
    if options.jobs < 1 or (options.seeds is not None and options.seeds < 1):
        raise ConfigError(f"--jobs={options.jobs}, --seeds={options.seeds}; expected >= 1")
    found = points(call.overrides, range(options.seeds or 0))
    # A setting that cannot be is refused before the first run starts.
    for point in found:
        get_recipe(options.recipe).config(point.settings)
    root = Path(options.runs) / (options.name or f"sweep-{options.recipe}")

    def tell(outcome: Outcome) -> None:
        loss = number((outcome.summary or {}).get("loss"))
        print(f"{outcome.point.name}: {outcome.error or f'loss {loss}'}", file=sys.stderr, flush=True)

    outcomes = run_sweep(options.recipe, found, root, backend=options.on, jobs=options.jobs, tell=tell)
    keys = varying(found)
    rows = [
        (o.point.name, *(o.point.settings[key] for key in keys), *(_text(o, name) for name in RESULTS), o.error)
        for o in outcomes
    ]
    data = [
        {"name": o.point.name, "settings": dict(o.point.settings), "error": o.error, "summary": o.summary}
        for o in outcomes
    ]
    table = Table(("run", *keys, *RESULTS, ""), rows, f"{options.recipe}: {len(outcomes)} runs in {root}")
    return Result(data, [table], code=1 if any(o.error or o.summary is None for o in outcomes) else 0)


def _text(outcome: Outcome, name: str) -> str:
    value: Any = (outcome.summary or {}).get(name)
    return percent(value) if name == "usage" else number(value)
