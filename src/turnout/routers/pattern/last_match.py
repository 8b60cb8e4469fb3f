"""Content routing by an exact index: a row reads what followed when its last tokens stood there before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from turnout.errors import ConfigError, UnsupportedError
from turnout.ops.choose import CODE_BITS, latest
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext, check_window, keys_in_window
from turnout.routers.pattern.reach import Reach

# Odd, so that every bit of a token moves the code.
_FACTOR = 0x5851F42D4C957F2D


@PATTERNS.register("last_match")
class LastMatchPattern(Pattern):
    """Row t reads t - size < s <= t, and the tokens after the latest places where its last `ngram` tokens stood before.

        s in {j + 1, ..., j + follow},   j one of the `matches` latest with x_{j-ngram+1..j} = x_{t-ngram+1..t},
        j + 1 <= t - size

    The lookup of an induction head (Olsson et al. 2022), made by an index instead of learned: nothing is scored, all
    heads find the same keys, and where nothing matches a row has its window alone.

    Args:
        size: window w >= 1.
        ngram: tokens that must agree, >= 1; they are compared one by one, whatever their hash.
        matches: places a row reads from, the latest ones, >= 1.
        follow: tokens read at each, >= 1.
        mark: learn a log weight of the found keys for each head, 0 at first; without positions a head has nothing else
            to tell them from its window by.
    Raises:
        UnsupportedError: the pass has no token ids (`RoutingMode.tokens`; a model fills it in).
    State: token ids of the past, int64 [B, S, 1].
    Cost: one sort of S integers a layer, O(w + matches · follow) keys a row; a step of one token compares S integers.
    """

    def __init__(
        self,
        context: PatternContext,
        *,
        size: int = 64,
        ngram: int = 2,
        matches: int = 4,
        follow: int = 1,
        mark: bool = True,
    ) -> None:
        super().__init__(context)
        if min(size, ngram, matches, follow) < 1:
            raise ConfigError(
                f"pattern last_match: size={size}, ngram={ngram}, matches={matches}, follow={follow}; expected all >= 1"
            )
        self.size, self.ngram, self.matches, self.follow = size, ngram, matches, follow
        self.mark = nn.Parameter(torch.zeros(context.heads)) if mark else None

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return torch.zeros(batch, max_len, 1, device=device, dtype=torch.int64)

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        tokens = mode.tokens
        if tokens is None:
            raise UnsupportedError(
                "pattern last_match looks token ids up and this pass has none; call a model with tokens, or pass "
                "RoutingMode(tokens=...)"
            )
        if state is not None:
            state.index_copy_(1, at, tokens[..., None])
            tokens = state[:, :length, 0]
        return Reach(window=self.size, chosen=self._keys(tokens, x.shape[1]), mark=self.mark)

    @torch.no_grad()
    def _keys(self, tokens: Tensor, n_rows: int) -> Tensor:
        """Keys of the last rows of `tokens` [B, S]: [B, T, 1, matches · follow]."""
        length = tokens.shape[1]
        code = torch.zeros_like(tokens)
        before = [pad(tokens, (i, 0), value=-1)[:, :length] for i in range(self.ngram)]
        for token in before:
            code = (code + token + 2) * _FACTOR
            code = code ^ (code >> 29)
        place = torch.arange(length, device=tokens.device)
        # Fewer tokens than an n-gram match nothing.
        code = torch.where(place >= self.ngram - 1, code & (2**CODE_BITS - 1), -1)
        rows = place[length - n_rows :]
        holds = pad(code, (1, 0), value=-1)[:, :length]
        start = latest(code[:, length - n_rows :], holds, rows - self.size, self.matches)
        # A key is found by the token before it; two n-grams of one hash are told apart here.
        same = start > 0
        for token in before:
            there = token.gather(1, (start - 1).clamp(min=0).flatten(1)).view_as(start)
            same &= there == token[:, length - n_rows :, None]
        start = torch.where(same, start, -1)
        later = pad(start, (1, 0), value=length)[..., :-1]
        key = start[..., None] + torch.arange(self.follow, device=tokens.device)
        # What two matches both reach is read once, and what the window holds is read there.
        wanted = (start >= 0)[..., None] & (key < later[..., None]) & (key <= (rows - self.size)[:, None, None])
        return torch.where(wanted, key, -1).flatten(2)[:, :, None]

    def mean_keys(self, length: int) -> float:
        chosen = sum(min(self.matches * self.follow, max(0, t + 1 - self.size)) for t in range(length)) / length
        return keys_in_window(length, self.size) + chosen

    def check_length(self, length: int) -> None:
        check_window("last_match", "size + ngram", self.size + self.ngram, length)
