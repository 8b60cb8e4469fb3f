"""`turnout bench` on a machine without a GPU: it measures, prints, appends rows, explains, and refuses nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turnout.bench.rows import read_rows
from turnout.cli import main

SMALL = "64,1/4,heads=2,dim=16"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["bench", *words, "--device", "cpu"])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("what", ["kernels", "layers", "decode"])
def test_cases_are_measured_printed_and_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    code, text, err = run(capsys, what, "--cases", SMALL, "--seconds", "0", "--out", str(tmp_path))
    assert code == 0 and "routed:auto" in text and "dense" in text and "sdpa" in text and what in err
    rows = read_rows(tmp_path)
    assert {row["kind"] for row in rows} == {what.rstrip("s")} and len(rows) == 3
    assert all(row["case"]["n"] == 64 and row["commit"] and row["versions"]["torch"] for row in rows)


def test_targets_print_every_row_as_json_from_the_folder_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, text, _ = run(capsys, "targets", "--json", "--out", str(tmp_path))
    rows = json.loads(text)
    assert code == 0 and len(rows) == 17
    assert all({"case", "target", "measured", "baseline", "device", "commit", "bound"} <= row.keys() for row in rows)
    assert not list(tmp_path.iterdir())


def test_explain_names_the_implementation_and_the_deciding_row(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "--explain", "512,1/4")
    assert code == 0 and "attend runs gathered" in text and "break-even row" in text
    code, text, _ = run(capsys, "--explain", "512,1", "--json")
    assert json.loads(text)["choice"].startswith("dense")


def test_break_even_can_update_a_table_and_writes_nothing_else_when_told_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "table.json"
    code, text, _ = run(capsys, "breakeven", "--cases", SMALL, "--seconds", "0", "--out", "-", "--table", str(table))
    assert code == 0 and "nothing was written" in text
    (row,) = json.loads(table.read_text())["rows"]
    assert row["device"] == "cpu" and 0 < row["fraction"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernels", "--cases", "64,2"], "expected a fraction in"),
        (["targets", "--cases", "64,1"], "--cases has no effect with targets"),
        (["layers", "--table", "x"], "--table has no effect with layers; it belongs to breakeven"),
        (["kernels", "--seconds", "-1"], "--seconds=-1.0; expected >= 0"),
        (["--explain", "64,1;64,1"], "--explain takes one case, got 2"),
        (["kernel"], "kernels"),
    ],
)
def test_nonsense_is_a_usage_error(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    code, _, err = run(capsys, *words)
    assert code == 2 and message in err


def test_a_device_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "peaks", "--device", "cuda"]) == 2
    assert "PyTorch sees no GPU; use device=cpu, or install a CUDA build of torch" in capsys.readouterr().err
    assert main(["bench", "peaks", "--device", "tpu"]) == 2
