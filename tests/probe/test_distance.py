"""Distances: of models whose attention is known, what patterns cut, and how far a stack can see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from routing_laws import assert_same
from turnout.errors import ConfigError
from turnout.layers.local import LOCAL_TRACKS
from turnout.models import CausalLM, ModelConfig
from turnout.probe.distance import _weights, attention_distances, reachable
from turnout.report.distance import distance_data, distance_figure, reach_figure
from turnout.routers.mode import SKIP
from turnout.tasks import MQARConfig, TextConfig

LENGTH = 32


def uniform_model(**changes: object) -> CausalLM:
    """Queries of zero: every visible key has the same weight."""
    fields = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "layout": "A", **changes}
    model = CausalLM(ModelConfig(**fields), vocab=256)  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if ".attention.q." in name:
            p.data.zero_()
    return model


def task() -> object:
    return MQARConfig(length=LENGTH, pairs=2, vocab=256).build(0)


def test_equal_weights_lie_where_the_keys_lie() -> None:
    found = attention_distances(uniform_model(), task(), sequences=2)  # type: ignore[arg-type]
    assert found.edges == [0, 1, 2, 4, 8, 16]
    rows = range(LENGTH // 2, LENGTH)
    want = [sum(sum(low <= d < high for d in range(t + 1)) / (t + 1) for t in rows) / len(rows)
            for low, high in zip(found.edges, [1, 2, 4, 8, 16, 32], strict=True)]  # fmt: skip
    for layer in range(2):
        for head in range(4):
            assert found.mass["all"][layer, head].tolist() == pytest.approx(want, abs=1e-6)


def test_a_model_with_a_window_attends_inside_it() -> None:
    found = attention_distances(uniform_model(pattern="window:size=4"), task(), sequences=1)  # type: ignore[arg-type]
    assert found.mass["all"][..., 3:].abs().max() < 1e-9
    assert {span for layer in found.spans for span in layer} == {4}


def test_what_a_pattern_cuts_is_the_mass_outside_it() -> None:
    specs = ["window:size=8", "full", "head_mixture:parts=(2 full;2 window:size=8)", "full/window:size=8"]
    found = attention_distances(uniform_model(), task(), patterns=specs, sequences=1)  # type: ignore[arg-type]
    rows = range(LENGTH // 2, LENGTH)
    outside = sum(1 - 8 / (t + 1) for t in rows) / len(rows)
    lost = [found.lost[spec]["all"] for spec in specs]
    assert lost[0] == pytest.approx([outside, outside], abs=1e-6)
    assert lost[1] == pytest.approx([0, 0], abs=1e-6)
    assert lost[2] == pytest.approx([outside / 2, outside / 2], abs=1e-6)
    assert lost[3] == pytest.approx([0, outside], abs=1e-6)


@pytest.mark.parametrize(
    ("pattern", "farthest"),
    [("full", [31, 31, 31]), ("window:size=4", [3, 6, 9]), ("sinks:size=4,sinks=1", [31, 31, 31]),
     ("dilated:branches=(4/1+16/4)", [12, 15, 15]), ("window:size=4/window:size=8/full", [3, 10, 31])],
)  # fmt: skip
def test_sight_grows_layer_by_layer(pattern: str, farthest: list[int]) -> None:
    config = ModelConfig(layers=3, width=16, heads=4, layout="A", pattern=pattern)
    assert [row["farthest"] for row in reachable(config, LENGTH)] == farthest


@pytest.mark.parametrize(
    ("layout", "local", "farthest"),
    [("LA", "conv:kernel=3", [2, 5]), ("LA", "window:size=7", [6, 9]), ("LA", "ssm", [31, 31]),
     ("AR", "conv:kernel=6", [3, 8]), ("AR", "conv:kernel=2", [3, 6])],
)  # fmt: skip
def test_a_local_track_sees_what_lies_in_its_memory(layout: str, local: str, farthest: list[int]) -> None:
    pattern = "window:size=4" if layout == "AR" else "full/window:size=4"
    config = ModelConfig(layers=2, width=16, heads=4, layout=layout, local=local, pattern=pattern)
    assert [row["farthest"] for row in reachable(config, LENGTH)] == farthest
    for spec in (local, "conv:kernel=99", "window:size=99"):
        track = LOCAL_TRACKS.build(spec, width=16, heads=4).double()
        x = torch.randn(1, LENGTH, 16, dtype=torch.float64, requires_grad=True)
        [slope] = torch.autograd.grad(track(x)[0][0, -1].sum(), x)
        assert int((slope[0].abs().sum(-1) > 0).nonzero()[0]) == LENGTH - 1 - track.farthest(LENGTH)


@pytest.mark.parametrize(
    "spec",
    [
        "cope",
        "top_blocks:block=4,keep=1",
        "last_match",
        "buckets:buckets=4",
        "low_rank",
        "random_blocks",
        "head_mixture:parts=(2 cope;2 window:size=4)",
    ],
)
def test_what_is_chosen_by_content_may_reach_everything(spec: str) -> None:
    config = ModelConfig(layers=1, width=16, heads=4, layout="A", pattern=spec)
    assert reachable(config, LENGTH) == [{"layer": 0, "farthest": LENGTH - 1, "share": 1.0}]


def test_domains_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNOUT_CACHE", str(tmp_path / "cache"))
    for name, letter in (("near", "a"), ("far", "b")):
        for number in range(3):
            (tmp_path / "text" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "text" / name / f"{number}.txt").write_text(letter * 200)
    found = attention_distances(uniform_model(), TextConfig(path=str(tmp_path / "text"), length=LENGTH).build(0),
                                patterns=["window:size=8"], sequences=8)  # fmt: skip
    assert list(found.mass) == ["all", "far", "near"]
    assert all(mass.sum(-1).sub(1).abs().max() < 1e-6 for mass in found.mass.values())
    assert found.mean_span("far") == found.mean_span("near") == LENGTH
    svg = distance_figure(found) + reach_figure(reachable(uniform_model().config, LENGTH), found.lost)
    assert "near" in svg and svg.count("<svg") == 2 and "nan" not in svg
    assert len(distance_data(found).rows) == 3 * 2 * 4 * 6


def test_contextual_and_local_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="layout LL has no attention"):
        attention_distances(uniform_model(layout="L"), task(), sequences=1)  # type: ignore[arg-type]


def test_weights_are_those_that_the_model_reads_with() -> None:
    """The hidden values after a layer, from the probe's weights and the layer's own values."""
    for pattern in ("full", "dilated:branches=(4/1+16/4)", "forget", "strided:block=4,near=1", "kerple"):
        model = CausalLM(
            ModelConfig(layers=1, width=16, heads=4, kv_heads=2, layout="A", pattern=pattern), vocab=9
        ).eval()
        track = model.blocks[0].mixer.attention
        x = torch.randn(1, LENGTH, 16, generator=torch.Generator().manual_seed(0))
        k, v = track.keys_values(x, None)
        want = track.whole(x, k, v, impl="auto", reach=track.reach(x, None, None, SKIP, buffers=False))
        have = torch.einsum("hts,shd->thd", _weights(track, x), v[0].repeat_interleave(2, 1))
        assert_same(have, want[0], terms=2 * 16 + 3 * LENGTH)
