"""The interface of local tracks, and their registry."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from turnout.spec import Registry

LOCAL_TRACKS = Registry("local track", "turnout.layers.local")


class LocalTrack(nn.Module):
    """A causal map [B, T, E] -> [B, T, E] with finite memory.

    Built with `width` and `heads` of the model; options are keyword-only. A track that `packs` takes `starts`, int64
    [B, T]: the first position that each token may see, where documents are packed into one sequence.
    """

    causal: ClassVar[bool] = True
    packs: ClassVar[bool] = False

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Memory before the first token."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: Any = None, *, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        """Output, and the state after the last token; `state=None` starts a sequence."""
        raise NotImplementedError

    def farthest(self, length: int) -> int:
        """Distance of the farthest token that an output may hang on, in a sequence of `length` tokens."""
        return length - 1

    def flops(self, length: int) -> float:
        """Multiply-adds × 2 of one sequence of `length` tokens, forward."""
        raise NotImplementedError
