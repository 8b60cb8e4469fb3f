"""The break-even is where the ratio falls through one, and the dispatch table keeps what was not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.fake_rows import row
from turnout.bench.breakeven import crossing, deciding_row, measure_break_even, mixer_crossing, write_table
from turnout.bench.cases import Case
from turnout.errors import DataError


@pytest.mark.parametrize(
    ("points", "p"),
    [
        ([(0.25, 3.0), (1.0, 0.5)], 0.85),
        ([(1.0, 0.5), (0.5, 1.5), (0.25, 3.0)], 0.75),
        ([(0.25, 3.0), (1.0, 1.2)], 1.0),
        ([(0.25, 0.9), (1.0, 1.2)], 0.25),
        ([], None),
    ],
)
def test_the_crossing_is_linear_between_points(points: list[tuple[float, float]], p: float | None) -> None:
    assert crossing(points) == (None if p is None else pytest.approx(p))


def found(n: int, p: float | None, **changes: object) -> dict:
    return row("breakeven", Case(n=n, p=1.0, dim=96), "triton", None, break_even=p, **changes)


def test_the_table_takes_the_smallest_length_and_keeps_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    default = {"device": "default", "dtype": "default", "head_dim": "default", "pass": "forward", "fraction": 0.8}
    path.write_text(json.dumps({"rows": [default]}))
    write_table(path, [found(512, 0.7), found(2048, 0.9), found(4096, None)])
    write_table(path, [found(512, 0.75, scattered_from=0.9512), found(2048, 0.9)])
    rows = json.loads(path.read_text())["rows"]
    assert rows[0] == default and len(rows) == 2
    new = rows[1]
    assert (new["device"], new["dtype"], new["head_dim"], new["pass"]) == ("Testor 9", "bfloat16", 128, "forward")
    assert new["fraction"] == 0.75 and new["by_n_keys"] == {"512": 0.75, "2048": 0.9} and new["commit"] == "c0ffee"
    assert new["scattered_by_n_keys"] == {"512": 0.951, "2048": None}
    assert deciding_row(Case(n=1, p=1.0, dim=100), "Testor 9", path) == new
    assert deciding_row(Case(n=1, p=1.0, dim=64), "Testor 9", path) == default
    assert deciding_row(Case(n=1, p=1.0), "Testor 9", tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("points", "p"),
    [
        # Between two points, beyond the last, and never.
        ([(0.7, 3.6, 3.9), (0.85, 4.2, 3.9), (0.25, 1.8, 3.9)], 0.775),
        ([(0.5, 2.0, 2.2), (0.25, 1.5, 2.2)], 0.6),
        ([(0.5, 2.0, 9.0), (0.25, 1.5, 9.0)], 1.0),
    ],
)
def test_a_mixer_breaks_even_where_its_line_meets_dense(points: list[tuple[float, float, float]], p: float) -> None:
    assert mixer_crossing(points) == pytest.approx(p)


def test_rows_of_mixers_lower_the_fraction_of_their_own_device_pass_and_length(tmp_path: Path) -> None:
    def mixer(n: int, p: float, ms: float, ratio: float, **changes: object) -> dict:
        case = Case(n=n, p=p, dim=96)
        return {**row("dispatch", case, "routed:auto", ms, ratio={"dense:cudnn": ratio, "dense:flash": 9.0}), **changes}

    rows = [mixer(512, 0.25, 1.5, 2.2 / 1.5), mixer(512, 0.5, 2.0, 1.1), mixer(512, 0.9, 2.2, 1.0)]
    rows += [mixer(2048, 0.25, 1.5, 1.0, device="another"), mixer(2048, 0.5, 2.0, 0.5, device="another")]
    (new,) = write_table(tmp_path / "table.json", [*rows, found(512, 0.7), found(2048, 0.9)])
    assert new["by_n_keys"] == {"512": 0.6, "2048": 0.9}


def test_nothing_measured_leaves_the_table_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="left as it was"):
        write_table(tmp_path / "table.json", [found(512, None)])
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(DataError, match="is no break-even table"):
        write_table(tmp_path / "other.json", [found(512, 0.5)])


def test_a_real_break_even_on_the_cpu_lies_between_its_points() -> None:
    case = Case(n=128, p=1.0, heads=2, kv_heads=2, dim=32, dtype="float32")
    found, behind = measure_break_even(case, device=torch.device("cpu"), fractions=(0.01, 1.0), seconds=0.0)
    assert found["status"] == "ok" and 0 < found["break_even"] <= 1
    assert len(found["points"]) == 2 and {r["case"]["p"] for r in behind} == {0.01, 1.0}
