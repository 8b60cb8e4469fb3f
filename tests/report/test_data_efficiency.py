"""The figure of data efficiency has every arm's curve and lowest point, and is none before dense attention ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from turnout.claims.data_efficiency import PASS, judge_mixers
from turnout.claims.store import summaries
from turnout.report.data_efficiency import curves_figure

CONFIG = {"optim": {"batch": 16, "accumulate": 1}, "task": {"length": 1024}}


def record(arm: str, seed: int, losses: list[float]) -> dict[str, Any]:
    curve = [(PASS * (i + 1), loss + 0.001 * seed) for i, loss in enumerate(losses)]
    return {
        "arm_name": arm, "seed": seed, "loss": losses[-1] + 0.001 * seed, "curve": curve, "params": 3_000_000,
        "config": CONFIG, "device_name": "test", "commit": "abc",
    }  # fmt: skip


def written(root: Path, arms: dict[str, list[float]]) -> Path:
    folder = root / "runs" / "TH7"
    folder.mkdir(parents=True)
    for arm, losses in arms.items():
        for seed in range(3):
            (folder / f"{arm}-{seed}.json").write_text(json.dumps(record(arm, seed, losses)))
    return root


def test_every_arm_has_its_curve_and_its_lowest_point(tmp_path: Path) -> None:
    assert curves_figure(tmp_path) is None
    figure = curves_figure(written(tmp_path, {"dense": [2.0, 1.8, 1.7], "forgetting": [1.9, 1.65, 1.9]}))
    assert figure is not None and len(figure.data.rows) == 18
    ElementTree.fromstring(figure.wide)
    assert "forgetting: least 1.651 after 1.8M bytes, 1.901 at the end" in figure.wide
    assert "dense: least 1.701 after 2.7M bytes, 1.701 at the end" in figure.wide


def test_a_pattern_that_some_seed_never_brings_to_the_target_has_no_pace(tmp_path: Path) -> None:
    written(tmp_path, {"dense": [2.0, 1.8, 1.7], "window 64": [1.9, 1.7005, 1.8], "forgetting": [1.9, 1.65, 1.9]})
    said = {finding.statement.partition(":")[0]: finding for finding in judge_mixers(summaries("TH7", tmp_path))}
    assert said["window 64"].verdict == "does not hold" and "2 of 3 seeds get there" in said["window 64"].measured
    assert said["forgetting"].verdict == "holds" and "as fast; best loss 1.6510" in said["forgetting"].measured
    assert "pass 1 1.901, pass 2 1.651, pass 4 1.901" in said["forgetting"].detail
