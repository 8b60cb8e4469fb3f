"""Series out of metric lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.report import curves
from turnout.report.curves import PHASES, band, buckets, phases
from turnout.report.run import Run


def lines(n: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"step": 10 * i, "phase": "ramp", "usage": i / n, "usage_layers": [i / n, 0.0], **fields} for i in range(n)]


@given(st.integers(1, 300), st.integers(1, 60))
def test_buckets_keep_the_mean_and_never_exceed_their_number(n: int, about: int) -> None:
    merged = buckets(lines(n), about)
    assert len(merged) <= about
    size = math.ceil(n / about)
    sizes = [min(size, n - i * size) for i in range(len(merged))]
    mean = sum(item.mean["usage"] * k for item, k in zip(merged, sizes, strict=True)) / n
    assert mean == pytest.approx(sum(i / n for i in range(n)) / n)
    assert all(item.low["usage"] <= item.mean["usage"] + 1e-12 <= item.high["usage"] + 2e-12 for item in merged)


def test_a_bucket_never_mixes_phases_lengths_or_skipping() -> None:
    mixed = lines(4) + lines(4, phase="hold") + lines(4, length=64) + lines(4, skipping=True)
    assert [item.phase for item in buckets(mixed, 1)] == ["ramp", "hold", "ramp", "ramp"]


def test_nan_is_left_out_and_the_tasks_own_loss_is_preferred() -> None:
    [item] = buckets([{"step": 1, "loss": 9.0, "task_loss": 1.0}, {"step": 2, "loss": math.nan}], 1)
    assert item.mean["loss"] == 1.0 and math.isnan(item.mean["accuracy"])


def test_phases_touch_each_other_and_reach_to_the_last_step() -> None:
    run = Run(
        path=Path("run"),
        train=[{"step": s, "phase": p} for s, p in ((0, "explore"), (10, "explore"), (20, "ramp"), (30, "ramp"))],
    )
    assert [(p.name, p.first, p.last) for p in phases(run)] == [("explore", 0, 20), ("ramp", 20, 30)]


def test_a_band_interpolates_inside_each_curve_and_never_beyond_it() -> None:
    middle, low, high = band([[(0, 0.0), (10, 1.0)], [(5, 1.0)]])
    assert middle == [(0, 0.0), (5, 0.75), (10, 1.0)] and low[1] == (5, 0.5) and high[1] == (5, 1.0)


def test_a_geometric_band_averages_decades() -> None:
    middle, _, _ = band([[(0, 0.01)], [(0, 1.0)]], geometric=True)
    assert middle[0][1] == pytest.approx(0.1)
    assert band([[(0, 0.0)], [(0, 1.0)]], geometric=True)[0][0][1] == 0.5


@pytest.mark.parametrize("name", PHASES)
def test_every_phase_has_a_colour_in_light_and_dark(name: str) -> None:
    style = (Path(curves.__file__).parent / "templates" / "style.css").read_text()
    assert style.count(f"--p-{name}:") == 2 and f".phase-{name} {{ fill: var(--p-{name}); }}" in style
