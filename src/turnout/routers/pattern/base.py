"""The interface of patterns, and their registry.

A pattern is one file in this folder: a class with `@PATTERNS.register("name")`. B batch, T new tokens, S positions so
far, H query heads, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.reach import Reach
from turnout.spec import Registry

PATTERNS = Registry("pattern", "turnout.routers.pattern")


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternContext:
    """What the model tells every pattern it builds.

    Args:
        width: E of the layer's input; heads: query heads H; kv_heads: key/value heads, which divide H.
        head_dim: D.
        first: number of the first of these heads, and total: all heads of the layer, where a mixture splits them.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    first: int = 0
    total: int | None = None


class Pattern(nn.Module):
    """Base of all patterns: `reach` decides how far the tokens of a call read.

    `causal`: what a row reads hangs on no later token; a causal language model refuses any other.
    """

    causal: ClassVar[bool] = True

    def __init__(self, context: PatternContext) -> None:
        super().__init__()
        self.context = context

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        """Memory of the pattern before the first token; None when it has none. It is updated in place."""
        return None

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        """How far the tokens `x` [B, T, E] read.

        Args:
            at: their positions, int64 [T].
            length: positions S that keys exist for; a decay is wanted for all of them.
            state: from `init_state`, or None for whole sequences.
            mode: whether gates are sampled, and from which generator.
        """
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """What training adds to the loss for reading far; None adds nothing."""
        return None

    def mean_keys(self, length: int) -> float:
        """Keys that a row reads, mean over the rows of a sequence and over heads: the counted cost."""
        return (length + 1) / 2

    def check_length(self, length: int) -> None:
        """Raise ConfigError where an option cannot matter in sequences of `length` tokens."""

    def extra_repr(self) -> str:
        return f"heads={self.context.heads}"


def keys_in_window(length: int, window: int, sinks: int = 0) -> float:
    """Mean keys of a row that sees `window` positions and the first `sinks`."""
    w = min(window, length)
    outside = sum(min(sinks, t - w + 1) for t in range(w, min(length, w + sinks))) + max(0, length - w - sinks) * sinks
    return (w * length - w * (w - 1) / 2 + outside) / length


def keys_in_blocks(length: int, block: int, keep: int, near: int = 0) -> float:
    """Mean keys of a row that reads its own block up to itself, `near` whole ones before it and `keep` before those."""
    total = 0.0
    for m in range(-(-length // block)):
        rows = min(block, length - m * block)
        total += rows * (min(m, keep + near) * block + (rows + 1) / 2)
    return total / length


def check_share(name: str, share: int, block: int) -> None:
    """Rows that share a choice are all of one block."""
    if share < 1 or block % share:
        raise ConfigError(f"pattern {name}: share={share}; expected a divisor of block={block}")


def check_window(name: str, option: str, window: int, length: int) -> None:
    """A window as long as the sequence is no window."""
    if window >= length:
        raise ConfigError(
            f"pattern {name}: {option}={window} covers the whole sequence of {length} tokens, so it changes nothing; "
            f"use {option} < {length}, longer sequences, or the pattern 'full'"
        )
