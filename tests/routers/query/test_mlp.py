"""The MLP router of the paper."""

from __future__ import annotations

import pytest
import torch

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.query import RouterContext
from turnout.routers.query.mlp import MLPRouter


@pytest.mark.parametrize("groups", [1, 3])
def test_the_logit_is_the_difference_of_the_two_classes(groups: int) -> None:
    router = MLPRouter(RouterContext(width=8, groups=groups)).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    z = router.net(x).view(2, 5, groups, 2)
    route, _ = router(x, mode=RoutingMode())
    # A softmax over two classes is a sigmoid of their difference.
    torch.testing.assert_close(route.gate, z.softmax(-1)[..., 1], rtol=1e-14, atol=0)
    assert torch.equal(route.taken, z.argmax(-1) == 1)


def test_the_hidden_layer_is_a_quarter_of_the_width_unless_given() -> None:
    assert MLPRouter(RouterContext(width=8)).net[0].out_features == 2
    assert MLPRouter(RouterContext(width=2)).net[0].out_features == 1
    assert MLPRouter(RouterContext(width=8), hidden=5).net[0].out_features == 5


@pytest.mark.parametrize("hidden", [0, -1])
def test_a_hidden_layer_of_nothing_is_refused(hidden: int) -> None:
    with pytest.raises(ConfigError, match=rf"hidden={hidden}; expected >= 1, or none for E // 4 = 2"):
        MLPRouter(RouterContext(width=8), hidden=hidden)


def test_the_bias_is_added_to_the_attention_class_of_every_group() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = MLPRouter(RouterContext(width=8, groups=2))
        torch.manual_seed(0)
        biased = MLPRouter(RouterContext(width=8, groups=2), bias=3.0)
    change = biased.net[2].bias.detach() - plain.net[2].bias.detach()
    torch.testing.assert_close(change, torch.tensor([0.0, 3.0, 0.0, 3.0]))
