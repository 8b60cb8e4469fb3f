from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from turnout.cli.numbers import count, savings_rows, setting, summary_rows
from turnout.cli.result import Result, Table, emit, plain_table


def test_a_plain_table_is_aligned_and_has_no_trailing_blanks() -> None:
    assert (
        plain_table(Table(("a", "long"), [("1", "x"), ("longer", "")], "title"))
        == "title\na       long\n1       x\nlonger"
    )


def test_a_sentence_goes_on_in_the_next_line_of_its_column_where_that_is_asked_for() -> None:
    sentence = " ".join(["word"] * 40)
    rows = [("a", sentence, "3"), ("b", "x" * 100, "4")]
    lines = plain_table(Table(("id", "measured", "n"), rows, wrapped=True)).splitlines()
    assert [line[:1] for line in lines] == ["i", "a", " ", " ", "b"]
    assert sum(line.split().count("word") for line in lines) == 40 and max(map(len, lines[:4])) < 120
    assert "x" * 100 in lines[4], "a path is never broken"
    assert len(plain_table(Table(("id", "measured", "n"), rows)).splitlines()) == 3


def test_json_is_one_document_with_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    emit(Result({"loss": math.nan, "run": Path("runs/a")}, ["text"]), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"loss": None, "run": "runs/a"}


def test_text_prints_the_parts_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    emit(Result({}, ["first", Table(("a",), [("1",)]), "last"]), as_json=False)
    assert capsys.readouterr().out.splitlines() == ["first", "a", "1", "last"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9999, "9,999"),
        (12345, "12.3 k"),
        (999_940, "1 M"),
        (1_124_872, "1.12 M"),
        (2.5e9, "2.5 G"),
        (3e12, "3 T"),
    ],
)
def test_large_numbers_get_a_letter(value: float, text: str) -> None:
    assert count(value) == text


def test_settings_read_back_as_they_are_shown() -> None:
    assert [setting(value) for value in (None, True, (), (8, 16), 0.5, "R")] == [
        "none",
        "true",
        "()",
        "8,16",
        "0.5",
        "R",
    ]


def test_savings_are_ratios_to_dense_and_to_the_static_hybrid() -> None:
    base = {"what": "prefill", "ms_p20": 1.0, "ms_p80": 1.0}
    rows = savings_rows(
        [
            {**base, "arm": "dense", "ms": 8.0, "flops": 100.0},
            {**base, "arm": "static_hybrid", "ms": 3.0, "flops": 50.0},
            {**base, "arm": "routed", "ms": 2.0, "flops": 25.0},
        ]
    )
    assert rows[0][5:] == ("1.00x", "1.00x", "0.38x", "0.50x")
    assert rows[2][5:] == ("4.00x", "4.00x", "1.50x", "2.00x")
    assert savings_rows([{**base, "arm": "routed", "ms": 2.0, "flops": 25.0}])[0][5:] == ("-", "-", "-", "-")


def test_a_summary_of_a_model_without_routers_has_dashes_and_an_unsolved_one_says_so() -> None:
    rows = dict(summary_rows({"accuracy": 0.5, "n_eval": 1000, "usage": None, "usage_layers": [], "solved": False}))
    assert rows["accuracy"] == "0.5000 on 1,000 targets" and rows["usage"] == "- of slots, by layer -"
    assert "unsolved" in rows["warning"]
