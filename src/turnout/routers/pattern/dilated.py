"""Dilated segments, as in LongNet."""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import Tensor

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window
from turnout.routers.pattern.reach import Dilation, Reach

_BRANCH = re.compile(r"(\d+)/(\d+)")


@PATTERNS.register("dilated")
class DilatedPattern(Pattern):
    """Branches of segments: in branch (w, r) head h reads, in its segment of w tokens, every r-th, from h mod r on.

        o = sum_k a_k o_k,   a = softmax_k(log-sum-exp of branch k)         (Ding et al. 2023, torchscale)

    A token that is not on a branch's grid takes nothing from it; one branch with rate 1 holds every token.

    Args:
        branches: "w/r" with growing w and r, joined by "+": "128/1+512/4".
        detach: no gradient through a, as published.
    Cost: O(sum_k w_k / r_k^2) keys a row and head.
    """

    def __init__(self, context: PatternContext, *, branches: str = "64/1+256/4", detach: bool = True) -> None:
        super().__init__(context)
        self.dilation = Dilation(branches=parse_branches(branches), detach=detach)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        return Reach(dilation=self.dilation)

    def mean_keys(self, length: int) -> float:
        # 1/r of the rows are on the grid of a branch, and read half of the w/r keys of their segment on average.
        return sum((min(w, length) / r + 1) / 2 / r for w, r in self.dilation.branches)

    def check_length(self, length: int) -> None:
        check_window("dilated", "the first segment", self.dilation.branches[0][0], length)


def parse_branches(text: str) -> tuple[tuple[int, int], ...]:
    """Read "128/1+512/4".

    Raises:
        ConfigError: unreadable, empty or overlapping segments, or a token that no branch would let read itself.
    """
    matches = [_BRANCH.fullmatch(part.strip()) for part in text.split("+")]
    if not all(matches):
        raise ConfigError(f"pattern dilated: branches={text!r}; write segment/rate joined by '+', such as 128/1+512/4")
    branches = tuple((int(match[1]), int(match[2])) for match in matches if match)
    for w, r in branches:
        if w < 1 or r < 1 or w % r:
            raise ConfigError(
                f"pattern dilated: branch {w}/{r} has empty or uneven segments; expected rate >= 1 that divides the "
                "segment"
            )
    if branches[0][1] != 1:
        raise ConfigError(
            f"pattern dilated: branches={text!r} skip a token's own key (a head reads only every "
            f"{branches[0][1]}-th token, itself often not among them); let the first branch have rate 1"
        )
    for (w, r), (w2, r2) in itertools.pairwise(branches):
        if w2 <= w or r2 <= r or w2 % w:
            raise ConfigError(
                f"pattern dilated: branches {w}/{r} and {w2}/{r2} overlap; expected longer segments with a larger "
                f"rate, a whole number of the shorter ones, such as {2 * w}/{2 * r}"
            )
    return branches
