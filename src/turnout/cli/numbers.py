"""Numbers as a person reads them, and the rows of a run's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnout.train.live import number, percent


def count(value: float) -> str:
    """`1.12 M`, `3.4 G`; plain below ten thousand."""
    if abs(value) < 1e4:
        return f"{value:,.0f}"
    for size, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        rounded = float(f"{value / size:.3g}")
        if abs(rounded) < 1000:
            return f"{rounded:g} {letter}"
    return f"{value / 1e12:.3g} T"


def setting(value: Any) -> str:
    """A config value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return str(value)


def layers(values: Any) -> str:
    """Usage of each layer."""
    return " ".join(percent(value) for value in values) if isinstance(values, Sequence) and values else "-"


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run reached, from its summary."""
    rows = [
        ("accuracy", f"{number(summary.get('accuracy'), '.4f')} on {number(summary.get('n_eval'), ',.0f')} targets"),
        ("loss", number(summary.get("loss"))),
        ("usage", f"{percent(summary.get('usage'))} of slots, by layer {layers(summary.get('usage_layers'))}"),
        ("gates", f"{number(summary.get('gates_per_seq'), '.2f')} open per sequence"),
        ("steps", f"{number(summary.get('steps'), ',.0f')} in {number(summary.get('train_s'), ',.0f')} s"),
        ("ms per step", _step_times(summary)),
        ("parameters", f"{number(summary.get('params'), ',.0f')}"),
    ]
    if not summary.get("solved", True):
        rows.insert(0, ("warning", "explore ended unsolved: no pressure was ever put on the gates"))
    return rows


def savings_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Measured times beside counted operations, and what dense and static hybrid need over that (above 1 = saved)."""
    found = {(row["what"], row["arm"]): row for row in rows}
    texts: list[tuple[str, ...]] = []
    for (what, arm), row in found.items():
        dense, hybrid = found.get((what, "dense")), found.get((what, "static_hybrid"))
        texts.append(
            (
                what, arm, number(row["ms"]), f"{number(row['ms_p20'])} to {number(row['ms_p80'])}",
                count(row["flops"]),
                _ratio(dense, row, "ms"), _ratio(dense, row, "flops"),
                _ratio(hybrid, row, "ms"), _ratio(hybrid, row, "flops"),
            )
        )  # fmt: skip
    return texts


SAVINGS_COLUMNS = (
    "call", "arm", "ms", "20 to 80 %", "FLOPs", "dense/ms", "dense/FLOPs", "hybrid/ms", "hybrid/FLOPs",
)  # fmt: skip


def _ratio(base: Mapping[str, Any] | None, row: Mapping[str, Any], key: str) -> str:
    if base is None or not base.get(key) or not row.get(key):
        return "-"
    return f"{base[key] / row[key]:.2f}x"


def _step_times(summary: Mapping[str, Any]) -> str:
    dense, skipping = summary.get("ms_per_step_dense"), summary.get("ms_per_step_skipping")
    # The phases may have run at different lengths: the comparison at one length is in the savings table.
    return f"{number(dense, '.1f')} dense phase, {number(skipping, '.1f')} skipping phase"
