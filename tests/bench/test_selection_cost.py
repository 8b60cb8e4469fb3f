from __future__ import annotations

import pytest

from turnout.bench import selection_cost
from turnout.claims.registry import get_claim


def test_every_mechanism_is_timed_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_cost, "LENGTH", 64)
    monkeypatch.setattr(selection_cost, "WIDTH", 32)
    monkeypatch.setattr(selection_cost, "BATCH", 2)
    record = selection_cost.measure("cpu", seconds=0.1)
    assert [row["name"] for row in record["rows"]] == list(selection_cost.MECHANISMS)
    assert all(row["ms"] > 0 and row["n"] >= 5 and row["peak_bytes"] > 0 for row in record["rows"])
    # Scores of all pairs of a layer need more room than scores of one query.
    peak = {row["name"]: row["peak_bytes"] for row in record["rows"]}
    assert peak["attention"] > peak["shift"] > peak["identity match"]
    (finding,) = get_claim("RPC").judge({"bench": [record]})
    assert "token shift" in finding.control and "MB: " in finding.detail
