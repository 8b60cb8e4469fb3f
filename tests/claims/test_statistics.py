"""Intervals against known values."""

from __future__ import annotations

import math

import pytest

from turnout.claims.statistics import mean_interval, wilson


def test_mean_interval_is_students_t() -> None:
    # n = 3, sd = 1: t(2) = 4.303, half width 4.303 / sqrt(3).
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)


def test_one_seed_has_an_infinite_interval() -> None:
    assert mean_interval([0.5]) == (0.5, math.inf)


def test_equal_values_have_no_width() -> None:
    assert mean_interval([0.25] * 4) == (0.25, 0.0)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)]
)
def test_wilson_matches_published_values(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
