"""Hard recall: several pairs at random places, keys and values from one vocabulary, several queries, distractors.

    … noise, k1, v1, noise, noise, k2, v2, noise, [marker,] k1 → v1, noise, d, [marker,] k2 → v2, noise …

A pair is a key token immediately followed by its value. A query is a key token that appears again, anywhere after its
pair; its target is the value, at the query's own position. Keys are distinct within a sequence; values and distractors
are drawn from the other content tokens, so a key in one sequence is a value or a distractor in another,
and *the answer is always the token after the first occurrence of the query token*.

Layout of ids: content 0..content-1, noise content..content+noise-1, then the marker when there is one.

What a causal *local* router can know. With `query_marker=False` a query looks locally just like the key of a pair or a
distractor (a content token after noise), and only the future or the far past tells them apart. So a router that sees
the token and its neighbourhood must open at least pairs + queries + distractors gates where the oracle opens `queries`:
twice the oracle at pairs = queries without distractors. With `query_marker=True` the marker before a query gives it
away, and the oracle's count is within reach.

Axes: n sequences, P pairs, Q queries, D distractors, U units (an item or one noise token; a pair is one unit of two
tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from turnout.errors import ConfigError
from turnout.tasks.batch import Batch
from turnout.tasks.slices import floor_power_of_two
from turnout.tasks.synthetic import SyntheticTask

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallHardConfig:
    """P pairs and Q queries anywhere among noise.

    Attributes:
        length: T >= 2·pairs + queries·(2 with marker, else 1) + distractors; what is left is noise.
        pairs: P >= 1; with fewer queries than pairs some pairs are never asked for.
        queries: Q >= 1; query i asks for pair i mod P, so that with more queries than pairs keys are asked for again.
        content: number of tokens that keys, values and distractors share; more than `pairs`.
        noise: number of noise tokens >= 1, disjoint from content.
        distractors: single content tokens at random places, none of them a key of the sequence.
        query_marker: put a marker token before each query (see the head of this file for what that changes).
    """

    kind: ClassVar[str] = "recall_hard"
    length: int = 512
    pairs: int = 8
    queries: int = 8
    content: int = 128
    noise: int = 64
    distractors: int = 0
    query_marker: bool = False

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("queries", 1), ("noise", 1), ("distractors", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"recall_hard {name}={getattr(self, name)}; expected at least {least}")
        if self.content <= self.pairs:
            raise ConfigError(
                f"recall_hard content={self.content} but pairs={self.pairs}: "
                "the keys are distinct and the values are other tokens; "
                f"use content >= {self.pairs + 1} or pairs <= {self.content - 1}"
            )
        if self.length < self.min_length:
            raise ConfigError(
                f"recall_hard length={self.length} cannot hold {self.pairs} pairs, {self.queries} queries"
                f"{' with markers' if self.query_marker else ''} and {self.distractors} distractors; "
                f"use length >= {self.min_length} or fewer items"
            )

    @property
    def min_length(self) -> int:
        """The shortest sequence that holds every item, without any noise."""
        return 2 * self.pairs + self._query_width * self.queries + self.distractors

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        return self.content + self.noise + int(self.query_marker)

    @property
    def chance(self) -> float:
        """A guess among the content tokens."""
        return 1 / self.content

    @property
    def _query_width(self) -> int:
        return 2 if self.query_marker else 1

    def build(self, seed: int) -> SyntheticTask:
        """The task whose streams all derive from `seed`."""
        return SyntheticTask(self, seed=seed)

    def with_length(self, length: int) -> RecallHardConfig:
        """The same items in a sequence of another length."""
        return replace(self, length=length)

    def draw(self, n: int, generator: torch.Generator) -> Batch:
        """n sequences; slices: distance, pairs, query.

        distance = query position - value position (as in `recall`), rounded down to a power of two; pairs = P;
        query = rank of the query in its sequence, 0 first.

        Cost: O(n·(T + content·log content)); no loop over sequences.
        """
        import torch

        keys, values, distractors = self._draw_content(n, generator)
        key_at, query_at, distractor_at = self._place(n, generator)
        asked = torch.arange(self.queries).remainder(self.pairs)
        query_at, order = query_at.sort(dim=1)
        asked = asked[order]

        tokens = torch.empty(n, self.length, dtype=torch.int64)
        tokens.random_(self.content, self.content + self.noise, generator=generator)
        tokens.scatter_(1, key_at, keys)
        tokens.scatter_(1, key_at + 1, values)
        tokens.scatter_(1, query_at, keys.gather(1, asked))
        if self.query_marker:
            tokens.scatter_(1, query_at - 1, self.vocab - 1)
        if self.distractors:
            tokens.scatter_(1, distractor_at, distractors)
        distance = query_at - (key_at.gather(1, asked) + 1)
        return Batch(
            tokens=tokens,
            at=query_at,
            targets=values.gather(1, asked),
            hint=torch.zeros(n, self.length, dtype=torch.bool).scatter_(1, query_at, True),
            slices={
                "distance": floor_power_of_two(distance),
                "pairs": torch.full_like(query_at, self.pairs),
                "query": torch.arange(self.queries).expand(n, -1).contiguous(),
            },
        )

    def decode_token(self, token: int) -> str:
        """`c7` = content token 7 (key, value or distractor), `n7` = noise, `?` = query marker."""
        if token < self.content:
            return f"c{token}"
        return f"n{token - self.content}" if token < self.content + self.noise else "?"

    def _draw_content(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys [n, P], distinct in a row; values [n, P] and distractors [n, D] from tokens that are no key there."""
        import torch

        shuffled = torch.rand(n, self.content, generator=generator).argsort(dim=1)
        keys, others = shuffled[:, : self.pairs], shuffled[:, self.pairs :]
        picks = torch.randint(others.shape[1], (n, self.pairs + self.distractors), generator=generator)
        drawn = others.gather(1, picks)
        return keys, drawn[:, : self.pairs], drawn[:, self.pairs :]

    def _place(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Positions of the keys [n, P], queries [n, Q] (query i asks for pair i mod P) and distractors [n, D].

        The sequence is U units in a uniformly random order, given that every query comes after its pair: draw distinct
        ranks for all items, then sort the ranks within each pair's own set {pair, its queries}. Nothing can collide.
        """
        import torch

        n_items = self.pairs + self.queries + self.distractors
        n_units = self.length - self.min_length + n_items
        ranks = torch.rand(n, n_units, generator=generator).topk(n_items, dim=1).indices
        # Column j of `sets` is pair j and its queries; U marks the places of a last, incomplete row.
        n_sorted = self.pairs + self.queries
        sets = torch.full((n, -(-n_sorted // self.pairs) * self.pairs), n_units)
        sets[:, :n_sorted] = ranks[:, :n_sorted]
        sets = sets.view(n, -1, self.pairs).sort(dim=1).values.flatten(1)
        pair, query, distractor = sets[:, : self.pairs], sets[:, self.pairs : n_sorted], ranks[:, n_sorted:]

        width = torch.ones(n, n_units, dtype=torch.int64).scatter_(1, pair, 2).scatter_(1, query, self._query_width)
        start = width.cumsum(1) - width
        return start.gather(1, pair), start.gather(1, query) + (self._query_width - 1), start.gather(1, distractor)
