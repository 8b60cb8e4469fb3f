"""Rows come back as they were written, newest last, and a damaged line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fake_rows import row
from turnout.bench.cases import Case
from turnout.bench.rows import FIELDS, append_rows, provenance, read_rows
from turnout.errors import DataError

CASE = Case(n=8, p=0.5)


def test_rows_are_appended_by_kind_and_device_and_read_back_in_order(tmp_path: Path) -> None:
    late, early = (row("kernel", CASE, "a", ms, created=f"2026-01-0{ms:.0f}") for ms in (2.0, 1.0))
    assert [path.name for path in append_rows(tmp_path, [late])] == ["kernel-testor-9.jsonl"]
    append_rows(tmp_path, [early, row("layer", CASE, "b", None, created="2026-01-03")])
    assert [r["created"][-1] for r in read_rows(tmp_path)] == ["1", "2", "3"]
    assert read_rows(tmp_path)[1] == late
    assert read_rows(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 2 is not JSON"), ("{}", "line 2 has no 'kind'"), ("3", "no row")]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (path,) = append_rows(tmp_path, [row("kernel", CASE, "a", 1.0)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="pass --out FOLDER"):
        append_rows(tmp_path / "file", [row("kernel", CASE, "a", 1.0)])


def test_a_row_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    where = provenance("cpu")
    assert where["device_kind"] == "cpu" and where["device"] and where["commit"]
    assert {"torch", "triton", "python", "turnout"} <= where["versions"].keys()
    assert set(FIELDS) <= row("kernel", CASE, "a", 1.0).keys()
