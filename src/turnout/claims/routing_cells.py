"""The cells of a grid of test-bed arms: their numbers side by side, and the one finding that tells them all."""

from __future__ import annotations

import math
from collections.abc import Iterable

from turnout.claims.registry import Finding, Summaries
from turnout.claims.routing_paradox import best_lr, precision, shared_verdict
from turnout.recipes.routing_paradox import FULL


class Cells:
    """Measured arms by name without the scale."""

    def __init__(self, seen: Summaries, scale: str = FULL) -> None:
        self.seen = {name.removesuffix(f", {scale}"): r for name, r in seen.items() if name.endswith(f", {scale}")}

    def __contains__(self, name: str) -> bool:
        return name in self.seen

    def value(self, name: str) -> float:
        """Mean precision at the best rate; NaN where it was not measured."""
        return precision(self.seen[name]).mean if name in self.seen else math.nan

    def words(self, names: Iterable[str]) -> str:
        """Percentages side by side, `–` where there is none."""
        return "/".join("–" if math.isnan(v) else f"{100 * v:.1f}" for v in map(self.value, names))

    def intervals(self) -> str:
        """Every arm with its 95 % interval, or seed by seed where that is wide."""
        parts = []
        for name, records in sorted(self.seen.items()):
            found, rate = precision(records), best_lr(records)
            seeds = [run["precision"] for record in records for run in record["runs"] if run["lr"] == rate]
            wide = found.high - found.low > 0.2
            told = " ".join(f"{100 * value:.1f}" for value in seeds) if wide else ""
            parts.append(f"{name} {told or f'{100 * found.low:.1f}-{100 * found.high:.1f}'}")
        return "; ".join(parts)

    def shuffled(self) -> str:
        """What the queries of another sequence find at most, over all arms and runs."""
        runs = (run for records in self.seen.values() for record in records for run in record["runs"])
        found = [run["pk_shuffled"] for run in runs if "pk_shuffled" in run]
        return f"queries of another sequence find at most {100 * max(found):.1f}" if found else ""

    def seeds(self) -> int:
        return min(map(len, self.seen.values()), default=0)

    def finding(self, statement: str, measured: str, same: list[bool], control: str, detail: str = "") -> Finding:
        """A row of the table: the grid in `measured`, every interval in the detail."""
        parts = (detail, f"intervals: {self.intervals()}")
        return Finding(
            statement=f"(ours) {statement}", quoted="(ours)", measured=measured, n=self.seeds(),
            interval="of every cell in the detail",
            control="; ".join(filter(None, (control, self.shuffled()))), verdict=shared_verdict(same),
            detail=". ".join(part for part in parts if part),
        )  # fmt: skip
