"""Selective state space layers before the router, forward only or in both directions.

B batch, T tokens, E width, H heads of P channels, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from turnout.errors import ConfigError, nearest
from turnout.layers.flow.base import FLOWS, Flow, FlowBlock, FlowContext
from turnout.ops.scan import selective_scan


class SelectiveSSM(nn.Module):
    """Mamba-style mixer: in-projection, short convolution, SiLU, selective scan, gate, out-projection.

    Δ = softplus(W_Δ u + b),  h_t = exp(-Δ_t a) h_{t-1} + Δ_t B_t u_tᵀ,  y_t = C_tᵀ h_t + D u_t,  out = W_o(y ∘ SiLU(z))

    # paper: Mamba decays every (channel, state) pair on its own; here one decay per head of 16 channels, as in Mamba-2,
    # which is what makes the scan a matrix product.
    Cost: O(T·E²) and the scan.
    """

    def __init__(self, width: int, *, expand: int = 2, state: int = 16, taps: int = 4, channels: int = 16) -> None:
        super().__init__()
        inner = expand * width
        if inner % channels:
            raise ConfigError(f"flow ssm: {inner} channels are not a multiple of {channels}; change width")
        self.heads, self.state, self.taps = inner // channels, state, taps
        self.split = (inner, inner, state, state, self.heads)
        self.into = nn.Linear(width, sum(self.split), bias=False)
        self.conv = nn.Parameter(torch.randn(taps, inner) * taps**-0.5)
        # Time scales 1 / (Δ a) from about one token to a few hundred.
        step = torch.empty(self.heads).uniform_(-6.9, -2.3).exp()
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.log_a = nn.Parameter(torch.empty(self.heads).uniform_(1.0, 16.0).log())
        self.direct = nn.Parameter(torch.ones(self.heads, 1))
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z, write, read, step = self.into(x).split(self.split, dim=-1)
        length = x.shape[1]
        padded = pad(u, (0, 0, self.taps - 1, 0))
        u = silu(sum((self.conv[i] * padded[:, i : i + length] for i in range(self.taps)), torch.zeros_like(u)))
        u = u.unflatten(-1, (self.heads, -1))
        step = softplus(step + self.step_bias)
        y = selective_scan(u * step[..., None], -step * self.log_a.exp(), write, read) + self.direct * u
        return self.out(y.flatten(-2) * silu(z))


class TwoWay(nn.Module):
    """Forward scan and reversed scan, concatenated, back to width E (or summed)."""

    def __init__(self, width: int, merge: str, **options: int) -> None:
        super().__init__()
        self.ahead, self.back = SelectiveSSM(width, **options), SelectiveSSM(width, **options)
        self.merge = nn.Linear(2 * width, width) if merge == "concat" else None

    def forward(self, x: Tensor) -> Tensor:
        ahead, back = self.ahead(x), self.back(x.flip(1)).flip(1)
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
                return SelectiveSSM(context.width, state=state)
            return TwoWay(context.width, merge, state=state)

        self.blocks = nn.Sequential(*(FlowBlock(context.width, mixer(), mlp=False) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)
