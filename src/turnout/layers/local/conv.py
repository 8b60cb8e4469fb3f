"""Causal convolution track: signed per channel, or the published softmax average per head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.layers.local.base import LOCAL_TRACKS, LocalTrack
from turnout.ops.conv import causal_conv

FORMS = ("signed", "softmax")


@LOCAL_TRACKS.register("conv")
class ConvTrack(LocalTrack):
    """y = O conv(V x), causal, kernel K; gated: y = O (G x ∘ conv(V x))   (Arora et al. 2023, BaseConv)

    signed    depthwise, one free kernel per channel [E, K], initialised U(-1/sqrt(K), 1/sqrt(K))
    softmax   one kernel per head, w = softmax(a), a in R^{H x K} initialised 0: an average of the last K values that
              dilutes a single token by 1/K                                            (Bonsignore 2026)

    Args:
        kernel: K >= 1 tokens, the current one included.
        form: "signed" or "softmax".
        project: True has the linear maps V and O (with bias `bias`); False convolves x itself.
        bias: of V, O and G.
        gate: multiply by a third linear map of x, G. A long gated convolution (K = T) can compare tokens; without the
            product a convolution weighs by distance alone.
    Cost: O(E·K + 4·E²·project) per token. State: the last K - 1 inputs of the convolution, [B, K - 1, E].
    """

    packs = True

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: int = 16,
        form: str = "signed",
        project: bool = True,
        bias: bool = True,
        gate: bool = False,
    ) -> None:
        super().__init__()
        if kernel < 1:
            raise ConfigError(f"local conv: kernel={kernel}; expected >= 1")
        if form not in FORMS:
            raise ConfigError(f"local conv: form={form!r}{nearest(form, FORMS)}")
        if form == "softmax" and width % heads:
            raise ConfigError(f"local conv: width={width}, heads={heads}; form=softmax needs heads to divide width")
        self.kernel, self.form, self.width = kernel, form, width
        self.value = nn.Linear(width, width, bias=bias) if project else None
        self.out = nn.Linear(width, width, bias=bias) if project else None
        self.gate = nn.Linear(width, width, bias=bias) if gate else None
        if form == "softmax":
            self.weight = nn.Parameter(torch.zeros(heads, kernel))
        else:
            self.weight = nn.Parameter(torch.empty(width, kernel).uniform_(-(kernel**-0.5), kernel**-0.5))

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return torch.zeros(batch, self.kernel - 1, self.width, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: Any = None, *, starts: Tensor | None = None) -> tuple[Tensor, Any]:
        v = x if self.value is None else self.value(x)
        weight = self.weight.softmax(dim=-1) if self.form == "softmax" else self.weight
        y, state = causal_conv(v, weight.to(v.dtype), state, starts=starts)
        if self.gate is not None:
            y = self.gate(x) * y
        return (y if self.out is None else self.out(y)), state

    def farthest(self, length: int) -> int:
        return min(self.kernel, length) - 1

    def flops(self, length: int) -> float:
        maps = sum(part is not None for part in (self.value, self.out, self.gate))
        projections = 2 * maps * self.width**2
        return length * (projections + 2 * self.kernel * self.width)
