"""Keys chosen by sorting are those that a loop over all pairs would choose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turnout.errors import ShapeError
from turnout.ops import choose
from turnout.ops.choose import best_blocks, latest, without_repeats


@given(st.integers(0, 999), st.sampled_from([1, 2, 9]), st.sampled_from([1, 17]), st.integers(1, 20))
def test_the_latest_of_equal_code_are_found(seed: int, n_rows: int, n_keys: int, keep: int) -> None:
    source = torch.Generator().manual_seed(seed)
    asks = torch.randint(-1, 3, (2, 3, n_rows), generator=source)
    holds = torch.randint(-1, 3, (2, 3, n_keys), generator=source)
    # The largest code there is, beside small ones.
    asks, holds = (torch.where(codes == 2, 2**choose.CODE_BITS - 1, codes) for codes in (asks, holds))
    last = torch.randint(-2, n_keys, (n_rows,), generator=source)
    have = latest(asks, holds, last, keep)
    for b in range(2):
        for g in range(3):
            for r in range(n_rows):
                ask, held = int(asks[b, g, r]), holds[b, g].tolist()
                found = [s for s in reversed(range(n_keys)) if s <= int(last[r]) and held[s] == ask >= 0][:keep]
                assert have[b, g, r].tolist() == found + [-1] * (keep - len(found))


@given(st.integers(0, 999), st.sampled_from([1, 5]), st.integers(1, 7))
def test_the_best_blocks_are_those_of_all_scores(seed: int, n_blocks: int, keep: int) -> None:
    source = torch.Generator().manual_seed(seed)
    asks = torch.randn(2, 6, 2, 3, generator=source, dtype=torch.float64)
    holds = torch.randn(2, n_blocks, 2, 3, generator=source, dtype=torch.float64)
    before = torch.randint(0, n_blocks + 1, (1, 6, 1), generator=source)
    have = best_blocks(asks, holds, before, keep)
    for b in range(2):
        for r in range(6):
            for head in range(2):
                score = [float(asks[b, r, head] @ holds[b, n, head]) for n in range(int(before[0, r, 0]))]
                want = sorted(range(len(score)), key=lambda n: -score[n])[:keep]
                assert [n for n in have[b, r, head].tolist() if n >= 0] == want


def test_scores_in_pieces_choose_what_all_of_them_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    asks, holds = torch.randn(2, 30, 2, 4), torch.randn(2, 8, 2, 4)
    before = torch.arange(30)[None, :, None] // 4
    whole = best_blocks(asks, holds, before, 3)
    monkeypatch.setattr(choose, "MOST_SCORES", 1)
    assert torch.equal(best_blocks(asks, holds, before, 3), whole)


def test_a_position_is_listed_once() -> None:
    keys = torch.tensor([[3, -1, 5, 3, 5, 0], [-1, -1, -1, -1, -1, -1]])
    assert without_repeats(keys).tolist() == [[5, -1, 3, -1, 0, -1], [-1] * 6]


def test_more_positions_than_an_entry_holds_are_refused() -> None:
    many = torch.zeros(1, dtype=torch.int64).expand(2**choose.POSITION_BITS)
    with pytest.raises(ShapeError, match="4194304 positions; expected fewer than"):
        latest(many[:2], many, torch.zeros(2, dtype=torch.int64), 1)
