"""Causal depthwise convolution: a whole sequence, a segment of it or one step, with exact state.

Axes: B batch, T tokens, E channels, H kernels (one a head, or one a channel), K taps, L tokens in a block, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from turnout.errors import ShapeError
from turnout.ops.one_pass import one_pass
from turnout.ops.shifted_conv import ShiftedConv

# Measured, forward and backward. CPU: torch's forward is the fastest, its backward is 2 to 5 times slower than ours
# from 8 taps on; 8 to 64 tokens a block differ little. GPU (H200): torch's backward is faster than ours, and kernels
# shared by the channels of a head are 1.2 to 2 times faster as one matrix product from 32 taps on. Up to SHIFTED_TAPS a
# CPU is fastest with shifted sums (2,048 tokens of 256 channels, 4 taps: a quarter of conv1d's time).
SHIFTED_TAPS = 8
OWN_BACKWARD_FROM = 8
# Up to so many taps inference on a GPU is one pass over x.
FUSED_TAPS = 16
BLOCK = 32
GPU_MATRIX_TAPS = range(32, 129)
GPU_BLOCK = 128
# A long kernel for each channel: one banded matrix a channel. Spectra would be cheaper still, but what they round
# depends on the whole sequence, and no output may depend on the future by even a bit.
GPU_CHANNEL_TAPS = 48


def causal_conv(
    x: Tensor, weight: Tensor, state: Tensor | None = None, *, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve every channel with its own kernel, or with the kernel of its head.

        y_t = Σ_{j<K} w_j · x_{t−j},   x_{−1}, x_{−2}, … = state (0 if None)

    With `starts`, x_{t−j} counts as 0 where t − j < starts[t].

    Args:
        x: float [B, T, E].
        weight: [E, K], or [H, K] with E % H == 0: channel e uses kernel e // (E // H). Column 0 is the current token.
        state: the K−1 inputs before x, oldest first, [B, K−1, E].
        starts: first position that each token sees, int64 [B, T]; without a state.
    Returns:
        y: [B, T, E], under autocast in autocast's dtype; state [B, K−1, E], to continue from.
    Raises:
        ShapeError: a tensor has the wrong shape, dtype or device.
    Cost: O(B·T·E·K) multiply-adds; one step with T = 1 reads the state once; K passes over x with `starts`.
    """
    _check(x, weight, state)
    if starts is not None:
        if state is not None or starts.shape != x.shape[:2]:
            raise ShapeError(f"starts {list(starts.shape)}; expected [B, T] = {list(x.shape[:2])}, and no state")
        return _within(x, weight, starts), x[:, :0]
    n_taps, n_channels = weight.shape[1], x.shape[2]
    if n_taps <= FUSED_TAPS and one_pass(x):
        from turnout.ops.inference_kernels import conv_forward

        y = conv_forward(x, _per_channel(weight, n_channels), state)
        return y, _last(x, n_taps - 1, state)
    # In half precision every shifted sum would round; conv1d sums in float32.
    precise = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if x.device.type == "cpu" and precise and n_taps <= SHIFTED_TAPS and x.shape[1] >= n_taps:
        return _shifted(x, weight, state)
    if state is None:
        state = x.new_zeros(x.shape[0], n_taps - 1, n_channels)
    context = torch.cat([state.to(x.dtype), x], 1)
    # A copy, so that the state does not keep the whole sequence alive.
    next_state = context[:, context.shape[1] - (n_taps - 1) :].clone()
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        context = context.to(torch.get_autocast_dtype(device))
    weight = weight.to(context.dtype)
    with torch.autocast(device, enabled=False):
        if x.shape[1] == 0:
            y = x.to(context.dtype)
        elif x.shape[1] == 1:
            y = (context * _per_channel(weight, n_channels).flip(1).t()).sum(1, keepdim=True)
        else:
            y = _choose(context, weight)(context, weight)
    return y, next_state


def _last(x: Tensor, n: int, state: Tensor | None) -> Tensor:
    """The n inputs before the next token; a copy, so that they do not keep the whole sequence alive."""
    if x.shape[1] >= n:
        return x[:, x.shape[1] - n :].clone()
    past = x.new_zeros(x.shape[0], n, x.shape[2]) if state is None else state.to(x.dtype)
    return torch.cat([past, x], 1)[:, x.shape[1] :]


def _shifted(x: Tensor, weight: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Few taps on a CPU; T >= K, so that the next state lies within x."""
    next_state = x[:, x.shape[1] - (weight.shape[1] - 1) :].clone()
    past = None if state is None else state.to(x.dtype)
    return ShiftedConv.apply(x, past, _per_channel(weight.to(x.dtype), x.shape[2])), next_state


def _choose(context: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    n_kernels, n_taps = weight.shape
    if n_taps <= SHIFTED_TAPS and torch.compiler.is_compiling() and context.device.type == "cuda":
        return fused_shifts
    if context.device.type == "cpu":
        return _CausalConv.apply if n_taps >= OWN_BACKWARD_FROM else _forward
    shared = n_kernels < context.shape[2]
    return _as_matrix if (n_taps in GPU_MATRIX_TAPS if shared else n_taps >= GPU_CHANNEL_TAPS) else _forward


def _within(x: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """Sums of shifted copies that end at each token's own first position, in float32."""
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        wide = x.to(dtype).to(torch.promote_types(dtype, torch.float32))
        kernel = _per_channel(weight, x.shape[2]).to(wide.dtype)
        behind = torch.arange(x.shape[1], device=x.device) - starts
        y = wide * kernel[:, 0]
        for j in range(1, min(weight.shape[1], x.shape[1])):
            before = pad(wide[:, :-j], (0, 0, j, 0)).masked_fill((behind < j)[..., None], 0.0)
            y = y + before * kernel[:, j]
        return y.to(dtype)


def _per_channel(weight: Tensor, n_channels: int) -> Tensor:
    return weight.repeat_interleave(n_channels // weight.shape[0], dim=0)


def _forward(context: Tensor, weight: Tensor) -> Tensor:
    """[B, T+K−1, E] → [B, T, E]."""
    kernel = _per_channel(weight, context.shape[2]).flip(1)[:, None]
    return conv1d(context.transpose(1, 2), kernel, groups=kernel.shape[0]).transpose(1, 2)


def fused_shifts(context: Tensor, weight: Tensor) -> Tensor:
    """Few taps inside compiled code: sums of shifted copies in float32, which a compiler fuses with what is around."""
    n_taps, n_tokens = weight.shape[1], context.shape[1] - (weight.shape[1] - 1)
    wide = context.to(torch.promote_types(context.dtype, torch.float32))
    kernel = _per_channel(weight, context.shape[2]).to(wide.dtype)
    y = wide[:, n_taps - 1 :] * kernel[:, 0]
    for j in range(1, n_taps):
        y = y + wide[:, n_taps - 1 - j : n_taps - 1 - j + n_tokens] * kernel[:, j]
    return y.to(context.dtype)


def _as_matrix(context: Tensor, weight: Tensor) -> Tensor:
    """One product with a banded matrix per head: y_{nL+l} = Σ_m M[l, m] context_{nL+m}, M[l, l+K−1−j] = w_j."""
    n_kernels, n_taps = weight.shape
    length, n_tokens = GPU_BLOCK, context.shape[1] - (n_taps - 1)
    past = n_taps - 1
    # Rows of length L+K−1 cut from a sequence of period L+K: each is the one above, moved one place to the right.
    band = pad(weight.flip(1), (0, length)).repeat(1, length)[:, : length * (length + past)]
    band = band.view(n_kernels, length, length + past)
    before = -(-past // length)
    blocks = pad(context, (0, 0, before * length - past, -n_tokens % length)).unflatten(1, (-1, length))
    # Every block with the K−1 tokens before it, [B, N, L+K−1, E] → [H, L+K−1, B, N, E/H].
    last = blocks.shape[1] - before
    seen = torch.cat([blocks[:, i : i + last] for i in range(before + 1)], 2)[:, :, before * length - past :]
    seen = seen.unflatten(3, (n_kernels, -1)).permute(3, 2, 0, 1, 4)
    y = (band @ seen.flatten(2)).unflatten(2, seen.shape[2:])
    return y.permute(2, 3, 1, 0, 4).flatten(3).flatten(1, 2)[:, :n_tokens]


class _CausalConv(torch.autograd.Function):
    """Torch's forward, with a backward that is 2 to 5 times faster than torch's for long kernels on the CPU."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(context, weight)
        return _forward(context, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        context, weight = ctx.saved_tensors
        need_context, need_weight = ctx.needs_input_grad
        with torch.autocast(context.device.type, enabled=False):
            return (
                _grad_context(grads[0], weight) if need_context else None,
                _grad_weight(grads[0], context, weight) if need_weight else None,
            )


def _grad_context(grad: Tensor, weight: Tensor) -> Tensor:
    """dx_s = Σ_j w_j · dy_{s+j}: the same convolution, backwards in time."""
    n_taps = weight.shape[1]
    kernel = _per_channel(weight, grad.shape[2])[:, None]
    return conv1d(pad(grad.transpose(1, 2), (n_taps - 1, n_taps - 1)), kernel, groups=kernel.shape[0]).transpose(1, 2)


def _grad_weight(grad: Tensor, context: Tensor, weight: Tensor) -> Tensor:
    """dw_j = Σ_{b,t,e} dy_t · x_{t−j}, as one matrix product a block of L tokens.

    P[l, m] = Σ dy_{nL+l} · context_{nL+m} over blocks n, batch and the channels of the kernel; dw_j is the sum of P
    along the diagonal m − l = K − 1 − j.
    """
    n_tokens, n_channels = grad.shape[1:]
    n_kernels, n_taps = weight.shape
    fill = (0, 0, 0, -n_tokens % BLOCK)
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    heads = (n_kernels, n_channels // n_kernels)
    # [H, L, B·N·E/H] and, with the K−1 tokens before each block, [H, L+K−1, B·N·E/H]
    out = pad(grad.to(dtype), fill).unflatten(2, heads).unflatten(1, (-1, BLOCK))
    out = out.permute(3, 2, 0, 1, 4).flatten(2)
    seen = pad(context.to(dtype), fill).unfold(1, BLOCK + n_taps - 1, BLOCK).unflatten(2, heads)
    seen = seen.permute(2, 4, 0, 1, 3).flatten(2)
    product = out @ seen.transpose(1, 2)
    # Rows of length L+K−1 read with stride L+K: row l moves l places to the left, and diagonals become columns.
    sheared = pad(product.flatten(1), (0, BLOCK)).view(n_kernels, BLOCK, BLOCK + n_taps)
    return sheared[:, :, :n_taps].sum(1).flip(1).to(weight.dtype)


def _check(x: Tensor, weight: Tensor, state: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ShapeError(f"x is {x.dtype} with shape {list(x.shape)}; expected floats [B, T, E]")
    if weight.dim() != 2 or 0 in weight.shape or x.shape[2] % weight.shape[0]:
        raise ShapeError(
            f"weight has shape {list(weight.shape)} and x has {x.shape[2]} channels; expected [E, K], "
            "or [H, K] with a number of heads that divides the channels, and K >= 1"
        )
    if not weight.is_floating_point() or weight.device != x.device:
        raise ShapeError(f"weight is {weight.dtype} on {weight.device}; expected floats on {x.device}")
    expected = [x.shape[0], weight.shape[1] - 1, x.shape[2]]
    if state is not None and list(state.shape) != expected:
        raise ShapeError(f"state has shape {list(state.shape)}; expected [B, K-1, E] = {expected}")
