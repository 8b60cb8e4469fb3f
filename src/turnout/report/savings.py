"""The savings section: measured milliseconds beside counted FLOPs, and in words where routing costs more than dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnout.report.numbers import ratio
from turnout.report.palette import base_name
from turnout.report.run import Run, number

KINDS = {
    "train_step": ("Train step", "ms per step"),
    "prefill": ("Prefill", "ms per batch"),
    "decode": ("Decode, one token", "ms per token"),
}
ARMS = ("dense", "static_hybrid", "routed", "local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One row of savings.json with numbers checked; NaN where a number is missing."""

    what: str
    arm: str
    length: float
    batch: float
    ms: float
    low: float
    high: float
    joules: float
    flops: float
    usage: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Routed against dense and the static hybrid at one length; ratios are routed ÷ other, below 1 is cheaper.

    Attributes:
        ms: arm → measured median.
        to_dense: measured ratio.
        to_hybrid: measured ratio.
        joules_to_dense: measured ratio; NaN where the device reports no energy.
        flops_to_dense: counted ratio.
        flops_to_hybrid: counted ratio.
        verdict: against dense: "saves 48 %", "costs 30 % more" or "no clear difference" (the middle 60 % overlap).
        verdict_hybrid: likewise against the static hybrid.
    """

    what: str
    length: int
    batch: int
    usage: float
    ms: dict[str, float]
    to_dense: float
    to_hybrid: float
    joules_to_dense: float
    flops_to_dense: float
    flops_to_hybrid: float
    verdict: str
    verdict_hybrid: str

    @property
    def order(self) -> tuple[int, str]:
        """Sorts and groups comparisons by kind of work."""
        return order(self.what)


def timings(run: Run) -> list[Timing]:
    """The usable rows of savings.json: those that name what, arm and length."""
    found = []
    for row in run.savings:
        length = number(row, "length")
        if math.isnan(length) or length <= 0 or not row.get("what") or not row.get("arm"):
            continue
        found.append(
            Timing(
                what=str(row["what"]),
                arm=base_name(str(row["arm"])),
                length=length,
                batch=number(row, "batch"),
                ms=number(row, "ms"),
                low=number(row, "ms_p20"),
                high=number(row, "ms_p80"),
                joules=number(row, "joules"),
                flops=number(row, "flops"),
                usage=number(row, "usage"),
            )
        )
    return found


def compare(rows: Sequence[Timing]) -> list[Comparison]:
    """One comparison per (what, length, batch) that has a routed row."""
    table = {(row.what, row.length, batch_of(row), row.arm): row for row in rows}
    found = []
    for row in sorted(
        (row for row in rows if row.arm == "routed"), key=lambda row: (order(row.what), row.length, batch_of(row))
    ):
        others = {arm: table.get((row.what, row.length, batch_of(row), arm)) for arm in ARMS}
        dense, hybrid = others["dense"], others["static_hybrid"]
        found.append(
            Comparison(
                what=row.what,
                length=int(row.length),
                batch=batch_of(row),
                usage=row.usage,
                ms={arm: other.ms for arm, other in others.items() if other},
                to_dense=_divide(row.ms, dense.ms if dense else math.nan),
                to_hybrid=_divide(row.ms, hybrid.ms if hybrid else math.nan),
                joules_to_dense=_divide(row.joules, dense.joules if dense else math.nan),
                flops_to_dense=_divide(row.flops, dense.flops if dense else math.nan),
                flops_to_hybrid=_divide(row.flops, hybrid.flops if hybrid else math.nan),
                verdict=_verdict(row, dense),
                verdict_hybrid=_verdict(row, hybrid),
            )
        )
    return found


def sentences(found: Sequence[Comparison]) -> list[tuple[str, str]]:
    """(kind of work, words): where routing pays, where it costs more, and how the counted FLOPs compare."""
    words: list[tuple[str, str]] = []
    for what in sorted({item.what for item in found}, key=order):
        items = [item for item in found if item.what == what and not math.isnan(item.to_dense)]
        if not items:
            continue
        name = KINDS.get(what, (what, ""))[0]
        if len(items) == 1:
            words.append((name, _one_length(items[0])))
            continue
        line = f"{_clause(items, 'the time of dense attention', 'to_dense', 'verdict')}."
        line = line[:1].upper() + line[1:]
        hybrid = [item for item in items if not math.isnan(item.to_hybrid)]
        if hybrid:
            line += f" Against the static hybrid, {_clause(hybrid, 'its time', 'to_hybrid', 'verdict_hybrid')}."
        longest = max(items, key=lambda item: item.length)
        if not math.isnan(longest.flops_to_dense):
            line += (
                f" At T={longest.length:,} the counted FLOPs are {ratio(longest.flops_to_dense)} those of dense, "
                f"the measured time {ratio(longest.to_dense)}{_energy(longest)}."
            )
        words.append((name, line))
    return words


def verdict_css(verdict: str) -> str:
    """Class of a verdict's cell."""
    return "good" if verdict.startswith("saves") else "bad" if verdict.startswith("costs") else "even"


def step_ratio(run: Run) -> tuple[float, float, float] | None:
    """(routed ÷ dense, routed ms, dense ms) of a train step at the run's own length, or None."""
    for item in compare(timings(run)):
        if item.what == "train_step" and item.length == run.length and not math.isnan(item.to_dense):
            return item.to_dense, item.ms["routed"], item.ms["dense"]
    return None


def _clause(items: Sequence[Comparison], other: str, key: str, verdict: str) -> str:
    """Where routing costs more, where it pays, where neither is clear; `other` says what a ratio is of."""
    by_verdict: dict[str, list[Comparison]] = {"costs": [], "saves": [], "no": []}
    for item in items:
        by_verdict.get(getattr(item, verdict).split()[0], []).append(item)
    measured = sorted({item.length for item in items})
    places = {word: _lengths(chosen, measured) for word, chosen in by_verdict.items() if chosen}
    ratios = {word: _range([getattr(item, key) for item in chosen]) for word, chosen in by_verdict.items() if chosen}
    parts = []
    if by_verdict["costs"]:
        parts.append(f"routing costs more {places['costs']} ({ratios['costs']} {other})")
    if by_verdict["saves"]:
        subject = "pays" if parts else "routing pays"
        parts.append(f"{subject} {places['saves']} ({ratios['saves']} {other})")
    if by_verdict["no"]:
        parts.append(f"{'makes' if parts else 'routing makes'} no clear difference {places['no']}")
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def _one_length(item: Comparison) -> str:
    """The sentence for timings of a single length."""
    words = f"At T={item.length:,} routing takes {ratio(item.to_dense)} the time of dense attention ({item.verdict})"
    if not math.isnan(item.to_hybrid):
        words += f" and {ratio(item.to_hybrid)} that of the static hybrid ({item.verdict_hybrid})"
    if not math.isnan(item.flops_to_dense):
        beside = f" and {ratio(item.flops_to_hybrid)}" if not math.isnan(item.flops_to_hybrid) else ""
        words += f"; the counted FLOPs are {ratio(item.flops_to_dense)}{beside}"
    return words + _energy(item) + "."


def _energy(item: Comparison) -> str:
    """`, the measured energy 0.31×`, or nothing where there is none."""
    return "" if math.isnan(item.joules_to_dense) else f", the measured energy {ratio(item.joules_to_dense)}"


def _lengths(items: Sequence[Comparison], measured: Sequence[int]) -> str:
    """`at every length measured`, `at T=512 to 2,048` when nothing measured lies between unnamed, else a list."""
    values = sorted({item.length for item in items})
    if len(values) == len(measured) > 1:
        return "at every length measured"
    between = [value for value in measured if values[0] <= value <= values[-1]]
    if len(values) > 2 and values == between:
        return f"at T={values[0]:,} to {values[-1]:,}"
    head, last = ", ".join(f"{value:,}" for value in values[:-1]), f"{values[-1]:,}"
    return f"at T={head} and {last}" if head else f"at T={last}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return ratio(low) if ratio(low) == ratio(high) else f"{ratio(low)} to {ratio(high)}"


def _verdict(routed: Timing, other: Timing | None) -> str:
    if other is None or math.isnan(routed.ms) or math.isnan(other.ms) or other.ms <= 0:
        return "not measured"
    overlap = routed.low <= other.high and other.low <= routed.high
    relative = routed.ms / other.ms
    if overlap or 0.98 < relative < 1.02:
        return "no clear difference"
    return f"saves {100 * (1 - relative):.0f} %" if relative < 1 else f"costs {100 * (relative - 1):.0f} % more"


def _divide(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan


def batch_of(row: Timing) -> int:
    """Sequences per call, 0 when not stored."""
    return 0 if math.isnan(row.batch) else int(row.batch)


def order(what: str) -> tuple[int, str]:
    """Known kinds of work first, in their order."""
    return (list(KINDS).index(what) if what in KINDS else len(KINDS), what)
