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


def split_layers(text: str) -> tuple[str, ...]:
    """The specs of a pattern, at every "/" that is outside parentheses and not between two digits (a branch, 64/1)."""
    specs, depth = [""], 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "/" and depth == 0 and not (text[i - 1 : i].isdigit() and text[i + 1 : i + 2].isdigit()):
            specs.append("")
        else:
            specs[-1] += char
    return tuple(spec.strip() for spec in specs)


def hybrid_layout(layers: int, usage: float) -> str:
    """The static hybrid of a usage: round(usage · layers) attention layers, at least one, spread evenly."""
    count = max(1, round(usage * layers))
    attending = {round((i + 0.5) * layers / count - 0.5) for i in range(count)}
    return "".join("A" if i in attending else "L" for i in range(layers))


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
        pattern: how far attention reads in the R and A layers: a spec ("window:size=64", "alibi", `turnout list
            patterns`), or one a layer joined by "/" ("full/window:size=64").
        positions: "none" (position comes from the local track and the causal mask) or "rope".
        form: "gpt" (LayerNorm, GELU, biases, PyTorch's default initialisation: the published model) or "llama"
            (RMSNorm, SwiGLU, no biases, N(0, 0.02)).
        mlp_ratio: hidden width of the MLP over E, >= 1/E.
        tie: share the embedding with the head.
        directions: spec of the direction router of every attention track, "prefix", "static:k=2", ...; "none" removes
            nothing (`turnout list directions`).
        output_gate: sigmoid gate between attention and Wo: "none", "head" or "element".
        dropout: share of each mixer's and MLP's output that training sets to 0 before it joins the stream, in [0, 1).
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int | None = None
    layout: str = "R"
    local: str = "conv:kernel=16"
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    pattern: str = "full"
    positions: str = "none"
    form: str = "gpt"
    mlp_ratio: float = 4.0
    tie: bool = False
    directions: str = "none"
    output_gate: str = "none"
    dropout: float = 0.0

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
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout}; expected 0 <= dropout < 1")
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

        if len(split_layers(self.pattern)) not in (1, self.layers):
            raise ConfigError(
                f"model.pattern={self.pattern!r} has {len(split_layers(self.pattern))} specs; expected 1 or "
                f"{self.layers}, one a layer, joined by '/'"
            )
        specs = split_layers(self.pattern)
        if specs != ("full",) and any(
            kind == "L" and (len(specs) > 1 or set(self.layer_kinds) == {"L"}) and spec != "full"
            for kind, spec in zip(self.layer_kinds, self.layer_patterns, strict=True)
        ):
            raise ConfigError(
                f"model.pattern={self.pattern!r} names a pattern for a layer without attention (layout "
                f"{self.layer_kinds}); write 'full' there"
            )

    @property
    def layer_patterns(self) -> tuple[str, ...]:
        """One pattern spec a layer."""
        specs = split_layers(self.pattern)
        return specs * self.layers if len(specs) == 1 else specs

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
