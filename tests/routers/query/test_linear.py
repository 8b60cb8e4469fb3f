"""The linear router."""

from __future__ import annotations

import math

import pytest
import torch

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import RouterContext
from turnout.routers.query.linear import LinearRouter


def test_the_logit_is_linear_in_the_token() -> None:
    router = LinearRouter(RouterContext(width=8, groups=2), bias=-1.0)
    x = torch.randn(2, 5, 8)
    route, state = router(x, mode=RoutingMode())
    assert state is None
    assert torch.equal(route.gate, torch.sigmoid(x @ router.proj.weight.T - 1.0).view(2, 5, 2))


def test_the_bias_sets_the_first_usage() -> None:
    router = LinearRouter(RouterContext(width=8), bias=2.0, std=0.0)
    assert torch.sigmoid(torch.tensor(2.0)).item() == pytest.approx(0.88, abs=0.005)
    assert torch.all(router(torch.randn(1, 5, 8), mode=RoutingMode())[0].gate == torch.sigmoid(torch.tensor(2.0)))


def test_the_standard_deviation_of_the_first_weights_can_be_chosen() -> None:
    n = 4096
    weight = LinearRouter(RouterContext(width=n), std=0.01).proj.weight.detach()
    # The standard error of a standard deviation of n normal numbers is s / sqrt(2 n); six of them.
    assert abs(float(weight.std()) - 0.01) <= 6 * 0.01 / math.sqrt(2 * n)


def test_a_negative_standard_deviation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"linear: std=-1.0; expected >= 0"):
        LinearRouter(RouterContext(width=8), std=-1.0)
