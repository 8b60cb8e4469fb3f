"""Interventions do what they say to what they name, and the controls remove as much."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from routing_laws import assert_same, sequences, terms_of
from turnout.errors import ConfigError
from turnout.models import CausalLM
from turnout.probe.edits import Unit, edits_of, loss_under, mean_values, names_of, parse_unit
from turnout.probe.taps import Taps

from .test_taps import directed, gpt2

TOKENS, _ = sequences()


@pytest.fixture
def taps() -> Taps:
    return Taps(directed())


def test_units_are_read_as_they_are_written() -> None:
    for text in ("r", "r:3", "head:3.5", "attn:0", "mlp:1", "layer:2"):
        assert str(parse_unit(text)) == text
    assert parse_unit("head:3.5") == Unit("head", 3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heads:1", "unknown part 'heads'; did you mean 'head'"),
        ("head:1", "expected head:LAYER.HEAD"),
        ("head", "expected head:LAYER.HEAD"),
        ("mlp:x", "expected mlp or mlp:LAYER"),
        ("r:1.2", "expected r or r:LAYER"),
        ("mlp:", "expected mlp or mlp:LAYER"),
    ],
)
def test_what_is_no_unit_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_unit(text)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (Unit("bogus", 0), "unknown part 'bogus'"),
        (Unit("r", 2), r"layer 2 does not exist; this model has layers 0\.\.1"),
        (Unit("head", 0, 4), r"head 4 does not exist; every layer of this model has heads 0\.\.3"),
    ],
)
def test_a_missing_layer_or_head_is_refused(taps: Taps, unit: Unit, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names_of(taps, unit)


def test_a_model_without_directions_has_no_r() -> None:
    with pytest.raises(ConfigError, match=r"'r': no directions .* there"):
        names_of(Taps(directed(directions="none")), Unit("r"))


@pytest.mark.parametrize("action", ["zero", "constant", "mean", "swap", "random"])
@pytest.mark.parametrize("unit", [Unit("r"), Unit("r", 1), Unit("head", 1, 2)], ids=str)
def test_every_intervention_changes_the_outcome(taps: Taps, unit: Unit, action: str) -> None:
    plain = taps.run(TOKENS).logits
    means = mean_values(taps, [TOKENS], names_of(taps, unit))
    edits = edits_of(taps, unit, action, means=means)
    assert not torch.equal(taps.run(TOKENS, edits=edits).logits, plain)


@pytest.mark.parametrize("unit", [Unit("attn", 0), Unit("mlp", 1), Unit("layer", 1), Unit("layer")], ids=str)
def test_zeroed_parts_add_nothing_to_the_stream(taps: Taps, unit: Unit) -> None:
    names = [f"blocks.{i}.hook_resid_{side}" for i in (0, 1) for side in ("pre", "mid", "post")]
    seen = taps.run(TOKENS, keep=names, edits=edits_of(taps, unit, "zero"))
    for i in (0, 1) if unit.layer is None else (unit.layer,):
        pre, mid, post = (seen[f"blocks.{i}.hook_resid_{side}"] for side in ("pre", "mid", "post"))
        assert torch.equal(pre, mid) is (unit.kind in ("attn", "layer"))
        assert torch.equal(mid, post) is (unit.kind in ("mlp", "layer"))


def test_swapping_takes_the_value_of_another_sequence_and_the_mean_is_the_same_for_all(taps: Taps) -> None:
    name = "blocks.1.attn.hook_r"
    plain = taps.run(TOKENS, keep=[name])[name]
    swapped = taps.run(TOKENS, keep=[name], edits=edits_of(taps, Unit("r", 1), "swap"))[name]
    assert torch.equal(swapped, plain.roll(1, 0))
    means = mean_values(taps, [TOKENS[:2], TOKENS[2:]], [name])
    assert_same(means[name], plain.mean((0, 1)), terms=TOKENS.numel())
    averaged = taps.run(TOKENS, keep=[name], edits=edits_of(taps, Unit("r", 1), "mean", means=means))[name]
    assert torch.equal(averaged, means[name].expand_as(plain))


def test_the_mean_of_static_routing_changes_nothing() -> None:
    taps = Taps(directed(directions="static:k=2"))
    means = mean_values(taps, [TOKENS], names_of(taps, Unit("r")))
    plain = taps.run(TOKENS).logits
    edited = taps.run(TOKENS, edits=edits_of(taps, Unit("r"), "mean", means=means)).logits
    model: Any = taps.anatomy.model
    assert_same(edited, plain, terms=terms_of(model.config))


def test_a_mean_that_is_not_known_and_an_unknown_action_are_refused(taps: Taps) -> None:
    with pytest.raises(ConfigError, match="the mean of r is not known; pass means="):
        edits_of(taps, Unit("r"), "mean")
    with pytest.raises(ConfigError, match="did you mean 'zero'"):
        edits_of(taps, Unit("r"), "zeroo")
    with pytest.raises(ConfigError, match="'random' is for r and heads"):
        edits_of(taps, Unit("mlp", 0), "random")


def test_the_control_of_a_head_removes_as_many_dimensions_of_all_heads_together(taps: Taps) -> None:
    name = "blocks.0.attn.hook_z"
    plain = taps.run(TOKENS, keep=[name])[name].flatten(-2).flatten(0, 1)
    edited = taps.run(TOKENS, keep=[name], edits=edits_of(taps, Unit("head", 0, 1), "random"))[name]
    assert torch.linalg.matrix_rank(plain) == 16
    assert torch.linalg.matrix_rank(edited.flatten(-2).flatten(0, 1)) == 12


def test_the_loss_without_edits_is_the_models_own_and_hugging_face_models_have_one_too() -> None:
    batch = (TOKENS[:, :-1], TOKENS[:, 1:])
    for model in (directed(), gpt2()):
        taps = Taps(model)
        loss, each = loss_under(taps, [batch])
        logits = taps.run(batch[0]).logits.float()
        want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
        assert len(each) == 3 and loss == pytest.approx(float(want))
        knocked, _ = loss_under(taps, [batch], edits_of(taps, Unit("head", 1, 0), "zero"))
        assert knocked != loss


def test_models_are_left_as_they_were(taps: Taps) -> None:
    model = taps.anatomy.model
    assert isinstance(model, CausalLM)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    taps.run(TOKENS, edits=edits_of(taps, Unit("r"), "random"))
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
