"""Trailing-query MQAR: N key-value pairs, then one key again at the last position (or Q of them at the last Q).

    k1 v1 … k2 v2 … kN vN … filler … k_i → v_i

The layout of arXiv 2603.20997, not Zoology's (see `mqar`). The evidence is the *key* position of the pair.

Axes: n sequences, N pairs, Q queries, U units (a pair or one filler token).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from turnout.errors import ConfigError
from turnout.tasks.retrieval import RoutedBatch
from turnout.tasks.slices import floor_power_of_two
from turnout.tasks.synthetic import SyntheticTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class TrailingMQARConfig:
    """N pairs and Q queries at the end; keys 1..V/2-1, values V/2..V-1, distinct in a sequence.

    Attributes:
        length: T >= 2·pairs + queries.
        pairs: N, at most vocab/2 - 1.
        vocab: V, even.
        placement: pairs "contiguous" at the head or "scattered".
        filler: "zero" or "random" (values only, so that it never repeats a key).
        label: the evidence is the matching "key" or the "value" behind it.
        queries: Q, the last tokens; they ask for distinct pairs. Published 1.
    """

    kind: ClassVar[str] = "trailing_mqar"
    length: int = 256
    pairs: int = 16
    vocab: int = 256
    placement: Literal["contiguous", "scattered"] = "contiguous"
    filler: Literal["zero", "random"] = "zero"
    label: Literal["key", "value"] = "key"
    queries: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.queries <= max(1, self.pairs):
            raise ConfigError(f"trailing_mqar queries={self.queries}; expected 1..pairs={self.pairs}")
        if self.pairs < 1 or self.vocab % 2 or self.vocab < 4:
            raise ConfigError(f"trailing_mqar pairs={self.pairs}, vocab={self.vocab}; expected pairs >= 1, even vocab")
        if self.pairs > self.vocab // 2 - 1:
            raise ConfigError(
                f"trailing_mqar vocab={self.vocab} has {self.vocab // 2 - 1} keys for {self.pairs} pairs; "
                f"use vocab >= {2 * self.pairs + 2}"
            )
        if self.length < 2 * self.pairs + self.queries:
            raise ConfigError(
                f"trailing_mqar length={self.length} cannot hold {self.pairs} pairs and their queries; "
                f"use length >= {2 * self.pairs + self.queries}"
            )

    @property
    def chance(self) -> float:
        """Copying one of the N values."""
        return 1 / self.pairs

    def build(self, seed: int) -> SyntheticTask:
        """The task whose streams all derive from `seed`."""
        return SyntheticTask(self, seed=seed)

    def with_length(self, length: int) -> TrailingMQARConfig:
        """The same pairs in a sequence of another length."""
        return replace(self, length=length)

    def decode_token(self, token: int) -> str:
        """`_` = zero filler, `k7` = key 7, `v3` = value 3."""
        half = self.vocab // 2
        return "_" if token == 0 else f"k{token}" if token < half else f"v{token - half}"

    def draw(self, n: int, generator: torch.Generator) -> RoutedBatch:
        """n sequences; slice: distance from the value to the query, rounded down to a power of two."""
        import torch

        half = self.vocab // 2
        keys = 1 + torch.rand(n, half - 1, generator=generator).argsort(1)[:, : self.pairs]
        shuffled = half + torch.rand(n, half, generator=generator).argsort(1)
        values = shuffled[:, : self.pairs]
        tokens = torch.zeros(n, self.length, dtype=torch.int64)
        if self.filler == "random":
            tokens = torch.randint(half, self.vocab, (n, self.length), generator=generator)
        place = (2 * torch.arange(self.pairs)).expand(n, -1)
        if self.placement == "scattered":
            units = self.length - self.queries - self.pairs
            unit = torch.rand(n, units, generator=generator).argsort(1)[:, : self.pairs].sort(1).values
            place = unit + torch.arange(self.pairs)
        tokens.scatter_(1, place, keys)
        tokens.scatter_(1, place + 1, values)
        if self.queries == 1:
            # As it was drawn before there could be several: recorded runs keep their data.
            asked = torch.randint(self.pairs, (n, 1), generator=generator)
        else:
            asked = torch.rand(n, self.pairs, generator=generator).argsort(1)[:, : self.queries]
        tokens[:, -self.queries :] = keys.gather(1, asked)
        key_at = place.gather(1, asked)
        at = torch.arange(self.length - self.queries, self.length).expand(n, -1).contiguous()
        return RoutedBatch(
            tokens=tokens,
            at=at,
            targets=values.gather(1, asked),
            hint=torch.zeros(n, self.length, dtype=torch.bool).scatter_(1, at, True),
            slices={"distance": floor_power_of_two(at - key_at - 1)},
            evidence=key_at if self.label == "key" else key_at + 1,
        )
