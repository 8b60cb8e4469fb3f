"""The cache gives back exactly what was written, reads nothing else, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch

from turnout.errors import ShapeError, UnsupportedError
from turnout.layers.kv_cache import KVCache


def cache(batch: int = 2, max_len: int = 5) -> KVCache:
    made = KVCache(batch, max_len, 3, 4, device=torch.device("cpu"), dtype=torch.float32)
    made.k.fill_(float("nan"))
    made.v.fill_(float("nan"))
    return made


def test_appending_piece_by_piece_returns_everything_so_far_without_copying() -> None:
    k, v = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    made = cache()
    for start, end in ((0, 2), (2, 3), (3, 5)):
        have_k, have_v = made.append(k[:, start:end], v[:, start:end])
        assert torch.equal(have_k, k[:, :end]) and torch.equal(have_v, v[:, :end])
        assert have_k.data_ptr() == made.k.data_ptr()
    assert made.length == 5


def test_more_tokens_than_it_holds_are_refused_and_nothing_is_written() -> None:
    made = cache()
    made.append(torch.ones(2, 4, 3, 4), torch.ones(2, 4, 3, 4))
    with pytest.raises(ShapeError, match=r"holds 5 tokens, got 6; call init_state\(batch, max_len >= 6\)"):
        made.append(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4))
    assert made.length == 4 and bool(made.k[:, 4:].isnan().all())


def test_another_batch_size_is_refused_rather_than_broadcast() -> None:
    with pytest.raises(ShapeError, match="for 2 sequences, got 1"):
        cache().append(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4))


def test_keys_that_autograd_tracks_are_refused() -> None:
    k = torch.ones(2, 1, 3, 4, requires_grad=True)
    with pytest.raises(UnsupportedError, match=r"decode under torch.no_grad\(\)"):
        cache().append(k, k)
