"""Causal convolution with few taps as a sum of shifted copies: no transposes, no padding; the fastest form on a CPU.

Axes: B batch, T tokens, E channels, K taps.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class ShiftedConv(torch.autograd.Function):
    """y_t = Σ_{j<K} w_j · x_{t−j}; x_{−j} is `state[K−1−j]`, or 0 without a state.

    `apply(x [..., T, E], state [..., K−1, E] or None, weight [..., E, K])`: the leading axes of a weight broadcast, so
    that stacked models (`torch.func.vmap`) convolve together. Cost: K passes over x forward, 2·K backward.
    """

    @staticmethod
    def forward(x: Tensor, state: Tensor | None, weight: Tensor) -> Tensor:
        y = x * weight[..., 0]
        for j, now, before, seen in _shifts(x, weight):
            y[..., now, :].addcmul_(x[..., before, :], weight[..., j])
            if state is not None:
                y[..., : seen.stop - seen.start, :].addcmul_(state[..., seen, :], weight[..., j])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, state, weight = ctx.saved_tensors
        (grad,) = grads
        need_x, need_state, need_weight = ctx.needs_input_grad
        dx = grad * weight[..., 0] if need_x else None
        dstate = torch.zeros_like(state) if need_state else None
        dw = torch.empty_like(weight) if need_weight else None
        if dw is not None:
            dw[..., 0] = _dot(grad, x, dw)
        for j, now, before, seen in _shifts(x, weight):
            first = slice(0, seen.stop - seen.start)
            if dx is not None:
                dx[..., before, :].addcmul_(grad[..., now, :], weight[..., j])
            if dstate is not None:
                dstate[..., seen, :].addcmul_(grad[..., first, :], weight[..., j])
            if dw is not None:
                dw[..., j] = _dot(grad[..., now, :], x[..., before, :], dw)
                if state is not None:
                    dw[..., j] += _dot(grad[..., first, :], state[..., seen, :], dw)
        return dx, dstate, dw

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, state: Tensor | None, weight: Tensor
    ) -> tuple[Tensor, int]:
        def stacked(part: Tensor, dim: int | None) -> Tensor:
            return part[None] if dim is None else part.movedim(dim, 0)

        x = stacked(x, in_dims[0]).expand(info.batch_size, *([-1] * (x.dim() - (in_dims[0] is not None))))
        state = None if state is None else stacked(state, in_dims[1])
        # Behind the axis of the models, one axis for each that x has before its tokens, and one for these.
        models, channels, taps = stacked(weight, in_dims[2]).shape
        folded = stacked(weight, in_dims[2]).reshape(models, *([1] * (x.dim() - 2)), channels, taps)
        return cast(Tensor, ShiftedConv.apply(x, state, folded)), 0


def _shifts(x: Tensor, weight: Tensor) -> list[tuple[int, slice, slice, slice]]:
    """(j, tokens that see x shifted by j, the x they see, the part of the state that the first tokens see)."""
    n_tokens, n_taps = x.shape[-2], weight.shape[-1]
    shifts = []
    for j in range(1, n_taps):
        start = n_taps - 1 - j
        shifts.append((j, slice(j, None), slice(0, max(n_tokens - j, 0)), slice(start, start + min(j, n_tokens))))
    return shifts


def _dot(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Σ of a·b over what a column of `weight` has not."""
    return (a * b).sum_to_size(weight.shape[:-1])
