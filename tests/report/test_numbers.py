"""Written numbers never claim more than was measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.report import numbers


@given(st.floats(0, 1))
def test_only_exactly_all_is_100_percent_and_only_exactly_nothing_is_0_percent(share: float) -> None:
    written = numbers.percent(share, unit=False)
    if share > 1 - 1e-7 and share != 1:
        return
    assert (float(written) == 100) == (100 * share == 100)
    assert (float(written) == 0) == (share == 0)


@pytest.mark.parametrize(
    ("share", "written"),
    [(0.00048828, "0.0488 %"), (0.9996, "99.96 %"), (1.0, "100 %"), (0.0, "0 %"), (0.25, "25.0 %"), (0.03, "3.00 %")],
)
def test_percent_keeps_the_digits_that_matter(share: float, written: str) -> None:
    assert numbers.percent(share).replace(numbers.NO_BREAK, " ") == written


def test_missing_values_are_a_dash_everywhere() -> None:
    forms = (numbers.percent, numbers.significant, numbers.milliseconds, numbers.ratio, numbers.count, numbers.duration)
    assert {form(math.nan) for form in forms} == {numbers.MISSING}
    assert numbers.interval(math.nan, 1.0) == numbers.MISSING


@given(st.floats(1e-3, 1e5))
def test_significant_digits_are_right_to_half_a_percent(value: float) -> None:
    assert float(numbers.significant(value).replace(",", "")) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("n", "written"), [(1.0, "1 gate"), (1.02, "1.02 gates"), (0.0, "0 gates"), (0.04, "0.04 gates")]
)
def test_plurals_follow_the_number_as_written(n: float, written: str) -> None:
    assert numbers.plural(n, "gate") == written


@pytest.mark.parametrize(("seconds", "written"), [(41.3, "41 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_use_the_unit_that_fits(seconds: float, written: str) -> None:
    assert numbers.duration(seconds).replace(numbers.NO_BREAK, " ") == written
