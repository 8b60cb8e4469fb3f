"""Causal exponential moving average, parallel over the sequence.

Axes: B batch, T tokens, E channels, L tokens in a block, N blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from turnout.errors import ConfigError, ShapeError

# 32 to 64 measured best on the CPU for T = 128 to 16,384.
BLOCK = 32


def causal_ema(x: Tensor, decay: float, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Average the past with exponentially falling weights.

        y_t = decay · y_{t−1} + (1 − decay) · x_t,   y_{−1} = state (0 if None)

    Inside a block of L tokens it is one product with a triangular matrix of powers; the ends of the blocks are
    chained by one N×N matrix of powers. Half precision is computed, and its state kept, in float32.

    Args:
        x: float [B, T, E].
        decay: 0 ≤ decay < 1.
        state: the last average of the previous segment, [B, E], in float32 or float64.
    Returns:
        y: like x; state [B, E] = the last average, to continue from (the given one if T = 0).
    Raises:
        ShapeError: a tensor has the wrong shape or dtype.
        ConfigError: decay outside [0, 1).
    Cost: O(B·T·E·(L + T/L²)) multiply-adds, L = 32; one step with T = 1 costs 2·B·E.
    """
    _check(x, decay, state)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype)
    else:
        state = state.to(dtype)
    n_tokens = x.shape[1]
    if n_tokens == 0:
        return x, state
    with torch.autocast(x.device.type, enabled=False):
        if n_tokens == 1:
            last = decay * state + (1 - decay) * x[:, 0].to(dtype)
            return last[:, None].to(x.dtype), last
        y = _blocks(x.to(dtype), decay, state)
    return y.to(x.dtype), y[:, -1]


def _powers(decay: float, n: int, like: Tensor) -> Tensor:
    """[n, n]: decay^(i − j) where j ≤ i, else 0."""
    # Exponents in float64: decay ** 10,000 must not inherit a float32 rounding of the base.
    step = torch.arange(n, device=like.device, dtype=torch.float64)
    gap = step[:, None] - step
    return (decay ** gap.clamp_min(0)).masked_fill(gap < 0, 0.0).to(like.dtype)


def _blocks(x: Tensor, decay: float, state: Tensor) -> Tensor:
    n_batch, n_tokens, n_channels = x.shape
    length = min(BLOCK, n_tokens)
    fill = -n_tokens % length
    blocks = (pad(x, (0, 0, 0, fill)) if fill else x).reshape(n_batch, -1, length, n_channels)
    inside = (_powers(decay, length, x) * (1 - decay)) @ blocks
    n_blocks = blocks.shape[1]
    # start[n]: the average that enters block n = the state, and all earlier block ends, each decayed by whole blocks.
    entering = torch.cat([state[:, None], inside[:, :-1, -1]], 1)
    start = _powers(decay**length, n_blocks, x) @ entering
    step = torch.arange(1, length + 1, device=x.device, dtype=torch.float64)
    fading = (decay**step).to(x.dtype)[:, None]
    return torch.addcmul(inside, fading, start[:, :, None]).flatten(1, 2)[:, :n_tokens]


def _check(x: Tensor, decay: float, state: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ShapeError(f"x is {x.dtype} with shape {list(x.shape)}; expected floats [B, T, E]")
    if not 0 <= decay < 1:
        raise ConfigError(f"decay={decay!r}; expected 0 <= decay < 1 (0 = no memory)")
    if state is not None and list(state.shape) != [x.shape[0], x.shape[2]]:
        raise ShapeError(f"state has shape {list(state.shape)}; expected [B, E] = {[x.shape[0], x.shape[2]]}")
