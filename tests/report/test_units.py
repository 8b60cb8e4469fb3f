"""Savings in every unit: measured numbers as they are, beside dense attention, nothing invented."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from turnout.bench.power import NOT_REPORTED
from turnout.report.run import Run
from turnout.report.units import COLUMNS, energy_words, joules, unit_rows, units_table, written_bytes

DENSE = {
    "what": "decode", "arm": "dense", "length": 8, "batch": 1, "ms": 2.0, "tokens_per_s": 500.0, "kv_bytes": 4096.0,
    "peak_bytes": 2**21, "joules": 0.5, "flops": 100.0,
}  # fmt: skip
ROUTED = DENSE | {"arm": "routed", "ms": 1.0, "tokens_per_s": 1000.0, "kv_bytes": 0.0, "joules": 0.05, "flops": 10.0}


def run(*rows: dict[str, Any], **meta: Any) -> Run:
    return Run(path=Path("x"), savings=list(rows), savings_meta=meta)


def cells(found: Run, arm: str) -> dict[str, tuple[str, str]]:
    [row] = [row for row in unit_rows(found) if row.arm == arm]
    return dict(zip(COLUMNS, row.cells, strict=True))


def test_every_unit_stands_beside_its_ratio_to_dense_attention() -> None:
    found = run(DENSE, ROUTED)
    routed, dense = cells(found, "routed"), cells(found, "dense")
    assert {name: ratio for name, (_, ratio) in routed.items()} == {
        "ms": "0.50×", "tokens_per_s": "2.00×", "kv_bytes": "0.00×", "peak_bytes": "1.00×", "joules": "0.10×",
        "flops": "0.10×",
    }  # fmt: skip
    assert all(ratio == "" for _, ratio in dense.values())
    assert dense["joules"][0] == "0.500\N{NO-BREAK SPACE}J" and routed["joules"][0] == "50\N{NO-BREAK SPACE}mJ"


def test_what_was_not_measured_is_a_dash_on_the_page_and_empty_in_the_data() -> None:
    bare = {"what": "prefill", "arm": "dense", "length": 8, "batch": 1, "ms": 1.0, "joules": None}
    assert cells(run(bare), "dense")["joules"] == ("–", "")
    [row] = units_table(run(bare)).rows
    assert math.isnan(dict(zip(units_table(run(bare)).columns, row, strict=True))["joules"])  # type: ignore[arg-type]


def test_other_lengths_and_kinds_of_work_are_not_compared() -> None:
    found = run(DENSE, ROUTED | {"length": 16}, ROUTED | {"what": "prefill"})
    assert all(ratio == "" for row in unit_rows(found) for _, ratio in row.cells)


def test_the_page_says_where_energy_comes_from_or_that_there_is_none() -> None:
    assert "not measured" in energy_words(run(DENSE))
    silent = run(DENSE | {"joules": None}, energy=NOT_REPORTED)
    assert energy_words(silent) == f"Energy: {NOT_REPORTED}." and cells(silent, "dense")["joules"][0] == "not reported"
    assert "everything that ran on the device" in energy_words(run(DENSE, energy="some counter"))


def test_sizes_and_energies_carry_their_units() -> None:
    assert written_bytes(512) == "512\N{NO-BREAK SPACE}B" and written_bytes(3.2 * 2**20) == "3.20\N{NO-BREAK SPACE}MiB"
    assert written_bytes(math.nan) == joules(math.nan) == "–"
