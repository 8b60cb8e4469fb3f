"""Forgetting: hard-coded, learned, and learned from the data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.decay import check_prune, keys_within, spans_of, with_spans
from turnout.routers.pattern.reach import Reach

GATES = ("full", "bias", "fixed", "none")


@PATTERNS.register("forget")
class ForgetPattern(Pattern):
    """Score + sum over s < l <= t of log f_l, f = sigmoid(W x + b) for each head (Lin et al. 2025, FoX).

        T_h from `shortest` to `longest` in equal ratios, b_h = -log(exp(1/T_h) - 1), so that f = exp(-1/T_h) at W = 0

    Args:
        gate: "full" learns W and b, "bias" learns b alone (a constant decay), "fixed" learns nothing, "none" never
            forgets.
        shortest, longest: decay times of the first and the last head in tokens, 0 < shortest <= longest.
        prune: largest share of a row's weight that may be skipped; 0 skips nothing.
        cap: with `prune`, norm to which queries and keys are shortened; none = 6.
    State: log f of the past, [B, S, H].
    """

    fixed: Tensor
    spans: Tensor

    def __init__(
        self, context: PatternContext, *, gate: str = "full", shortest: float = 2.0, longest: float = 512.0,
        prune: float = 0.0, cap: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(context)
        if gate not in GATES:
            raise ConfigError(f"pattern forget: gate={gate!r}{nearest(gate, GATES)}")
        if not 0 < shortest <= longest:
            raise ConfigError(
                f"pattern forget: shortest={shortest}, longest={longest}; expected 0 < shortest <= longest, decay "
                "times in tokens"
            )
        self.gate, self.pruning = gate, check_prune(prune, cap)
        if gate == "none" and (prune or (shortest, longest) != (2.0, 512.0)):
            raise ConfigError("pattern forget: gate=none never forgets, so shortest, longest and prune change nothing")
        steps = max(1, (context.total or context.heads) - 1)
        heads = torch.arange(context.first, context.first + context.heads, dtype=torch.float64) / steps
        bias = -torch.log(torch.expm1(1 / (shortest * (longest / shortest) ** heads))).float()
        if gate == "fixed":
            self.register_buffer("fixed", bias, persistent=False)
            at = (i / steps for i in range(context.first, context.first + context.heads))
            # Also known where tensors have no values.
            self.rates = [1 / (shortest * (longest / shortest) ** share) for share in at]
            spans = spans_of(self.rates, self.pruning, context.head_dim)
            self.register_buffer("spans", spans, persistent=False)
        elif gate != "none":
            self.bias = nn.Parameter(bias)
        if gate == "full":
            self.weight = nn.Parameter(torch.randn(context.heads, context.width) * 0.02)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        if self.gate == "none":
            return None
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return torch.zeros(batch, max_len, self.context.heads, device=device, dtype=dtype)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        if self.gate == "none":
            return Reach()
        number = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            logit = (self.fixed if self.gate == "fixed" else self.bias).to(number)
            if self.gate == "full":
                logit = nn.functional.linear(x.to(number), self.weight.to(number), logit)
            log_f = nn.functional.logsigmoid(logit).expand(*x.shape[:2], -1)
        if state is not None:
            state.index_copy_(1, at, log_f.to(state.dtype))
            log_f = state[:, :length]
        prune = self.pruning
        if prune is not None and self.gate == "fixed":
            prune = with_spans(self, prune, self.spans, x, length)
        return Reach(log_decay=log_f, prune=prune)

    def mean_keys(self, length: int) -> float:
        if self.gate != "fixed":
            return super().mean_keys(length)
        return keys_within(length, spans_of(self.rates, self.pruning, self.context.head_dim))

    def decay_times(self) -> list[float]:
        """Tokens after which a head's weight has fallen to 1/e, at W = 0; infinite where nothing is forgotten."""
        if self.gate == "none":
            return [math.inf] * self.context.heads
        bias = self.fixed if self.gate == "fixed" else self.bias.detach()
        return (-1 / nn.functional.logsigmoid(bias.double())).tolist()
