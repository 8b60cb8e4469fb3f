"""Output gate of attention: a sigmoid of the input scales the heads' outputs before Wo.

B batch, T tokens, E width, H query heads, D head dim, N routing groups, R rows taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.routers.gate_options import OUTPUT_GATES


class OutputGate(nn.Module):
    """o_t^h <- o_t^h * sigmoid(W^h x_t)                                   (Qiu et al. 2025, arXiv 2505.06708, "G1")

    Args:
        width: E; heads: H.
        form: "head", one factor a head, or "element", one for each of its D elements (the strongest form there).
        bias: of W.
    Cost: E·H or E² multiply-adds a row.
    """

    def __init__(self, width: int, heads: int, *, form: str, bias: bool) -> None:
        super().__init__()
        if form not in OUTPUT_GATES or form == "none":
            raise ConfigError(f"output gate {form!r}{nearest(form, set(OUTPUT_GATES) - {'none'})}")
        self.heads = heads
        self.proj = nn.Linear(width, heads if form == "head" else width, bias=bias)

    def forward(self, o: Tensor, x: Tensor) -> Tensor:
        """o [B, T, H, D] gated by x [B, T, E], or by one list of rows for each of N groups of heads, [B, N, R, E]."""
        factor = torch.sigmoid(self.proj(x)).unflatten(-1, (self.heads, -1))
        if x.ndim == 4:
            groups = x.shape[1]
            own = factor.unflatten(3, (groups, -1)).diagonal(dim1=1, dim2=3)
            factor = own.permute(0, 1, 4, 2, 3).flatten(2, 3)
        return o * factor.to(o.dtype)

    def flops(self, rows: float) -> float:
        """Forward multiply-adds × 2."""
        return 2.0 * rows * self.proj.weight.numel()
