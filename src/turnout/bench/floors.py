"""The physical limit of routed attention: counted operations and bytes, over measured peaks.

N tokens, R = p·N rows, B batch, H query heads, G kv heads, D head dim.
"""

from __future__ import annotations

from typing import NamedTuple

from turnout.bench.cases import Case

# Backward of attention: five matrix products for the forward's two.
BACKWARD = 2.5


class Peaks(NamedTuple):
    """Matrix operations a second, bytes a second, seconds of one kernel launch."""

    flops: float
    bandwidth: float
    launch: float


def useful_flops(case: Case, p: float | None = None) -> float:
    """2 · D · N² · H · B · p forward, rows at uniform positions; × 3.5 with the backward pass."""
    p = case.p if p is None else p
    forward = 2.0 * case.dim * case.n**2 * case.heads * case.batch * p
    return forward * (1 + BACKWARD if case.step != "forward" else 1)


def least_bytes(case: Case, p: float | None = None) -> float:
    """Keys and values once, queries and outputs of the rows; with the backward pass all of them and their gradients."""
    p = case.p if p is None else p
    keys = 2.0 * case.batch * case.n * case.kv_heads * case.dim * case.item_size
    rows = 2.0 * case.batch * p * case.n * case.heads * case.dim * case.item_size
    if case.step == "forward":
        return keys + rows
    # Backward reads k, v, q, o, do and writes dk, dv, dq.
    return keys + rows + 2 * keys + 2 * rows


def floor_ms(flops: float, n_bytes: float, peaks: Peaks) -> float:
    """max(operations / matrix peak, bytes / bandwidth) in milliseconds."""
    return 1e3 * max(flops / peaks.flops, n_bytes / peaks.bandwidth)


def decode_bytes(case: Case, p: float | None = None) -> float:
    """Keys and values of the sequences whose token attends, once."""
    p = case.p if p is None else p
    return 2.0 * case.batch * p * case.n * case.kv_heads * case.dim * case.item_size
