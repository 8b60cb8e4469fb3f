"""The page of the bill: its numbers are those of the rows, and nothing comes from outside."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turnout.bench.inference import Bill, measure_bill
from turnout.bench.rows import append_rows, read_rows
from turnout.errors import DataError
from turnout.models.config import ModelConfig, RoutingConfig
from turnout.report.bill import write_bill

MODEL = ModelConfig(
    layers=2, width=16, heads=2, local="conv:kernel=2", positions="rope", form="llama", routing=RoutingConfig(mix="add")
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bill")
    bill = Bill(context=8, batch=1, usage=0.5, steps=2, seconds=0.0)
    for context in (8, 16):
        here = replace(bill, context=context)
        append_rows(folder / "bench", measure_bill(MODEL, here, vocab=9, device=torch.device("cpu")))
    (folder / "lm").mkdir()
    for arm, layout, usage in (("routed", "RR", 0.3), ("dense", "AA", None)):
        run = {
            "summary": {"layout": layout, "steps": 5, "seed": 0, "params": 7},
            "eval": {"loss": 1.5, "usage": usage, "n": 3},
            "config": {"optim": {"batch": 2}, "task": {"length": 8}}, "device_name": "<x>", "commit": "abc",
        }  # fmt: skip
        (folder / f"lm/{arm}-0.json").write_text(json.dumps(run))
    return folder


def test_a_row_counts_the_bytes_that_its_open_gates_read(folder: Path) -> None:
    rows = [row for row in read_rows(folder / "bench") if row["case"]["what"] == "decode"]
    assert {row["arm"] for row in rows} == {"dense", "static_hybrid", "routed"} and len(rows) == 6
    for row in rows:
        layer = 2 * row["case"]["context"] * 16 * 4
        assert row["kv_bytes"] == pytest.approx(2 * layer * row["usage"])
        assert row["usage"] == {"dense": 1.0, "static_hybrid": 0.5}.get(row["arm"], row["usage"])
        total = row["ttft_ms"] + row["answer"] * row["ms"]
        assert row["answer_tokens_per_s"] == pytest.approx(1e3 * row["answer"] / total)
        assert row["joule_per_token"] is None and row["peak_bytes"] is None


@pytest.mark.parametrize(("context", "read"), [(3, 3), (8, 4)])
def test_a_window_reads_its_own_keys_and_no_others(context: int, read: int) -> None:
    bill = Bill(context=context, batch=3, steps=2, seconds=0.0)
    windows = replace(MODEL, local="window:size=4")
    _, row = measure_bill(windows, bill, vocab=9, device=torch.device("cpu"), arms=("local",))
    assert row["ms"] > 0 and row["usage"] == 0.0
    assert row["kv_bytes"] == 3 * MODEL.layers * read * 2 * MODEL.width * 4


def test_the_page_repeats_the_numbers_of_the_rows(folder: Path, tmp_path: Path) -> None:
    page = write_bill(tmp_path / "page.html", folder).read_text()
    assert page.count("<figure>") == 3 and not re.search(r"(src|href)=\"https?:", page)
    assert "&lt;x&gt;" in page and "<x>" not in page
    rows = {(r["arm"], r["case"]["context"]): r for r in read_rows(folder / "bench") if r["case"]["what"] == "decode"}
    data = tmp_path / "page_data"
    with (data / "times-16-cpu.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 6
    for line in found:
        assert float(line["ms"]) == pytest.approx(rows[line["arm"], int(line["context"])]["ms"], rel=1e-5)
    with (data / "pareto.csv").open() as file:
        assert [(line["arm"], line["usage"]) for line in csv.DictReader(file)] == [("dense", "1"), ("routed", "0.3")]


def test_dense_attention_has_one_usage_and_the_curve_of_the_trained_models_stands_beside_the_bill(
    folder: Path, tmp_path: Path
) -> None:
    rows = [row for row in read_rows(folder / "bench") if row["case"]["what"] == "decode"]
    elsewhere = [row | {"case": row["case"] | {"usage": 0.25}} for row in rows if row["arm"] != "dense"]
    append_rows(tmp_path / "bench", [*rows, *elsewhere])
    run = {
        "arm_name": "routed 0.25", "seed": 0, "loss": 4.0, "usage": 0.25, "layout": "RR", "n_eval": 9, "tokens": 9,
        "tokens_per_s": 1.0, "length": 8, "device_name": "test", "commit": "abc",
    }  # fmt: skip
    (tmp_path / "runs/LM1").mkdir(parents=True)
    (tmp_path / "runs/LM1/routed 0.25-0.json").write_text(json.dumps(run))
    page = write_bill(tmp_path / "page.html", tmp_path).read_text()
    assert "What routing costs a language model" in page
    assert page.count("×</td>") == len(rows) + len(elsewhere)


def test_without_rows_it_says_what_to_measure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="turnout bench inference"):
        write_bill(tmp_path / "page.html", tmp_path)
    with pytest.raises(ValueError, match="usage"):
        Bill(context=1, batch=1, usage=0.0)
