"""Zoology's multi-query associative recall (MQAR), equal in distribution to its generator.

    k1 v1 k2 v2 … kN vN | gaps: at index 2N + 2·g_i the key k_i asks for v_i, at that very index | filler

    keys N distinct of 1..V/2-1, values N distinct of V/2..V-1; gaps N distinct of 0..S-1, S = (T - 2N)/2, drawn one
    after the other with p_j ∝ j^(a-1), j = 1..S (Arora et al. 2023; `zoology/data/multiquery_ar.py`, d88d6f5)

Two things that differ from other recall tasks: the label sits on the query token's own index and the value is not
inserted behind the query; every key is asked for once. A sequential draw without replacement has the distribution of
the order of log p + Gumbel noise.

Axes: n sequences, N pairs, S gaps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from turnout.errors import ConfigError
from turnout.tasks.retrieval import RoutedBatch
from turnout.tasks.slices import floor_power_of_two
from turnout.tasks.synthetic import SyntheticTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class MQARConfig:
    """Zoology's parameters under this library's names.

    Attributes:
        length: T, even (`input_seq_len`).
        pairs: N with 4·N <= T (`num_kv_pairs`).
        vocab: V > T (`vocab_size`).
        power: a of the gap distribution; 0.01 puts most queries right behind the pairs, 1 is uniform (`power_a`).
        random_filler: every remaining 0 becomes a uniform id of 0..V-1 (`random_non_queries`).
    """

    kind: ClassVar[str] = "mqar"
    length: int = 64
    pairs: int = 8
    vocab: int = 8192
    power: float = 0.01
    random_filler: bool = True

    def __post_init__(self) -> None:
        if self.length % 2 or self.pairs < 1 or 4 * self.pairs > self.length:
            raise ConfigError(
                f"mqar length={self.length} cannot hold {self.pairs} pairs and as many queries; "
                f"use an even length >= {4 * max(1, self.pairs)}"
            )
        if self.vocab <= self.length:
            raise ConfigError(f"mqar vocab={self.vocab}; expected more ids than positions, >= {self.length + 1}")
        if self.vocab // 2 - 1 < self.pairs:
            raise ConfigError(f"mqar vocab={self.vocab} is too small for {self.pairs} distinct keys")
        if not self.power > 0:
            raise ConfigError(f"mqar power={self.power}; expected > 0 (1 = uniform gaps)")

    @property
    def chance(self) -> float:
        """A guess among the values."""
        return 1 / (self.vocab - self.vocab // 2)

    def build(self, seed: int) -> SyntheticTask:
        """The task whose streams all derive from `seed`."""
        return SyntheticTask(self, seed=seed)

    def with_length(self, length: int) -> MQARConfig:
        """The same pairs in a sequence of another length."""
        return replace(self, length=length)

    def decode_token(self, token: int) -> str:
        """`_` = 0, `k7` = key 7, `v3` = value 3."""
        half = self.vocab // 2
        return "_" if token == 0 else f"k{token}" if token < half else f"v{token - half}"

    def draw(self, n: int, generator: torch.Generator) -> RoutedBatch:
        """n sequences; slices: gap (distance from value to query, to a power of two) and pairs.

        Cost: O(n·(V + T)).
        """
        import torch

        half, pairs = self.vocab // 2, self.pairs
        keys = 1 + _distinct(n, pairs, half - 1, generator)
        values = half + _distinct(n, pairs, self.vocab - half, generator)
        tokens = torch.zeros(n, self.length, dtype=torch.int64)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        space = (self.length - 2 * pairs) // 2
        weight = (self.power - 1.0) * torch.arange(1, space + 1, dtype=torch.float64).log()
        noise = -(-torch.rand(n, space, generator=generator, dtype=torch.float64).clamp(min=1e-300).log()).log()
        gaps = (weight + noise).topk(pairs, dim=1).indices
        at, order = (2 * pairs + 2 * gaps).sort(dim=1)
        tokens.scatter_(1, at, keys.gather(1, order))
        if self.random_filler:
            filler = torch.randint(self.vocab, tokens.shape, generator=generator)
            tokens = torch.where(tokens == 0, filler, tokens)
        key_at = 2 * order
        return RoutedBatch(
            tokens=tokens,
            at=at,
            targets=values.gather(1, order),
            hint=torch.zeros(n, self.length, dtype=torch.bool).scatter_(1, at, True),
            slices={"gap": floor_power_of_two(at - key_at - 1), "pairs": torch.full_like(at, pairs)},
            evidence=key_at,
        )


def _distinct(n: int, count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`count` different numbers of 0..size-1 in random order, n times: int64 [n, count].

    Where a row of independent draws has no repetition more often than not, rows that have one are drawn again: at 16
    of 4,095 that is a hundred times faster than ordering all of them.
    """
    import torch

    if count * count > size:
        return torch.rand(n, size, generator=generator).topk(count, dim=1).indices
    drawn = torch.randint(size, (n, count), generator=generator)
    while len(again := _repeating(drawn)):
        drawn[again] = torch.randint(size, (len(again), count), generator=generator)
    return drawn


def _repeating(rows: torch.Tensor) -> torch.Tensor:
    """Indices of the rows in which a number occurs twice."""
    ordered = rows.sort(1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any(1).nonzero()[:, 0]
