"""What a choice is worth: the loss of a frozen model that reads so, and the measured time of reading so.

A actions, L layers, H query heads, G kv heads, T tokens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.layers.attention import AttentionTrack
from turnout.layers.explicit import explicit_log_weights
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import PATTERNS, Pattern, PatternContext, Reach
from turnout.routers.pattern.head_mixture import HeadMixturePattern
from turnout.search.costs import Costs
from turnout.search.heads import put_in_order, weights_of
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


class _Decided(Pattern):
    """A pattern that looks at nothing but the tokens: decided once for each of the batches, which stay the same."""

    def __init__(self, inner: Pattern) -> None:
        super().__init__(inner.context)
        self.inner, self.known = inner, dict[int, Reach]()

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        key = 0 if mode.tokens is None else mode.tokens.data_ptr()
        if key not in self.known:
            self.known[key] = self.inner.reach(x, at=at, length=length, state=state, mode=mode)
        return self.known[key]


class Scorer:
    """Scores choices on fixed batches of a task.

        reward = -(loss - loss of the first action everywhere) - price · cost

    The loss is that of the model as it would be served: heads of one action side by side, read by their patterns.

    Args:
        model: trained with the first action; its weights are put back in their order by `restore`.
        task, batches, batch: what the loss is measured on; `offset` picks another fixed set.
        price: c, nats for the whole cost.
        costs: milliseconds of each action on 1 to G kv heads (`measure_costs`).
    Cost: one forward pass a choice.
    """

    def __init__(
        self, model: CausalLM, task: Task, space: Space, *, price: float, costs: Costs, batches: int = 1,
        batch: int = 16, offset: int = 0,
    ) -> None:  # fmt: skip
        if not price >= 0:
            raise ConfigError(f"search price={price}; expected >= 0 nats")
        self.model, self.space, self.price, self.costs = model.eval(), space, price, costs
        self.device = model.embed.weight.device
        for p in model.parameters():
            p.requires_grad_(False)
        self.tracks = [module for module in model.modules() if isinstance(module, AttentionTrack)]
        self.weights = [weights_of(track) for track in self.tracks]
        self.order = [list(range(space.heads)) for _ in self.tracks]
        self.batches: list[Batch] = [b.to(self.device) for b in task.eval_batches(batches, batch, offset)]
        track = self.tracks[0]
        self.context = PatternContext(
            width=track.q.in_features, heads=track.heads, kv_heads=track.kv_heads, head_dim=track.head_dim
        )
        self.length = task.length
        self.layers: dict[Choice, Pattern] = {}
        self.parts: dict[tuple[int, int, int], Pattern] = {}
        patterns = [self._build(action) for action in space.actions]
        learned = [a for a, p in zip(space.actions, patterns, strict=True) if list(p.parameters())]
        if learned:
            raise ConfigError(f"search action {learned[0]!r} has weights that this model never trained; use fixed ones")
        for pattern in patterns:
            pattern.check_length(task.length)
        self.patterns, self._masks = patterns, torch.empty(0)
        self.base = self._loss(space.uniform(0))

    def cost(self, choice: Choice) -> float:
        """Measured time of the choice's heads over that of the first action everywhere."""
        layers = (Counter(self.space.layer(choice, layer)) for layer in range(self.space.layers))
        spent = sum(self.costs[a][n - 1] for counts in layers for a, n in counts.items())
        return spent / (self.costs[0][-1] * self.space.layers)

    def reward(self, loss: float, cost: float) -> float:
        """-(loss increase) - price · cost."""
        return -(loss - self.base) - self.price * cost

    def __call__(self, choice: Choice) -> Score:
        loss, cost = self._loss(choice), self.cost(choice)
        return Score(loss=loss, cost=cost, reward=self.reward(loss, cost))

    def soft_loss(self, log_share: Tensor) -> Tensor:
        """Differentiable loss where each head reads by the mixture sum_a exp(log_share[l, g, a] + mask_a).

        A routed head's mask is its two reaches weighted by how often a row is taken.
        """
        if not len(self._masks):
            self._masks = torch.stack([self._mask(pattern) for pattern in self.patterns])
        log_share = log_share.repeat_interleave(self.space.shared, 1)
        for layer in range(len(self.tracks)):
            pattern = _Explicit(self.context).eval()
            pattern.weights = torch.logsumexp(self._masks + log_share[layer].T[:, :, None, None], 0)
            self._put(layer, list(range(self.space.heads)), pattern)
        return self._forward()

    def soft_cost(self, share: Tensor) -> Tensor:
        """Expected cost of a mixture [L, G, A], each head at its share of a whole layer's time."""
        ms = torch.tensor([times[-1] for times in self.costs], device=share.device)
        return (share * ms).sum(-1).mean() / self.costs[0][-1]

    def restore(self) -> CausalLM:
        """The model with its heads where they were."""
        for layer in range(len(self.tracks)):
            self._put(layer, list(range(self.space.heads)), None)
        return self.model

    @torch.no_grad()
    def _loss(self, choice: Choice) -> float:
        for layer, order in enumerate(self.space.orders(choice)):
            self._put(layer, order, self._layer(self.space.layer(choice, layer)))
        return float(self._forward())

    def _put(self, layer: int, order: list[int], pattern: Pattern | None) -> None:
        track = self.tracks[layer]
        if self.order[layer] != order:
            put_in_order(track, self.weights[layer], order)
            self.order[layer] = order
        track.pattern = pattern

    def _build(self, spec: str) -> Pattern:
        pattern: Pattern = PATTERNS.build(spec, context=self.context).to(self.device).eval()
        return pattern

    def _layer(self, actions: Choice) -> Pattern:
        """The pattern of a layer whose heads are in order; what a run of heads reads is decided once."""
        order = tuple(sorted(actions))
        if order not in self.layers:
            pattern, first = self._build(self.space.layer_pattern(order)), 0
            runs = [(a, len(list(group))) for a, group in groupby(order)]
            members = [*pattern.members] if isinstance(pattern, HeadMixturePattern) else [pattern]
            for i, (a, n) in enumerate(runs):
                members[i] = self.parts.setdefault((a, n, first), _Decided(members[i]))
                first += n
            if isinstance(pattern, HeadMixturePattern):
                pattern.members = nn.ModuleList(members)
            self.layers[order] = pattern if len(runs) > 1 else members[0]
        return self.layers[order]

    def _forward(self) -> Tensor:
        losses = []
        for batch in self.batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.model(batch.tokens, mode=SKIP, at=batch.at).logits
            losses.append(torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten()))
        return torch.stack(losses).mean()

    def _mask(self, pattern: Pattern) -> Tensor:
        tokens = self.batches[0].tokens
        x = torch.zeros(*tokens.shape, self.context.width, device=self.device)
        at = torch.arange(self.length, device=self.device)
        reach = pattern.reach(x, at=at, length=self.length, state=None, mode=RoutingMode(tokens=tokens))
        return explicit_log_weights(reach, self.context.heads, self.context.kv_heads, self.length, self.device)
