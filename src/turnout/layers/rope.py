"""Rotary position embedding at explicit positions, so that compact rows keep their original place."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotate pairs (x_i, x_{i+D/2}) by position · base^{-2i/D}.        (Su et al. 2021, half-split form)

    Args:
        x: [B, R, H, D], D even.
        positions: int [R], [B, R] or [B, R, H]; empty slots may hold anything.
        base: of the geometric frequencies, > 1.
    Returns:
        Like `x`. Angles are float32 (float64 for float64 input). Cost O(B·R·H·D).
    """
    half = x.shape[-1] // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    exponent = torch.arange(half, device=x.device, dtype=dtype) / half
    angle = positions.to(dtype)[..., None] * base**-exponent
    if positions.ndim < 3:
        angle = angle.unsqueeze(-2)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half].to(dtype), x[..., half:].to(dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
