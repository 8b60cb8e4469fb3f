"""The Pareto figure of language models says every arm that was measured, and nothing before one was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from turnout.claims.registry import get_claim
from turnout.claims.reproduce import judge
from turnout.report.language_models import pareto, table


def record(arm: str, seed: int, loss: float, usage: float | None, layout: str = "R" * 12) -> dict[str, Any]:
    return {
        "arm_name": arm, "seed": seed, "loss": loss + 0.001 * seed, "usage": usage, "layout": layout, "n_eval": 9,
        "tokens": 20_000_000, "tokens_per_s": 400_000.0 + seed, "params": 124_000_000, "length": 1024,
        "device_name": "test", "commit": "abc",
    }  # fmt: skip


def written(root: Path, records: list[dict[str, Any]]) -> Path:
    folder = root / "runs" / "LM1"
    folder.mkdir(parents=True)
    for item in records:
        (folder / f"{item['arm_name']}-{item['seed']}.json").write_text(json.dumps(item))
    return root


def arms(routed: float, random: float = 4.2) -> list[dict[str, Any]]:
    return [
        item
        for seed in range(3)
        for item in (
            record("routed 0.25", seed, routed, 0.251),
            record("random 0.25", seed, random, 0.25),
            record("static 0.25", seed, 4.15, None, "LLALLLALLLAL"),
            record("dense + local", seed, 4.0, 1.0),
        )
    ]


def test_every_arm_is_in_the_figure_with_its_usage(tmp_path: Path) -> None:
    assert pareto(tmp_path) is None
    figure = pareto(written(tmp_path, arms(4.1)))
    assert figure is not None and len(figure.data.rows) == 12
    ElementTree.fromstring(figure.wide)
    for words in ("routed at 25.1", "random at 25", "static at 25", "dense + local 4.001"):
        assert words in figure.wide.replace("\u202f", "")


def test_the_table_says_of_every_arm_what_it_loses_and_what_a_step_costs(tmp_path: Path) -> None:
    written(tmp_path, arms(4.1))
    case = {
        "layers": 12, "width": 768, "context": 32768, "batch": 8, "compiled": True, "what": "decode", "usage": 0.25,
        "local": "conv",
    }  # fmt: skip
    row = {
        "kind": "inference", "case": case, "arm": "static_hybrid", "status": "ok", "ms": 0.5, "ms_p20": 0.5,
        "ms_p80": 0.5, "n_calls": 3, "kv_bytes": 8e8,
        "device": "test", "device_kind": "cuda", "commit": "abc",
    }  # fmt: skip
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "inference.jsonl").write_text(json.dumps(row | {"joule_per_token": 0.031}) + "\n")
    head, _, *lines = table(tmp_path)
    assert [line.split(" | ")[0] for line in lines] == [
        "| dense + local",
        "| routed 0.25",
        "| static 0.25",
        "| random 0.25",
    ]
    static = next(line for line in lines if "static" in line)
    assert static.endswith("| 124 | 400 | 0.50 | 800 | 31.0 |") and "| 4.151 ± 0.002 | 3 |" in static
    assert all(line.count("|") == head.count("|") for line in lines)


def test_a_router_in_every_second_layer_counts_half_of_its_slots(tmp_path: Path) -> None:
    written(tmp_path, [*arms(routed=4.1), record("alternate 0.25", 0, 4.0, 0.5, "RL" * 6)])
    figure = pareto(tmp_path)
    assert figure is not None and "alternate at 25" in figure.wide
    assert any(line.startswith("| alternate 0.25 | 25.0") for line in table(tmp_path))
    config = next(arm for arm in get_claim("LM1").arms() if arm.name == "alternate 0.25").config(0)
    assert config.model.layer_kinds == "RL" * 6 and config.schedule.usage == 0.5


def test_arms_of_fewer_seeds_do_not_decide_who_is_on_the_front(tmp_path: Path) -> None:
    lucky = record("window", 0, 3.0, None, "L" * 12)
    front, *_ = judge(get_claim("LM1"), written(tmp_path, [*arms(routed=4.1), lucky]))
    assert front["measured"] == "on it: routed 0.25, dense + local" and front["verdict"] == "holds"
    assert front["detail"] == "fewer seeds, not counted: window 3.000"


def test_the_judgement_asks_for_every_control_and_for_the_margin(tmp_path: Path) -> None:
    def verdicts(folder: str, **losses: float) -> list[str]:
        return [row["verdict"] for row in judge(get_claim("LM1"), written(tmp_path / folder, arms(**losses)))]

    assert verdicts("ahead of both, behind attention", routed=4.1) == ["holds", "holds", "does not hold"]
    assert verdicts("behind the static hybrid", routed=4.16) == ["does not hold"] * 3
    assert verdicts("as good as attention", routed=4.005) == ["holds"] * 3
