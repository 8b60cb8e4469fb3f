"""Query routing inside heads: decided by tokens it is the same in pieces, and it needs a router that learns nothing."""

from __future__ import annotations

import pytest
import torch

from routing_laws import assert_same, awake, in_pieces, sequences, terms_of, tiny
from turnout.errors import ConfigError
from turnout.models import CausalLM
from turnout.probe.causality import certify

BLOOM = "routed:router=(bloom:ngram=1),size=1,sinks=0"


def test_rows_that_repeat_a_token_read_everything_and_the_others_themselves() -> None:
    model, full, own = (awake(tiny(layout="A", pattern=p, layers=1)) for p in (BLOOM, "full", "window:size=1"))
    tokens = torch.tensor([[3, 4, 5, 3, 6, 5]])
    have, far, near = (m(tokens).logits[0] for m in (model, full, own))
    again = torch.tensor([False, False, False, True, False, True])
    assert_same(have, torch.where(again[:, None], far, near), terms=terms_of(model.config), size=1.0)
    assert not torch.allclose(far[3], near[3])


@pytest.mark.parametrize("layout", ["A", "R"])
def test_tokens_that_are_remembered_decide_as_whole_sequences_do(layout: str) -> None:
    model = awake(tiny(layout=layout, pattern=BLOOM))
    tokens, hint = sequences()
    have, _ = in_pieces(model, tokens, hint, [5, 1, 7])
    assert_same(have, model(tokens, hint=hint).logits.detach(), terms=terms_of(model.config), size=1.0)
    assert certify(model, length=23, positions=4).causal


@pytest.mark.parametrize("router", ["linear", "oracle", "expert_choice"])
def test_a_router_that_learns_asks_or_looks_ahead_is_refused(router: str) -> None:
    with pytest.raises(ConfigError, match="learns, asks the task or sees the future"):
        CausalLM(tiny(pattern=f"routed:router={router}"), vocab=8)


def test_a_window_of_the_whole_sequence_is_no_routing() -> None:
    with pytest.raises(ConfigError, match="covers the whole sequence of 8 tokens"):
        CausalLM(tiny(pattern="routed:size=6,sinks=2"), vocab=8).check_length(8)
