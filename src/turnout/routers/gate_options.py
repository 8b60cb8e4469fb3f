"""Names and limits of the gate options, without torch, so that a config is refused before anything is built."""

from __future__ import annotations

from turnout.errors import ConfigError, nearest

NOISES = ("none", "bernoulli", "gumbel")
GRADIENTS = ("straight_through", "scaled")
MIXES = ("replace", "add")
OUTPUT_GATES = ("none", "head", "element")


def check_gate_options(noise: str, gradient: str, temperature: float, max_logit: float | None) -> None:
    """Refuse options that `Gating` does not know, or that would have no effect.

    Raises:
        ConfigError: unknown noise or gradient, temperature <= 0, a temperature without gumbel noise, or
            max_logit <= 0.
    """
    if noise not in NOISES:
        raise ConfigError(f"gate noise {noise!r}{nearest(noise, NOISES)}")
    if gradient not in GRADIENTS:
        raise ConfigError(f"gate gradient {gradient!r}{nearest(gradient, GRADIENTS)}")
    if not temperature > 0:
        raise ConfigError(f"gate temperature={temperature}; expected > 0")
    if temperature != 1.0 and noise != "gumbel":
        raise ConfigError(f"gate temperature={temperature} has no effect with noise={noise!r}; use 'gumbel'")
    if max_logit is not None and not max_logit > 0:
        raise ConfigError(f"gate max_logit={max_logit}; expected > 0, or none for no limit")
