"""`turnout plan`: fits what was measured, predicts, and says what to do where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.fake_rows import peak_rows, row
from turnout.bench.cases import Case
from turnout.bench.cost_model import layer_work
from turnout.bench.rows import append_rows, read_rows
from turnout.cli import main
from turnout.cli.verbs import plan


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with rows of a device whose dense and routed layers cost what the model counts."""
    found = peak_rows()
    for n in (512, 1024, 4096, 8192):
        case = Case(n=n, p=0.25, heads=4, kv_heads=4, dim=32)
        for arm, name in (("dense", "dense:flash"), ("local", "local"), ("routed", "routed:auto")):
            work = layer_work(case, arm)
            found.append(row("layer", case, name, 1e3 * (sum(work[:3]) / 100e12 + work.moved / 1e12) + 0.01))
    append_rows(tmp_path, found)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_calibrate_then_predict(capsys: pytest.CaptureFixture[str], rows: Path) -> None:
    code, text, _ = run(capsys, "--calibrate", "--out", str(rows))
    assert code == 0 and "Testor 9" in text and "held out" in text and "cost-model.json" in text
    words = [
        "--out",
        str(rows),
        "--device",
        "testor",
        "--dtype",
        "bfloat16",
        "--n",
        "16384",
        "--width",
        "128",
        "--heads",
        "4",
    ]
    code, text, _ = run(capsys, *words)
    assert code == 0 and "forward" in text and "pays from N" in text and "% on 12 rows" in text
    code, text, _ = run(capsys, *words, "--json", "--layers", "3", "--vocab", "100")
    (found,) = json.loads(text)["passes"].values()
    code, text, _ = run(capsys, *words, "--json", "--layers", "6", "--vocab", "100")
    (more,) = json.loads(text)["passes"].values()
    assert found["ms"]["routed"] < found["ms"]["dense"] and found["break_even_n"] < 16384
    assert found["ms"]["dense"] < more["ms"]["dense"] < 2 * found["ms"]["dense"]
    assert sum(found["parts_ms"]["dense"].values()) == pytest.approx(found["ms"]["dense"])


def test_measure_fills_the_folder_and_calibrates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    small = "; ".join(f"{n},1/4,heads=2,kv_heads=2,dim=8" for n in (16, 24, 32, 48))
    monkeypatch.setattr(plan, "GRID", {"cpu": small})
    monkeypatch.setattr(plan, "DECODE_GRID", {"cpu": small})
    code, text, _ = run(capsys, "--measure", "--seconds", "0", "--out", str(tmp_path), "--json")
    assert code == 0
    assert {entry["step"] for entry in json.loads(text)} == {"forward", "forward+backward", "decode"}
    assert {r["kind"] for r in read_rows(tmp_path)} == {"peak", "layer", "decode"}
    code, text, _ = run(capsys, "--out", str(tmp_path), "--width", "16", "--heads", "2", "--n", "64")
    assert code == 0 and "decode: where the milliseconds go" in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--p", "2"], 2, "expected a fraction in"),
        (["--p", "many"], 2, "expected a fraction such as 1/16"),
        (["--width", "100", "--heads", "16"], 2, "expected heads to divide width"),
        (["--layers", "0"], 2, "--layers=0; expected >= 1"),
        (["--vocab", "-1"], 2, "expected >= 0"),
        (["--device", "Z80", "--dtype", "float32"], 1, "no cost model of Z80"),
        (["--calibrate"], 1, "run turnout plan --measure"),
    ],
)
def test_nonsense_and_missing_measurements_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    got, _, err = run(capsys, *words, "--out", str(tmp_path))
    assert got == code and message in err
