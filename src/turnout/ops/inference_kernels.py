"""What a prompt spends between its products, in one pass each: rotary positions, convolutions with few taps, SwiGLU,
and writing keys and values into their cache.

torch alone passes a prompt of 32K tokens through memory ten times to rotate it, transposes it twice to convolve it, and
copies what is not contiguous at a third of the memory's speed (H200).
Forward only, in eager code: compiled code fuses both with what is around them, and training needs their gradients.

Axes: B batch, T tokens, H heads, D head dim, E channels, K taps, F hidden channels, N rows.
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
# Rows and channels of one program of what has no taps: 16 bytes a thread and row.
ROWS, WIDE = 4, 1024


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


@triton.jit(do_not_specialize=["n_rows"])
def swiglu_kernel(
    gate_ptr, value_ptr, y_ptr, n_rows, n_channels: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """y = silu(gate) value: gate and value are halves of one row; sizes are constants, so that loads stay aligned."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    here = (row < n_rows)[:, None] & (channel < n_channels)[None, :]
    at = row.to(tl.int64)[:, None] * (2 * n_channels) + channel[None, :]
    gate = tl.load(gate_ptr + at, mask=here, other=0.0).to(tl.float32)
    value = tl.load(value_ptr + at, mask=here, other=0.0).to(tl.float32)
    y = gate / (1 + tl.exp(-gate)) * value
    target = y_ptr + row.to(tl.int64)[:, None] * n_channels + channel[None, :]
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["n_tokens"])
def copy_kernel(
    x_ptr, y_ptr, n_tokens, n_channels, x_b, x_t, y_b, y_t, ROWS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """y = x for rows of contiguous channels that lie apart in both."""
    chunks = tl.cdiv(n_tokens, ROWS)
    batch, first = (tl.program_id(0) // chunks).to(tl.int64), (tl.program_id(0) % chunks) * ROWS
    token, channel = first + tl.arange(0, ROWS), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    here = (token < n_tokens)[:, None] & (channel < n_channels)[None, :]
    token = token.to(tl.int64)[:, None]
    value = tl.load(x_ptr + batch * x_b + token * x_t + channel[None, :], mask=here, other=0.0)
    tl.store(y_ptr + batch * y_b + token * y_t + channel[None, :], value.to(y_ptr.dtype.element_ty), mask=here)


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


def swiglu_forward(h: Tensor) -> Tensor:
    """silu(gate) * value of contiguous h = [gate, value] [..., 2 F], in one pass: [..., F]; rounded once."""
    n_channels = h.shape[-1] // 2
    y = torch.empty(*h.shape[:-1], n_channels, device=h.device, dtype=h.dtype)
    n_rows = h.numel() // h.shape[-1]
    if not y.numel():
        return y
    arguments = {
        "gate_ptr": h, "value_ptr": h.view(-1)[n_channels:], "y_ptr": y, "n_rows": n_rows, "n_channels": n_channels,
        "ROWS": ROWS, "WIDE": WIDE,
    }  # fmt: skip
    _launch(swiglu_kernel, (triton.cdiv(n_rows, ROWS), triton.cdiv(n_channels, WIDE)), arguments, h)
    return y


def copies_rows(x: Tensor, y: Tensor) -> bool:
    """Whether `copy_rows` takes them: [B, T, H, D], heads side by side in both, and enough to be worth a launch."""
    whole = all(t.stride(3) == 1 and t.stride(2) == t.shape[3] for t in (x, y))
    return whole and x.shape == y.shape and x.shape[1] >= ROWS


def copy_rows(x: Tensor, y: Tensor) -> None:
    """y[:] = x for [B, T, H, D] of which `copies_rows` is true."""
    n_batch, n_tokens, n_heads, width = x.shape
    arguments = {
        "x_ptr": x, "y_ptr": y, "n_tokens": n_tokens, "n_channels": n_heads * width, "x_b": x.stride(0),
        "x_t": x.stride(1), "y_b": y.stride(0), "y_t": y.stride(1), "ROWS": ROWS, "WIDE": WIDE,
    }  # fmt: skip
    grid = (n_batch * triton.cdiv(n_tokens, ROWS), triton.cdiv(n_heads * width, WIDE))
    _launch(copy_kernel, grid, arguments, x)


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], x: Tensor) -> None:
    with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
        kernel[grid](**arguments, num_warps=4)
