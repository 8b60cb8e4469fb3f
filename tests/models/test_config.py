"""Every field of the model's configuration changes what it computes, or is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from routing_laws import VOCAB, sequences, tiny
from turnout.errors import ConfigError
from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.routers.mode import RoutingMode

OTHER_MODEL: dict[str, Any] = {
    "layers": 3,
    "width": 24,
    "heads": 2,
    "kv_heads": 4,
    "layout": "RA",
    "local": "conv:kernel=5",
    "routing": RoutingConfig(router="mlp", noise="gumbel"),
    "pattern": "window:size=4",
    "positions": "rope",
    "form": "llama",
    "mlp_ratio": 3.0,
    "tie": True,
    "directions": "token:hidden=8",
    "output_gate": "head",
    "dropout": 0.5,
}
OTHER_ROUTING: dict[str, Any] = {
    "router": "mlp",
    "granularity": "group",
    "noise": "bernoulli",
    "gradient": "scaled",
    "temperature": 0.5,
    "max_logit": 0.1,
    "mix": "add",
}
BAD_MODEL: list[tuple[dict[str, Any], str]] = [
    ({"layers": 0}, r"layers=0; expected >= 1"),
    ({"width": 0}, r"width=0; expected >= 1"),
    ({"heads": 0}, r"heads=0; expected >= 1"),
    ({"heads": 3}, r"width=16, heads=3.*expected heads to divide width"),
    ({"kv_heads": 3}, r"heads=4, kv_heads=3; expected .*kv_heads to divide heads"),
    ({"kv_heads": 0}, r"kv_heads=0; expected .*kv_heads to divide heads"),
    ({"kv_heads": -2}, r"kv_heads=-2; expected"),
    ({"layout": "RX"}, r"layout='RX'; expected 1 or 2 letters of R .*A .*L"),
    ({"layout": "RRR"}, r"layout='RRR'; expected 1 or 2 letters"),
    ({"layout": ""}, r"layout=''; expected"),
    ({"pattern": "full/window/full"}, r"has 3 specs; expected 1 or 2, one a layer"),
    ({"pattern": "alibi", "layout": "L"}, r"a layer without attention \(layout LL\); write 'full' there"),
    ({"pattern": "alibi/alibi", "layout": "RL"}, r"a layer without attention \(layout RL\)"),
    ({"positions": "alibi"}, r"positions='alibi'; choose one of: none, rope"),
    ({"positions": "rope", "width": 12}, r"width/heads=3 is odd; rope needs an even head dim"),
    ({"form": "lama"}, r"form='lama'; did you mean 'llama'"),
    ({"output_gate": "heads"}, r"output_gate='heads'; did you mean 'head'"),
    ({"dropout": 1.0}, r"dropout=1.0; expected 0 <= dropout < 1"),
    ({"dropout": -0.1}, r"dropout=-0.1; expected 0 <= dropout < 1"),
    ({"mlp_ratio": 0.0}, r"mlp_ratio=0.0 .*expected >= "),
    ({"mlp_ratio": 0.05}, r"mlp_ratio=0.05 of width=16 leaves no hidden unit"),
    ({"mlp_ratio": float("nan")}, r"mlp_ratio=nan"),
]
BAD_ROUTING: list[tuple[dict[str, Any], str]] = [
    ({"granularity": "head"}, r"granularity='head'; choose one of: group, token"),
    ({"noise": "gumbl"}, r"gate noise 'gumbl'; did you mean 'gumbel'"),
    ({"mix": "ad"}, r"mix='ad'; did you mean 'add'"),
    ({"gradient": "scale"}, r"gate gradient 'scale'; did you mean 'scaled'"),
    ({"noise": "gumbel", "temperature": 0.0}, r"temperature=0.0; expected > 0"),
    ({"temperature": 0.5}, r"temperature=0.5 has no effect with noise='bernoulli'; use 'gumbel'"),
]
# Refused when the model is built: the config is read before torch is imported, the mechanisms after.
BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"local": "con:kernel=3"}, r"local track 'con'; did you mean 'conv'"),
    ({"local": "conv:kernl=3"}, r"no option 'kernl'; did you mean 'kernel'"),
    ({"local": "conv:kernel=0"}, r"kernel=0; expected >= 1"),
    ({"local": "conv:form=soft"}, r"form='soft'; did you mean 'softmax'"),
    ({"local": "window:size=0"}, r"size=0; expected >= 1"),
    ({"local": "window", "width": 12}, r"window: width=12, heads=4, rope=True; expected .*even head dim"),
    ({"pattern": "windw"}, r"unknown pattern 'windw'; did you mean 'window'"),
    ({"routing": RoutingConfig(router="liner")}, r"query router 'liner'; did you mean 'linear'"),
    ({"routing": RoutingConfig(router="linear:bais=1")}, r"no option 'bais'; did you mean 'bias'"),
]


def fingerprint(config: ModelConfig) -> list[torch.Tensor]:
    """What a model computes from one seed: logits in evaluation and with sampled gates, and one gradient."""
    model = CausalLM(config, vocab=VOCAB)
    tokens, hint = sequences()
    with torch.no_grad():
        plain = model.eval()(tokens, hint=hint).logits
    mode = RoutingMode(skip=False, sample=True, generator=torch.Generator().manual_seed(0))
    logits = model.train()(tokens, mode=mode, hint=hint).logits
    logits.square().mean().backward()
    assert model.embed.weight.grad is not None
    return [plain, logits.detach(), model.embed.weight.grad]


def differ(a: ModelConfig, b: ModelConfig) -> bool:
    """True if anything computed differs, exactly."""
    return any(x.shape != y.shape or not torch.equal(x, y) for x, y in zip(fingerprint(a), fingerprint(b), strict=True))


@pytest.mark.parametrize("name", [field.name for field in fields(ModelConfig)])
def test_every_field_of_the_model_config_changes_what_is_computed(name: str) -> None:
    assert name in OTHER_MODEL, f"say in OTHER_MODEL what {name} can be changed to"
    assert not differ(tiny(), tiny())
    assert differ(tiny(), replace(tiny(), **{name: OTHER_MODEL[name]}))


@pytest.mark.parametrize("name", [field.name for field in fields(RoutingConfig)])
def test_every_field_of_the_routing_config_changes_what_is_computed(name: str) -> None:
    assert name in OTHER_ROUTING, f"say in OTHER_ROUTING what {name} can be changed to"
    routing = RoutingConfig(noise="gumbel")
    other = replace(routing, **{name: OTHER_ROUTING[name]})
    assert differ(replace(tiny(), routing=routing), replace(tiny(), routing=other))


@pytest.mark.parametrize(("wrong", "message"), BAD_MODEL)
def test_an_impossible_model_is_refused_with_what_was_given_and_expected(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**{"kv_heads": None, **wrong})


@pytest.mark.parametrize(("wrong", "message"), BAD_ROUTING)
def test_impossible_routing_is_refused_before_anything_is_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RoutingConfig(**wrong)


@pytest.mark.parametrize(("wrong", "message"), BAD_SPECS)
def test_unknown_mechanisms_and_options_are_refused_by_name_when_the_model_is_built(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        CausalLM(tiny(**{"kv_heads": None, **wrong}), vocab=VOCAB)


def test_one_layout_letter_stands_for_all_layers() -> None:
    assert tiny(layers=3, layout="A").layer_kinds == "AAA"
    assert tiny(layers=3, layout="LAR").layer_kinds == "LAR"


def test_one_pattern_stands_for_all_layers_and_branches_are_no_layers() -> None:
    assert tiny(layers=2, pattern="alibi").layer_patterns == ("alibi", "alibi")
    specs = ("dilated:branches=(4/1+8/2)", "head_mixture:parts=(2 full;2 dilated:branches=(4/1+8/2))")
    assert tiny(layers=2, pattern=" / ".join(specs)).layer_patterns == specs


def test_routing_groups_are_the_key_value_heads_or_one() -> None:
    assert tiny().routing_groups == 1
    assert tiny(granularity="group").routing_groups == 2
    assert tiny(granularity="group", kv_heads=None).routing_groups == 4


def test_the_config_is_read_without_importing_torch() -> None:
    code = "import sys, turnout.models.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
