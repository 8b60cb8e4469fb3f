"""Small routed models whose routers really decide both ways, and how closely two orders of summation must agree.

B batch, T tokens, E width, G routing groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from turnout.layers.local import LOCAL_TRACKS
from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.models.causal_lm import Output
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.query import QUERY_ROUTERS, QueryRouter, Route, RouterContext

VOCAB = 23
LENGTH = 13
# Options under which a mechanism shows all it does within LENGTH tokens; any other is tested with its defaults.
LIVELY = {
    "random": "random:p=0.5",
    "periodic": "periodic:period=3,offset=1",
    "conv": "conv:kernel=4",
    "window": "window:size=4",
}
# Their decision for a sequence depends on its row in the batch, or on the other rows; both say so.
BY_ROW = ("random", "shuffled")


def routers(*, causal: bool = True) -> list[str]:
    """The registered query routers that are causal, or those that are not."""
    return [name for name in QUERY_ROUTERS.names() if QUERY_ROUTERS.get(name).causal is causal]


def local_tracks() -> list[str]:
    """The registered local tracks."""
    return list(LOCAL_TRACKS.names())


def lively(name: str) -> str:
    """The spec under which a mechanism is tested."""
    return LIVELY.get(name, name)


def tiny(router: str = "linear", *, granularity: str = "token", local: str = "conv", **changes: Any) -> ModelConfig:
    """Two routed layers of width 16 with two query heads to each key/value head."""
    defaults = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "local": lively(local)}
    routing = RoutingConfig(router=lively(router), granularity=granularity)
    return ModelConfig(**{**defaults, "routing": routing, **changes})


def awake(config: ModelConfig, *, seed: int = 0) -> CausalLM:
    """A float64 model in evaluation mode whose learned routers take some tokens and leave others."""
    model = CausalLM(config, vocab=VOCAB, seed=seed).double().eval()
    for block in model.blocks:
        wake(getattr(block.mixer, "router", None))
    return model


def wake(router: nn.Module | None, *, seed: int = 1) -> None:
    """Large random weights and no bias: the decision hangs on the token."""
    generator = torch.Generator().manual_seed(seed)
    for p in () if router is None else router.parameters():
        p.data = torch.randn(p.shape, generator=generator).to(p) * (p.ndim > 1)


def sequences(batch: int = 3, length: int = LENGTH, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens [B, T] and an oracle's hint [B, T] that marks about half of them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (batch, length), generator=generator)
    return tokens, torch.rand(batch, length, generator=generator) < 0.5


def segments(tokens: Tensor, hint: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive pieces of the given sizes."""
    yield from zip(tokens.split(sizes, dim=1), hint.split(sizes, dim=1), strict=True)


@torch.no_grad()
def in_pieces(
    model: CausalLM, tokens: Tensor, hint: Tensor, sizes: list[int], mode: RoutingMode = SKIP
) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, T, V] and decisions [B, T, G] of a model that reads `tokens` piece by piece.

    What the caches hold beyond the tokens read is NaN, so that reading it would show.
    """
    state = model.init_state(*tokens.shape)
    for memory in state:
        if memory.cache is not None:
            memory.cache.k.fill_(float("nan"))
            memory.cache.v.fill_(float("nan"))
    outs = [model(t, mode=mode, state=state, hint=h) for t, h in segments(tokens, hint, sizes)]
    logits = torch.cat([out.logits for out in outs], dim=1)
    return logits, [torch.cat(parts, dim=1) for parts in zip(*(decisions(out) for out in outs), strict=True)]


def decisions(out: Output) -> list[Tensor]:
    """`taken` [B, T, G] of each routed layer."""
    return [route.taken for route in out.routes if route is not None]


def assert_same(have: Tensor, want: Tensor, *, terms: int, size: float = 0.0) -> None:
    """Two orders of summation of the same numbers: at most one rounding a term apart.

    |have − want| ≤ terms · eps · max(size, max |want|)            first-order error bound of a sum of `terms`

    `size` is that of the terms, where they may cancel to nothing.
    """
    assert have.shape == want.shape and have.dtype == want.dtype
    have, want = have.detach(), want.detach()
    limit = terms * torch.finfo(want.dtype).eps * max(size, float(want.abs().max())) if want.numel() else 0.0
    error = float((have - want).abs().max()) if want.numel() else 0.0
    # Written so that a NaN fails.
    assert error <= limit, f"differs by {error:.3g}, allowed {limit:.3g}"


def terms_of(config: ModelConfig, length: int = LENGTH) -> int:
    """Longest chain of sums in a model: every projection, norm, score, softmax, average and kernel of every layer."""
    hidden = int(config.width * config.mlp_ratio)
    return config.layers * (10 * config.width + hidden + 3 * length) + 2 * config.width


class FixedRouter(QueryRouter):
    """Returns the decision it was given, so that two executions can be compared at the same gates."""

    def __init__(self, taken: Tensor, weight: Tensor, gate: Tensor | None = None) -> None:
        super().__init__(RouterContext(width=1, groups=taken.shape[-1]))
        self.route = Route(gate=weight if gate is None else gate, weight=weight, taken=taken)

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: Any = None, hint: Tensor | None = None
    ) -> tuple[Route, Any]:
        route = self.route
        return Route(gate=route.gate, weight=route.weight * route.taken, taken=route.taken), state
