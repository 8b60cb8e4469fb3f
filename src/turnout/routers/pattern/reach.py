"""`Reach`: the decision of a pattern, in the terms that `turnout.layers.reading` executes.

B batch, T new tokens, S positions, H query heads, R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Bias = Callable[[Tensor, Tensor], Tensor]
"""(positions of rows, int [...]; positions of keys, int [...] that broadcast) -> log weight [H, ...], 0 = unchanged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Blocks of `size` keys: a row sees its own block, the `near` before it, and every `stride`-th from the first."""

    size: int
    near: int
    stride: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TopBlocks:
    """Blocks of `size` keys: a row sees its own, the `near` before it, and the `keep` before those whose mean key fits
    its query best."""

    size: int
    keep: int
    near: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLists:
    """Blocks of `size` keys: the last T rows see their own, the `near` before it, and those listed.

    `lists` is int64 [B or 1, T, 1 or G, K], none of a row's own or nearer blocks in it; -1 = empty slot. The lists of
    `share` rows from a multiple of it on are the same.
    """

    size: int
    near: int
    lists: Tensor
    share: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Of each table a row reads the `keep` latest keys before its window whose bucket is that of its query.

    `axes` is float [N, D, A], one rotation a table; with `shift` 1 a key is found by the key before it.
    """

    axes: Tensor
    keep: int
    shift: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Dilation:
    """Branches (segment, rate): inside a segment, head h joins every rate-th position, from h mod rate on.

    Attributes:
        branches: merged by their log-sum-exp, so that a key in two branches counts twice.
        detach: no gradient passes through the weights of the merge, as published.
    """

    branches: tuple[tuple[int, int], ...]
    detach: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune:
    """Skip what the decay has made negligible: at most `loss` of a row's weight, at norms <= cap.

    `spans` is int64 [H], where the decay is the same at every step: how far back a head still reads; `starts` what
    follows from it for the last R positions, int64 [B, G, R], where that is known already.
    """

    loss: float
    cap: float
    spans: Tensor | None = None
    starts: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Blend:
    """Each kv head reads by `far` with weight z and by `near` with 1 - z; `open` says which, where z is decided."""

    z: Tensor
    far: Reach
    near: Reach
    open: tuple[bool, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """Tokens with `taken`, bool [B, T], read everything, the others by `near`; T are the last positions."""

    taken: Tensor
    near: Reach


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How far the queries of one call may read. Every field is the identity when absent.

    Attributes:
        window, sinks, log_decay: as in `turnout.ops.attend`; log_decay is float [B, S, H].
        prune: skip keys whose decay is too large; only with log_decay.
        blocks: chosen blocks of keys; with index.
        index: (asks [B, T, r] of the last T rows, holds [B, S, r]): <asks_t, holds_s> is added to every score that is
            read; with blocks.
        chosen: single keys that the last T rows read beside their window, int64 [B, T, 1 or G, K], none twice, -1 =
            empty slot, or the rule that finds them; with window.
        mark: log weight [H] that is added to the scores of the chosen keys, by which heads tell them from their window.
        dilation: sparse keys; alone.
        bias: log weight of (row, key) by position; with window and sinks.
        contextual: table [H, positions, D] of contextual position embeddings; alone.
        parts: (heads, reach) of consecutive heads; alone.
        blend: two ways to read, weighted; alone.
        routed: two ways to read, by token; alone.
        starts: int64 [B, S], the first key that the token at each position may read; with window, sinks and log_decay.
    """

    window: int | None = None
    sinks: int = 0
    log_decay: Tensor | None = None
    prune: Prune | None = None
    blocks: Blocks | TopBlocks | BlockLists | None = None
    index: tuple[Tensor, Tensor] | None = None
    chosen: Tensor | Buckets | None = None
    mark: Tensor | None = None
    dilation: Dilation | None = None
    bias: Bias | None = None
    contextual: Tensor | None = None
    parts: tuple[tuple[int, Reach], ...] = ()
    blend: Blend | None = None
    routed: Routed | None = None
    starts: Tensor | None = None

    @property
    def in_operator(self) -> bool:
        """Whether one call of `attend` does it."""
        around = (self.blend, self.routed, self.dilation, self.bias, self.contextual, self.chosen)
        return not self.parts and all(option is None for option in around)

    @property
    def stepwise(self) -> bool:
        """Whether the decode operator does it, whose steps need no decision on the host."""
        if self.parts:
            return all(reach.stepwise for _, reach in self.parts)
        rest = (
            self.prune,
            self.blocks,
            self.dilation,
            self.bias,
            self.contextual,
            self.blend,
            self.routed,
            self.chosen,
        )
        return all(option is None for option in rest)

    @property
    def by_content(self) -> bool:
        """Whether what is read hangs on tokens, queries or keys, so that there is no weight of a pair of positions."""
        return self.contextual is not None or self.chosen is not None or isinstance(self.blocks, TopBlocks | BlockLists)
