"""The interface of content selectors (which keys may a query read?), and their registry.

A selector is one file in this folder: a class with `@CONTENT_SELECTORS.register("name")`.

B batch, T tokens, Q queries, E width, U units that can be picked (tokens, or segments of `unit` tokens), K picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.spec import Registry

CONTENT_SELECTORS = Registry("content selector", "turnout.routers.content")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectorContext:
    """What every selector is told.

    Args:
        width: E.
        length: T.
        vocab: number of token ids, for indices.
        heads: of a pairwise score; only its temperature.
    """

    width: int
    length: int
    vocab: int
    heads: int = 4


class ContentSelector(nn.Module):
    """Base: `score` says how much each query wants each unit; picking is the caller's.

    A learned selector is trained by the cross entropy of its scores at the evidence. `unit` is the number of tokens
    that are picked together. `causal`: the score of a unit depends on the query and on that unit alone, so that a
    causal model could use it for units wholly in the past. Language models choose keys by patterns (`last_match`,
    `buckets`, `top_blocks`, `low_rank`), which need no score of every pair. No data-dependent control flow, so that
    many copies run as one (`torch.func.vmap`).
    """

    learned: ClassVar[bool] = True
    causal: bool = True
    unit: int = 1

    def __init__(self, context: SelectorContext) -> None:
        super().__init__()
        self.context = context

    @property
    def units(self) -> int:
        """U."""
        return self.context.length // self.unit

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        """Scores of all units.

        Args:
            x: representations [B, T, E].
            tokens: ids [B, T]; indices read them, learned selectors do not.
            at: positions of the queries, int64 [B, Q].
        Returns:
            float [B, Q, U].
        """
        raise NotImplementedError

    def forward(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        """`score` with the query's own unit at -inf."""
        score = self.score(x, tokens, at)
        own = torch.arange(score.shape[-1], device=score.device) == (at // self.unit)[..., None]
        return score.masked_fill(own, -torch.inf)


def rows_at(x: Tensor, at: Tensor) -> Tensor:
    """x [B, T, E] at positions [B, Q] -> [B, Q, E]."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def check_segments(name: str, length: int, size: int) -> None:
    """ConfigError unless segments of `size` tokens divide the sequence into at least two."""
    if size < 1 or length % size or length // size < 2:
        raise ConfigError(
            f"selector {name}: size={size} does not cut {length} tokens into two or more equal segments; "
            f"use a divisor of {length} up to {length // 2}"
        )


def top_positions(score: Tensor, k: int, *, unit: int = 1, expand: int = 0) -> Tensor:
    """Token positions of the k best units of each query, with `expand` following tokens of each pick.

    Args:
        score: [B, Q, U]; -inf is never picked unless fewer than k units are left.
        k: units kept.
        unit: tokens of a unit; all of them are read.
        expand: neighbours j+1 … j+expand that are read too ("neighbor expansion"), clamped to the sequence.
    Returns:
        int64 [B, Q, k·unit·(expand + 1)]; a position may occur twice.
    """
    length = score.shape[-1] * unit
    best = score.topk(min(k, score.shape[-1]), dim=-1).indices[..., None] * unit
    inside = torch.arange(unit, device=score.device)
    more = torch.arange(expand + 1, device=score.device)
    return (best[..., None] + inside[:, None] + more).flatten(-3).clamp(max=length - 1)
