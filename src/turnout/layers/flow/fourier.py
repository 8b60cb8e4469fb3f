"""Fourier mixing, as in FNet."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.layers.flow.base import FLOWS, Flow, FlowBlock, FlowContext


class FourierMix(torch.nn.Module):
    """Re FFT over tokens of the FFT over channels, scaled to unit variance. No parameters."""

    def forward(self, x: Tensor) -> Tensor:
        # Re(FFT2 x) by two real transforms: as products they stack and differentiate.
        seq, chan = _dft(x.shape[1], x), _dft(x.shape[2], x)
        return (seq[0] @ (x @ chan[0]) - seq[1] @ (x @ chan[1])) * (x.shape[1] * x.shape[2]) ** -0.5


def _dft(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2π i j / size, [size, size]."""
    at = torch.arange(size, device=like.device)
    # The product is reduced before it is scaled: a large angle would lose digits.
    angle = (at[:, None] * at % size).to(like.dtype) * (2 * torch.pi / size)
    return angle.cos(), angle.sin()


@FLOWS.register("fourier")
class FourierFlow(Flow):
    """`layers` pre-norm blocks of Fourier mixing and MLP.

    Args:
        layers: blocks.
        residual: False replaces the tokens by their transform, with no path around it.
    Cost: O(T²·E) as written here; an FFT needs O(T·log T·E).
    """

    causal = False

    def __init__(self, context: FlowContext, *, layers: int = 1, residual: bool = True) -> None:
        super().__init__(context)
        self.residual = residual
        mixers = [FourierMix() for _ in range(layers)]
        self.blocks = (
            torch.nn.Sequential(*(FlowBlock(context.width, mix) for mix in mixers))
            if residual
            else torch.nn.Sequential(*mixers)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)
