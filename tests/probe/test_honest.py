"""Prefix-honest scoring is the teacher-forced one for a causal model, and finds what a leak is worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from routing_laws import VOCAB, assert_same, awake, sequences, terms_of, tiny
from turnout.errors import ConfigError, ShapeError
from turnout.models import CausalLM
from turnout.probe.anatomy import Anatomy
from turnout.probe.honest import honest_perplexity, position_losses, scored_positions
from turnout.tasks import RecallConfig

from .conftest import RandomText

LENGTH = 12


def model_of(directions: str) -> CausalLM:
    model = awake(tiny(layout="A", positions="rope", directions=directions))
    for name, p in model.named_parameters():
        if ".directions.net" in name:
            p.data *= 4
    return model


@pytest.mark.parametrize("directions", ["none", "prefix:hidden=8", "token:hidden=8", "static"])
def test_a_causal_model_scores_the_same_both_ways(directions: str) -> None:
    model = model_of(directions)
    tokens, _ = sequences(3, LENGTH + 1)
    places = list(range(LENGTH))
    pair = [
        position_losses(Anatomy(model), tokens[:, :-1], tokens[:, 1:], places, honest=honest)
        for honest in (False, True)
    ]
    # The loss is computed from float32 logits.
    assert_same(pair[1].float(), pair[0].float(), terms=terms_of(model.config))


def test_a_leak_shows_in_the_gap_but_not_at_the_last_position() -> None:
    found = honest_perplexity(model_of("sequence:hidden=8,leak=true"), RandomText(vocab=VOCAB, length=LENGTH))
    assert abs(found["gap"]) > 1e-4
    assert found["n"] == 64 * LENGTH and found["positions"] == list(range(LENGTH))
    model = model_of("sequence:hidden=8,leak=true")
    tokens, _ = sequences(3, LENGTH + 1)
    forced, honest = (
        position_losses(Anatomy(model), tokens[:, :-1], tokens[:, 1:], [0, LENGTH - 1], honest=h) for h in (False, True)
    )
    assert torch.equal(forced[:, 1], honest[:, 1]) and not torch.equal(forced[:, 0], honest[:, 0])


def test_domains_and_lengths_add_up_to_the_whole() -> None:
    found = honest_perplexity(model_of("none"), RandomText(vocab=VOCAB, length=LENGTH), sequences=8, batch=4)
    assert [row["domain"] for row in found["by_domain"]] == ["books", "code"]
    assert sum(row["n"] for row in found["by_domain"]) == found["n"]
    mean = sum(row["n"] * row["honest"] for row in found["by_domain"]) / found["n"]
    assert mean == pytest.approx(found["honest"])
    assert [(row["from"], row["to"]) for row in found["by_length"]] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]
    one = honest_perplexity(model_of("none"), RandomText(vocab=VOCAB, length=LENGTH, domains=False), sequences=4)
    assert one["by_domain"] == []


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    model = model_of("none").train()
    honest_perplexity(model, RandomText(vocab=VOCAB, length=4), sequences=2, positions=2)
    assert model.training


@pytest.mark.parametrize(
    ("length", "count", "want"),
    [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (9, 1, [8]), (2, 2, [0, 1])],
)
def test_scored_positions_span_the_sequence(length: int, count: int, want: list[int]) -> None:
    assert scored_positions(length, count) == want


@pytest.mark.parametrize("options", [{"positions": 0}, {"sequences": 0}, {"batch": 0}])
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"=0.*expected >= 1"):
        honest_perplexity(model_of("none"), RandomText(vocab=VOCAB, length=4), **options)


def test_a_task_with_one_target_a_sequence_is_refused() -> None:
    task = RecallConfig(length=8).build(0)
    model = CausalLM(tiny(), vocab=task.vocab)
    with pytest.raises(ConfigError, match="'recall' has targets at some positions only"):
        honest_perplexity(model, task, sequences=2)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    anatomy = Anatomy(model_of("none"), context=4)
    with pytest.raises(ShapeError, match="prompt of 5 tokens; the context is 4"):
        anatomy.logits(torch.zeros(1, 5, dtype=torch.int64))
