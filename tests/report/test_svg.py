"""Scales, ticks and labels."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from turnout.report.svg import Scale, linear_scale, log_scale, path, spread, tag, text

SIZES = st.floats(1e-6, 1e6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_a_linear_scale_holds_its_values_inside_the_axis_and_in_order(values: list[float]) -> None:
    scale = linear_scale(values, 300, 20)
    placed = [scale(value) for value in sorted(values)]
    assert all(20 - 1e-6 <= place <= 300 + 1e-6 for place in placed)
    assert placed == sorted(placed, reverse=True)


@pytest.mark.parametrize("kind", ["log", "log2"])
@given(values=st.lists(SIZES, min_size=1, max_size=8))
def test_a_log_scale_is_monotonic_and_ticks_lie_on_it(kind: str, values: list[float]) -> None:
    scale = log_scale(values, 0, 400, kind=kind)
    placed = [scale(value) for value in sorted(values)]
    assert placed == sorted(placed) and placed[0] >= -1e-6 and placed[-1] <= 400 + 1e-6
    assert all(scale.low * 0.99 <= tick <= scale.high * 1.01 for tick in scale.ticks())


def test_a_log_scale_gives_zero_a_row_of_its_own_only_when_zero_occurs() -> None:
    with_zero, without = log_scale([0, 0.01, 1], 200, 0), log_scale([0.01, 1], 200, 0)
    assert with_zero(0) == 200 and with_zero(0.01) == 184 and with_zero.ticks()[0] == 0
    assert without(0.01) == 200 and without.ticks()[0] == 0.01
    assert math.isnan(with_zero(math.nan))


@given(SIZES, SIZES)
def test_axes_have_between_two_and_a_dozen_ticks(a: float, b: float) -> None:
    assume(max(a, b) / min(a, b) > 2)
    for scale in (linear_scale([a, b], 0, 300), log_scale([a, b], 0, 300), log_scale([a, b], 0, 300, kind="log2")):
        assert 1 <= len(scale.ticks()) <= 12


@given(st.lists(st.floats(0, 300), max_size=12))
def test_spread_labels_never_overlap_and_keep_their_order(wanted: list[float]) -> None:
    places = spread(wanted, 12, 0, 300)
    ordered = sorted(places)
    assert all(b - a >= 12 - 1e-9 for a, b in itertools.pairwise(ordered))
    by_wish = [places[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
    assert by_wish == ordered


def test_labels_that_do_not_collide_stay_where_they_belong() -> None:
    assert spread([10, 200, 100], 12, 0, 300) == [10, 200, 100]


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs", "Cc"])))
def test_any_text_survives_as_text(words: str) -> None:
    element = ET.fromstring(text(words, 1, 2, title=words, data_note=words))
    assert (element.text or "") == words and element.get("data-note") == words


def test_nan_interrupts_a_path_and_a_lone_point_becomes_a_dot() -> None:
    assert path([(0, 0), (1, 1), (math.nan, 2), (3, 3.456)]) == "M0 0L1 1M3 3.46h0"
    assert tag("line", x1=0.0, stroke_width=2, class_="a", y=None) == '<line x1="0" stroke-width="2" class="a"/>'
    assert Scale(low=0, high=1, start=0, end=10)(7) == 10
