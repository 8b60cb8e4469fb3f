"""The cost of directions: rows for attention and for every arm, with numbers that a claim can judge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from turnout.bench import directions
from turnout.claims.directional_rows import costs


def test_attention_and_arms_are_timed_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(directions.SIZES["cpu"], layers=1, width=16, length=8, batch=2, hidden=4)
    monkeypatch.setitem(directions.SIZES, "cpu", small)
    monkeypatch.setattr(directions, "ARMS", ("baseline", "sequence", "prefix"))
    monkeypatch.setattr(directions, "SHAPES", {"cpu": {"cpu": (1, 8, 2, 4)}})
    record = directions.measure_directions("cpu", seconds=0.01)
    assert [row["what"] for row in record["attention"]] == ["forward", "forward+backward"]
    for row in record["attention"]:
        ways = [row["ms"][f"attention + {way}"] for way in ("cut", "definition")]
        assert row["best"] == pytest.approx(min(ways) / row["ms"]["attention"])
    assert [row["arm"] for row in record["models"]] == ["baseline", "sequence", "prefix"]
    assert all(row[what] > 0 for row in record["models"] for what in ("train", "forward", "decode"))
    assert len(costs([record])) == 2 + 3
