"""The attention that a selector's keys hold, where it can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turnout.errors import ConfigError
from turnout.models import CausalLM, ModelConfig
from turnout.probe.distance import tracks_of
from turnout.probe.recall import attention_recall, attention_weights, fit_index, keys_read, pattern_of
from turnout.routers.pattern.low_rank import LowRankPattern
from turnout.tasks import RecallConfig, Task

LENGTH = 32


def model(**changes: str) -> CausalLM:
    config = ModelConfig(layers=2, width=16, heads=4, kv_heads=2, layout="A", positions="rope", form="llama")
    return CausalLM(replace(config, **changes), vocab=task().vocab).eval()  # type: ignore[arg-type]


def task() -> Task:
    return RecallConfig(length=LENGTH).build(0)


def test_a_window_of_equal_weights_holds_its_share_and_nothing_holds_more() -> None:
    uniform = model()
    for _, track in tracks_of(uniform):
        track.q.weight.data.zero_()
    found = attention_recall(uniform, task(), patterns=["window:size=8"], near=4, sequences=2)["window:size=8"]
    rows = range(LENGTH // 2, LENGTH)
    share = sum(8 / (t + 1) for t in rows) / len(rows)
    far = sum(4 / (t + 1) for t in rows) / sum((t + 1 - 4) / (t + 1) for t in rows)
    for have, want in ((found.mass, share), (found.best, share), (found.far, far), (found.best_far, far)):
        assert have == pytest.approx([want, want])
    assert found.keys == [8.0, 8.0]


@pytest.mark.parametrize(
    "spec",
    ["top_blocks:block=4,keep=1", "random_blocks:block=4,keep=1", "last_match:size=4,ngram=1",
     "low_rank:block=4,keep=1", "buckets:size=4,keep=2,buckets=4"],
)  # fmt: skip
def test_no_choice_holds_more_than_the_best_of_as_many(spec: str) -> None:
    found = attention_recall(model(), task(), patterns=[spec], near=4, sequences=2)[spec]
    for have, most in ((found.mass, found.best), (found.far, found.best_far)):
        assert all(0 < a <= b * (1 + 1e-5) <= 1 + 2e-5 for a, b in zip(have, most, strict=True))
    assert all(1 < n < LENGTH for n in found.keys)


def test_the_keys_that_are_counted_are_those_that_are_read() -> None:
    dense, batch = model(), next(iter(task().eval_batches(1, 2)))
    _, track = tracks_of(dense)[0]
    x = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = keys_read(track, pattern_of(dense.config, "sinks:size=3,sinks=2", 0), x, batch)
    at = torch.arange(LENGTH)
    want = (at <= at[:, None]) & ((at > at[:, None] - 3) | (at < 2))
    assert torch.equal(seen, want.expand(2, 4, -1, -1))


def test_a_fitted_index_finds_the_block_that_attention_looks_at() -> None:
    """Every row attends to the one key whose input points the same way."""
    torch.manual_seed(0)
    x = torch.nn.functional.one_hot(torch.rand(4, 16).argsort(-1), 16).float().repeat(1, 2, 1)
    weight = torch.zeros(4, 1, LENGTH, LENGTH)
    same = torch.einsum("bte,bse->bts", x, x).bool() & (torch.arange(LENGTH) < torch.arange(LENGTH)[:, None])
    weight[:, 0] = same.float()
    pattern = pattern_of(model().config, "low_rank:block=4,keep=1,rank=8,shift=false", 0)
    assert isinstance(pattern, LowRankPattern)
    fit_index(pattern, x, weight)
    batch = next(iter(task().eval_batches(1, 4)))
    with torch.no_grad():
        seen = keys_read(tracks_of(model())[0][1], pattern, x, batch)
    found = (seen[:, :1] & same[:, None])[:, :, 20:].any(-1)
    assert float(found.float().mean()) > 0.9


def test_what_has_nothing_dense_to_look_at_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not dense"):
        attention_recall(model(pattern="window:size=4"), task(), patterns=["window:size=4"], near=4)
    with pytest.raises(ConfigError, match="near=17; expected 1 to 16"):
        attention_recall(model(), task(), patterns=["window:size=4"], near=17)
    with pytest.raises(ConfigError, match="reads everything"):
        attention_recall(model(), task(), patterns=["full"], near=4)


def test_weights_of_a_row_are_one() -> None:
    dense = model()
    weight = attention_weights(tracks_of(dense)[0][1], torch.randn(2, LENGTH, 16))
    assert weight.shape == (2, 4, LENGTH, LENGTH)
    assert float((weight.detach().sum(-1) - 1).abs().max()) < LENGTH * torch.finfo(torch.float32).eps
