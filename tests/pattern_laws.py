"""What every pattern is tested with: specs that show all they do in a few tokens, and one-pair-at-a-time oracles.

B batch, T tokens, S keys, H query heads, G kv heads, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import PATTERNS, Pattern, PatternContext

HEADS, KV_HEADS, WIDTH = 4, 2, 16
# Few enough ids that n-grams repeat within a dozen tokens.
IDS = 4

# Options under which a pattern shows all it does within a dozen tokens.
LIVELY = {
    "window": "window:size=4",
    "sinks": "sinks:size=3,sinks=2",
    "dilated": "dilated:branches=(4/1+8/2)",
    "strided": "strided:block=2,near=1,stride=3",
    "top_blocks": "top_blocks:block=2,keep=1",
    "random_blocks": "random_blocks:block=2,keep=2,near=1",
    "low_rank": "low_rank:block=2,keep=1,rank=3",
    "last_match": "last_match:size=3,ngram=1,matches=2,follow=2",
    "buckets": "buckets:size=3,keep=2,tables=2,buckets=4",
    "alibi": "alibi:slope=2",
    "retnet": "retnet:shift=1",
    "forget": "forget:shortest=1,longest=8",
    "span": "span:longest=8,ramp=3",
    "fire": "fire:threshold=4",
    "cope": "cope:positions=4",
    "gated_window": "gated_window:size=3,sinks=1,steps=4",
    "routed": "routed:router=(periodic:period=3),size=2,sinks=1",
    "head_mixture": "head_mixture:parts=(2 window:size=3;2 alibi)",
}


# Ways of a pattern that its spec in `LIVELY` does not go.
MORE = ("random_blocks:block=4,keep=1,share=2", "low_rank:block=4,keep=1,rank=2,share=2,shift=false")


def lively() -> list[str]:
    """One spec of every registered pattern, and some with other ways."""
    return [*(LIVELY.get(name, name) for name in PATTERNS.names()), *MORE]


def build(spec: str) -> Pattern:
    """A pattern for a small layer, its parameters moved away from where they start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        context = PatternContext(width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH // HEADS)
        pattern: Pattern = PATTERNS.build(spec, context=context)
        stir(pattern)
    return pattern.double()


def pass_of(length: int, batch: int = 2) -> RoutingMode:
    """A pass whose tokens repeat; patterns that look tokens up need them."""
    tokens = torch.randint(IDS, (batch, length), generator=torch.Generator().manual_seed(4))
    return replace(SKIP, tokens=tokens)


def stir(module: torch.nn.Module) -> None:
    """Nudge every parameter, the same at every call, so that none sits at a point where it does nothing."""
    generator = torch.Generator().manual_seed(11)
    for p in module.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator).to(p)


def pairs(length: int, heads: int = HEADS) -> list[tuple[int, int, int]]:
    """(head, row, key) of every causal pair."""
    return [(h, t, s) for h in range(heads) for t in range(length) for s in range(t + 1)]


def oracle_log_weight(spec: str, h: int, t: int, s: int) -> float:
    """What a fixed pattern adds to one score, from its definition; -inf where the pair is not read."""
    visible = {
        "full": True,
        "window": t - s < 4,
        "sinks": t - s < 3 or s < 2,
        "routed": t % 3 == 0 or t - s < 2 or s < 1,
        "strided": t // 2 - s // 2 <= 1 or (s // 2) % 3 == 0,
    }
    name = spec.partition(":")[0]
    if name in visible:
        return 0.0 if visible[name] else -math.inf
    if name == "dilated":
        near = t // 4 == s // 4
        far = t // 8 == s // 8 and t % 8 % 2 == h % 2 and s % 8 % 2 == h % 2
        return math.log(near + far) if near or far else -math.inf
    if name == "alibi":
        return -2 * 2 ** (-8 * (h + 1) / HEADS) * (t - s)
    if name == "retnet":
        return (t - s) * math.log(1 - 2.0 ** (-1 - h))
    if name == "power_law":
        return -0.25 * 8 ** (h / 3) * math.log(1 + t - s)
    assert name == "head_mixture"
    if h < 2:
        return 0.0 if t - s < 3 else -math.inf
    return -(2 ** (-8 * (h + 1) / HEADS)) * (t - s)


def oracle_attend(q: Tensor, k: Tensor, v: Tensor, spec: str) -> Tensor:
    """Softmax attention of whole sequences under the oracle's log weights: [B, T, H, D]."""
    length, heads = q.shape[1:3]
    added = torch.full((heads, length, length), -math.inf, dtype=q.dtype)
    for h, t, s in pairs(length, heads):
        added[h, t, s] = oracle_log_weight(spec, h, t, s)
    size = heads // k.shape[2]
    k, v = k.repeat_interleave(size, 2), v.repeat_interleave(size, 2)
    score = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5 + added
    return torch.einsum("bhts,bshd->bthd", score.softmax(-1), v)
