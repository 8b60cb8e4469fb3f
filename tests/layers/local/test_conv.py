"""The convolution track, signed and as published."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from routing_laws import assert_same
from turnout.errors import ConfigError
from turnout.layers.local.conv import ConvTrack


def test_the_published_kernel_starts_as_the_average_of_the_last_values() -> None:
    track = ConvTrack(8, 2, kernel=4, form="softmax", project=False).double()
    x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, _ = track(x)
    padded = torch.cat((x.new_zeros(1, 3, 8), x), dim=1)
    assert_same(y, torch.stack([padded[:, t : t + 4].mean(1) for t in range(9)], dim=1), terms=8)


def test_the_published_kernel_is_one_average_a_head() -> None:
    track = ConvTrack(8, 2, kernel=3, form="softmax", project=False)
    assert track.weight.shape == (2, 3)
    track.weight.data[1] = torch.tensor([50.0, 0.0, 0.0])
    x = torch.randn(1, 6, 8)
    y, _ = track(x)
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert not torch.equal(y[..., :4], x[..., :4])


def test_a_signed_kernel_is_free_in_every_channel() -> None:
    track = ConvTrack(8, 2, kernel=3, form="signed", project=False)
    assert track.weight.shape == (8, 3)
    assert bool((track.weight < 0).any()) and float(track.weight.detach().abs().max()) <= 3**-0.5


def test_without_projections_there_is_only_the_kernel() -> None:
    assert [name for name, _ in ConvTrack(8, 2, project=False).named_parameters()] == ["weight"]


def test_a_gate_multiplies_what_was_convolved() -> None:
    x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    track = ConvTrack(8, 2, kernel=4, project=False, gate=True).double()
    plain = ConvTrack(8, 2, kernel=4, project=False).double()
    plain.load_state_dict({"weight": track.weight.detach()})
    assert track.gate is not None
    assert_same(track(x)[0], track.gate(x) * plain(x)[0], terms=1)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("project", [True, False])
def test_counted_operations_are_those_that_torch_counts(project: bool, gate: bool) -> None:
    track = ConvTrack(8, 2, kernel=9, project=project, gate=gate)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        track(torch.randn(1, 11, 8))
    assert track.flops(11) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 0}, r"kernel=0; expected >= 1"),
        ({"form": "soft"}, r"form='soft'; did you mean 'softmax'"),
        ({"form": "softmax", "heads": 3}, r"width=8, heads=3; form=softmax needs heads to divide width"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvTrack(8, **{"heads": 2, **options})
