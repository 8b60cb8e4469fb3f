"""Key blocks chosen by tiles of rows, in the form that the kernels read, and the inverse: which tiles chose a block.

Axes: B batch, R query rows, S keys, G kv heads, K blocks kept per tile, T tiles of `row_block` rows, N key blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def chosen_blocks(keys: Tensor, rows: Tensor, *, row_block: int, key_block: int, n_keys: int) -> tuple[Tensor, Tensor]:
    """Sort every tile's list, each block once, none that lies after the tile's last row.

    Args:
        keys: block indices int [B, T, G, K], -1 = empty slot.
        rows: positions int64 [B, 1 or G, R], -1 = empty slot.
        row_block: rows of a tile.
        key_block: keys of a block.
        n_keys: S.
    Returns:
        blocks: int32 [B, T, G, K], ascending, then N in the empty slots; n_blocks int32 [B, T, G].
    Cost: two sorts of the list; no synchronisation.
    """
    n_blocks = -(-n_keys // key_block)
    last = pad(rows, (0, -rows.shape[-1] % row_block), value=-1).unflatten(-1, (-1, row_block)).amax(-1)
    last = last.transpose(1, 2)[..., None]
    ordered = torch.where((keys < 0) | (keys * key_block > last), n_blocks, keys).sort(-1).values
    again = pad(ordered[..., 1:] == ordered[..., :-1], (1, 0))
    ordered = ordered.masked_fill(again, n_blocks).sort(-1).values
    return ordered.to(torch.int32), (ordered < n_blocks).sum(-1, dtype=torch.int32)


def inverse_list(blocks: Tensor, n_blocks: int) -> tuple[Tensor, Tensor]:
    """Tiles by the block they chose: entries of block n are `entries[bounds[n] : bounds[n + 1]]`, tiles ascending.

    Args:
        blocks: int32 [B, T, G, K] with N in empty slots.
        n_blocks: N.
    Returns:
        entries: tile indices, int32 [B, G, T·K]; bounds int32 [B, G, N + 1].
    Cost: one stable sort, so the order and every sum over it are the same in every run; no synchronisation.
    """
    flat = blocks.transpose(1, 2).flatten(2)
    ordered, place = torch.sort(flat, dim=-1, stable=True)
    wanted = torch.arange(n_blocks + 1, dtype=torch.int32, device=blocks.device).expand(*flat.shape[:2], -1)
    bounds = torch.searchsorted(ordered, wanted.contiguous(), out_int32=True)
    return (place // max(blocks.shape[3], 1)).to(torch.int32), bounds
