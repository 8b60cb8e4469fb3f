"""What is searched: one action, a pattern, for each head of each layer.

A actions, L layers, G kv heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from turnout.errors import ConfigError
from turnout.models.config import ModelConfig

Choice = tuple[int, ...]
"""Number of the action of each (layer, kv head), layer by layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """The actions, and the heads that choose among them.

    Args:
        actions: pattern specs without learned weights; the first is what the model was trained with.
        layers, heads: of the choice; shared: query heads to one kv head, which choose together.
    """

    actions: tuple[str, ...]
    layers: int
    heads: int
    shared: int = 1

    def __post_init__(self) -> None:
        if len(self.actions) < 2 or len(set(self.actions)) != len(self.actions):
            raise ConfigError(f"search actions={list(self.actions)}; expected at least two different patterns")

    @property
    def slots(self) -> int:
        """Decisions in one choice."""
        return self.layers * self.heads

    def uniform(self, action: int) -> Choice:
        """The same action everywhere."""
        return (action,) * self.slots

    def layer(self, choice: Sequence[int], layer: int) -> Choice:
        """The actions of one layer's heads."""
        return tuple(choice[layer * self.heads : (layer + 1) * self.heads])

    def orders(self, choice: Sequence[int]) -> list[list[int]]:
        """For each layer its heads, those of one action side by side: one call each instead of one a run of heads."""
        mine = (self.layer(choice, layer) for layer in range(self.layers))
        return [sorted(range(self.heads), key=lambda head: actions[head]) for actions in mine]

    def layer_pattern(self, actions: Sequence[int]) -> str:
        """The pattern of a layer whose heads are in that order."""
        runs = [(len(list(group)) * self.shared, self.actions[a]) for a, group in groupby(sorted(actions))]
        if len(runs) == 1:
            return runs[0][1]
        return "head_mixture:parts=(" + ";".join(f"{n} {spec}" for n, spec in runs) + ")"

    def pattern(self, choice: Sequence[int]) -> str:
        """The choice as `ModelConfig.pattern`, which trains, and serves weights whose heads are in `orders`."""
        specs = [self.layer_pattern(self.layer(choice, layer)) for layer in range(self.layers)]
        return specs[0] if len(set(specs)) == 1 else " / ".join(specs)


def default_actions(length: int) -> tuple[str, ...]:
    """{full, sinks + window at two sizes, dilated, decay, routed} for sequences of `length` tokens."""
    w = max(8, length // 64)
    # Enough for sequences of sixteen times the length, at which reading may be timed.
    bits = 2 ** math.ceil(math.log2(256 * length))
    return (
        "full",
        f"sinks:size={w},sinks=4",
        f"sinks:size={4 * w},sinks=4",
        f"dilated:branches=({2 * w}/1+{8 * w}/4+{32 * w}/16)",
        f"forget:gate=fixed,shortest={2 * w},longest={2 * w}",
        f"routed:router=(bloom:ngram=4,bits={bits}),size={w},sinks=4",
    )


def space_of(config: ModelConfig, actions: Sequence[str]) -> Space:
    """The heads of a dense model.

    Raises:
        ConfigError: a layer that does not attend everywhere, a model trained with another pattern, or one whose heads
            cannot change places because more than projections hangs on them.
    """
    if set(config.layer_kinds) != {"A"} or config.pattern != actions[0]:
        raise ConfigError(
            f"search starts from a model with layout A and pattern {actions[0]!r}; this one has layout "
            f"{config.layer_kinds} and pattern {config.pattern!r}"
            + (f"; begin the actions with {config.pattern!r}" if set(config.layer_kinds) == {"A"} else "")
        )
    if config.directions != "none" or config.output_gate != "none":
        raise ConfigError(
            f"search moves heads that read alike side by side, and this model has directions={config.directions!r}, "
            f"output_gate={config.output_gate!r}; search a model without them"
        )
    return Space(
        actions=tuple(actions), layers=config.layers, heads=config.n_kv_heads, shared=config.heads // config.n_kv_heads
    )
