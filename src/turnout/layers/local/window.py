"""Sliding-window attention track."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.layers.local.base import LOCAL_TRACKS, LocalTrack
from turnout.layers.rope import rotate
from turnout.ops.attend import attend


@LOCAL_TRACKS.register("window")
class WindowTrack(LocalTrack):
    """Softmax attention over the last `size` tokens, with its own projections.

    Args:
        size: window w >= 1; position t sees t - w < s <= t.
        rope: True rotates queries and keys by their position.
        bias: of the projections.
    Cost: O(8·E² + 4·w·E) per token. State: keys and values of the last w - 1 tokens [B, w - 1, H, D], those before the
    first token zero, and the position [B]: tensors of one shape from the first call on, so that steps can be replayed.
    """

    packs = True

    def __init__(self, width: int, heads: int, *, size: int = 64, rope: bool = True, bias: bool = True) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"local window: size={size}; expected >= 1")
        if width % heads or (rope and width // heads % 2):
            raise ConfigError(
                f"local window: width={width}, heads={heads}, rope={rope}; expected heads to divide width into "
                "an even head dim (any head dim with rope=false)"
            )
        self.size, self.rope, self.width, self.heads = size, rope, width, heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        empty = torch.zeros(batch, 0, self.heads, self.width // self.heads, device=device, dtype=dtype)
        return empty, empty, torch.zeros(batch, dtype=torch.int64, device=device)

    def forward(self, x: Tensor, state: Any = None, *, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, dim=-1))
        positions = torch.arange(x.shape[1], device=x.device)
        if state is None:
            q, k = self._rotated(q, k, positions)
            return self.out(attend(q, k, v, window=self.size, starts=starts).flatten(-2)), None
        past, position = state[0].shape[1], state[2]
        # Before the first token nothing is held and the host knows where it is.
        q, k = self._rotated(q, k, positions if past == 0 else position[:, None] + positions)
        k, v = torch.cat((state[0], k), dim=1), torch.cat((state[1], v), dim=1)
        if past == 0:
            o = attend(q, k, v, window=self.size, starts=starts)
        else:
            o = self._behind(q, k, v, (past - position).clamp(min=0))
        keep = self.size - 1
        tails = (nn.functional.pad(t, (0, 0, 0, 0, max(0, keep - t.shape[1]), 0)) for t in (k, v))
        k, v = (t[:, t.shape[1] - keep :] for t in tails)
        return self.out(o.flatten(-2)), (k, v, position + x.shape[1])

    def _rotated(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (rotate(q, positions), rotate(k, positions)) if self.rope else (q, k)

    def _behind(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
        """Queries behind a memory whose tokens begin at slot `first` int64 [B]."""
        if q.shape[1] > 1:
            return attend(q, k, v, window=self.size, starts=first[:, None].expand(-1, q.shape[1]))
        seen = torch.arange(k.shape[1], device=k.device) >= first[:, None]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None]).transpose(1, 2)

    def farthest(self, length: int) -> int:
        return min(self.size, length) - 1

    def flops(self, length: int) -> float:
        w = min(self.size, length)
        return length * 8 * self.width**2 + 4 * self.width * (length * w - w * (w - 1) / 2)
