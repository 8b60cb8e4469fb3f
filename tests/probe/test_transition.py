from __future__ import annotations

import pytest

from turnout.errors import DataError
from turnout.probe.transition import find_transition, over_seeds


def test_a_step_is_found_between_its_neighbours() -> None:
    curve = [(10, 0.1), (20, 0.1), (30, 0.1), (40, 0.9), (50, 0.9)]
    found = find_transition(curve)
    assert found is not None
    assert found.start == pytest.approx(31) and found.end == pytest.approx(39) and found.width == pytest.approx(8)


def test_a_ramp_takes_four_fifths_of_its_length() -> None:
    found = find_transition([(i, i / 100) for i in range(101)])
    assert found is not None and found.width == pytest.approx(80)


def test_a_flat_curve_has_no_transition() -> None:
    assert find_transition([(0, 0.1), (1, 0.2), (2, 0.3)]) is None


def test_a_curve_that_starts_high_is_measured_from_its_start() -> None:
    found = find_transition([(1, 0.4), (2, 0.4), (3, 1.0), (4, 1.0)])
    assert found is not None and 2 < found.start < found.end < 3


def test_two_points_are_too_few() -> None:
    with pytest.raises(DataError, match="3 points"):
        find_transition([(0, 0.0), (1, 1.0)])


def test_seeds_without_a_jump_are_counted_and_leave_the_mean_alone() -> None:
    def jump_at(step: int) -> list[tuple[int, float]]:
        return [(i, float(i >= step)) for i in range(100)]

    found = over_seeds([jump_at(20), jump_at(30), [(i, 0.0) for i in range(100)]])
    assert found.jumping == 2 and found.seeds[2] is None
    assert (
        found.start.mean == pytest.approx(24.1)
        and found.start.n == 2
        and found.start.low < 19.1 < 29.1 < found.start.high
    )
    assert over_seeds([[(i, 0.0) for i in range(3)]]).start.n == 0
