"""Directions against random ones, what they write, and steering along them."""

from __future__ import annotations

import math

import pytest
import torch

from routing_laws import VOCAB, sequences
from turnout.errors import ConfigError
from turnout.models import CausalLM
from turnout.probe.geometry import (
    class_probability,
    class_share,
    cosines,
    directions_of,
    random_cosines,
    steer,
    token_classes,
    vocabulary_projection,
)
from turnout.probe.taps import Taps

from .test_taps import directed

TOKENS, _ = sequences()


def test_orthogonal_directions_have_cosine_zero_and_equal_ones_one() -> None:
    basis = torch.eye(8).view(2, 2, 2, 8)
    found = cosines(basis)
    assert found["layers_max"] == found["heads_abs"] == found["own_abs"] == 0.0
    same = cosines(torch.ones(2, 2, 2, 4) / 2)
    assert all(same[name] == pytest.approx(1.0) for name in ("layers_mean", "heads_abs", "own_abs"))


def test_random_directions_of_a_shape_are_as_orthogonal_as_their_dimension_says() -> None:
    low, high = random_cosines((12, 12, 4, 128))["layers_std"]
    # Flattened to 6,144 dimensions: std 1 / sqrt(6144); 132 cosines estimate it to about 6 %.
    assert low < 1 / math.sqrt(6144) < high and high - low < 0.5 / math.sqrt(6144)


def test_an_untrained_models_directions_lie_like_random_ones() -> None:
    taps = Taps(directed(layers=3))
    directions = directions_of(taps)
    assert directions.shape == (3, 4, 2, 4)
    null = random_cosines(tuple(directions.shape), draws=200)
    assert all(null[name][0] <= value <= null[name][1] for name, value in cosines(directions).items())


def test_a_model_without_directions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no directions \(model\.directions is none\)"):
        directions_of(Taps(directed(directions="none")))


def test_the_projection_is_the_heads_share_of_wo_and_the_unembedding() -> None:
    taps = Taps(directed())
    model = taps.anatomy.model
    assert isinstance(model, CausalLM)
    directions = directions_of(taps)[1]
    found = vocabulary_projection(taps, 1, directions)
    o = torch.zeros(16, dtype=torch.float64)
    o[4:8] = directions[1, 0]
    want = model.head.weight @ (model.norm.weight * (model.blocks[1].mixer.attention.out.weight @ o))
    assert torch.allclose(found[1, 0], want.detach(), rtol=1e-12)
    with pytest.raises(ConfigError, match="layer 5 does not exist"):
        vocabulary_projection(taps, 5, directions)


def test_the_share_of_a_class_counts_the_better_sign() -> None:
    scores = torch.tensor([[[3.0, 2.0, 0.0, -4.0, -5.0]]])
    members = torch.tensor([False, False, False, True, True])
    assert class_share(scores, members, top=2).tolist() == [[1.0]]


def test_steering_moves_the_class_and_holding_r_where_it_is_does_not() -> None:
    taps = Taps(directed(directions="static:k=2"))
    members = torch.arange(VOCAB) < 4
    plain = class_probability(taps, [TOKENS], members)
    every = [(layer, head, k) for layer in range(2) for head in range(4) for k in range(2)]
    router = taps.anatomy.model.blocks[0].mixer.attention.directions
    for block in taps.anatomy.model.blocks:
        block.mixer.attention.directions.load_state_dict(
            {**block.mixer.attention.directions.state_dict(), "logit": torch.zeros(4, 2)}
        )
    half = class_probability(taps, [TOKENS], members)
    assert steer(taps, [TOKENS], members, every, value=0.5) == pytest.approx(half, rel=1e-12)
    assert steer(taps, [TOKENS], members, every, value=1.0) != pytest.approx(half, rel=1e-6)
    assert router.k == 2 and 0 < plain < 1
    with pytest.raises(ConfigError, match="head 9 does not exist"):
        steer(taps, [TOKENS], members, [(0, 9, 0)])


def test_tokens_are_classed_by_their_text() -> None:
    words = [" the", " ", "\\n", ".", "7", "Ab", "ab", "<doc>"]
    found = {name: mask.nonzero()[:, 0].tolist() for name, mask in token_classes(words.__getitem__, 8).items()}
    assert found == {"space": [1, 2], "punctuation": [3], "number": [4], "capital": [5], "article": [0]}
