"""Rotary position embedding at explicit positions, so that compact rows keep their original place."""

# The operator's schema is read from its annotations, which therefore are not postponed.
import torch
from torch import Tensor

from turnout.ops.one_pass import one_pass

# Positions of a sequence from which on compiled code reads a table of angles.
TABLE_FROM = 64


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
    if one_pass(x):
        from turnout.ops.inference_kernels import rotate_forward

        return rotate_forward(x, positions, speeds(half, base, torch.float32, x.device))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # A compiler would fuse the angles into every kernel that uses them, and take a sine and a power for each element
    # of q and k, forward and backward: a quarter of a training step of the 124M model.
    # A step of decoding is the opposite: the ten launches of a table are what costs.
    many = positions.shape[min(1, positions.ndim - 1)] >= TABLE_FROM
    table = rotary_table if torch.compiler.is_compiling() and many else _table
    cos, sin = table(positions, half, base, dtype)
    if positions.ndim < 3:
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    a, b = x[..., :half].to(dtype), x[..., half:].to(dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def _table(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle, [..., half]."""
    angle = positions.to(dtype)[..., None] * speeds(half, base, dtype, positions.device)
    return angle.cos(), angle.sin()


def speeds(half: int, base: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Radians a position, [half]."""
    return base ** -(torch.arange(half, device=device, dtype=dtype) / half)


@torch.library.custom_op("turnout::rotary_table", mutates_args=())
def rotary_table(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`_table` as one step that no compiler takes apart."""
    return _table(positions, half, base, dtype)


@rotary_table.register_fake
def _like(positions: Tensor, half: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape, half)
    return positions.new_empty(shape, dtype=dtype), positions.new_empty(shape, dtype=dtype)
