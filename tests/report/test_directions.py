"""The figure of directional routing by text: every arm, domain and length, against the baseline's same seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from turnout.report.directions import by_text


def record(root: Path, arm: str, seed: int, forced: float, honest: float, lengths: bool = True) -> None:
    both = {"teacher_forced": forced, "honest": honest}
    study: dict[str, Any] = {"honest": {**both, "by_domain": [{"domain": "books", **both}]}}
    if lengths:
        study["lengths"] = [{"length": 16, **both}]
    folder = root / "runs" / "DR1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{arm}-{seed}.json").write_text(json.dumps({"arm_name": arm, "seed": seed, "study": study}))


def test_changes_are_against_the_same_seeds_of_the_baseline(tmp_path: Path) -> None:
    record(tmp_path, "baseline, gpu", 0, 2.0, 2.0)
    record(tmp_path, "baseline, gpu", 1, 3.0, 3.0, lengths=False)
    record(tmp_path, "sequence, gpu", 1, 2.9, 3.1)
    figure = by_text(tmp_path)
    assert figure is not None
    rows = {(row[1], row[2]): row for row in figure.data.rows}
    assert {name for arm, name in rows if arm == "baseline"} == {"all", "books", "windows of 16"}
    assert rows["sequence", "books"][6:] == pytest.approx([math.exp(-0.1) - 1, math.exp(0.1) - 1])
    # The baseline's seed 1 has no short windows to compare with.
    assert rows["sequence", "windows of 16"][3:] == [1, 2.9, 3.1, None, None]
    assert figure.wide.count("<circle") == 2 * 2


def test_without_records_there_is_no_figure(tmp_path: Path) -> None:
    assert by_text(tmp_path) is None
