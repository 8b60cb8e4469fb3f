"""What routing saves in every unit that a researcher is billed in: milliseconds, tokens a second, bytes and energy.

All numbers are those of savings.json; what was not measured stays empty and is said to be missing, never filled in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from turnout.report.figure import Cell, Data
from turnout.report.numbers import MISSING, NO_BREAK, count, ratio, significant
from turnout.report.run import Line, Run, number
from turnout.report.savings import ARMS, KINDS, order
from turnout.report.svg import tick_label

COLUMNS = ("ms", "tokens_per_s", "joules", "kv_bytes", "peak_bytes", "flops")
HEADS = ("time (ms)", "tokens/s", "energy", "K/V read", "peak memory", "FLOPs")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRow:
    """One arm at one kind of work, ready to print: (value, ratio to dense attention or "") for each of `COLUMNS`.

    Attributes:
        case: work, length and batch in words; rows of one case stand together.
    """

    case: str
    arm: str
    cells: list[tuple[str, str]]


def units_table(run: Run) -> Data:
    """One row an arm and kind of work, as numbers."""
    rows: list[list[Cell]] = [
        [str(row.get("what", "")), _arm(row), number(row, "length"), number(row, "batch"),
         *(number(row, column) for column in COLUMNS)]
        for row in _ordered(run)
    ]  # fmt: skip
    return Data(name="savings_units", columns=["work", "arm", "length", "batch", *COLUMNS], rows=rows)


def unit_rows(run: Run) -> list[UnitRow]:
    """The same for a page, every measured or counted number beside its ratio to dense attention."""
    dense = {_case(row): row for row in run.savings if row.get("arm") == "dense"}
    found = []
    for row in _ordered(run):
        beside = dense.get(_case(row), {}) if row.get("arm") != "dense" else {}
        found.append(
            UnitRow(
                case=_case_words(row),
                arm=_arm(row),
                cells=[(_written(run, row, column), _beside(row, beside, column)) for column in COLUMNS],
            )
        )
    return found


def energy_words(run: Run) -> str:
    """Where the energy comes from, or that the device reports none."""
    source = run.savings_meta.get("energy")
    if not isinstance(source, str):
        return "Energy was not measured when this run was made."
    if any(not math.isnan(number(row, "joules")) for row in run.savings):
        return f"Energy: {source}; everything that ran on the device meanwhile is in it."
    return f"Energy: {source}."


def written_bytes(value: float) -> str:
    """`3.20 MiB`; a dash for what is no number."""
    if math.isnan(value):
        return MISSING
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size:
            return f"{significant(value / size)}{NO_BREAK}{unit}"
    return f"{value:,.0f}{NO_BREAK}B"


def joules(value: float) -> str:
    """`0.467 J`, `81.2 mJ`."""
    if math.isnan(value):
        return MISSING
    return f"{significant(value)}{NO_BREAK}J" if value >= 0.1 else f"{significant(1e3 * value)}{NO_BREAK}mJ"


def _ordered(run: Run) -> list[Line]:
    def place(row: Line) -> tuple[object, ...]:
        arm = str(row.get("arm", ""))
        return order(str(row.get("what"))), number(row, "length"), ARMS.index(arm) if arm in ARMS else len(ARMS), arm

    return sorted(run.savings, key=place)


def _case_words(row: Line) -> str:
    work = str(row.get("what", ""))
    behind = " of context" if work == "decode" else ""
    length, batch = count(number(row, "length")), count(number(row, "batch"))
    return f"{KINDS.get(work, (work, ''))[0]}, {length} tokens{behind}, batch {batch}"


def _case(row: Line) -> tuple[str, float, float]:
    return str(row.get("what")), number(row, "length"), number(row, "batch")


def _arm(row: Line) -> str:
    return str(row.get("arm", "")).replace("_", " ")


def _written(run: Run, row: Line, column: str) -> str:
    value = number(row, column)
    if column == "joules" and math.isnan(value) and isinstance(run.savings_meta.get("energy"), str):
        return "not reported"
    if column.endswith("bytes"):
        return written_bytes(value)
    if column == "joules":
        return joules(value)
    if column == "flops" and not math.isnan(value):
        return tick_label(float(f"{value:.3g}"))
    return count(round(value)) if column == "tokens_per_s" and not math.isnan(value) else significant(value)


def _beside(row: Line, dense: Line, column: str) -> str:
    other, value = number(dense, column), number(row, column)
    return "" if math.isnan(value) or not other > 0 else ratio(value / other)
