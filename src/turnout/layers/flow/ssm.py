"""Selective state space layers before the router, forward only or in both directions.

B batch, T tokens, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.layers.flow.base import FLOWS, Flow, FlowBlock, FlowContext
from turnout.layers.ssm import SelectiveSSM


class OneWay(SelectiveSSM):
    """Forward scan; a flow has whole sequences only, and no use for the state."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class TwoWay(nn.Module):
    """Forward scan and reversed scan, concatenated, back to width E (or summed)."""

    def __init__(self, width: int, merge: str, **options: int) -> None:
        super().__init__()
        self.ahead, self.back = SelectiveSSM(width, **options), SelectiveSSM(width, **options)
        self.merge = nn.Linear(2 * width, width) if merge == "concat" else None

    def forward(self, x: Tensor) -> Tensor:
        ahead, back = self.ahead(x)[0], self.back(x.flip(1))[0].flip(1)
        return ahead + back if self.merge is None else self.merge(torch.cat((ahead, back), dim=-1))


@FLOWS.register("ssm")
class SSMFlow(Flow):
    """`layers` blocks x + SSM(norm(x)), no MLP, as in Mamba.

    Args:
        layers: blocks; published 2.
        form: "causal" (forward scan) or "both" (forward and reversed).
        merge: of "both": "concat" (then a linear map) or "sum".
        state: N; published value unknown, 16 is Mamba's.
    """

    def __init__(
        self, context: FlowContext, *, layers: int = 2, form: str = "causal", merge: str = "concat", state: int = 16
    ) -> None:
        super().__init__(context)
        for name, value, known in (("form", form, ("causal", "both")), ("merge", merge, ("concat", "sum"))):
            if value not in known:
                raise ConfigError(f"flow ssm: {name}={value!r}{nearest(value, known)}")
        self.causal = form == "causal"

        def mixer() -> nn.Module:
            if form == "causal":
                return OneWay(context.width, state=state)
            return TwoWay(context.width, merge, state=state)

        self.blocks = nn.Sequential(*(FlowBlock(context.width, mixer(), mlp=False) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)
