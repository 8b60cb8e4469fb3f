"""Intervals against tables and laws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.stats import mean_interval, mean_over_seeds, t95, wilson


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share_stays_in_the_unit_interval_and_mirrors(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits / n, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored_low, mirrored_high = wilson((n - hits) / n, n)
    assert low == pytest.approx(1 - mirrored_high, abs=1e-12) and high == pytest.approx(1 - mirrored_low, abs=1e-12)


def test_wilson_agrees_with_the_published_example() -> None:
    # 10 of 20: Newcombe (1998), method 3 gives 0.2993 to 0.7007.
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0.5, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (4, 2.7764), (30, 2.0423), (40, 2.0211), (120, 1.9799)]
)
def test_t_agrees_with_the_table(freedom: int, quantile: float) -> None:
    assert t95(freedom) == pytest.approx(quantile, abs=2e-4)


def test_t_falls_toward_the_normal_quantile() -> None:
    values = [t95(freedom) for freedom in range(1, 200)]
    assert values == sorted(values, reverse=True) and values[-1] > 1.9599


def test_seeds_that_differ_get_t_and_seeds_that_agree_get_wilson_over_all_answers() -> None:
    spread = mean_over_seeds([0.98, 0.99, 1.0], proportion_of=[100, 100, 100])
    assert spread.method == "t over seeds" and spread.high == 1.0
    assert spread.mean - spread.low == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    agreed = mean_over_seeds([1.0, 1.0, 1.0], proportion_of=[100, 100, 100])
    assert agreed.method == "Wilson" and (agreed.low, agreed.high) == wilson(1.0, 300)


def test_one_loss_has_no_interval_and_nan_is_left_out() -> None:
    single = mean_over_seeds([1.5, math.nan])
    assert (single.mean, single.n, single.method) == (1.5, 1, "none") and math.isnan(single.low)
    assert mean_over_seeds([math.nan]).n == 0


def test_mean_interval_is_students_t() -> None:
    # n = 3, sd = 1: t(2) = 4.3027, half width 4.3027 / sqrt(3).
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3))


def test_one_seed_has_an_infinite_width_and_equal_values_none() -> None:
    assert mean_interval([0.5]) == (0.5, math.inf)
    assert mean_interval([0.25] * 4) == (0.25, 0.0)
