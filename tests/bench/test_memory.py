"""Peak bytes on a CPU, against sums that can be done in the head."""

from __future__ import annotations

import torch

from turnout.bench.memory import peak_bytes

CPU = torch.device("cpu")
KB = torch.ones(256)


def test_what_is_alive_at_once_counts_and_what_is_gone_does_not() -> None:
    def chain() -> torch.Tensor:
        x = KB
        for _ in range(5):
            x = x + 1
        return x

    # Each sum needs the one before it.
    assert peak_bytes(chain, CPU) == 2048
    assert peak_bytes(lambda: [KB + i for i in range(5)], CPU) == 5 * 1024


def test_views_and_changes_in_place_need_nothing() -> None:
    assert peak_bytes(lambda: KB.view(2, 128).t()[1:], CPU) == 0
    held = KB.clone()
    assert peak_bytes(lambda: held.add_(1), CPU) == 0


def test_a_storage_counts_once_however_many_views_share_it() -> None:
    def split() -> list[torch.Tensor]:
        x = KB * 2
        return [x[:100], x[100:], x.view(16, 16)]

    assert peak_bytes(split, CPU) == 1024
