"""Routing precision and rank of scores, with ties counted fairly, and what chance gives.

R runs, B batch, Q queries, U units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError


def hits_at(score: Tensor, target: Tensor, k: int) -> Tensor:
    """Probability that the k best units hold the target when ties are broken at random.

        P = clip((k - #greater) / (#equal + 1), 0, 1)

    Args:
        score: [..., U]; -inf marks units that cannot be picked.
        target: unit of the evidence, int64 [...].
        k: picks.
    Returns:
        float [...].
    """
    greater, equal = _around(score, target)
    return ((k - greater) / (equal + 1)).clamp(0, 1)


def rank_of(score: Tensor, target: Tensor) -> Tensor:
    """Rank of the target, 1 = best; ties count half."""
    greater, equal = _around(score, target)
    return 1 + greater + equal / 2


def _around(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many other units score higher than the target, and exactly as high."""
    own = score.gather(-1, target[..., None])
    # A NaN score must not look like a good rank.
    greater = ((score > own) | own.isnan()).sum(-1)
    equal = (score == own).sum(-1) - (~own.isnan()).squeeze(-1).long()
    return greater.float(), equal.float()


def found_at(score: Tensor, evidence: Tensor, *, k: int, unit: int = 1, expand: int = 0) -> Tensor:
    """Probability that the evidence is read, [..., B, Q]: it or one of the `expand` tokens before it is picked.

    Args:
        score: [..., B, Q, U] with the query's own unit at -inf.
        evidence: positions [..., B, Q].
        k: picks.
        unit: tokens of a unit.
        expand: following tokens that are read with each pick. Ties are broken for each token alone, which can only
            lower the result at a tie.
    """
    found = hits_at(score, evidence // unit, k)
    for back in range(1, expand + 1):
        found = torch.maximum(found, hits_at(score, (evidence - back).clamp(min=0) // unit, k))
    return found


def routing_metrics(score: Tensor, evidence: Tensor, *, k: int, unit: int = 1, expand: int = 0) -> dict[str, Tensor]:
    """Means over batch and queries: p1, pk, precision (with neighbours), rank; arguments as `found_at` has them."""
    target = evidence // unit
    found = found_at(score, evidence, k=k, unit=unit, expand=expand)
    hit = hits_at(score, target, k)
    means = {"p1": hits_at(score, target, 1), "pk": hit, "precision": found, "rank": rank_of(score, target)}
    return {name: value.mean((-2, -1)) for name, value in means.items()}


def chance_level(units: int, *, k: int, expand: int = 0) -> dict[str, float]:
    """What random scores give over `units` candidates besides the query's own.

        p1 = 1/n,  pk = k/n,  precision = 1 - C(n-1-e, k)/C(n, k),  rank = (n + 1)/2;  n = units - 1, e = expand

    The evidence is found through any of e + 1 units: drawn without replacement (the query's own being none of them).
    """
    n = units - 1
    if n < 1 or k < 1:
        raise ConfigError(f"chance_level needs at least 2 units and 1 pick, got units={units}, k={k}")
    k = min(k, n)
    miss = 1.0
    for i in range(k):
        miss *= max(0, n - 1 - expand - i) / (n - i)
    return {"p1": 1 / n, "pk": k / n, "precision": 1 - miss, "rank": (n + 1) / 2}


def hypergeometric_any(total: int, gold: int, picks: int) -> float:
    """Chance that `picks` of `total` units, drawn without replacement, hold at least one of `gold`."""
    if not 0 <= gold <= total or not 0 <= picks <= total:
        raise ConfigError(f"cannot draw {picks} of {total} units with {gold} gold ones")
    miss = 1.0
    for i in range(picks):
        miss *= max(0, total - gold - i) / (total - i)
    return 1 - miss
