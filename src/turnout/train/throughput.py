"""Tokens a second as operations a second: those that were really computed, beside those of dense attention.

T tokens a sequence, L layers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from turnout.models.block import Block
from turnout.models.causal_lm import CausalLM

# Dense bfloat16 products without sparsity, as the makers state them; FLOP/s.
PEAKS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L4": 121e12}


class Throughput:
    """Operations of a training step of `model`, forward and backward (3 × forward), norms and the like left out.

    Args:
        model: with weights of one layout; its dense twin is counted, not built.
        device: whose peak a utilisation refers to.
    """

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self.model = model
        with torch.device("meta"):
            config = replace(model.config, layout="A")
            self.dense = [Block(config, layer, 0) for layer in range(config.layers)]
        self.peak = _peak(device)

    def conditional(self, length: int, usage: list[float], *, skipping: bool) -> float:
        """FLOPs a token, of the tracks that ran: all of attention while both tracks run, else the rows taken."""
        shares = iter(usage if skipping else [1.0] * len(usage))
        per_layer = [next(shares, 1.0) if kind == "R" else 1.0 for kind in self.model.config.layer_kinds]
        return 3 * (self.model.block_flops(length, per_layer) / length + 2 * self.model.head.weight.numel())

    def dense_equivalent(self, length: int) -> float:
        """FLOPs a token of the same model with dense attention in every layer."""
        blocks = sum(block.flops(length, 1.0) for block in self.dense)
        return 3 * (blocks / length + 2 * self.model.head.weight.numel())

    def record(
        self, tokens_per_s: float, length: int, usage: list[float], *, skipping: bool
    ) -> dict[str, float | None]:
        """Fields of a metrics line: TFLOP/s and, where the peak is known, the fraction of it (MFU)."""
        real = tokens_per_s * self.conditional(length, usage, skipping=skipping)
        dense = tokens_per_s * self.dense_equivalent(length)
        return {
            "tflops": real / 1e12,
            "tflops_dense_equivalent": dense / 1e12,
            "mfu": real / self.peak if self.peak else None,
            "mfu_dense_equivalent": dense / self.peak if self.peak else None,
        }


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
