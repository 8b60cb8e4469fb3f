"""A block is built from its letter in the layout, and its form reaches every part of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from routing_laws import local_tracks, tiny
from turnout.layers import AttentionMixer, LocalMixer, RoutedMixer
from turnout.layers.local import LOCAL_TRACKS, LocalTrack
from turnout.models.block import MLP, Block, build_mixer, drop
from turnout.routers.mode import SKIP, RoutingMode


def test_the_letter_chooses_the_mixer() -> None:
    config = tiny(layers=3, layout="RAL")
    kinds = [type(build_mixer(config, layer, 0)) for layer in range(3)]
    assert kinds == [RoutedMixer, AttentionMixer, LocalMixer]


@pytest.mark.parametrize("local", local_tracks())
def test_the_llama_form_has_no_bias_outside_the_router(local: str) -> None:
    block = Block(tiny(local=local, form="llama"), 0, 0)
    biased = [name for name, _ in block.named_parameters() if name.endswith("bias") and "router" not in name]
    assert biased == []
    assert isinstance(block.mixer_norm, nn.RMSNorm)


def test_the_local_track_keeps_a_bias_that_its_spec_asks_for() -> None:
    config = replace(tiny(form="llama"), local="conv:kernel=4,bias=true")
    assert Block(config, 0, 0).mixer.local.out.bias is not None


def test_a_local_track_without_a_bias_option_fits_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    class Identity(LocalTrack):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()

        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            return x, state

    LOCAL_TRACKS.names()
    monkeypatch.setitem(LOCAL_TRACKS._entries, "identity", Identity)
    for form in ("gpt", "llama"):
        assert isinstance(Block(replace(tiny(form=form), local="identity"), 0, 0).mixer.local, Identity)


@pytest.mark.parametrize("form", ["gpt", "llama"])
def test_the_mlp_counts_its_operations(form: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    mlp = MLP(tiny(form=form))
    with FlopCounterMode(display=False) as counter:
        mlp(torch.randn(1, 7, 16))
    assert mlp.flops(7) == counter.get_total_flops()


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    mode = RoutingMode(sample=True, generator=torch.Generator().manual_seed(0))
    y = drop(torch.ones(100, 100), 0.3, mode)
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    # Five standard deviations of a share of 10,000.
    assert abs(float((y == 0).float().mean()) - 0.3) < 5 * (0.3 * 0.7 / 10_000) ** 0.5


def test_dropout_is_in_training_alone() -> None:
    block, x = Block(tiny(dropout=0.5), 0, 0), torch.randn(2, 7, 16)
    still = Block(tiny(), 0, 0)
    still.load_state_dict(block.state_dict())
    assert torch.equal(block(x, mode=SKIP)[0], still(x, mode=SKIP)[0])
