"""What a choice is worth: the loss of a frozen model that reads so, and the measured time of reading so.

A actions, L layers, H query heads, G kv heads, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from turnout.bench.timing import time_interleaved
from turnout.errors import ConfigError
from turnout.layers.attention import AttentionTrack
from turnout.layers.explicit import explicit_log_weights
from turnout.layers.reading import read
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import PATTERNS, Pattern, PatternContext, Reach
from turnout.search.space import Choice, Space
from turnout.tasks import Batch, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Loss in nats a token, cost as a share of the first action's everywhere, and the reward of both."""

    loss: float
    cost: float
    reward: float


class _Explicit(Pattern):
    """Reads by log weights [H, T, T] that are set from outside."""

    weights: Tensor

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(bias=lambda rows, keys: self.weights[:, rows, keys])


class Scorer:
    """Scores choices on fixed batches of a task.

        reward = -(loss - loss of the first action everywhere) - price · cost

    Args:
        model: trained with the first action; its weights are never changed.
        task, batches, batch: what the loss is measured on; `offset` picks another fixed set.
        price: c, nats for the whole cost.
        cost_length: tokens at which reading is timed; None = the task's.
    Cost: one forward pass a choice.
    """

    def __init__(
        self, model: CausalLM, task: Task, space: Space, *, price: float, batches: int = 1, batch: int = 16,
        cost_length: int | None = None, offset: int = 0,
    ) -> None:  # fmt: skip
        if not price >= 0:
            raise ConfigError(f"search price={price}; expected >= 0 nats")
        self.model, self.space, self.price = model.eval(), space, price
        self.device = model.embed.weight.device
        for p in model.parameters():
            p.requires_grad_(False)
        self.tracks = [module for module in model.modules() if isinstance(module, AttentionTrack)]
        self.batches: list[Batch] = [b.to(self.device) for b in task.eval_batches(batches, batch, offset)]
        track = self.tracks[0]
        context = PatternContext(
            width=track.q.in_features, heads=track.heads, kv_heads=track.kv_heads, head_dim=track.head_dim
        )
        self.patterns = [PATTERNS.build(action, context=context).to(self.device).eval() for action in space.actions]
        learned = [a for a, p in zip(space.actions, self.patterns, strict=True) if list(p.parameters())]
        if learned:
            raise ConfigError(f"search action {learned[0]!r} has weights that this model never trained; use fixed ones")
        for pattern in self.patterns:
            pattern.check_length(task.length)
        self.masks = torch.stack([self._mask(pattern, task.length) for pattern in self.patterns])
        for track in self.tracks:
            track.pattern = _Explicit(context).eval()
        self.ms = [self._time(pattern, cost_length or task.length) for pattern in self.patterns]
        self.base = self._loss(torch.tensor(space.uniform(0)))

    def cost(self, choice: Choice) -> float:
        """Measured time of the choice's heads over that of the first action everywhere."""
        return sum(self.ms[a] for a in choice) / (self.ms[0] * len(choice))

    def reward(self, loss: float, cost: float) -> float:
        """-(loss increase) - price · cost."""
        return -(loss - self.base) - self.price * cost

    def __call__(self, choice: Choice) -> Score:
        loss, cost = self._loss(torch.tensor(choice)), self.cost(choice)
        return Score(loss=loss, cost=cost, reward=self.reward(loss, cost))

    def soft_loss(self, log_share: Tensor) -> Tensor:
        """Differentiable loss where each head reads by the mixture sum_a exp(log_share[l, g, a] + mask_a)."""
        log_share = log_share.repeat_interleave(self.space.shared, 1)
        for layer, track in enumerate(self.tracks):
            mixed = torch.logsumexp(self.masks + log_share[layer].T[:, :, None, None], 0)
            self._set(track, mixed)
        return self._forward()

    def soft_cost(self, share: Tensor) -> Tensor:
        """Expected cost of a mixture [L, G, A]."""
        ms = torch.tensor(self.ms, device=share.device)
        return (share * ms).sum(-1).mean() / self.ms[0]

    @torch.no_grad()
    def _loss(self, choice: Tensor) -> float:
        choice = choice.to(self.device).view(self.space.layers, -1).repeat_interleave(self.space.shared, 1)
        heads = torch.arange(choice.shape[1], device=self.device)
        for layer, track in enumerate(self.tracks):
            self._set(track, self.masks[choice[layer], heads])
        return float(self._forward())

    def _set(self, track: AttentionTrack, weights: Tensor) -> None:
        assert isinstance(track.pattern, _Explicit)
        track.pattern.weights = weights

    def _forward(self) -> Tensor:
        losses = []
        for batch in self.batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.model(batch.tokens, mode=SKIP, at=batch.at).logits
            losses.append(torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten()))
        return torch.stack(losses).mean()

    def _reach(self, pattern: Pattern, length: int) -> Reach:
        x = torch.zeros(1, length, pattern.context.width, device=self.device)
        at = torch.arange(length, device=self.device)
        return pattern.reach(x, at=at, length=length, state=None, mode=SKIP)

    def _mask(self, pattern: Pattern, length: int) -> Tensor:
        c = pattern.context
        return explicit_log_weights(self._reach(pattern, length), c.heads, c.kv_heads, length, self.device)

    @torch.no_grad()
    def _time(self, pattern: Pattern, length: int) -> float:
        """Milliseconds of reading one sequence of `length` tokens by all heads, through the operator."""
        c = pattern.context
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        q = torch.randn(1, length, c.heads, c.head_dim, device=self.device, dtype=dtype)
        k = torch.randn(1, length, c.kv_heads, c.head_dim, device=self.device, dtype=dtype)
        reach = self._reach(pattern, length)
        calls = {"read": lambda: read(q, k, k, reach)}
        return time_interleaved(calls, device=self.device, seconds=0.2, most=50)["read"].ms
