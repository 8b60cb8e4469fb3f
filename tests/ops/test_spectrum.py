from __future__ import annotations

import pytest
import torch

from turnout.errors import ConfigError
from turnout.ops.spectrum import energy_rank, projected, spectrum, untrained_energy_ranks


def test_energy_rank_of_known_spectra() -> None:
    assert energy_rank(torch.eye(10)) == 9
    assert energy_rank(torch.eye(10), share=1.0) == 10
    assert energy_rank(torch.diag(torch.tensor([10.0, 1.0, 1.0]))) == 1
    assert energy_rank(torch.ones(5, 7)) == 1
    wide = torch.randn(8, 200, generator=torch.Generator().manual_seed(0))
    assert energy_rank(wide) == energy_rank(wide.T)
    assert abs(sum(spectrum(torch.randn(6, 4))) - 1) < 1e-9


def test_the_untrained_null_is_48_of_128_for_the_form_and_35_for_two_heads_of_weights() -> None:
    form = untrained_energy_ranks(128, heads=4, draws=4)
    assert all(46 <= rank <= 50 for rank in form)
    weights = untrained_energy_ranks(128, heads=2, average="weights", draws=4)
    assert all(33 <= rank <= 37 for rank in weights)


def test_keeping_all_directions_changes_nothing_and_the_best_are_better_than_random_ones() -> None:
    source = torch.Generator().manual_seed(0)
    q, k = (torch.randn(12, 12, generator=source, dtype=torch.float64) for _ in range(2))
    form = q.T @ k
    size = torch.linalg.matrix_norm
    eps = torch.finfo(torch.float64).eps
    assert size(projected(q, k, 12) - form) <= 12 * 12 * eps * size(form)
    assert size(projected(q, k, 4) - form) < size(projected(q, k, 4, random=source) - form)


def test_unknown_readings_are_refused() -> None:
    with pytest.raises(ConfigError, match="average"):
        untrained_energy_ranks(8, average="head")
    with pytest.raises(ConfigError, match="share"):
        energy_rank(torch.eye(3), share=2.0)
