"""What the gates say: where they open, in words; which tokens take attention; the sequences to read on the page.

Axes: L layers, T positions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnout.report.figure import Cell, Data
from turnout.report.gates import GateSequence, GateSnapshot
from turnout.report.numbers import count, percent
from turnout.report.run import Run

SEQUENCE_BUDGET = 700_000
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """How often one token took attention in the stored sequences."""

    token: str
    seen: int
    opened: int
    gates: int


def summary_words(snapshot: GateSnapshot) -> str:
    """Where the open gates are, in one or two sentences."""
    opened = math.fsum(snapshot.open_per_sequence())
    slots = snapshot.layers * snapshot.length
    if opened <= 0:
        return f"No gate opens at any of the {slots:,} slots: the model runs on its local track alone."
    any_group = f" (a gate counts once when any of its {snapshot.groups} groups opens)" if snapshot.groups > 1 else ""
    words = f"{count(opened)} of {slots:,} gates are open in an average sequence{any_group}. "
    weights = sorted(
        ((v, layer, i) for layer, row in enumerate(snapshot.mean) for i, v in enumerate(row) if v > 0), reverse=True
    )
    total = math.fsum(v for v, _, _ in weights)
    needed, reached = 0, 0.0
    while reached < 0.9 * total:
        reached += weights[needed][0]
        needed += 1
    value, layer, column = weights[0]
    place = (
        f"position {column}"
        if snapshot.bin == 1
        else f"positions {column * snapshot.bin} to {(column + 1) * snapshot.bin - 1}"
    )
    if needed == 1:
        where = f"layer {snapshot.index[layer]}, {place}"
        return (
            f"{words}{percent(value / total)} of them sit at one slot: {where}, open in {percent(value)} of sequences."
        )
    shares = [math.fsum(row) / total for row in snapshot.mean]
    top = max(range(len(shares)), key=lambda i: shares[i])
    words += f"Nine tenths of them are spread over {needed:,} slots; "
    words += f"layer {snapshot.index[top]} holds {percent(shares[top])} of them"
    if math.fsum(snapshot.mean[top]) / len(snapshot.mean[top]) > 0.9:
        words += " and is open almost everywhere, which is a choice of layer rather than of tokens"
    return words + "."


def query_words(snapshot: GateSnapshot) -> str:
    """How well the open gates coincide with the positions that have a target; "" when every position has one."""
    total = on_query = queries = positions = 0
    for item in snapshot.sequences:
        at = set(item.at)
        queries += len(at)
        positions += len(item.tokens)
        for row in item.taken:
            total += sum(row)
            on_query += sum(1 for i in at if row[i])
    if not total or not queries or queries > positions / 4:
        return ""
    return (
        f"In the {len(snapshot.sequences)} stored sequences {percent(on_query / total)} of the open gates are at query "
        f"positions, which are {percent(queries / positions)} of all positions."
    )


def token_rows(snapshot: GateSnapshot, top: int = 10) -> list[TokenRow]:
    """Tokens that took attention most often, among those seen at least three times (once if none was)."""
    seen: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    gates: Counter[str] = Counter()
    for item in snapshot.sequences:
        for i, token in enumerate(item.tokens):
            n = sum(row[i] for row in item.taken)
            seen[token] += 1
            opened[token] += n > 0
            gates[token] += n
    least = 3 if any(n >= 3 and opened[token] for token, n in seen.items()) else 1
    kept = [token for token in opened if opened[token] and seen[token] >= least]
    kept.sort(key=lambda token: (-opened[token] / seen[token], -opened[token], token))
    return [TokenRow(token=token, seen=seen[token], opened=opened[token], gates=gates[token]) for token in kept[:top]]


def sequence_payload(runs: Sequence[tuple[str, Run]]) -> tuple[list[dict[str, Any]], int]:
    """What the reader's script needs, compactly: gates as two base-36 digits of the probability in thousandths.

    Returns:
        One entry per run that stores sequences, and how many sequences were left out to keep the page small.
    """
    entries: list[dict[str, Any]] = []
    used = left_out = 0
    queues = [(label, run.gates, list(run.gates.sequences)) for label, run in runs if run.gates and run.gates.sequences]
    for label, shot, _ in queues:
        entries.append({"label": label, "layers": shot.layers, "index": shot.index, "step": shot.step, "sequences": []})
    for k in range(max((len(queue[2]) for queue in queues), default=0)):
        for entry, (_, _, stored) in zip(entries, queues, strict=True):
            if k >= len(stored):
                continue
            cost = len(stored[k].tokens) * (3 * len(stored[k].taken) + 6)
            if used and used + cost > SEQUENCE_BUDGET:
                left_out += 1
                continue
            used += cost
            entry["sequences"].append(_packed(stored[k]))
    return [entry for entry in entries if entry["sequences"]], left_out


def sequence_data(runs: Sequence[tuple[str, Run]]) -> Data:
    """Every open gate and every query of the stored sequences, one row each."""
    rows: list[list[Cell]] = []
    for label, run in runs:
        index = run.gates.index if run.gates else ()
        for s, item in enumerate(run.gates.sequences if run.gates else []):
            answers = dict(zip(item.at, zip(item.targets, item.predictions, strict=True), strict=True))
            dense = len(item.at) > len(item.tokens) / 4
            for i, token in enumerate(item.tokens):
                layers = [layer for layer, row in zip(index, item.taken, strict=True) if row[i]]
                if not layers and (dense or i not in answers):
                    continue
                target, prediction = answers.get(i, ("", ""))
                gate = " ".join(f"{row[i]:.3f}" for row in item.gate)
                rows.append(
                    [label, s, i, token, " ".join(str(v) for v in layers), gate, i in answers, target, prediction]
                )
    columns = [
        "run",
        "sequence",
        "position",
        "token",
        "open_layers",
        "gate_by_layer",
        "is_query",
        "target",
        "prediction",
    ]
    return Data(name="gates_sequences", columns=columns, rows=rows)


def _packed(item: GateSequence) -> dict[str, Any]:
    return {
        "tokens": item.tokens,
        "taken": ["".join("1" if value else "0" for value in row) for row in item.taken],
        "gate": ["".join(_base36(value) for value in row) for row in item.gate],
        "at": item.at,
        "targets": item.targets,
        "predictions": item.predictions,
    }


def _base36(value: float) -> str:
    if math.isnan(value):
        return "zz"
    thousandths = min(1000, max(0, round(1000 * value)))
    return _DIGITS[thousandths // 36] + _DIGITS[thousandths % 36]
