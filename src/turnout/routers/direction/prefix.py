"""Prefix-pooled direction router: the published one with a causal mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.routers.direction.base import DIRECTION_ROUTERS
from turnout.routers.direction.mlp import MLPDirectionRouter


@DIRECTION_ROUTERS.register("prefix")
class PrefixDirectionRouter(MLPDirectionRouter):
    """r_t = sigmoid(temperature · MLP(mean of x_0..x_t)): a running sum a layer, compatible with a key/value cache.

    The sum is kept in float32 (float64 for a float64 model), whatever the model computes in.
    State: (sum [B, E], count [B]).
    """

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        total = torch.zeros(batch, self.context.width, device=device, dtype=wide)
        return total, torch.zeros(batch, device=device, dtype=wide)

    def pool(self, source: Tensor, state: Any) -> tuple[Tensor, Any]:
        n_batch, length, _ = source.shape
        if state is None:
            state = self.init_state(n_batch, device=source.device, dtype=source.dtype)
        total, count = state
        # The carried sum enters as the first term, so that steps add in the order of the whole sequence.
        sums = torch.cat((total[:, None], source.to(total.dtype)), dim=1).cumsum(1)[:, 1:]
        counts = count[:, None] + torch.arange(1, length + 1, device=source.device)
        after = (sums[:, -1], counts[:, -1]) if length else state
        return (sums / counts[..., None]).to(source.dtype), after
