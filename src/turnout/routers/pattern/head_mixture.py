"""Static mixture: some heads by one pattern, some by another."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern.base import PATTERNS, Pattern, PatternContext
from turnout.routers.pattern.reach import Reach

_PART = re.compile(r"(\d+)\s+(\S.*)")


@PATTERNS.register("head_mixture")
class HeadMixturePattern(Pattern):
    """The first heads by the first pattern, the next by the second, and so on.

    Args:
        parts: "count pattern" joined by ";", in parentheses: `head_mixture:parts=(2 full;6 window:size=64)`. The counts
            add up to the heads, and heads that share a key/value head share a part.
    """

    def __init__(self, context: PatternContext, *, parts: str) -> None:
        super().__init__(context)
        matches = [_PART.fullmatch(part.strip()) for part in parts.split(";")]
        if not all(matches):
            raise ConfigError(f"pattern head_mixture: parts={parts!r}; write (2 full;6 window:size=64)")
        found = [(int(match[1]), match[2]) for match in matches if match]
        shared = context.heads // context.kv_heads
        if sum(n for n, _ in found) != context.heads or any(n < 1 or n % shared for n, _ in found):
            raise ConfigError(
                f"pattern head_mixture: parts={parts!r} has {'+'.join(str(n) for n, _ in found)} heads; expected "
                f"{context.heads} in all, each part a positive multiple of {shared} (heads to a key/value head)"
            )
        self.counts = [n for n, _ in found]
        members, first = [], context.first
        for n, spec in found:
            inner = replace(context, heads=n, kv_heads=n // shared, first=first, total=context.total or context.heads)
            members.append(PATTERNS.build(spec, context=inner))
            first += n
        self.members = nn.ModuleList(members)

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> Any:
        return tuple(member.init_state(batch, max_len, device=device, dtype=dtype) for member in self._patterns())

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        states = state if state is not None else [None] * len(self.counts)
        reaches = [
            member.reach(x, at=at, length=length, state=memory, mode=mode)
            for member, memory in zip(self._patterns(), states, strict=True)
        ]
        return Reach(parts=tuple(zip(self.counts, reaches, strict=True)))

    def penalty(self) -> Tensor | None:
        found = [p for p in (member.penalty() for member in self._patterns()) if p is not None]
        return torch.stack(found).sum() if found else None

    def mean_keys(self, length: int) -> float:
        pairs = zip(self.counts, self._patterns(), strict=True)
        return sum(n * member.mean_keys(length) for n, member in pairs) / self.context.heads

    def check_length(self, length: int) -> None:
        for member in self._patterns():
            member.check_length(length)

    def _patterns(self) -> list[Pattern]:
        return list(self.members)  # type: ignore[arg-type]
