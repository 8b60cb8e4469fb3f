"""The rival without sampling: the choice relaxed to shares, and the gradient of the loss through the model.

A actions, L layers, G kv heads.
"""

from __future__ import annotations

import torch

from turnout.search.scorer import Scorer
from turnout.search.space import Choice

# A forward and backward pass counts as so many forward passes.
PASSES = 3


class Relaxed:
    """theta <- theta - rate · grad [loss(share) + price · cost(share) + sharpness · entropy], share = softmax(theta).

    Args:
        scorer: gives the differentiable loss and cost.
        rate: of Adam.
    """

    def __init__(self, scorer: Scorer, *, rate: float = 0.3, sharpness: float = 0.02) -> None:
        space = scorer.space
        logits = torch.zeros(space.layers, space.heads, len(space.actions), device=scorer.device)
        logits[..., 0] = 1.5
        self.scorer, self.sharpness = scorer, sharpness
        self.logits = logits.requires_grad_()
        self.optimizer = torch.optim.Adam([self.logits], lr=rate)
        self.steps = 0

    def step(self) -> None:
        """One gradient step, the cost of `PASSES` evaluations. The price comes in over the first ten steps."""
        log_share = self.logits.log_softmax(-1)
        share = log_share.exp()
        price = self.scorer.price * min(1.0, self.steps / 10)
        loss = self.scorer.soft_loss(log_share) + price * self.scorer.soft_cost(share)
        entropy = -(share * log_share).sum(-1).mean()
        (gradient,) = torch.autograd.grad(loss + self.sharpness * entropy, self.logits)
        self.logits.grad = gradient
        self.optimizer.step()
        self.steps += 1

    def choice(self) -> Choice:
        """The action with the largest share of each head."""
        return tuple(self.logits.argmax(-1).flatten().tolist())
