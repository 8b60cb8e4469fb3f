"""The router of the published code: the token and an average of the past."""

from __future__ import annotations

import pytest
import torch

from routing_laws import assert_same
from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import RouterContext
from turnout.routers.query.ema import EMARouter


def test_the_context_is_the_published_loop_over_tokens() -> None:
    router = EMARouter(RouterContext(width=8, groups=2)).double()
    x = torch.randn(2, 150, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context, contexts = torch.zeros(2, 8, dtype=torch.float64), []
    for t in range(150):
        context = 0.9 * context + 0.1 * x[:, t]
        contexts.append(context)
    z = router.net(torch.cat((x, torch.stack(contexts, 1)), -1)).unflatten(-1, (2, 2))
    route, state = router(x, mode=RoutingMode())
    assert_same(route.gate, torch.sigmoid(z[..., 1] - z[..., 0]), terms=150 + 3 * 8)
    assert_same(state, context, terms=150)


def test_the_bias_opens_every_group() -> None:
    router = EMARouter(RouterContext(width=8, groups=2), bias=50.0)
    assert bool(router(torch.randn(1, 6, 8), mode=RoutingMode())[0].taken.all())


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_does_not_average_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=rf"ema: decay={decay}; expected 0 <= decay < 1"):
        EMARouter(RouterContext(width=8), decay=decay)
