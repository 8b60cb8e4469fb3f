"""The cost model counts what the modules count, finds where routing pays, and is judged on rows it has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.fake_rows import peak_rows, row
from turnout.bench.calibrate import calibrate, find_models, fit, held_out_error, read_models, to_dict, write_models
from turnout.bench.cases import Case
from turnout.bench.cost_model import (
    CostModel,
    Work,
    at_peak,
    break_even_n,
    break_even_p,
    decode_work,
    head_work,
    layer_work,
)
from turnout.bench.floors import Peaks
from turnout.bench.layers import build_block
from turnout.errors import ConfigError, DataError

PEAKS = Peaks(flops=100e12, bandwidth=1e12, launch=5e-6)
TRUE = Work(matmul=1.5, dense=2.0, routed=2.5, moved=1.25, launches=0.5)
CASE = Case(n=512, p=1 / 4, batch=2, heads=4, kv_heads=2, dim=32, dtype="float32")
MODEL = CostModel("Testor 9", "bfloat16", "forward", PEAKS, TRUE)


@pytest.mark.parametrize("part", ["mixer", "block"])
@pytest.mark.parametrize(("arm", "kind"), [("dense", "A"), ("routed", "R")])
def test_operations_are_those_that_the_modules_count(part: str, arm: str, kind: str) -> None:
    case = replace(CASE, part=part)
    block = build_block(case, kind, torch.device("cpu"))
    module = block.mixer if part == "mixer" else block
    work = layer_work(case, arm)
    # The module also counts its convolution and its router.
    extra = 0.0 if arm == "dense" else block.mixer.local.flops(case.n) + 2 * case.n * case.width
    want = case.batch * (module.flops(case.n, case.p) - extra)
    assert work.matmul + work.dense + work.routed == pytest.approx(want)


def test_a_training_step_costs_three_products_and_three_and_a_half_attentions() -> None:
    forward, both = (layer_work(replace(CASE, step=step), "routed") for step in ("forward", "forward+backward"))
    assert both.matmul == 3 * forward.matmul and both.routed == 3.5 * forward.routed
    assert head_work(CASE, 100).matmul == 2.0 * 2 * 512 * 128 * 100


def test_a_decode_step_reads_the_cache_of_open_gates_and_the_weights_once() -> None:
    dense, routed = (decode_work(CASE, arm, weights=False) for arm in ("dense", "routed"))
    assert dense.moved == 2 * 2 * 512 * 64 * 4 and routed.moved == dense.moved / 4
    assert decode_work(CASE, "dense").moved - dense.moved == (2 * 128 * 64 + 2 * 128**2) * 4
    assert decode_work(CASE, "local", weights=False).moved == 0
    with pytest.raises(ConfigError, match="expected one of dense, local, routed"):
        layer_work(CASE, "dens")


def synthetic(noise: float = 0.0) -> list[dict]:
    """Rows that a device with constants TRUE would measure."""
    model = replace(MODEL, dtype="float32")
    rows = peak_rows("float32")
    for i, (n, p, width) in enumerate([(256, 0.5, 4), (1024, 0.1, 4), (4096, 0.1, 8), (8192, 0.25, 8), (512, 1, 16)]):
        case = Case(n=n, p=p, heads=width, kv_heads=width, dim=32, dtype="float32")
        for arm, name in (("dense", "dense:flash"), ("local", "local"), ("routed", "routed:auto")):
            ms = model.ms(layer_work(case, arm)) * (1 + noise * (-1) ** i)
            rows.append(row("layer", case, name, ms))
    return rows


def test_the_fit_finds_the_constants_behind_the_rows_and_its_held_out_error_is_zero() -> None:
    (model,) = calibrate(synthetic())
    assert tuple(model.constants) == pytest.approx(tuple(TRUE), rel=1e-3)
    assert model.error == pytest.approx(0, abs=0.1) and model.n_rows == 15 and model.step == "forward"


def test_the_error_is_that_of_rows_the_fit_has_not_seen() -> None:
    (model,) = calibrate(synthetic(noise=0.3))
    points = [(Case(n=8, p=1.0), Work(matmul=1e12), 10.0, {}), (Case(n=9, p=1.0), Work(matmul=1e12), 20.0, {})]
    assert model.error is not None and model.error > 10
    # Fitted to the other row alone, each of two rows that disagree by two is wrong by 100 % or by 50 %.
    assert held_out_error(points, PEAKS) == pytest.approx(75)
    inside = [abs(1e3 * sum(c * s for c, s in zip(fit(points, PEAKS), at_peak(w, PEAKS), strict=True)) / ms - 1)
              for _, w, ms, _ in points]  # fmt: skip
    assert max(inside) < 0.75


def test_constants_are_never_negative() -> None:
    points = [(Case(n=n, p=1.0), Work(matmul=n * 1e9, moved=1e9 / n), 1.0 * n, {}) for n in (1, 10, 100)]
    assert min(fit(points, PEAKS)) >= 0


def test_wrong_rows_unsupported_rows_and_too_few_cases_fit_nothing() -> None:
    rows = synthetic()
    assert calibrate([{**r, "status": "wrong"} if r["kind"] == "layer" else r for r in rows]) == []
    assert calibrate([r for r in rows if r["kind"] != "peak"]) == []
    assert calibrate([r for r in rows if r["kind"] == "peak" or r["case"]["n"] < 2000]) == []


def test_models_are_stored_with_their_provenance_and_found_by_part_of_the_name(tmp_path: Path) -> None:
    models = calibrate(synthetic())
    path = write_models(models, tmp_path)
    write_models(models, tmp_path)
    assert [to_dict(m) for m in read_models(tmp_path)] == [to_dict(m) for m in models]
    assert models[0].commit == "c0ffee" and find_models(models, "testor", "float32").keys() == {"forward"}
    with pytest.raises(DataError, match="no cost model of H100 in float32"):
        find_models(models, "H100", "float32")
    with pytest.raises(DataError, match="run turnout plan --measure"):
        write_models([], tmp_path)
    path.write_text("[{}]")
    with pytest.raises(DataError, match="is no cost model"):
        read_models(tmp_path)


@pytest.mark.parametrize("step", ["forward", "forward+backward", "decode"])
def test_break_evens_are_where_the_predictions_cross(step: str) -> None:
    model = replace(MODEL, step=step)
    case = Case(n=4096, p=1 / 4, batch=4, heads=16, kv_heads=16, dim=64, step="forward" if step == "decode" else step)
    from turnout.bench.cost_model import work_of

    def pays(**changes: object) -> bool:
        size = replace(case, **changes)
        return model.ms(work_of(step)(size, "routed")) <= model.ms(work_of(step)(size, "dense"))

    n = break_even_n(model, case)
    assert n is not None and pays(n=n) and not pays(n=n - 1)
    p = break_even_p(model, case)
    assert 0 < p < 1 and pays(p=p) and not pays(p=min(1.0, p + 1 / case.n))


def test_where_routing_never_or_always_pays() -> None:
    slow = replace(MODEL, constants=TRUE._replace(routed=1e6, launches=1e6))
    assert break_even_n(slow, CASE) is None and break_even_p(slow, CASE) == 0
    free = replace(MODEL, constants=Work(dense=1.0))
    assert break_even_n(free, CASE) == 1 and break_even_p(free, CASE) == 1
