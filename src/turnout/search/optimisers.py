"""Who proposes the next choices: policy gradient, evolution, chance. Each sees nothing but the scores it is told.

A actions, N slots (layers · heads).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from turnout.errors import ConfigError, nearest
from turnout.search.scorer import Score
from turnout.search.space import Choice, Space

GROUP = 16


class Optimiser(Protocol):
    """Proposes a group of choices, is told their scores, and so on."""

    def propose(self) -> list[Choice]: ...

    def tell(self, choices: Sequence[Choice], scores: Sequence[Score], base: float) -> None: ...


class RandomSearch:
    """Each choice draws how often each action comes (Dirichlet 1), then the actions."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.generator = space, torch.Generator().manual_seed(seed)

    def propose(self) -> list[Choice]:
        found = []
        for _ in range(GROUP):
            # Exponentials over their sum are Dirichlet(1).
            weight = -torch.rand(len(self.space.actions), generator=self.generator).clamp(min=1e-9).log()
            drawn = torch.multinomial(weight, self.space.slots, replacement=True, generator=self.generator)
            found.append(tuple(drawn.tolist()))
        return found

    def tell(self, choices: Sequence[Choice], scores: Sequence[Score], base: float) -> None:
        pass


class Evolution:
    """Tournaments of two, uniform crossover, about one and a half slots mutated, the best quarter stays."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.generator = space, torch.Generator().manual_seed(seed)
        self.start = RandomSearch(space, seed)
        self.population: list[tuple[float, Choice]] = []

    def propose(self) -> list[Choice]:
        if not self.population:
            return self.start.propose()
        return [self._child() for _ in range(GROUP)]

    def tell(self, choices: Sequence[Choice], scores: Sequence[Score], base: float) -> None:
        born = [(score.reward, choice) for choice, score in zip(choices, scores, strict=True)]
        kept = sorted(self.population, reverse=True)[: GROUP // 4]
        self.population = sorted(born + kept, reverse=True)[:GROUP]

    def _child(self) -> Choice:
        a, b = torch.tensor(self._parent()), torch.tensor(self._parent())
        slots, generator = self.space.slots, self.generator
        child = torch.where(torch.rand(slots, generator=generator) < 0.5, a, b)
        changed = torch.rand(slots, generator=generator) < 1.5 / slots
        fresh = torch.randint(len(self.space.actions), (slots,), generator=generator)
        return tuple(torch.where(changed, fresh, child).tolist())

    def _parent(self) -> Choice:
        pair = torch.randint(len(self.population), (2,), generator=self.generator).tolist()
        return max(self.population[i] for i in pair)[1]


class PolicyGradient:
    """REINFORCE over independent categoricals with a group baseline (GRPO where the group's spread divides too).

        theta <- theta + rate · mean_i A_i grad log p(c_i),   A_i = (r_i - mean r) [/ std r]

    The price of the cost counts only while the mean loss increase of the last group is below `tolerance` (Kurt et al.
    2025, RLKV: a sparse reward beside a dense price collapses).

    Args:
        normalise: divide by the group's spread (GRPO).
        tolerance: nats.
        rate: of Adam.
    """

    def __init__(
        self, space: Space, seed: int, *, price: float, normalise: bool, tolerance: float = 0.2, rate: float = 0.3
    ) -> None:
        self.space, self.generator, self.normalise = space, torch.Generator().manual_seed(seed), normalise
        self.price, self.tolerance = price, tolerance
        logits = torch.zeros(space.slots, len(space.actions))
        # What the model was trained with comes first: quality before savings.
        logits[:, 0] = 1.5
        self.logits = logits.requires_grad_()
        self.optimizer = torch.optim.Adam([self.logits], lr=rate)

    def propose(self) -> list[Choice]:
        share = self.logits.detach().softmax(-1)
        drawn = torch.multinomial(share, GROUP, replacement=True, generator=self.generator)
        return [tuple(column.tolist()) for column in drawn.T]

    def tell(self, choices: Sequence[Choice], scores: Sequence[Score], base: float) -> None:
        increase = sum(score.loss for score in scores) / len(scores) - base
        price = self.price if increase <= self.tolerance else 0.0
        reward = torch.tensor([base - score.loss - price * score.cost for score in scores])
        advantage = reward - reward.mean()
        if self.normalise:
            advantage = advantage / reward.std().clamp(min=1e-6)
        picked = torch.tensor(choices)
        log_p = self.logits.log_softmax(-1).gather(1, picked.T).sum(0)
        self.optimizer.zero_grad()
        (-(advantage * log_p).mean()).backward()
        self.optimizer.step()


METHODS = ("grpo", "reinforce", "evolution", "random", "relaxed")


def build_optimiser(method: str, space: Space, *, seed: int, price: float) -> Optimiser:
    """The optimiser of that name; `relaxed` is none of these (see `turnout.search.relaxed`).

    Raises:
        ConfigError: unknown name.
    """
    if method in ("grpo", "reinforce"):
        return PolicyGradient(space, seed, price=price, normalise=method == "grpo")
    if method == "evolution":
        return Evolution(space, seed)
    if method == "random":
        return RandomSearch(space, seed)
    raise ConfigError(f"search method={method!r}{nearest(method, METHODS)}")
