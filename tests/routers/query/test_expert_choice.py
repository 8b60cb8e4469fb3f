"""Expert choice keeps its share exactly, and looks ahead to do so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import QUERY_ROUTERS, RouterContext


def build(spec: str, groups: int = 1) -> Any:
    return QUERY_ROUTERS.build(spec, context=RouterContext(width=8, groups=groups)).double()


def draw(length: int) -> torch.Tensor:
    return torch.randn(2, length, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("usage", [0.07, 0.125, 0.5, 1.0])
@pytest.mark.parametrize("length", [1, 13, 64, 100])
def test_every_sequence_and_group_keeps_the_highest_scores_of_its_share(usage: float, length: int) -> None:
    router, x = build(f"expert_choice:usage={usage}", groups=2), draw(length)
    route, _ = router(x, mode=RoutingMode())
    keep = math.ceil(round(usage * length, 9))
    assert torch.equal(route.taken.sum(1), torch.full((2, 2), keep))
    score = router.proj(x)
    lowest_kept = score.masked_fill(~route.taken, math.inf).amin(1)
    assert bool((score.masked_fill(route.taken, -math.inf).amax(1) < lowest_kept).all())
    assert torch.equal(route.weight, torch.sigmoid(score) * route.taken)


def test_a_later_token_can_close_an_earlier_gate() -> None:
    router, x = build("expert_choice:usage=0.1"), draw(10)
    before, _ = router(x, mode=RoutingMode())
    changed = x.clone()
    changed[:, -1] = 100 * router.proj.weight.detach()
    after, _ = router(changed, mode=RoutingMode())
    assert bool(after.taken[:, -1].all())
    assert not torch.equal(after.taken[:, :-1], before.taken[:, :-1])
    assert not router.causal


@pytest.mark.parametrize("usage", [0.0, 1.5])
def test_an_impossible_share_is_refused(usage: float) -> None:
    with pytest.raises(ConfigError, match=rf"usage={usage}; expected 0 < usage <= 1"):
        build(f"expert_choice:usage={usage}")
