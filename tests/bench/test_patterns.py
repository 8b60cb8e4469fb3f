"""Rows of patterns: every default pattern runs, is checked, and has its ratio to dense attention."""

from __future__ import annotations

import pytest
import torch

from turnout.bench.cases import Case
from turnout.bench.patterns import check_pattern, default_specs, measure_patterns
from turnout.layers import reading

CPU = torch.device("cpu")


@pytest.mark.parametrize("step", ["forward", "forward+backward"])
def test_every_default_pattern_has_a_row_with_its_ratio_to_dense(step: str) -> None:
    case = Case(n=128, p=1.0, heads=2, kv_heads=2, dim=16, dtype="float32", step=step)
    rows = measure_patterns(case, device=CPU, seconds=0.0)
    assert [row["arm"] for row in rows] == ["dense:sdpa", *(f"pattern:{spec}" for spec in default_specs(128))]
    assert all(row["status"] == "ok" and row["kind"] == "pattern" for row in rows), [row["reason"] for row in rows]
    assert all(row["ratio"]["dense:sdpa"] > 0 for row in rows[1:])


def test_a_pattern_that_cannot_be_built_has_a_row_that_says_why() -> None:
    case = Case(n=64, p=1.0, heads=2, kv_heads=2, dim=16, dtype="float32")
    row = measure_patterns(case, device=CPU, seconds=0.0, specs=["dilated:branches=(8/2)"])[1]
    assert row["status"] == "unsupported" and "skip a token's own key" in row["reason"]


def test_the_check_finds_a_pattern_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(n=64, p=1.0, heads=2, kv_heads=2, dim=16, dtype="float32")
    assert check_pattern("dilated:branches=(32/1+64/2)", case, CPU) == ""
    real = reading.dilated
    monkeypatch.setattr(reading, "dilated", lambda *a, whole: real(*a, whole=whole) * (1.01 if whole else 1))
    assert "output is off by" in check_pattern("dilated:branches=(32/1+64/2)", case, CPU)
