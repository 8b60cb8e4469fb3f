"""One block, built from a config: norm, mixer, norm, MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.layers import AttentionMixer, LocalMixer, MixerState, RoutedMixer
from turnout.layers.attention import AttentionTrack
from turnout.layers.local import LOCAL_TRACKS
from turnout.models.config import ModelConfig
from turnout.ops.few_rows import few_rows
from turnout.ops.one_pass import one_pass
from turnout.ops.untouched import plain
from turnout.routers.direction import DirectionContext, build_directions
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern import PATTERNS, Pattern, PatternContext
from turnout.routers.query import QUERY_ROUTERS, Gating, Route, RouterContext
from turnout.spec import Spec, parse_spec

Mixer = AttentionMixer | LocalMixer | RoutedMixer


class MLP(nn.Module):
    """GELU: W2 gelu(W1 x).  SwiGLU: W2 (silu(W1 x) * W3 x) (Shazeer 2020), hidden width 2/3 of the GELU's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.gated = config.form == "llama"
        bias = not self.gated
        if self.gated:
            hidden = max(8, round(hidden * 2 / 3 / 8) * 8)
        self.up = nn.Linear(config.width, hidden * (2 if self.gated else 1), bias=bias)
        self.down = nn.Linear(hidden, config.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.gated:
            if one_pass(h) and h.is_contiguous():
                from turnout.ops.inference_kernels import swiglu_forward

                h = swiglu_forward(h)
            else:
                gate, value = h.chunk(2, dim=-1)
                h = nn.functional.silu(gate) * value
            return few_rows(h, self.down.weight)[0] if plain(self.down) else self.down(h)
        return self.down(nn.functional.gelu(h))

    def flops(self, length: int) -> float:
        """Forward multiply-adds × 2 of one sequence."""
        return 2.0 * length * (self.up.weight.numel() + self.down.weight.numel())


def build_norm(config: ModelConfig) -> nn.Module:
    """The norm of a config's form."""
    return nn.RMSNorm(config.width, eps=1e-6) if config.form == "llama" else nn.LayerNorm(config.width)


def build_mixer(config: ModelConfig, layer: int, seed: int) -> Mixer:
    """The mixer of one layer, by its letter in the layout."""
    kind = config.layer_kinds[layer]
    bias = config.form == "gpt"

    def attention() -> AttentionTrack:
        rope = config.positions == "rope"
        head_dim = config.width // config.heads
        place = DirectionContext(width=config.width, heads=config.heads, head_dim=head_dim, layer=layer, seed=seed)
        return AttentionTrack(
            config.width, config.heads, config.n_kv_heads, rope=rope, bias=bias,
            pattern=build_pattern(config, layer), directions=build_directions(config.directions, place),
            gate=config.output_gate,
        )  # fmt: skip

    if kind == "A":
        return AttentionMixer(attention())
    local = LOCAL_TRACKS.build(_local_spec(config.local, bias), width=config.width, heads=config.heads)
    if kind == "L":
        return LocalMixer(local)
    routing = config.routing
    gating = Gating(
        noise=routing.noise,
        gradient=routing.gradient,
        temperature=routing.temperature,
        max_logit=routing.max_logit,
    )
    context = RouterContext(
        width=config.width, groups=config.routing_groups, layer=layer, layers=config.layers, seed=seed, gating=gating
    )
    router = QUERY_ROUTERS.build(routing.router, context=context)
    if not router.causal:
        raise ConfigError(
            f"router {routing.router!r} is not causal: its decision reads later tokens, which leaks the future into a "
            f"causal model; use its causal variant {router.causal_variant!r}"
        )
    return RoutedMixer(router, local, attention(), mix=routing.mix)


def build_pattern(config: ModelConfig, layer: int) -> Pattern | None:
    """How far the attention of one layer reads; None is everything."""
    spec = config.layer_patterns[layer]
    if spec == "full":
        return None
    head_dim = config.width // config.heads
    context = PatternContext(width=config.width, heads=config.heads, kv_heads=config.n_kv_heads, head_dim=head_dim)
    pattern: Pattern = PATTERNS.build(spec, context=context)
    if not pattern.causal:
        raise ConfigError(
            f"pattern {spec!r} is not causal: what a row reads hangs on later tokens, which leaks the future into a "
            "causal model; choose from what is known at each row, as last_match, buckets, top_blocks and low_rank do"
        )
    return pattern


def _local_spec(text: str, bias: bool) -> Spec:
    """The local track as written; a form without biases takes them from it too, unless it says otherwise."""
    spec = parse_spec(text)
    if bias or "bias" in spec.options or "bias" not in LOCAL_TRACKS.options(spec.name):
        return spec
    return Spec(spec.name, {**spec.options, "bias": False})


def drop(y: Tensor, share: float, mode: RoutingMode) -> Tensor:
    """Inverted dropout (Srivastava et al. 2014): y · m / (1 - share), m ~ Bernoulli(1 - share); y without sampling.

    m comes from the generator of the gates, so that activation checkpointing and CUDA graphs repeat and renew it.
    """
    if not share or not mode.sample:
        return y
    return y * (mode.uniform(y.shape, y.device) >= share) * (1 / (1 - share))


class Block(nn.Module):
    """x = x + drop(Mixer(norm(x)));  x = x + drop(MLP(norm(x)))."""

    def __init__(self, config: ModelConfig, layer: int, seed: int) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = build_norm(config), build_norm(config)
        self.mixer = build_mixer(config, layer, seed)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> MixerState:
        return self.mixer.init_state(batch, max_len, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: MixerState | None = None, hint: Tensor | None = None
    ) -> tuple[Tensor, Route | None, MixerState | None]:
        y, route, state = self.mixer(self.mixer_norm(x), mode=mode, state=state, hint=hint, residual=x)
        x = x + drop(y, self.dropout, mode)
        return x + drop(self.mlp(self.mlp_norm(x)), self.dropout, mode), route, state

    def flops(self, length: int, usage: float) -> float:
        """Forward multiply-adds × 2 of one sequence, norms and nonlinearities left out."""
        return self.mixer.flops(length, usage) + self.mlp.flops(length)
