"""Gate snapshots of a run: `gates/step-*.json` and `gates/final.json`, checked on reading.

Axes: L layers, T positions (bins when the snapshot is binned).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSequence:
    """One evaluated sequence, gate by gate.

    Attributes:
        tokens: T strings.
        taken: [L][T] did the layer's attention open here (any group)?
        gate: [L][T] gate probability; NaN where it was not stored.
        at: positions that have a target.
        targets: the expected token for each of `at`; empty strings when not stored.
        predictions: the model's token for each of `at`; likewise.
    """

    tokens: list[str]
    taken: list[list[bool]]
    gate: list[list[float]]
    at: list[int]
    targets: list[str]
    predictions: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateSnapshot:
    """Where attention was open at one step of training.

    Attributes:
        step: training step, -1 when not stored.
        phase: curriculum phase then.
        length: T, tokens per sequence.
        mean: [L][bins] share of the mapped sequences in which a gate (of any group) is open.
        bin: tokens per bin (1 unless the sequences are very long).
        groups: routing groups per layer.
        index: number of each mapped layer in the model; layers that are not routed have no row.
        n: sequences behind `mean`, 0 when not stored.
        sequences: single sequences; empty when not stored.
        dropped: number of stored sequences that were unreadable.
    """

    step: int
    phase: str
    length: int
    mean: list[list[float]]
    bin: int
    groups: int
    index: tuple[int, ...]
    n: int
    sequences: list[GateSequence]
    dropped: int = 0

    @property
    def layers(self) -> int:
        """L."""
        return len(self.mean)

    def open_per_sequence(self) -> list[float]:
        """Expected number of positions per sequence at which the layer attends, layer by layer."""
        sizes = [min(self.bin, self.length - i * self.bin) for i in range(len(self.mean[0]))]
        return [math.fsum(v * n for v, n in zip(row, sizes, strict=True)) for row in self.mean]


def parse_gates(raw: Any) -> GateSnapshot | None:
    """Check one gate file.

    Returns:
        The snapshot; None for a model without routed layers, whose files hold no rows.
    Raises:
        ValueError: what is wrong with it; the caller turns that into a note on the page.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    if raw.get("mean") == []:
        return None
    mean = _matrix(raw.get("mean"), "mean")
    if not mean[0]:
        raise ValueError("`mean` is empty")
    columns = len(mean[0])
    length = _whole(raw.get("length"), columns)
    bin_size = max(1, _whole(raw.get("bin"), 1))
    if math.ceil(length / bin_size) != columns:
        length = columns * bin_size
    good: list[GateSequence] = []
    stored = raw.get("sequences") or []
    for item in stored if isinstance(stored, list) else []:
        sequence = _sequence(item, len(mean))
        if sequence:
            good.append(sequence)
    return GateSnapshot(
        step=_whole(raw.get("step"), -1),
        phase=str(raw.get("phase") or ""),
        length=length,
        mean=[[min(1.0, max(0.0, v)) if not math.isnan(v) else 0.0 for v in row] for row in mean],
        bin=bin_size,
        groups=max(1, _whole(raw.get("groups"), 1)),
        index=_index(raw.get("layer_index"), len(mean)),
        n=_whole(raw.get("n"), 0),
        sequences=good,
        dropped=(len(stored) if isinstance(stored, list) else 1) - len(good),
    )


def _sequence(raw: Any, layers: int) -> GateSequence | None:
    """A sequence whose parts fit together, or None."""
    try:
        tokens = [str(token) for token in raw["tokens"]]
        taken = _matrix(raw["taken"], "taken")
        gate = _matrix(raw["gate"], "gate") if raw.get("gate") else [[math.nan] * len(tokens)] * layers
        at = [int(position) for position in raw.get("at") or []]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    fits = all(len(matrix) == layers and all(len(row) == len(tokens) for row in matrix) for matrix in (taken, gate))
    if not tokens or not fits or any(not 0 <= position < len(tokens) for position in at):
        return None
    return GateSequence(
        tokens=tokens,
        taken=[[value > 0 for value in row] for row in taken],
        gate=gate,
        at=at,
        targets=_padded(raw.get("targets"), len(at)),
        predictions=_padded(raw.get("predictions"), len(at)),
    )


def _index(raw: Any, layers: int) -> tuple[int, ...]:
    """The stored numbers of the mapped layers, or 0 … L-1."""
    if isinstance(raw, list) and len(raw) == layers and all(isinstance(value, int) for value in raw):
        return tuple(raw)
    return tuple(range(layers))


def _padded(raw: Any, n: int) -> list[str]:
    words = [str(word) for word in raw] if isinstance(raw, list) else []
    return (words + [""] * n)[:n]


def _matrix(raw: Any, what: str) -> list[list[float]]:
    if not isinstance(raw, list) or not all(isinstance(row, list) for row in raw):
        raise ValueError(f"`{what}` is not a list of rows")
    if len({len(row) for row in raw}) > 1:
        raise ValueError(f"the rows of `{what}` differ in length")
    try:
        rows = [[math.nan if value is None else float(value) for value in row] for row in raw]
    except (TypeError, ValueError):
        raise ValueError(f"`{what}` holds something that is not a number") from None
    return [[value if math.isfinite(value) else math.nan for value in row] for row in rows]


def _whole(raw: Any, default: int) -> int:
    return int(raw) if isinstance(raw, int | float) and abs(raw) < 1e9 else default
