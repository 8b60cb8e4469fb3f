"""Slices, resolved configuration and manifest: the tables at the end of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnout.report.figure import Cell, Data
from turnout.report.numbers import count, interval, percent
from turnout.report.run import Run, flatten, number
from turnout.stats import wilson

_SHOWN_ELSEWHERE = ("config",)


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceRow:
    """One value of one slice, ready to print; `share` is the accuracy for the bar, NaN when unknown."""

    run: str
    value: str
    n: str
    accuracy: str
    interval: str
    loss: str
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceTable:
    """All values of one slice."""

    name: str
    rows: list[SliceRow]


def slice_tables(runs: Sequence[Run]) -> list[SliceTable]:
    """Metrics of the last evaluation by slice, one table per slice name."""
    names: list[str] = []
    for run in runs:
        names += [name for name in _slices(run) if name not in names]
    tables = []
    for name in names:
        rows = [_slice_row(run, item) for run in runs for item in _slices(run).get(name, [])]
        if rows:
            tables.append(SliceTable(name=name, rows=rows))
    return tables


def slice_data(runs: Sequence[Run]) -> Data:
    """The same as numbers."""
    rows: list[list[Cell]] = []
    for run in runs:
        for name, items in _slices(run).items():
            for item in items:
                accuracy, n = number(item, "accuracy"), number(item, "n")
                low, high = wilson(accuracy, 0 if math.isnan(n) else int(n))
                rows.append([run.name, name, _text(item.get("value")), n, accuracy, low, high, number(item, "loss")])
    columns = ["run", "slice", "value", "n", "accuracy", "accuracy_low95", "accuracy_high95", "loss"]
    return Data(name="slices", columns=columns, rows=rows)


def config_rows(run: Run) -> list[tuple[str, str]]:
    """The resolved configuration, flat."""
    return [(key, _text(value)) for key, value in flatten(run.config).items()]


def config_differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Keys whose values differ between the runs, with one value per run."""
    flat = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = [(key, [_text(config[key]) if key in config else "" for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def manifest_rows(run: Run) -> list[tuple[str, str]]:
    """The manifest without the configuration, flat."""
    shown = {key: value for key, value in run.manifest.items() if key not in _SHOWN_ELSEWHERE}
    return [("folder", str(run.path)), *((key, _text(value)) for key, value in flatten(shown).items())]


def _slices(run: Run) -> dict[str, list[dict[str, Any]]]:
    raw = run.last_eval.get("slices")
    if not isinstance(raw, dict):
        return {}
    return {
        str(name): [item for item in items if isinstance(item, dict)]
        for name, items in raw.items()
        if isinstance(items, list)
    }


def _slice_row(run: Run, item: dict[str, Any]) -> SliceRow:
    accuracy, n, loss = number(item, "accuracy"), number(item, "n"), number(item, "loss")
    low, high = wilson(accuracy, 0 if math.isnan(n) else int(n))
    return SliceRow(
        run=run.name,
        value=_text(item.get("value")),
        n=count(n),
        accuracy=percent(accuracy),
        interval=interval(low, high),
        loss="–" if math.isnan(loss) else f"{loss:.4f}",
        share=accuracy,
    )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.8g}"
    return json.dumps(value, ensure_ascii=False, default=str)
