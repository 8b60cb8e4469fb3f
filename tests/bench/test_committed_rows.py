"""What is committed under results/bench can be read, and the cost model there is the one that its rows give."""

from __future__ import annotations

import pytest

from turnout.bench.calibrate import calibrate, read_models
from turnout.bench.rows import read_rows
from turnout.bench.targets import TARGETS, target_rows


def test_every_committed_row_names_its_device_versions_and_commit() -> None:
    rows = read_rows()
    assert rows
    for row in rows:
        assert row["device"] and row["commit"] != "unknown" and row["versions"]["torch"], row
        assert row["status"] in ("ok", "wrong", "unsupported")
        assert (row["ms"] is not None and row["ms"] > 0) or row["status"] != "ok" or row["kind"] == "breakeven"
        assert not row.get("ratio") or row["status"] == "ok"
    assert len(target_rows(rows)) == len(TARGETS)


def test_the_committed_cost_models_follow_from_the_committed_rows() -> None:
    stored = {(model.device, model.dtype, model.step): model for model in read_models()}
    fitted = {(model.device, model.dtype, model.step): model for model in calibrate(read_rows())}
    assert stored.keys() == fitted.keys()
    for key, model in stored.items():
        assert tuple(fitted[key].constants) == pytest.approx(tuple(model.constants), rel=1e-6)
        assert fitted[key].error == pytest.approx(model.error)
