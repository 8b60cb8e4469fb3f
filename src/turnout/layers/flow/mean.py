"""Global mean: every token gets the same summary of the sequence."""

from __future__ import annotations

from torch import Tensor, nn

from turnout.layers.flow.base import FLOWS, Flow, FlowContext


@FLOWS.register("mean")
class MeanFlow(Flow):
    """y_t = x_t + W · mean_s x_s: one vector for all, so it cannot tell tokens apart beyond what x already does.

    Args:
        residual: False drops x_t, and with it every difference between tokens.
    """

    causal = False

    def __init__(self, context: FlowContext, *, residual: bool = True) -> None:
        super().__init__(context)
        self.residual = residual
        self.map = nn.Linear(context.width, context.width)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.map(x.mean(dim=1, keepdim=True)).expand_as(x)
        return x + shared if self.residual else shared
