"""`turnout ablate`, `turnout probe --show` and `turnout eval --honest` on one tiny run with directions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from turnout.cli import main
from turnout.cli.study import VIEWS
from turnout.report.bars import Bar, bar_chart


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of four steps: `a` on two domains of text with directions, `plain` on text without."""
    root = tmp_path_factory.mktemp("ablate")
    for name in ("books", "code"):
        (root / "text" / name).mkdir(parents=True)
        for i in range(8):
            (root / "text" / name / f"{i}.txt").write_text(f"{name} {i}: every good thing comes to an end. " * 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNOUT_CACHE", str(root / "cache"))
        words = [
            "train", "directional_cpu", "--task.path", str(root / "text"), "--task.val_frac", "0.25",
            "--model.layers", "2", "--model.width", "16", "--model.heads", "2", "--schedule.steps", "4",
            "--optim.batch", "2", "--device", "cpu", "--loop.final_sequences", "4", "--runs", str(root),
            "--model.directions",
        ]  # fmt: skip
        assert main([*words, "prefix:hidden=4", "--name", "a", "--task.length", "64"]) == 0
        assert main([*words, "none", "--name", "plain", "--task.length", "16"]) == 0
    return root


def call(capsys: pytest.CaptureFixture[str], runs: Path, *words: str) -> tuple[int, str, str]:
    code = main([*words, "--runs", str(runs), *(() if words[0] == "eval" else ("--sequences", "8"))])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_ablate_prints_every_part_with_its_controls(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, text, _ = call(capsys, runs, "ablate", "a")
    assert code == 0 and "intact" in text
    lines = [line.split() for line in text.splitlines()[2:]]
    wanted = [(part, action) for part in ("r", "r:0", "r:1") for action in
              ("zero", "constant", "mean", "swap", "random")]  # fmt: skip
    wanted += [(f"{kind}:{i}", a) for i in range(2) for kind in ("attn", "mlp") for a in ("zero", "mean")]
    assert [tuple(line[:2]) for line in lines] == wanted


def test_ablate_takes_parts_and_actions_and_draws(
    capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "heads.svg"
    code, text, _ = call(
        capsys, runs, "ablate", "a", "head:0.1", "mlp:1", "--actions", "zero", "--figure", str(picture), "--json"
    )
    found = json.loads(text)
    assert code == 0 and [(r["part"], r["action"]) for r in found["ablations"]] == [
        ("head:0.1", "zero"),
        ("mlp:1", "zero"),
    ]
    assert all(r["rise"] == pytest.approx(r["loss"] - found["loss"]) for r in found["ablations"])
    assert picture.read_text().startswith("<svg") and "head:0.1 zero" in picture.read_text()
    assert (tmp_path / "heads.csv").read_text().splitlines()[0] == "part,action,loss,perplexity,rise"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "head:0.7"), r"head 7 does not exist; every layer of this model has heads 0\.\.1"),
        (("a", "mlp:9"), r"layer 9 does not exist; this model has layers 0\.\.1"),
        (("a", "hed:0.1"), r"unknown part 'hed'; did you mean 'head'"),
        (("a", "r", "--actions", "zer"), r"action 'zer'; did you mean 'zero'"),
        (("plain", "r"), r"no directions \(model\.directions is none\) there"),
    ],
)
def test_what_is_not_there_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], runs: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, error = call(capsys, runs, "ablate", *words)
    assert code == 2 and re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_of_a_run_is_a_table_a_figure_and_json(
    capsys: pytest.CaptureFixture[str], runs: Path, view: str, tmp_path: Path
) -> None:
    picture = tmp_path / f"{view}.svg"
    code, text, _ = call(capsys, runs, "probe", "a", "--show", view, "--figure", str(picture))
    assert code == 0 and len(text.splitlines()) > 2
    bars = picture.with_suffix(".csv").read_text().splitlines()[1:]
    assert picture.read_text().count("<rect") == 1 + len(bars) > 1
    code, text, _ = call(capsys, runs, "probe", "a", "--show", view, "--json")
    assert code == 0 and json.loads(text)["show"] == view


def test_a_prompt_longer_than_the_windows_of_the_run_is_refused(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, _, error = call(capsys, runs, "probe", "plain", "--show", "facts")
    assert code != 0 and re.search(r"prompt of \d+ tokens; the context is 16: shorten it", error)


def test_a_view_of_directions_needs_directions(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    for view in ("geometry", "steering", "regimes", "vocabulary"):
        code, _, error = call(capsys, runs, "probe", "plain", "--show", view)
        assert code == 2 and "no directions" in error


def test_eval_shows_both_perplexities_by_domain(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, text, _ = call(capsys, runs, "eval", "a", "--honest")
    assert code == 0 and "teacher-forced" in text and "books" in text and "code" in text
    found = json.loads(call(capsys, runs, "eval", "a", "--honest", "--json")[1])["honest"]
    assert found["honest"] == pytest.approx(found["teacher_forced"], rel=1e-5)


def test_bars_go_left_and_right_of_zero() -> None:
    drawn = bar_chart([Bar("a & b", -1.0, "-1"), Bar("c", 2.0, "+2", control=True)], title="t", axis="x")
    assert drawn.startswith("<svg") and "a &amp; b" in drawn
    rects = [tuple(map(float, pair)) for pair in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)]
    (left, width), (right, longer) = rects[1:]
    assert left + width == pytest.approx(right, abs=0.02) and longer == pytest.approx(2 * width, abs=0.02)
