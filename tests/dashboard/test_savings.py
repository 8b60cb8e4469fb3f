"""Savings in every unit: measured numbers as they are, counted bytes from the shape, nothing invented."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from turnout.dashboard.savings import kv_bytes, savings_table, tokens_per_second
from turnout.report.run import Run

MODEL = {"layers": 4, "width": 64, "heads": 8, "kv_heads": 2}


def run(precision: str = "fp32", **rows: object) -> Run:
    found = Run(path=Path("x"), manifest={"config": {"model": MODEL, "optim": {"precision": precision}}})
    return found


def test_a_decoded_token_of_dense_attention_reads_all_keys_and_values_of_all_layers() -> None:
    row = {"what": "decode", "arm": "dense", "batch": 3, "length": 100}
    # 3 sequences, 4 layers, keys and values, 100 positions, 2 kv heads of 8 dimensions, 4 bytes.
    assert kv_bytes(run(), row) == 3 * 4 * 2 * 100 * 2 * 8 * 4
    assert kv_bytes(run("bf16"), row) == kv_bytes(run(), row) / 2


@pytest.mark.parametrize("usage", [0.0, 0.25, 1.0])
def test_routing_reads_its_usage_and_a_local_track_nothing(usage: float) -> None:
    row = {"what": "decode", "batch": 1, "length": 64}
    dense = kv_bytes(run(), row | {"arm": "dense"})
    assert kv_bytes(run(), row | {"arm": "routed", "usage": usage}) == usage * dense
    assert kv_bytes(run(), row | {"arm": "static_hybrid"}) == dense / 4
    assert kv_bytes(run(), row | {"arm": "local"}) == 0


def test_what_is_not_decoding_or_not_known_has_no_bytes() -> None:
    assert math.isnan(kv_bytes(run(), {"what": "prefill", "arm": "dense", "batch": 1, "length": 64}))
    assert math.isnan(kv_bytes(Run(path=Path("x")), {"what": "decode", "arm": "dense", "batch": 1, "length": 64}))
    assert math.isnan(kv_bytes(run(), {"what": "decode", "arm": "routed", "batch": 1, "length": 64}))


def test_tokens_per_second_count_what_a_call_processes() -> None:
    assert tokens_per_second({"what": "prefill", "batch": 2, "length": 500, "ms": 10}) == 100_000
    assert tokens_per_second({"what": "decode", "batch": 2, "length": 500, "ms": 10}) == 200
    assert math.isnan(tokens_per_second({"what": "prefill", "batch": 2, "length": 500, "ms": 0}))


def test_energy_and_memory_are_shown_where_they_were_measured_and_empty_elsewhere() -> None:
    found = run()
    found.savings = [
        {"what": "decode", "arm": "dense", "length": 8, "batch": 1, "ms": 1, "joules": 0.5, "peak_bytes": 7},
        {"what": "prefill", "arm": "dense", "length": 8, "batch": 1, "ms": 1},
    ]
    table = savings_table(found)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (rows["decode"]["joules"], rows["decode"]["peak_bytes"]) == (0.5, 7)
    assert math.isnan(rows["prefill"]["joules"]) and math.isnan(rows["prefill"]["peak_bytes"])  # type: ignore[arg-type]
