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
    Cost: O(8·E² + 4·w·E) per token. State: (keys, values of the last w - 1 tokens, position).
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
        return empty, empty, 0

    def forward(self, x: Tensor, state: Any = None, *, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        start = 0 if state is None else state[2]
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.qkv(x).chunk(3, dim=-1))
        if self.rope:
            positions = torch.arange(start, start + x.shape[1], device=x.device)
            q, k = rotate(q, positions), rotate(k, positions)
        if state is not None:
            k, v = torch.cat((state[0], k), dim=1), torch.cat((state[1], v), dim=1)
        o = attend(q, k, v, window=self.size, starts=starts)
        keep = min(self.size - 1, k.shape[1])
        tail = slice(k.shape[1] - keep, None)
        return self.out(o.flatten(-2)), (k[:, tail], v[:, tail], start + x.shape[1])

    def farthest(self, length: int) -> int:
        return min(self.size, length) - 1

    def flops(self, length: int) -> float:
        w = min(self.size, length)
        return length * 8 * self.width**2 + 4 * self.width * (length * w - w * (w - 1) / 2)
