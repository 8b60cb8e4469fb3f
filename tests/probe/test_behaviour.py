"""Induction counts copied tokens, facts multiply the probabilities of an answer's tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from routing_laws import VOCAB
from turnout.errors import ConfigError, DataError
from turnout.models import CausalLM
from turnout.probe.behaviour import FACTS, facts, induction, induction_heads, repeated_tokens
from turnout.probe.taps import Taps

from .test_taps import directed


class Copier(CausalLM):
    """Answers what stood `period` tokens before the next one."""

    period = 4

    def forward(self, tokens: Tensor, **options: object) -> object:  # type: ignore[override]
        out = super().forward(tokens)
        wanted = tokens.roll(self.period - 1, 1)
        out.logits = nn.functional.one_hot(wanted, self.vocab).double()
        return out


def test_a_repeated_text_is_the_same_twice_behind_its_start() -> None:
    tokens = repeated_tokens(range(3, 9), length=5, sequences=7, start=1)
    assert tokens.shape == (7, 11) and bool((tokens[:, 0] == 1).all())
    assert torch.equal(tokens[:, 1:6], tokens[:, 6:]) and set(tokens[:, 1:].unique().tolist()) <= set(range(3, 9))


def test_a_copier_has_all_of_it_right_and_an_untrained_model_about_nothing() -> None:
    plain = directed(directions="none")
    copier = Copier(plain.config, vocab=VOCAB).double().eval()
    tokens = repeated_tokens(range(VOCAB), length=4, sequences=200)
    assert induction(Taps(copier), tokens) == 1.0
    chance = induction(Taps(plain), tokens)
    # 600 guesses among 23: six standard deviations above chance.
    assert chance < 1 / VOCAB + 6 * math.sqrt(1 / VOCAB / 600)


def test_the_heads_that_look_back_are_named() -> None:
    assert len(set(induction_heads(Taps(directed()), repeated_tokens(range(VOCAB), length=4, sequences=3), 3))) == 3


def test_facts_give_the_product_over_an_answers_tokens_and_the_rank_of_the_first() -> None:
    taps = Taps(directed())
    ids = {"p": [1, 2, 3], "a": [4, 5]}
    (row,) = facts(taps, ids.__getitem__, prompts=[("p", "a")])
    logits = taps.run(torch.tensor([[1, 2, 3, 4]])).logits[0].log_softmax(-1)
    assert row["p"] == pytest.approx(float((logits[2, 4] + logits[3, 5]).exp()))
    assert row["rank"] == 1 + int((logits[2] > logits[2, 4]).sum())
    assert len(FACTS) == 8 and all(answer.startswith(" ") for _, answer in FACTS)


def test_empty_facts_and_impossible_repeats_are_refused() -> None:
    with pytest.raises(DataError, match="'p' -> 'a' has no tokens"):
        facts(Taps(directed()), lambda text: [], prompts=[("p", "a")])
    with pytest.raises(ConfigError, match="expected length >= 2"):
        repeated_tokens([1, 2], length=1)
