"""The bill of inference: one line an arm, one figure a quantity and setting, whatever shape the rows have."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from turnout.report.bill_curves import bill_figures


def row(arm: str, context: int, *, what: str = "decode", batch: int = 1, **numbers: Any) -> dict[str, Any]:
    return {"kind": "inference", "arm": arm, "case": {"what": what, "context": context, "batch": batch},
            "device": "H200", "commit": "abc", **numbers}  # fmt: skip


def test_every_quantity_that_was_measured_has_a_figure_and_no_other() -> None:
    measured = {"joule_per_token": None}
    rows = [row(a, n, ms=n / 100, kv_bytes=n * 10, **measured) for a in ("dense", "routed") for n in (512, 2048)]
    figures = bill_figures(rows)
    assert [figure.title for figure in figures] == ["Decode"]
    assert figures[0].data.rows[0] == ["ms", "dense", 512.0, 5.12]
    assert {row[0] for row in figures[0].data.rows} == {"ms", "kv_bytes"}
    assert "Time (ms)" in figures[0].wide and "Energy" not in figures[0].wide
    for figure in figures:
        ElementTree.fromstring(figure.wide)


def test_settings_that_differ_are_kept_apart_and_named() -> None:
    rows = [row("dense", n, batch=b, ms=1.0 + n) for n in (512, 2048) for b in (1, 8)]
    assert [figure.title for figure in bill_figures(rows)] == ["Decode, batch 1", "Decode, batch 8"]
    assert len({figure.data.filename for figure in bill_figures(rows)}) == 2


def test_rows_without_a_length_an_arm_or_a_number_are_left_to_the_table() -> None:
    assert bill_figures([]) == []
    assert (
        bill_figures([{"verb": "inference", "arm": "x", "cost": {"a": 1}}, row("", 512, ms=1.0), row("a", 512)]) == []
    )


def test_a_single_length_is_drawn_as_bars_behind_the_curves() -> None:
    rows = [row("dense", 512, batch=8, ms=2.0), *(row("dense", n, ms=1.0 + n) for n in (512, 2048))]
    first, second = bill_figures(rows)
    assert (first.title, second.title) == ("Decode, batch 1", "Decode, batch 8")
    assert "<rect" in second.wide and "512 tokens of context" in second.caption
