"""Savings: ratios, verdicts and sentences from known timings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from turnout.report.costs import savings_figure
from turnout.report.run import Run
from turnout.report.savings import compare, sentences, step_ratio, timings


def row(
    arm: str, ms: float, *, length: int = 128, what: str = "train_step", flops: float = 100.0, spread: float = 0.05
) -> dict[str, Any]:
    return {
        "what": what, "arm": arm, "length": length, "batch": 8, "ms": ms, "ms_p20": ms * (1 - spread),
        "ms_p80": ms * (1 + spread), "flops": flops,
    }  # fmt: skip


def run_with(rows: list[dict[str, Any]]) -> Run:
    return Run(path=Path("run"), savings=rows, summary={"length": 128, "router": "linear"})


@pytest.mark.parametrize(
    ("routed", "verdict"), [(50.0, "saves 50 %"), (130.0, "costs 30 % more"), (104.0, "no clear difference")]
)
def test_verdicts_follow_the_measured_times(routed: float, verdict: str) -> None:
    [item] = compare(timings(run_with([row("dense", 100.0), row("routed", routed)])))
    assert item.verdict == verdict and item.to_dense == pytest.approx(routed / 100) and math.isnan(item.to_hybrid)
    assert item.verdict_hybrid == "not measured"


def test_overlapping_timings_are_no_difference_whatever_the_medians() -> None:
    [item] = compare(timings(run_with([row("dense", 100.0, spread=0.4), row("routed", 80.0, spread=0.4)])))
    assert item.verdict == "no clear difference"


def test_the_sentence_says_where_routing_costs_and_where_it_pays() -> None:
    rows = [row("dense", float(t), length=t) for t in (128, 256, 512, 1024)]
    rows += [row("routed", ms, length=t) for t, ms in ((128, 200.0), (256, 256.0), (512, 256.0), (1024, 256.0))]
    [(name, words)] = sentences(compare(timings(run_with(rows))))
    assert name == "Train step"
    assert words.startswith(
        "Routing costs more at T=128 (1.56× the time of dense attention), pays at T=512 and 1,024 (0.25× to 0.50× the "
        "time of dense attention) and makes no clear difference at T=256."
    )


def test_a_routed_model_slower_everywhere_is_not_said_to_pay() -> None:
    rows = [row(arm, ms, length=t) for t in (128, 256) for arm, ms in (("dense", 10.0), ("routed", 30.0))]
    [(_, words)] = sentences(compare(timings(run_with(rows))))
    assert words.startswith("Routing costs more at every length measured (3.00× the time of dense attention).")
    assert "pays" not in words


def test_rows_of_another_batch_are_not_compared() -> None:
    [item] = compare(timings(run_with([{**row("dense", 10.0), "batch": 1}, row("routed", 5.0)])))
    assert item.verdict == "not measured" and math.isnan(item.to_dense)


def test_the_ratio_of_the_headline_is_that_of_the_runs_own_length() -> None:
    rows = [row("dense", 100.0, length=256), row("routed", 10.0, length=256), row("dense", 40.0), row("routed", 20.0)]
    run = run_with(rows)
    run.evals = [{"length": 128.0, "final": True}]
    assert step_ratio(run) == (0.5, 20.0, 40.0)


@pytest.mark.parametrize("lengths", [(128,), (128, 256, 512)])
def test_the_figure_shows_every_arm_measured_and_counted(lengths: tuple[int, ...]) -> None:
    arms = ("dense", "static_hybrid", "routed", "local")
    run = run_with([row(arm, 10.0 + i, length=t, flops=5e6) for t in lengths for i, arm in enumerate(arms)])
    figure = savings_figure(run, timings(run))
    for words in ("static hybrid", "routed", "Train step, batch 8 (ms per step)", "Train step: counted FLOPs"):
        assert words in figure.wide and words in figure.narrow
    assert len(figure.data.rows) == 4 * len(lengths)
