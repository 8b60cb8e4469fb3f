"""A selective state space mixer with its memory: the whole sequence at once, or token by token.

B batch, T tokens, E width, H heads of P channels, N state size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from turnout.errors import ConfigError
from turnout.ops.scan import selective_scan
from turnout.ops.shifted_conv import ShiftedConv

Memory = tuple[Tensor, Tensor]


class SelectiveSSM(nn.Module):
    """Mamba-style mixer: in-projection, short convolution, SiLU, selective scan, gate, out-projection.

    Δ = softplus(W_Δ u + b),  h_t = exp(-Δ_t a) h_{t-1} + Δ_t B_t u_tᵀ,  y_t = C_tᵀ h_t + D u_t,  out = W_o(y ∘ SiLU(z))

    # paper: Mamba decays every (channel, state) pair on its own; here one decay per head of 16 channels, as in Mamba-2,
    # which is what makes the scan a matrix product.
    Args:
        width: E; the inner width is `expand` times as much.
        state: N; taps: of the convolution; channels: P of a head.
    Cost: O(T·E²) and the scan. State: the last taps - 1 inputs of the convolution, and h [B, H, P, N].
    """

    def __init__(self, width: int, *, expand: int = 2, state: int = 16, taps: int = 4, channels: int = 16) -> None:
        super().__init__()
        inner = expand * width
        if inner % channels:
            raise ConfigError(f"ssm: {inner} channels are not a multiple of {channels}; change width")
        self.heads, self.state, self.taps = inner // channels, state, taps
        self.split = (inner, inner, state, state, self.heads)
        self.into = nn.Linear(width, sum(self.split), bias=False)
        self.conv = nn.Parameter(torch.randn(taps, inner) * taps**-0.5)
        # Time scales 1 / (Δ a) from about one token to a few hundred.
        step = torch.empty(self.heads).uniform_(-6.9, -2.3).exp()
        self.step_base = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.log_a = nn.Parameter(torch.empty(self.heads).uniform_(1.0, 16.0).log())
        self.direct = nn.Parameter(torch.ones(self.heads))
        self.out = nn.Linear(inner, width, bias=False)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Memory:
        """Memory before the first token."""
        tail = torch.zeros(batch, self.taps - 1, self.split[0], device=device, dtype=dtype)
        channels = self.split[0] // self.heads
        return tail, torch.zeros(batch, self.heads, channels, self.state, device=device, dtype=dtype)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Output [B, T, E], and the memory after the last token."""
        u, z, write, read, step = self.into(x).split(self.split, dim=-1)
        length = x.shape[1]
        keep = self.taps - 1
        before = u.new_zeros(u.shape[0], keep, u.shape[2]) if memory is None else memory[0]
        recent = torch.cat((before, u[:, max(0, length - keep) :]), dim=1)
        tail = recent[:, recent.shape[1] - keep :]
        mixed = ShiftedConv.apply(u, None if memory is None else before, self.conv.flip(0).transpose(0, 1))
        u = silu(mixed).unflatten(-1, (self.heads, -1))
        step = softplus(step + self.step_base)
        y, state = selective_scan(
            u * step[..., None], -step * self.log_a.exp(), write, read, state=None if memory is None else memory[1]
        )
        y = y + self.direct[:, None] * u
        return self.out(y.flatten(-2) * silu(z)), (tail, state)
