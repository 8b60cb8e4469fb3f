"""Short convolution: a few neighbouring tokens, weighted per channel. No token sees anything far away.

B batch, T tokens, E width, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from turnout.errors import ConfigError
from turnout.layers.flow.base import FLOWS, Flow, FlowContext


@FLOWS.register("shift")
class Shift(Flow):
    """Causal depthwise convolution, alone.

    y_t = Σ_{i<K} w_i ∘ x_{t-i},  w_0 = 1, w_{i>0} ~ N(0, 1/E) at first;  `ahead`: x_{t+i} instead of x_{t-i}

    With two taps it is a token shift: enough to write a value's predecessor beside it, never a match.

    Args:
        taps: K >= 1; 1 is a scale per channel.
        ahead: look at following tokens (a control; not causal).
        split: freeze the taps to halves: the first half of the channels carries x_t, the second the K - 1 tokens before
            it, summed and divided by sqrt(K - 1).
    Cost: O(T·K·E).
    """

    def __init__(self, context: FlowContext, *, taps: int = 2, ahead: bool = False, split: bool = False) -> None:
        super().__init__(context)
        if taps < 1 or taps > context.length:
            raise ConfigError(f"flow shift: taps={taps}; expected 1..{context.length}")
        if split and taps < 2:
            raise ConfigError(f"flow shift: split=true has a half for the tokens before; use taps >= 2, got {taps}")
        self.causal = not ahead or taps == 1
        self.taps, self.ahead = taps, ahead
        weight = torch.randn(taps, context.width) * context.width**-0.5
        weight[0] = 1.0
        if split:
            half = (torch.arange(context.width) < context.width // 2).float()
            before = (1 - half).expand(taps - 1, -1) / (taps - 1) ** 0.5
            self.register_buffer("weight", torch.cat((half[None], before)))
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        length, more = x.shape[1], self.taps - 1
        padded = pad(x, (0, 0, 0, more)) if self.ahead else pad(x, (0, 0, more, 0))
        starts = [i if self.ahead else more - i for i in range(self.taps)]
        return sum((self.weight[i] * padded[:, s : s + length] for i, s in enumerate(starts)), torch.zeros_like(x))
