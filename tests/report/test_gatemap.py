"""The gate map: a single open gate is always visible."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout.report.gatemap import LEAST_MARK, STEPS, evolution_figure, gate_figure, level, pool
from turnout.report.gates import GateSnapshot
from turnout.report.run import Run


def snapshot(mean: list[list[float]], bin_size: int = 1) -> GateSnapshot:
    length = len(mean[0]) * bin_size
    index = tuple(range(len(mean)))
    return GateSnapshot(
        step=5, phase="hold", length=length, mean=mean, bin=bin_size, groups=1, index=index, n=64, sequences=[]
    )


def drawn(svg: str, css: str) -> list[tuple[float, float]]:
    """(left, width) of the marks of one colour step."""
    found = re.findall(rf'class="{css}" d="([^"]*)"', svg)
    return [(float(x), float(w)) for part in found for x, w in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)", part)]


@pytest.mark.parametrize("length", [16, 512, 4096])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_open_gate_among_many_is_drawn_wide_enough_and_at_its_place(length: int, place: float, tmp_path) -> None:
    position = round(place * (length - 1))
    mean = [[0.0] * length for _ in range(4)]
    mean[2][position] = 1.0
    figure = gate_figure(Run(path=tmp_path), snapshot(mean))
    for svg in (figure.wide, figure.narrow):
        [(left, width)] = drawn(svg, "q6")
        assert width >= LEAST_MARK
        rail = re.search(r'class="rail" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
        assert rail
        exact = float(rail[1]) + (position + 0.5) / length * float(rail[2])
        assert left - 1 <= exact <= left + width + 1


@given(st.lists(st.sampled_from([0.0, 0.001, 0.3, 1.0]), min_size=1, max_size=300), st.integers(1, 50))
def test_pooling_keeps_every_maximum_and_never_exceeds_the_columns(row: list[float], columns: int) -> None:
    pooled = pool(row, columns)
    assert len(pooled) <= columns and max(pooled) == max(row) and set(pooled) <= set(row)


def test_colour_steps_start_above_zero_and_end_with_always() -> None:
    assert level(0) == -1 and level(1e-9) == 0 and level(1.0) == len(STEPS) - 1 and level(0.9995) == len(STEPS) - 1
    assert [level(upper) for upper in STEPS] == list(range(len(STEPS)))


def test_a_dense_map_stays_small(tmp_path) -> None:
    mean = [[(i * 37 % 100) / 100 for i in range(4096)] for _ in range(12)]
    figure = gate_figure(Run(path=tmp_path), snapshot(mean))
    assert len(figure.wide) + len(figure.narrow) < 250_000


def test_snapshots_are_thinned_to_eight_with_the_first_and_the_last(tmp_path) -> None:
    run = Run(path=tmp_path)
    run.snapshots = [
        GateSnapshot(
            step=step, phase="ramp", length=2, mean=[[0.1, 0.2]], bin=1, groups=1, index=(0,), n=1, sequences=[]
        )
        for step in range(0, 3000, 100)
    ]
    figure = evolution_figure(run)
    assert figure is not None
    steps = [row[0] for row in figure.data.rows]
    assert len(steps) == 8 and steps[0] == 0 and steps[-1] == 2900
    run.snapshots = run.snapshots[:1]
    assert evolution_figure(run) is None
