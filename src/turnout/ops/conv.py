"""Causal depthwise convolution: a whole sequence, a segment of it or one step, with exact state.

Axes: B batch, T tokens, E channels, H heads, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv1d

from turnout.errors import ShapeError


def causal_conv(x: Tensor, weight: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Convolve every channel with its own kernel, or with the kernel of its head.

        y_t = Σ_{j<K} w_j · x_{t−j},   x_{−1}, x_{−2}, … = state (0 if None)

    Args:
        x: float [B, T, E].
        weight: [E, K], or [H, K] with E % H == 0 and channels e // (E / H) = head; column 0 is the current token.
        state: the K−1 inputs before x, oldest first, [B, K−1, E].
    Returns:
        y: [B, T, E]; state [B, K−1, E], to continue from.
    Raises:
        ShapeError: a tensor has the wrong shape or dtype.
    Cost: O(B·T·E·K) multiply-adds.
    """
    _check(x, weight, state)
    n_taps, n_channels = weight.shape[1], x.shape[2]
    if state is None:
        state = x.new_zeros(x.shape[0], n_taps - 1, n_channels)
    context = torch.cat([state.to(x.dtype), x], 1)
    # A copy, so that the state does not keep the whole sequence alive.
    next_state = context[:, context.shape[1] - (n_taps - 1) :].clone()
    per_channel = weight.repeat_interleave(n_channels // weight.shape[0], dim=0)
    if x.shape[1] == 0:
        return x, next_state
    if x.shape[1] == 1:
        return (context * per_channel.flip(1).t()).sum(1, keepdim=True), next_state
    y = conv1d(context.transpose(1, 2), per_channel.flip(1)[:, None], groups=n_channels).transpose(1, 2)
    return y, next_state


def _check(x: Tensor, weight: Tensor, state: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ShapeError(f"x is {x.dtype} with shape {list(x.shape)}; expected floats [B, T, E]")
    if weight.dim() != 2 or 0 in weight.shape or x.shape[2] % weight.shape[0]:
        raise ShapeError(
            f"weight has shape {list(weight.shape)} and x has {x.shape[2]} channels; expected [E, K], "
            "or [H, K] with a number of heads that divides the channels, and K >= 1"
        )
    expected = [x.shape[0], weight.shape[1] - 1, x.shape[2]]
    if state is not None and list(state.shape) != expected:
        raise ShapeError(f"state has shape {list(state.shape)}; expected [B, K-1, E] = {expected}")
