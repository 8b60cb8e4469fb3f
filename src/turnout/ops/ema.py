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


def causal_ema(
    x: Tensor, decay: float, state: Tensor | None = None, *, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the past with exponentially falling weights.

        y_t = decay · y_{t−1} + (1 − decay) · x_t,   y_{−1} = state (0 if None)

    With `starts`, the average at t begins anew at starts[t].

    Inside a block of L tokens it is one product with a triangular matrix of powers; the ends of the blocks are
    chained by one N×N matrix of powers. Half precision is computed, and its state kept, in float32.

    Args:
        x: float [B, T, E].
        decay: 0 ≤ decay < 1.
        state: the last average of the previous segment, [B, E], in float32 or float64.
        starts: first position that each token sees, int64 [B, T]; without a state.
    Returns:
        y: like x; state [B, E] = the last average, to continue from (the given one if T = 0).
    Raises:
        ShapeError: a tensor has the wrong shape or dtype.
        ConfigError: decay outside [0, 1).
    Cost: O(B·T·E·(L + T/L²)) multiply-adds, L = 32; one step with T = 1 costs 2·B·E.
    """
    _check(x, decay, state)
    if starts is not None and (state is not None or starts.shape != x.shape[:2]):
        raise ShapeError(f"starts {list(starts.shape)}; expected [B, T] = {list(x.shape[:2])}, and no state")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype)
    else:
        state = state.to(dtype)
    n_tokens = x.shape[1]
    if n_tokens == 0:
        return x, state
    with torch.autocast(x.device.type, enabled=False):
        if starts is not None:
            y = _own_blocks(x.to(dtype), decay, starts)
        elif n_tokens == 1:
            last = decay * state + (1 - decay) * x[:, 0].to(dtype)
            return last[:, None].to(x.dtype), last
        else:
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


def _own_blocks(x: Tensor, decay: float, starts: Tensor) -> Tensor:
    """`_blocks` whose sums leave out what lies before each token's first position: exact zeros, not differences."""
    n_batch, n_tokens, n_channels = x.shape
    length = min(BLOCK, n_tokens)
    fill = -n_tokens % length
    blocks = pad(x, (0, 0, 0, fill)).reshape(n_batch, -1, length, n_channels)
    first = pad(starts, (0, fill), value=n_tokens + fill).reshape(n_batch, -1, length)
    n_blocks = blocks.shape[1]
    begin = torch.arange(n_blocks, device=x.device) * length
    own = first[..., None] <= begin[:, None, None] + torch.arange(length, device=x.device)
    inside = (_powers(decay, length, x) * (1 - decay)).where(own, 0.0) @ blocks
    # ends[m]: the average at the end of block m, which enters block n if n's first token sees that end.
    sees = first[:, :, :1] < (begin + length)
    chain = _powers(decay**length, n_blocks, x)[:-1, :-1].where(sees[:, 1:, :-1], 0.0)
    entering = chain @ inside[:, :-1, -1]
    step = torch.arange(1, length + 1, device=x.device, dtype=torch.float64)
    fading = (decay**step).to(x.dtype).where(first < begin[:, None], 0.0)
    start = pad(entering, (0, 0, 1, 0))
    return torch.addcmul(inside, fading[..., None], start[:, :, None]).flatten(1, 2)[:, :n_tokens]


def _check(x: Tensor, decay: float, state: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ShapeError(f"x is {x.dtype} with shape {list(x.shape)}; expected floats [B, T, E]")
    if not 0 <= decay < 1:
        raise ConfigError(f"decay={decay!r}; expected 0 <= decay < 1 (0 = no memory)")
    if state is not None and list(state.shape) != [x.shape[0], x.shape[2]]:
        raise ShapeError(f"state has shape {list(state.shape)}; expected [B, E] = {[x.shape[0], x.shape[2]]}")
