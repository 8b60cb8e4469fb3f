"""From a gate logit to a decision: sampling and gradient estimators, shared by every query router.

B batch, T tokens, G routing groups (1, or one per kv head).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turnout.routers.gate_options import check_gate_options
from turnout.routers.mode import RoutingMode


@dataclass(slots=True)
class Route:
    """The decision *who*.

    Attributes:
        gate: probability of the attention track, float [B, T, G], differentiable, free of noise.
        weight: what the attention output is multiplied by, float [B, T, G]; 0 where not taken; carries the estimator's
            gradient. The local track has weight 1 - weight.
        taken: bool [B, T, G]; True takes the attention track.
        dropped: int64 [B, G], rows taken but refused by the capacity; None before compaction.
    """

    gate: Tensor
    weight: Tensor
    taken: Tensor
    dropped: Tensor | None = None

    @classmethod
    def fixed(cls, taken: Tensor, dtype: torch.dtype) -> Route:
        """A decision without a parameter: gate = weight = taken."""
        gate = taken.to(dtype)
        return cls(gate=gate, weight=gate, taken=taken)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gating:
    """How a gate logit z becomes a decision.

    p = sigmoid(z); without sampling taken = z > 0. With sampling, u ~ U(0, 1):

        none        taken = z > 0                               s = p
        bernoulli   taken = u < p                               s = p
        gumbel      taken = z + log u - log(1 - u) > 0          s = sigmoid((z + log u - log(1 - u)) / temperature)

    `gumbel` is the two-class straight-through Gumbel-softmax: the difference of two Gumbel variables is logistic
    (Jang et al. 2017; Maddison et al. 2017). The weight that mixes the tracks is

        straight_through   taken + s - stop(s)      value 0 or 1, gradient of s (Bengio et al. 2013)
        scaled             taken * s                SeqBoat: an open gate is scaled by its confidence (Ren et al. 2023)

    Args:
        noise: one of none, bernoulli, gumbel; used in training only.
        gradient: one of straight_through, scaled.
        temperature: of the gumbel surrogate, > 0.
        max_logit: largest logit, > 0. At the limit only the gradient that lowers the logit passes, so that a gate that
            has been open for long still feels its cost, as sigmoid'(max_logit); None leaves logits free.
    """

    noise: str = "bernoulli"
    gradient: str = "straight_through"
    temperature: float = 1.0
    max_logit: float | None = None

    def __post_init__(self) -> None:
        check_gate_options(self.noise, self.gradient, self.temperature, self.max_logit)

    def decide(self, logit: Tensor, mode: RoutingMode) -> Route:
        """Decide from `logit` [B, T, G]; float32 arithmetic whatever the dtype of the model. Cost O(B·T·G)."""
        logit = logit.float() if logit.dtype in (torch.float16, torch.bfloat16) else logit
        if self.max_logit is not None:
            logit = _UpperBound.apply(logit, self.max_logit)
        gate = torch.sigmoid(logit)
        surrogate = gate
        taken = logit > 0
        if mode.sample and self.noise != "none":
            # u = 0 would give -inf: the smallest positive step keeps the logistic finite.
            u = mode.uniform(logit.shape, logit.device).clamp_(min=2.0**-25)
            if self.noise == "bernoulli":
                taken = u < gate
            else:
                noisy = logit + (torch.log(u) - torch.log1p(-u)).to(logit.dtype)
                taken = noisy > 0
                surrogate = torch.sigmoid(noisy / self.temperature)
        hard = taken.to(gate.dtype)
        # The difference first: it is exactly 0, whereas (1 + s) - s is rounded and would not be 1.
        weight = hard * surrogate if self.gradient == "scaled" else hard + (surrogate - surrogate.detach())
        return Route(gate=gate, weight=weight, taken=taken)


class _UpperBound(torch.autograd.Function):
    """min(z, limit); above the limit a gradient passes if following it downhill lowers z."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(logit > limit)
        return logit.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (above,) = ctx.saved_tensors
        return grad.masked_fill(above & (grad < 0), 0.0), None
