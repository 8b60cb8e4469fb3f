"""Gate options are refused before anything is built, and what is not refused can be built."""

from __future__ import annotations

import itertools

import pytest

from turnout.errors import ConfigError
from turnout.routers.gate_options import GRADIENTS, NOISES, check_gate_options
from turnout.routers.query import Gating


def test_every_known_option_is_accepted() -> None:
    for noise, gradient in itertools.product(NOISES, GRADIENTS):
        check_gate_options(noise, gradient, 1.0, None)
        check_gate_options(noise, gradient, 1.0, 3.0)
        Gating(noise=noise, gradient=gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("bernouli", "scaled", 1.0, None), r"'bernouli'; did you mean 'bernoulli'"),
        (("none", "ste", 1.0, None), r"gate gradient 'ste'; choose one of: scaled, straight_through"),
        (("gumbel", "scaled", -1.0, None), r"temperature=-1.0; expected > 0"),
        (("gumbel", "scaled", float("nan"), None), r"temperature=nan; expected > 0"),
        (("none", "scaled", 2.0, None), r"temperature=2.0 has no effect with noise='none'"),
        (("none", "scaled", 1.0, 0.0), r"max_logit=0.0; expected > 0, or none"),
        (("none", "scaled", 1.0, float("nan")), r"max_logit=nan; expected > 0"),
    ],
)
def test_unknown_and_useless_options_are_refused(options: tuple[str, str, float, float | None], message: str) -> None:
    noise, gradient, temperature, max_logit = options
    with pytest.raises(ConfigError, match=message):
        check_gate_options(noise, gradient, temperature, max_logit)
    with pytest.raises(ConfigError, match=message):
        Gating(noise=noise, gradient=gradient, temperature=temperature, max_logit=max_logit)
