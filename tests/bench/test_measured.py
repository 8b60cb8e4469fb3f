"""Tiny real measurements: every arm has a row, a failed self-check has no ratio, and what cannot run says why."""

from __future__ import annotations

import math

import pytest
import torch

from turnout.bench import kernels, self_check
from turnout.bench.arms import Arm, add_ratios, measure_arms
from turnout.bench.cases import Case
from turnout.bench.decode import measure_decode
from turnout.bench.dispatch import measure_dispatch
from turnout.bench.kernels import measure_kernel
from turnout.bench.layers import measure_layer
from turnout.bench.peaks import find_peaks, measure_peaks
from turnout.bench.profile import profiled
from turnout.bench.rows import FIELDS, machine
from turnout.errors import DataError

CPU = torch.device("cpu")


def tiny(**changes: object) -> Case:
    return Case(**{"n": 100, "p": 0.1, "batch": 2, "heads": 2, "kv_heads": 2, "dim": 16, "dtype": "float32", **changes})  # type: ignore[arg-type]


def by_arm(rows: list) -> dict:
    assert all(set(FIELDS) <= row.keys() for row in rows)
    return {row["arm"]: row for row in rows}


@pytest.mark.parametrize("step", ["forward", "forward+backward"])
def test_kernel_rows_compare_routed_arms_with_dense_in_one_run(step: str) -> None:
    rows = by_arm(measure_kernel(tiny(step=step, kv_heads=1), device=CPU, impls=("auto", "reference"), seconds=0.0))
    assert rows.keys() == {"dense:sdpa", "routed:auto", "router+auto", "routed:reference", "router+reference"}
    for row in rows.values():
        assert row["status"] == "ok" and 0 < row["ms_p20"] <= row["ms"] <= row["ms_p80"] and row["peak_bytes"] is None
        assert row["tflops"] == pytest.approx(row["flops"] / row["ms"] / 1e9)
    routed, dense = rows["routed:auto"], rows["dense:sdpa"]
    assert dense["ratio"] == {} and routed["ratio"] == {"dense:sdpa": pytest.approx(dense["ms"] / routed["ms"])}
    assert routed["flops"] == pytest.approx(0.1 * dense["flops"])


def test_an_implementation_that_is_not_there_has_a_row_that_says_so() -> None:
    rows = by_arm(measure_kernel(tiny(), device=CPU, impls=("no-such",), seconds=0.0))
    missing = rows["routed:no-such"]
    assert missing["status"] == "unsupported" and missing["ms"] is None and missing["ratio"] == {}
    assert "no-such" in missing["reason"]


@pytest.mark.parametrize("step", ["forward", "forward+backward"])
def test_no_ratio_is_shown_while_the_operator_is_wrong(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    real = self_check.attend

    def wrong(q: torch.Tensor, *rest: torch.Tensor, impl: str, **options: object) -> torch.Tensor:
        out = real(q, *rest, impl=impl, **options)  # type: ignore[arg-type]
        # A wrong gradient only, in the second case.
        shift = out if step == "forward" else out - out.detach()
        return out if impl == "reference" else out + 0.01 * shift

    monkeypatch.setattr(self_check, "attend", wrong)
    self_check._check_attend.cache_clear()
    try:
        rows = by_arm(measure_kernel(tiny(step=step), device=CPU, seconds=0.0))
    finally:
        self_check._check_attend.cache_clear()
    found = rows["routed:auto"]
    assert found["status"] == "wrong" and found["ratio"] == {}
    assert ("output" if step == "forward" else "gradient of q") in found["reason"] and "no ratio" in found["reason"]


def test_a_nan_fails_the_self_check() -> None:
    nan = [torch.full((2, 2), math.nan)]
    assert "self-check: output" in self_check.compare(
        lambda x: nan, lambda x: [x], [torch.ones(2, 2)], torch.float32, 4
    )


@pytest.mark.parametrize(("part", "step"), [("mixer", "forward"), ("block", "forward+backward")])
def test_layer_rows_hold_dense_local_and_routed(part: str, step: str) -> None:
    rows = by_arm(measure_layer(tiny(part=part, step=step), device=CPU, seconds=0.0))
    assert rows.keys() == {"dense:sdpa", "local", "routed:auto"}
    assert rows["local"]["flops"] < rows["routed:auto"]["flops"] < rows["dense:sdpa"]["flops"]
    assert rows["routed:auto"]["ratio"]


def test_dispatch_rows_hold_a_mixer_as_it_chooses_and_itself_with_dense_attention() -> None:
    case = Case(n=65, p=0.5, batch=2, heads=2, kv_heads=2, dim=16, dtype="float32", step="forward+backward")
    rows = by_arm(measure_dispatch(case, device=CPU, seconds=0.0))
    assert rows.keys() == {"dense:sdpa", "routed:auto"}
    assert rows["routed:auto"]["ratio"].keys() == {"dense:sdpa"} and rows["routed:auto"]["kind"] == "dispatch"


def test_the_profile_of_a_call_names_its_longest_parts_first() -> None:
    a = torch.ones(300, 300)
    parts = profiled(lambda: (a @ a).exp(), CPU)
    assert parts[0]["us"] >= parts[-2]["us"] > 0 and len(parts) <= 9
    assert {"aten::mm", "aten::exp"} <= {part["name"] for part in parts}


def test_decode_rows_are_one_step_each() -> None:
    rows = by_arm(measure_decode(tiny(n=40), device=CPU, seconds=0.0))
    assert rows.keys() == {"dense:sdpa", "dense:all gates open", "routed:auto"}
    assert rows["routed:auto"]["ratio"].keys() == {"dense:sdpa", "dense:all gates open"}
    assert rows["routed:auto"]["flops"] == pytest.approx(0.1 * rows["dense:sdpa"]["flops"])


def test_peaks_are_found_by_device_and_dtype() -> None:
    rows = measure_peaks(CPU, dtype="float32", seconds=0.0)
    peaks = find_peaks(rows, machine(rows[0]), "float32")
    assert min(peaks) > 0 and peaks.launch < 1e-3
    with pytest.raises(DataError, match="turnout bench peaks"):
        find_peaks(rows, "another", "float32")


def test_an_arm_that_cannot_run_does_not_stop_the_others() -> None:
    def broken() -> None:
        raise RuntimeError("no kernel for this\nlong story")

    arms = {
        "dense:a": Arm(call=lambda: None, flops=1.0, n_bytes=1.0), "b": Arm(call=broken, flops=1.0, n_bytes=1.0),
    }  # fmt: skip
    rows = by_arm(add_ratios(measure_arms("kernel", tiny(), arms, device=CPU, seconds=0.0)))
    assert rows["b"]["reason"] == "no kernel for this" and rows["b"]["ms"] is None and rows["dense:a"]["ms"] > 0


def test_the_default_cases_are_small_on_a_cpu() -> None:
    assert max(case.n for case in kernels.default_cases(CPU)) == 2048
    assert all(case.dtype == "bfloat16" for case in kernels.default_cases(torch.device("cuda")))
