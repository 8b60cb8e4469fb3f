"""What a prompt spends between its products, in one pass each: rotary positions and convolutions with few taps.

torch alone passes a prompt of 32K tokens through memory ten times to rotate it, and transposes it twice to convolve it.
Forward only, in eager code: compiled code fuses both with what is around them, and training needs their gradients.

Axes: B batch, T tokens, H heads, D head dim, E channels, K taps.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens and channels of one program of the convolution.
TOKENS, CHANNELS = 16, 256


@triton.jit(do_not_specialize=["n_tokens"])
def rotate_kernel(
    x_ptr, at_ptr, speed_ptr, y_ptr, n_tokens, n_heads, half,
    x_b, x_t, x_h, at_b, at_t, at_h,
    HEADS: tl.constexpr, HALF: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """One token a program: y = (a cos - b sin, a sin + b cos), angle = position · speed; all heads at once."""
    batch, token = (tl.program_id(0) // n_tokens).to(tl.int64), (tl.program_id(0) % n_tokens).to(tl.int64)
    head, i = tl.arange(0, HEADS), tl.arange(0, HALF)
    here = (head < n_heads)[:, None] & (i < half)[None, :]
    speed = tl.load(speed_ptr + i, mask=i < half, other=0.0)[None, :]
    place = at_ptr + batch * at_b + token * at_t
    if APART:
        angle = tl.load(place + head * at_h, mask=head < n_heads, other=0).to(tl.float32)[:, None] * speed
    else:
        angle = tl.load(place).to(tl.float32) * speed
    cos, sin = tl.cos(angle), tl.sin(angle)
    source = x_ptr + batch * x_b + token * x_t + head[:, None] * x_h + i[None, :]
    a = tl.load(source, mask=here, other=0.0).to(tl.float32)
    b = tl.load(source + half, mask=here, other=0.0).to(tl.float32)
    target = y_ptr + ((batch * n_tokens + token) * n_heads + head[:, None]) * (2 * half) + i[None, :]
    tl.store(target, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=here)
    tl.store(target + half, (a * sin + b * cos).to(y_ptr.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["n_tokens"])
def conv_kernel(
    x_ptr, state_ptr, weight_ptr, y_ptr, n_tokens, n_channels, x_b, x_t,
    TAPS: tl.constexpr, STATE: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y_t = sum_j w_j x_{t-j}; before the first token the state [B, K-1, E], or 0."""
    chunks = tl.cdiv(n_tokens, TOKENS)
    batch, first = (tl.program_id(0) // chunks).to(tl.int64), (tl.program_id(0) % chunks) * TOKENS
    token, channel = first + tl.arange(0, TOKENS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < n_channels
    total = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for j in tl.static_range(TAPS):
        weight = tl.load(weight_ptr + channel * TAPS + j, mask=inside, other=0.0).to(tl.float32)
        seen = token - j
        there = ((seen >= 0) & (token < n_tokens))[:, None] & inside[None, :]
        place = x_ptr + batch * x_b + seen.to(tl.int64)[:, None] * x_t + channel[None, :]
        value = tl.load(place, mask=there, other=0.0).to(tl.float32)
        if STATE:
            kept = (seen < 0)[:, None] & inside[None, :]
            past = state_ptr + (batch * (TAPS - 1) + seen[:, None] + TAPS - 1) * n_channels + channel[None, :]
            value += tl.load(past, mask=kept, other=0.0).to(tl.float32)
        total += weight[None, :] * value
    target = y_ptr + (batch * n_tokens + token.to(tl.int64)[:, None]) * n_channels + channel[None, :]
    tl.store(target, total.to(y_ptr.dtype.element_ty), mask=(token < n_tokens)[:, None] & inside[None, :])


def rotate_forward(x: Tensor, positions: Tensor, speed: Tensor) -> Tensor:
    """`turnout.layers.rope.rotate` of x [B, T, H, D] with contiguous D, by the given float32 speeds [D / 2]."""
    n_batch, n_tokens, n_heads, width = x.shape
    y = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    if not y.numel():
        return y
    at = positions if positions.ndim > 1 else positions[None]
    at = at[..., None] if at.ndim == 2 else at
    at_b, at_t, at_h = at.expand(n_batch, n_tokens, n_heads).stride()
    arguments = {
        "x_ptr": x, "at_ptr": at, "speed_ptr": speed, "y_ptr": y, "n_tokens": n_tokens, "n_heads": n_heads,
        "half": width // 2, "x_b": x.stride(0), "x_t": x.stride(1), "x_h": x.stride(2), "at_b": at_b, "at_t": at_t,
        "at_h": at_h, "HEADS": triton.next_power_of_2(n_heads), "HALF": triton.next_power_of_2(width // 2),
        "APART": positions.ndim == 3,
    }  # fmt: skip
    _launch(rotate_kernel, (n_batch * n_tokens,), arguments, x)
    return y


def conv_forward(x: Tensor, weight: Tensor, state: Tensor | None) -> Tensor:
    """`turnout.ops.conv.causal_conv` of x [B, T, E] with contiguous E by one kernel a channel, [E, K]; like `x`."""
    n_batch, n_tokens, n_channels = x.shape
    y = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    if not y.numel():
        return y
    arguments = {
        "x_ptr": x, "state_ptr": None if state is None else state.to(x.dtype).contiguous(),
        "weight_ptr": weight.contiguous(), "y_ptr": y, "n_tokens": n_tokens, "n_channels": n_channels,
        "x_b": x.stride(0), "x_t": x.stride(1), "TAPS": weight.shape[1], "STATE": state is not None,
        "TOKENS": TOKENS, "CHANNELS": CHANNELS,
    }  # fmt: skip
    _launch(conv_kernel, (n_batch * triton.cdiv(n_tokens, TOKENS), triton.cdiv(n_channels, CHANNELS)), arguments, x)
    return y


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], x: Tensor) -> None:
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](**arguments, num_warps=4)
