"""Nearest centroids leave a text's own share out; routing is compared with what needs no routing."""

from __future__ import annotations

import pytest
import torch

from routing_laws import VOCAB
from turnout.errors import ConfigError, ShapeError
from turnout.probe.domains import bag_of_tokens, classify, leave_one_out, regimes, text_features
from turnout.probe.taps import Taps

from .conftest import RandomText
from .test_taps import directed


def brute(x: torch.Tensor, y: torch.Tensor) -> float:
    hits = 0
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        means = [x[others & (y == c)].mean(0) for c in range(int(y.max()) + 1)]
        hits += int(torch.stack([(x[i] - m).norm() for m in means]).argmin() == y[i])
    return hits / len(x)


@pytest.mark.parametrize("seed", range(5))
def test_leaving_one_out_is_what_leaving_one_out_by_hand_gives(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (20,), generator=generator)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64) + y[:, None] / 2
    assert leave_one_out(x, y) == brute(x, y)


def test_texts_of_their_own_domain_alone_and_other_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"domains of \[1, 2\] texts"):
        leave_one_out(torch.randn(3, 2), torch.tensor([0, 1, 1]))
    with pytest.raises(ShapeError, match="3 texts and 2 labels"):
        leave_one_out(torch.randn(3, 2), torch.tensor([0, 1]))


def test_features_come_with_their_baselines_and_chance() -> None:
    taps = Taps(directed())
    task = RandomText(vocab=VOCAB, length=12)
    batches = [(b.tokens, b.slices["domain"][:, 0]) for b in task.eval_batches(2, 10)]
    features = text_features(taps, batches, VOCAB)
    assert features["r"].shape == (20, 2, 4, 2)
    found = classify(features)
    assert found["chance"] == 0.5 and {"r", "bag of tokens", "embedding", "residual", "r, layer 1"} <= found.keys()
    # Half of the symbols never occur in the second domain: words alone tell the domains apart.
    assert found["bag of tokens"] > 0.8
    assert "r" not in text_features(Taps(directed(directions="none")), batches, VOCAB)


def test_a_bag_counts_tokens() -> None:
    assert bag_of_tokens(torch.tensor([[0, 2, 2, 2]]), 3).tolist() == [[0.25, 0.0, 0.75]]


def test_regimes_find_the_layer_that_varies_and_the_heads_that_specialise() -> None:
    r = torch.full((6, 2, 3, 2), 0.5, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    r[labels == 1, 1, 2] = 0.8
    first, second = regimes(r, labels)
    assert first["variance"] == 0.0 and first["specialists"] == 0
    assert second["specialists"] == 1 and second["variance"] == pytest.approx(0.15**2 / 3)
