"""RE9: how long nothing is learned, and how fast then, by learning rate, initial scale, heads and norm."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from turnout.claims.registry import Finding, Summaries
from turnout.claims.routing_cells import Cells
from turnout.claims.routing_mechanics import jump_at

FLOWS = ("raw", "shift")
# Two levels of a factor, as learning rates or words of an arm's name: what changes from the first to the second.
LEVELS: dict[str, tuple[Any, Any]] = {
    "rate ten times": (3e-4, 3e-3),
    "scale fifty times": ("std 0.02", "std 1"),
    "heads 16 for 1": ("heads 1", "heads 16"),
}
NO_NORM = ", no norm"
# (arm, learning rate) -> (plateau, rise) in steps, None where a seed has no transition.
Spans = dict[tuple[str, float], tuple[float, float] | None]


def judge_plateaus(seen: Summaries) -> list[Finding]:
    """Two rows: what sets the length of the plateau, and whether the norm before the router takes it away."""
    cells = Cells(seen)
    spans: Spans = {}
    for name, records in cells.seen.items():
        for lr in (run["lr"] for run in records[0]["runs"]):
            jump = jump_at(records, lr)
            spans[name, lr] = (jump.start.mean, jump.width.mean) if jump.jumping == len(records) else None
    if not spans:
        return []
    rates = sorted({lr for _, lr in spans})
    factors = {key: found for key, levels in LEVELS.items() if (found := _factor(spans, *levels))}
    told = ", ".join(
        f"{key} {max(f, 1 / f):.1f} times {'shorter' if f < 1 else 'longer'}" for key, f in factors.items()
    )
    names = sorted({name for name, _ in spans})
    lrs = f"at lr {', '.join(f'{lr:g}' for lr in rates)}"
    whole = "; ".join(f"{name}: {' '.join(_cell(spans[name, lr]) for lr in rates)}" for name in names)
    detail = f"plateau + rise in steps {lrs}: {whole}"
    strongest = max(factors, key=lambda key: abs(math.log(factors[key])), default="")
    pairs = [(name, f"{name}{NO_NORM}") for name in names if f"{name}{NO_NORM}" in names]
    beside = "; ".join(
        f"{name} {', '.join(f'{_cell(spans[name, lr])} / {_cell(spans[bare, lr])}' for lr in rates)}"
        for name, bare in pairs
    )
    both = [(spans[name, lr], spans[bare, lr]) for name, bare in pairs for lr in rates]
    ranges = "; ".join(_range(spans, flow, lr) for flow in FLOWS for lr in rates)
    return [
        cells.finding(
            "the learning rate sets the length of the plateau more than initial scale and heads",
            f"steps; {ranges}; {told}",
            [strongest == "rate ten times"] if strongest else [],
            "raw embeddings and a shift: no attention anywhere",
            detail,
        ),
        cells.finding(
            "the norm before the router removes at least half of the plateau",
            f"plateau + rise in steps with / without the norm {lrs}; {beside}",
            [mine[0] <= bare[0] / 2 for mine, bare in both if mine and bare],
            "4 heads",
            detail,
        ),
    ]


def _cell(found: tuple[float, float] | None) -> str:
    return f"{found[0]:.0f}+{found[1]:.0f}" if found else "–"


def _range(spans: Spans, flow: str, lr: float) -> str:
    """Shortest and longest plateau of a flow at a rate, with the norm."""
    own = [f for (name, rate), f in spans.items() if rate == lr and name.startswith(flow) and NO_NORM not in name]
    there = [found for found in own if found]
    if not there:
        return f"{flow} at lr {lr:g}: none in {len(own)}"
    low, high, rise = min(f[0] for f in there), max(f[0] for f in there), fmean(f[1] for f in there)
    return f"{flow} at lr {lr:g}: plateau {low:.0f} to {high:.0f}, rise {rise:.0f} ({len(there)} of {len(own)})"


def _factor(spans: Spans, one: Any, other: Any) -> float:
    """Geometric mean of the plateau at the other level over that at the first, all else equal; 0 without a pair."""
    ratios = []
    for (name, lr), found in spans.items():
        words = name.split(", ")
        twin = None
        if isinstance(one, float) and lr == one:
            twin = spans.get((name, other))
        elif one in words:
            twin = spans.get((", ".join(other if word == one else word for word in words), lr))
        if found and twin:
            ratios.append(math.log(twin[0] / found[0]))
    return math.exp(fmean(ratios)) if ratios else 0.0
