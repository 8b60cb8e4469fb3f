"""The plain-text table."""

from __future__ import annotations

import io

from turnout.report.table import Column, print_table, result_table

ROWS = [
    {"name": "demo", "arm": "linear", "accuracy": 1.0, "usage": 0.00195, "gates_per_seq": 1.0, "seed": 0},
    {"name": "static-hybrid-long-name", "arm": "static_hybrid", "accuracy": 0.9996, "usage": None, "seed": 12},
]


def test_columns_line_up_and_numbers_are_right_aligned() -> None:
    lines = result_table(ROWS).splitlines()
    header = lines[0]
    for title, value in (("accuracy", "100 %"), ("usage", "0.195 %"), ("gates/seq", "1")):
        end = header.index(title) + len(title)
        assert lines[2][:end].endswith(value)
    assert lines[3].startswith("static-hybrid-long-name  static_hybrid")
    assert set(lines[1]) == {"-", " "}


def test_empty_columns_are_left_out_and_missing_values_are_dashes() -> None:
    table = result_table(ROWS)
    assert "loss" not in table and "–" in table.splitlines()[3]


def test_own_columns_and_no_rows_work() -> None:
    columns = [Column(key="what", title="what"), Column(key="ms", title="ms", form="ms")]
    assert "41.2 ms" in result_table([{"what": "prefill", "ms": 41.23}], columns)
    assert result_table([], columns).startswith("what  ms")


def test_control_characters_cannot_break_the_table() -> None:
    assert "a?b" in result_table([{"name": "a\nb\x1b[2J"}])


def test_a_stream_that_is_no_terminal_gets_the_plain_lines() -> None:
    out = io.StringIO()
    print_table(ROWS, title="Results", file=out)
    assert out.getvalue() == f"Results\n{result_table(ROWS)}\n"


def test_a_terminal_gets_the_same_cells_without_markup_being_read() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    print_table([{"name": "[red]demo", "usage": 0.25}], title="Results", file=out)
    assert "[red]demo" in out.getvalue() and "25.0 %" in out.getvalue()
