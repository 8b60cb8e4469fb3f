"""What one training batch asks of the model: forward pass, task loss and routes, as one module that can be wrapped.

Wrappers of `torch.distributed` see every forward pass only if it goes through a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from turnout.models.causal_lm import CausalLM
from turnout.ops.linear_cross_entropy import IGNORED, linear_cross_entropy
from turnout.routers.mode import RoutingMode
from turnout.routers.query import Route
from turnout.tasks import Batch
from turnout.train.config import OptimConfig


@dataclass(slots=True)
class Outcome:
    """Mean task loss of the targets, how many were right, how many there are, and who attended."""

    loss: Tensor
    correct: Tensor
    targets: Tensor
    routes: list[Route | None]


class Objective(nn.Module):
    """The task loss of a model on a batch.

    Args:
        model: whose parameters are trained.
        config: precision and how the loss is computed.
    """

    def __init__(self, model: CausalLM, config: OptimConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch, mode: RoutingMode) -> Outcome:
        """Mean cross-entropy over the batch's targets."""
        config = self.config
        device = batch.tokens.device.type
        half = config.precision in ("bf16", "bf16_stream")
        with torch.autocast(device, torch.bfloat16, enabled=half, cache_enabled=False):
            targets = batch.targets.masked_fill(batch.at < 0, IGNORED)
            if not config.loss_chunk and config.precision != "bf16_stream":
                at = None if _every(batch) else batch.at
                out = self.model(batch.tokens, mode=replace(mode, starts=batch.starts), at=at, hint=batch.hint)
                return Outcome(*_graded(out.logits, targets), out.routes)
            return Outcome(*self.model.during(lambda: self._by_parts(batch, mode, targets)))

    def _by_parts(self, batch: Batch, mode: RoutingMode, targets: Tensor) -> tuple[Any, ...]:
        """The fields of an `Outcome`, from the parts of the model instead of its logits."""
        model, config = self.model, self.config
        x = model.embed(batch.tokens)
        if config.precision == "bf16_stream":
            x = x.to(torch.bfloat16)
        x, routes = model.features(x, mode=replace(mode, tokens=batch.tokens, starts=batch.starts), hint=batch.hint)
        if not _every(batch):
            x = x.gather(1, batch.at.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        # Uncompiled, a norm of a bf16 stream by fp32 weights has no fused kernel.
        x = model.norm(x.float() if config.precision == "bf16_stream" else x)
        if not config.loss_chunk:
            return *_graded(model.head(x), targets), routes
        head = model.head
        graded = linear_cross_entropy(
            x.flatten(0, 1), head.weight, head.bias, targets.flatten(), chunk=config.loss_chunk,
            compiled=config.compile,
        )  # fmt: skip
        return *graded, routes


def _every(batch: Batch) -> bool:
    return batch.at.shape[1] == batch.tokens.shape[1]


def _graded(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.float()
        loss = nn.functional.cross_entropy(wide.flatten(0, 1), targets.flatten())
        with torch.no_grad():
            real = targets >= 0
            correct = ((wide.argmax(-1) == targets) & real).sum()
    return loss, correct, real.sum()
