"""Contextual linear bandits as selectors: LinUCB, Thompson sampling, OFUL. They learn from hits and misses alone.

B batch, T tokens, Q queries, E features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turnout.errors import ConfigError, nearest
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at

KINDS = ("linucb", "thompson", "oful")


@CONTENT_SELECTORS.register("bandit")
class BanditSelector(ContentSelector):
    """φ_ij = √E · x_i ∘ x_j,  A = λI + Σ φφᵀ,  θ = A⁻¹ Σ r φ;  reward r = 1 when the token picked is the evidence.

        linucb    s = θᵀφ + α √(φᵀA⁻¹φ)                                        (Li et al. 2010)
        thompson  s = θ̃ᵀφ,  θ̃ ~ N(θ, α² A⁻¹), one draw a round                 (Agrawal & Goyal 2013)
        oful      linucb with α = √λ + √(log det A - E log λ + 2 log(1/0.05))     (Abbasi-Yadkori et al. 2011)

    # paper: features, rewards and constants are not published; these are the usual ones. A supervised selector with the
    # same features is `pairwise` with a diagonal form, so the features can express identity match.

    Args:
        kind: of exploration.
        alpha: strength of exploration; 0 acts greedily.
        ridge: λ.
    """

    learned = False
    A: Tensor
    b: Tensor

    def __init__(
        self, context: SelectorContext, *, kind: str = "linucb", alpha: float = 1.0, ridge: float = 1.0
    ) -> None:
        super().__init__(context)
        if kind not in KINDS:
            raise ConfigError(f"selector bandit: kind={kind!r}{nearest(kind, KINDS)}")
        if alpha < 0 or not ridge > 0:
            raise ConfigError(f"selector bandit: alpha={alpha}, ridge={ridge}; expected alpha >= 0 and ridge > 0")
        self.kind, self.alpha, self.ridge = kind, alpha, ridge
        self.register_buffer("A", ridge * torch.eye(context.width))
        self.register_buffer("b", torch.zeros(context.width))

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        """Greedy scores θᵀφ: what is evaluated."""
        return self._linear(torch.linalg.solve(self.A, self.b), x, at)

    def explore(self, x: Tensor, at: Tensor, generator: torch.Generator) -> Tensor:
        """Scores with exploration, [B, Q, T], the query's own token at -inf."""
        theta = torch.linalg.solve(self.A, self.b)
        if self.kind == "thompson":
            noise = torch.randn(len(theta), generator=generator)
            # A = L Lᵀ, so L⁻ᵀ noise has covariance A⁻¹.
            theta = theta + self.alpha * torch.linalg.solve_triangular(
                torch.linalg.cholesky(self.A).T, noise[:, None], upper=True
            ).squeeze(1)
            score = self._linear(theta, x, at)
        else:
            features = self.features(x, at)
            width = torch.linalg.solve_triangular(torch.linalg.cholesky(self.A), features.flatten(0, -2).T, upper=False)
            bonus = width.square().sum(0).sqrt().view(features.shape[:-1])
            score = features @ theta + self._radius() * bonus
        own = torch.arange(x.shape[1]) == at[..., None]
        return score.masked_fill(own, -torch.inf)

    def features(self, x: Tensor, at: Tensor) -> Tensor:
        """φ [B, Q, T, E]."""
        return rows_at(x, at)[:, :, None] * x[:, None] * x.shape[-1] ** 0.5

    def observe(self, features: Tensor, reward: Tensor) -> None:
        """Learn from pulls: features [N, E], rewards [N]."""
        self.A += features.T @ features
        self.b += features.T @ reward

    def _linear(self, theta: Tensor, x: Tensor, at: Tensor) -> Tensor:
        return (rows_at(x, at) * theta) @ x.transpose(1, 2) * x.shape[-1] ** 0.5

    def _radius(self) -> float:
        if self.kind != "oful":
            return self.alpha
        growth = float(torch.logdet(self.A)) - len(self.b) * math.log(self.ridge)
        return self.alpha * (math.sqrt(self.ridge) + math.sqrt(max(0.0, growth) + 2 * math.log(20)))


@torch.no_grad()
def play(
    bandit: BanditSelector,
    x: Tensor,
    at: Tensor,
    evidence: Tensor,
    *,
    batch: int = 32,
    within: int = 0,
    generator: torch.Generator | None = None,
) -> float:
    """One pass over sequences: pick a token for each, see whether it was the evidence, learn after every batch.

    Args:
        x: unit-norm representations [N, T, E]; at, evidence: [N, 1].
        within: choose only among the tokens of the evidence's segment of this size (the study's easier reading).
    Returns:
        Share of picks that hit.
    """
    source = generator or torch.Generator().manual_seed(0)
    hits = 0.0
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        score = bandit.explore(x[rows], at[rows], source)
        if within:
            place = torch.arange(x.shape[1])
            score = score.masked_fill(place // within != (evidence[rows] // within)[..., None], -torch.inf)
        pick = score.argmax(-1)
        reward = (pick == evidence[rows]).float()
        features = rows_at(x[rows], at[rows]) * rows_at(x[rows], pick) * x.shape[-1] ** 0.5
        bandit.observe(features.flatten(0, 1), reward.flatten())
        hits += float(reward.sum())
    return hits / at.numel()
