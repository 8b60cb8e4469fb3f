"""Configuration of a causal language model; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from turnout.errors import ConfigError, nearest
from turnout.routers.gate_options import MIXES, OUTPUT_GATES, check_gate_options

GRANULARITIES = ("token", "group")
POSITIONS = ("none", "rope")
FORMS = ("gpt", "llama")
LAYOUT_LETTERS = "RAL"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingConfig:
    """Who attends.

    Args:
        router: spec of the query router, "linear", "random:p=0.01", ... (`turnout list routers`).
        granularity: one decision per "token", or per token and kv head ("group").
        noise: gate noise in training: "none", "bernoulli" or "gumbel".
        gradient: estimator of the gate's gradient: "straight_through" or "scaled".
        temperature: of the gumbel surrogate, > 0.
        max_logit: largest gate logit, > 0, so that an open gate can always be closed again; None = no limit.
        mix: what an open gate does: attention may "replace" the local track (published) or "add" to it.
    """

    router: str = "linear"
    granularity: str = "token"
    noise: str = "bernoulli"
    gradient: str = "straight_through"
    temperature: float = 1.0
    max_logit: float | None = None
    mix: str = "replace"

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise ConfigError(f"mix={self.mix!r}{nearest(self.mix, MIXES)}")
        check_gate_options(self.noise, self.gradient, self.temperature, self.max_logit)
        if self.granularity not in GRANULARITIES:
            raise ConfigError(f"granularity={self.granularity!r}{nearest(self.granularity, GRANULARITIES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A stack of blocks x + Mixer(norm(x)), x + MLP(norm(x)).

    Args:
        layers: blocks L >= 1.
        width: model dimension E.
        heads: query heads; kv_heads: key/value heads (None = heads).
        layout: one letter a layer, or one letter for all: R routed, A attention only, L local only. "LALL" is the
            static hybrid in which the second of four layers attends.
        local: spec of the local track, "conv:kernel=16,form=signed", "window:size=64", ...
        routing: who attends in the R layers.
        positions: "none" (position comes from the local track and the causal mask) or "rope".
        form: "gpt" (LayerNorm, GELU, biases, PyTorch's default initialisation: the published model) or "llama"
            (RMSNorm, SwiGLU, no biases, N(0, 0.02)).
        mlp_ratio: hidden width of the MLP over E, >= 1/E.
        tie: share the embedding with the head.
        directions: spec of the direction router of every attention track, "prefix", "static:k=2", ...; "none" removes
            nothing (`turnout list directions`).
        output_gate: sigmoid gate between attention and Wo: "none", "head" or "element".
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int | None = None
    layout: str = "R"
    local: str = "conv:kernel=16"
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    positions: str = "none"
    form: str = "gpt"
    mlp_ratio: float = 4.0
    tie: bool = False
    directions: str = "none"
    output_gate: str = "none"

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)}; expected >= 1")
        n_kv = self.n_kv_heads
        if self.width % self.heads or n_kv < 1 or self.heads % n_kv:
            raise ConfigError(
                f"model.width={self.width}, heads={self.heads}, kv_heads={n_kv}; "
                "expected heads to divide width and kv_heads to divide heads"
            )
        if self.positions not in POSITIONS:
            raise ConfigError(f"model.positions={self.positions!r}{nearest(self.positions, POSITIONS)}")
        if self.positions == "rope" and (self.width // self.heads) % 2:
            raise ConfigError(f"model.width/heads={self.width // self.heads} is odd; rope needs an even head dim")
        if self.output_gate not in OUTPUT_GATES:
            raise ConfigError(f"model.output_gate={self.output_gate!r}{nearest(self.output_gate, OUTPUT_GATES)}")
        if self.form not in FORMS:
            raise ConfigError(f"model.form={self.form!r}{nearest(self.form, FORMS)}")
        if not self.mlp_ratio * self.width >= 1:
            raise ConfigError(
                f"model.mlp_ratio={self.mlp_ratio} of width={self.width} leaves no hidden unit; "
                f"expected >= 1/width = {1 / self.width:.3g}"
            )
        if len(self.layout) not in (1, self.layers) or set(self.layout) - set(LAYOUT_LETTERS):
            raise ConfigError(
                f"model.layout={self.layout!r}; expected 1 or {self.layers} letters of "
                "R (routed), A (attention), L (local)"
            )

    @property
    def layer_kinds(self) -> str:
        """One letter a layer."""
        return self.layout * self.layers if len(self.layout) == 1 else self.layout

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def routing_groups(self) -> int:
        """Decisions per token and layer."""
        return self.n_kv_heads if self.routing.granularity == "group" else 1
