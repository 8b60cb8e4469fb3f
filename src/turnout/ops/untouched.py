"""Whether a linear layer may be read as its weights, or must be called because somebody changed what it does."""

from __future__ import annotations

from torch import nn


def untouched(*layers: nn.Module) -> bool:
    """Whether these are linear layers and nothing else: no adapter (LoRA), quantisation, offloading or hook."""
    return all(
        type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        for layer in layers
    )


def plain(*layers: nn.Module) -> bool:
    """Whether these are untouched and have no bias: products with their weights are all they do."""
    return untouched(*layers) and all(layer._parameters.get("bias") is None for layer in layers)
