"""What decaying patterns share: a decay at each step, the same at every position, and pruning by it.

S positions, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import Pattern, PatternContext
from turnout.routers.pattern.reach import Prune, Reach

CAP = 6.0
"""Norm to which a pruned pattern shortens where nothing else is said."""
MOST_KEYS = 2**20
"""Longest sequence for which the share lost to pruning is bounded."""


class ConstantDecay(Pattern):
    """Row t reads s with log weight -(t - s) · rate_h added to the score.

    Args:
        rates: of each head, >= 0.
        prune: largest share of a row's weight that may be skipped, in [0, 1); 0 skips nothing.
        cap: with `prune`, norm to which queries and keys are shortened (`CAP`); this is what bounds the share.
    """

    rates: Tensor
    step: Tensor
    spans: Tensor

    def __init__(self, context: PatternContext, rates: Sequence[float], *, prune: float, cap: float | None) -> None:
        super().__init__(context)
        if min(rates) < 0:
            raise ConfigError(f"decay rates {list(rates)}; expected >= 0: a decay never grows with distance")
        exact = torch.tensor(rates, dtype=torch.float64)
        self.register_buffer("rates", exact, persistent=False)
        # What one step adds, ready to be used.
        self.register_buffer("step", -exact.float(), persistent=False)
        # Also known where tensors have no values, as on the device that counts operations.
        self.known = tuple(rates)
        self.pruning = check_prune(prune, cap)
        spans = spans_of(rates, self.pruning, context.head_dim)
        self.register_buffer("spans", spans, persistent=False)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        rates = -self.rates.double() if x.dtype == torch.float64 else self.step.float()
        prune = self.pruning and with_spans(self, self.pruning, self.spans, x, length)
        return Reach(log_decay=rates.expand(x.shape[0], length, -1), prune=prune)

    def mean_keys(self, length: int) -> float:
        return keys_within(length, spans_of(self.known, self.pruning, self.context.head_dim))


def with_spans(owner: Pattern, prune: Prune, spans: Tensor, x: Tensor, length: int) -> Prune:
    """`prune` with `spans` and, on a GPU, the first keys of the tokens x [B, T, E], the last of `length` positions.

    They are the same at every step of a training, so the pattern keeps those that it has seen last.
    """
    if not may_keep(x):
        return replace(prune, spans=spans)
    key, kept = (*x.shape[:2], length, x.device), vars(owner).get("kept_starts")
    if kept is None or kept[0] != key:
        groups = owner.context.kv_heads
        farthest = spans.unflatten(0, (groups, -1)).amax(1)
        rows = torch.arange(length - x.shape[1], length, device=x.device)
        kept = key, (rows - farthest[:, None]).clamp(min=0).expand(x.shape[0], -1, -1).contiguous()
        # While a graph is captured, memory belongs to it.
        if not torch.cuda.is_current_stream_capturing():
            vars(owner)["kept_starts"] = kept
    return replace(prune, spans=spans, starts=kept[1])


def may_keep(x: Tensor) -> bool:
    """Whether `x` is an ordinary tensor on a GPU, seen by no compiler: what is made from its shape may be kept."""
    ordinary = type(x) is Tensor and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
    return x.is_cuda and ordinary


def keys_within(length: int, spans: Tensor) -> float:
    """Keys that a row reads, mean over rows and over heads that read `spans` [H] back."""
    windows = [min(length, span + 1) for span in spans.tolist()]
    return sum(w - w * (w - 1) / (2 * length) for w in windows) / len(windows)


def check_prune(prune: float, cap: float | None) -> Prune | None:
    """The options of pruning; None where nothing is pruned."""
    norm = CAP if cap is None else cap
    if not 0 <= prune < 1 or not norm > 0:
        raise ConfigError(f"decay prune={prune}, cap={norm}; expected 0 <= prune < 1 (0 = off) and cap > 0")
    if cap is not None and not prune:
        raise ConfigError(f"decay cap={cap} without prune shortens nothing; leave it out, or add prune=0.0001")
    return Prune(loss=prune, cap=norm) if prune else None


def spans_of(rates: Sequence[float], prune: Prune | None, head_dim: int) -> Tensor:
    """How far back each head still reads under a constant decay, int64 [H]; what lies farther is skipped.

    Scores lie within ±U, U = cap² / sqrt(D). With x = exp(-rate (span + 1)) the keys farther than `span` weigh at most
    exp(U) x / (1 - exp(-rate)) and the nearer ones at least exp(-U) (1 - x) / (1 - exp(-rate)): the share of the far
    ones is at most `loss` if -log x >= log((1 - loss) exp(2 U) + loss) - log loss, however long the sequence. A row
    with fewer keys before it than that skips nothing.
    """
    if prune is None:
        return torch.full((len(rates),), MOST_KEYS)
    bound = 2 * prune.cap**2 * head_dim**-0.5
    # log((1 - loss) e^bound + loss), where e^bound may have no float.
    least = bound + math.log1p(prune.loss * math.expm1(-bound)) - math.log(prune.loss)
    return torch.tensor(
        [min(MOST_KEYS, max(0, math.ceil(least / rate) - 1)) if rate > 0 else MOST_KEYS for rate in rates]
    )


def log_threshold(prune: Prune, scale: float) -> float:
    """The decay below which keys are skipped where it hangs on the data (Lin et al. 2025, ACP).

        delta = -(2 U + log S) + log loss

    A score lies within ±U, U = cap² · scale. A row's own key has weight >= exp(-U), a key decayed below delta at most
    exp(U + delta), and there are fewer than S of them: together at most exp(2 U + delta) S = loss of the row. S is the
    longest sequence, not the one at hand: what a row skips must not hang on how many tokens come after it.
    """
    return -(2 * prune.cap**2 * scale + math.log(MOST_KEYS)) + math.log(prune.loss)
