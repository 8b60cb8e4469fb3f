"""Selective state space track: linear-time memory of everything before, in a state of fixed size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.layers.local.base import LOCAL_TRACKS, LocalTrack
from turnout.layers.ssm import SelectiveSSM


@LOCAL_TRACKS.register("ssm")
class SSMTrack(LocalTrack):
    """y = SelectiveSSM(x), as `turnout.layers.ssm` writes it: routed attention beside it is a hybrid.

    Args:
        state: N, numbers a channel remembers.
        taps: of the short convolution before the scan.
        expand: inner width over E.
    Cost: O(6·E²·expand/2 + scan) per token. State: [B, taps - 1, expand·E] and [B, H, P, N].
    """

    def __init__(self, width: int, heads: int, *, state: int = 16, taps: int = 4, expand: int = 2) -> None:
        super().__init__()
        channels = min(16, expand * width)
        self.mixer = SelectiveSSM(width, expand=expand, state=state, taps=taps, channels=channels)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return self.mixer.init_state(batch, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: Any = None, *, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.mixer(x, state)

    def flops(self, length: int) -> float:
        inner, _, n, _, heads = self.mixer.split
        width = self.mixer.out.out_features
        projections = 2 * width * sum(self.mixer.split) + 2 * inner * width
        return length * (projections + 2 * self.mixer.taps * inner + 4 * inner * n + 2 * heads * n)
