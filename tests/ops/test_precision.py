from __future__ import annotations

import itertools
import math

import pytest
import torch

from turnout.errors import ConfigError
from turnout.ops.precision import chance_level, hits_at, hypergeometric_any, rank_of, routing_metrics


def test_ties_are_the_mean_over_all_ways_to_break_them() -> None:
    score = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    target = torch.tensor(2)
    tied = [1, 2, 3]
    for k in range(1, 6):
        orders = [(0, *order, 4) for order in itertools.permutations(tied)]
        brute = sum(2 in order[:k] for order in orders) / len(orders)
        assert math.isclose(float(hits_at(score, target, k)), brute, rel_tol=1e-6)
    brute_rank = sum(order.index(2) + 1 for order in orders) / len(orders)
    assert float(rank_of(score, target)) == brute_rank


def test_nan_scores_are_misses_not_hits() -> None:
    score = torch.full((3, 8), math.nan)
    assert hits_at(score, torch.tensor([0, 1, 2]), 4).sum() == 0


def test_constant_scores_give_chance() -> None:
    score = torch.zeros(50, 1, 64)
    at = torch.arange(50) % 20
    score[torch.arange(50), 0, at] = -math.inf
    evidence = (at + 30)[:, None]
    found = routing_metrics(score, evidence, k=4)
    chance = chance_level(64, k=4)
    assert math.isclose(float(found["pk"]), chance["pk"], rel_tol=1e-5)
    assert math.isclose(float(found["rank"]), chance["rank"], rel_tol=1e-5)
    assert math.isclose(float(found["p1"]), chance["p1"], rel_tol=1e-5)


def test_neighbours_count_when_they_are_picked() -> None:
    score = torch.zeros(1, 1, 10)
    score[0, 0, 4] = 1.0
    evidence = torch.tensor([[5]])
    assert float(routing_metrics(score, evidence, k=1)["precision"]) < 1
    assert float(routing_metrics(score, evidence, k=1, expand=1)["precision"]) == 1


@pytest.mark.parametrize(("units", "k", "expand"), [(9, 2, 0), (9, 3, 1), (6, 5, 1), (4, 9, 0)])
def test_chance_is_the_share_of_all_choices(units: int, k: int, expand: int) -> None:
    others = range(units - 1)
    choices = list(itertools.combinations(others, min(k, units - 1)))
    brute = sum(any(unit <= expand for unit in choice) for choice in choices) / len(choices)
    assert math.isclose(chance_level(units, k=k, expand=expand)["precision"], brute)


def test_published_chances_follow() -> None:
    assert round(100 * chance_level(512, k=4, expand=1)["precision"], 1) == 1.6
    shares = [round(100 * hypergeometric_any(16, m, 2), 1) for m in range(1, 6)]
    assert shares == [12.5, 24.2, 35.0, 45.0, 54.2]


def test_impossible_chances_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 units"):
        chance_level(1, k=1)
    with pytest.raises(ConfigError, match="gold"):
        hypergeometric_any(4, 5, 2)
