"""No preprocessing: the router sees the embeddings."""

from __future__ import annotations

from torch import Tensor

from turnout.layers.flow.base import FLOWS, Flow


@FLOWS.register("none")
class NoFlow(Flow):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x
