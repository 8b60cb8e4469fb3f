from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from turnout.errors import DataError
from turnout.recipes.routing_paradox import SMALL, arms_of
from turnout.report.study import write_study


def record(arm: Any, seed: int, value: float) -> dict[str, Any]:
    from turnout.config import to_dict

    config = arm.config(SMALL, seed)
    run = {
        "lr": 0.01, "precision": value, "pk": value, "p1": value, "rank": 2.0, "k90": 7, "k90_untrained": 12,
        "k90_input": 9, "curve": [[1, 0.1, 0.1], [2, value, value], [3, value, value]],
    }  # fmt: skip
    return {
        "arm_name": f"{arm.name}, {SMALL}", "seed": seed, "runs": [run], "units": 64, "unit": 1, "n_eval": 100,
        "config": to_dict(config), "device": "cpu", "device_name": "<test>", "commit": "abc",
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "runs" / "RP1"
    folder.mkdir(parents=True)
    arms = [arm for arm, scale in arms_of("RP1") if scale == SMALL and arm.name in ("raw, key", "raw, value")]
    for arm, value in zip(arms, (1.0, 0.13), strict=True):
        for seed in range(3):
            found = record(arm, seed, value)
            (folder / f"{found['arm_name']}-{seed}.json").write_text(json.dumps(found))
    cost = tmp_path / "results" / "runs" / "RPC"
    cost.mkdir()
    rows = [{"name": "raw", "ms": 2.0, "ms_p20": 1.0, "ms_p80": 3.0, "n": 5, "parameter_bytes": 8, "peak_bytes": 2e6}]
    bench = {"arm_name": "bench", "seed": 0, "rows": rows, "batch": 8, "length": 512, "width": 128, "device_name": "x"}
    (cost / "bench-cpu.json").write_text(json.dumps(bench))
    return tmp_path / "results"


def test_the_page_has_the_four_figures_with_data_and_nothing_from_outside(results: Path, tmp_path: Path) -> None:
    page = write_study(tmp_path / "page.html", results).read_text()
    assert page.count("<figure>") == 4
    names = {path.stem for path in (tmp_path / "page_data").glob("*.csv")}
    assert names == {"landscape", "transitions", "spectra", "pareto"}
    assert not re.search(r"(src|href)=\"https?:", page)
    assert "&lt;test&gt;" in page and "<test>" not in page
    assert "raw, key: 100.0 %, chance 12.4 %, 3 seeds" in page


def test_the_figures_repeat_the_numbers_of_the_runs(results: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "page.html", results)
    lines = (tmp_path / "page_data" / "landscape.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith('"raw, key",64,1,') and lines[2].startswith('"raw, value",64,0.13,')


def test_an_empty_folder_is_named_with_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="turnout reproduce routing-paradox"):
        write_study(tmp_path / "page.html", tmp_path)
