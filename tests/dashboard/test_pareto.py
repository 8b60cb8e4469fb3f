"""The front of usage against quality."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turnout.dashboard.pareto import front

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=14)


def beats(a: tuple[float, float], b: tuple[float, float], higher: bool) -> bool:
    better = a[1] >= b[1] if higher else a[1] <= b[1]
    return a[0] <= b[0] and better and a != b


@given(POINTS, st.booleans())
def test_nothing_on_the_front_is_beaten_and_everything_else_is_beaten_or_equalled(
    points: list[tuple[float, float]], higher: bool
) -> None:
    kept = front(points, higher=higher)
    for i in kept:
        assert not any(beats(other, points[i], higher) for other in points)
    for i in set(range(len(points))) - set(kept):
        assert any(beats(points[k], points[i], higher) or points[k] == points[i] for k in kept)
    assert [points[i][0] for i in kept] == sorted(points[i][0] for i in kept)
