"""The output gate: the published product, the same for rows and for whole sequences, causal."""

from __future__ import annotations

import pytest
import torch

from routing_laws import LENGTH, assert_same, awake, in_pieces, sequences, terms_of, tiny
from turnout.errors import ConfigError
from turnout.layers.gate import OutputGate
from turnout.probe.causality import certify

FORMS = ("head", "element")


@pytest.mark.parametrize("form", FORMS)
def test_the_gate_scales_heads_or_elements_by_a_sigmoid_of_the_input(form: str) -> None:
    gate = OutputGate(6, 2, form=form, bias=True).double()
    o, x = torch.randn(2, 5, 2, 3, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    factor = 1 / (1 + torch.exp(-(x @ gate.proj.weight.T + gate.proj.bias)))
    want = o * (factor[..., None] if form == "head" else factor.view(2, 5, 2, 3))
    assert_same(gate(o, x), want, terms=8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["A", "R"])
def test_a_gated_model_is_causal_and_steps_are_the_whole(form: str, layout: str) -> None:
    model = awake(tiny(layout=layout, output_gate=form, routing=tiny(granularity="group").routing))
    tokens, hint = sequences()
    with torch.no_grad():
        whole = model(tokens, hint=hint).logits
    logits, _ = in_pieces(model, tokens, hint, [3, 1, LENGTH - 4])
    assert_same(logits, whole, terms=terms_of(model.config))
    assert certify(model, length=15, positions=3).causal


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        OutputGate(4, 2, form="heads", bias=False)
