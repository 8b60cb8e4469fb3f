"""What heads attend to: attention patterns, and the scores that name a head by its job.

B batch, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError, UnsupportedError
from turnout.layers.attention import AttentionTrack
from turnout.layers.rope import rotate
from turnout.probe.taps import Edits, Taps


@torch.no_grad()
def patterns(taps: Taps, tokens: Tensor, *, edits: Edits | None = None) -> dict[int, Tensor]:
    """Attention weights [B, H, T, T] of every layer that has an attention track, as if every token attended.

    Raises:
        UnsupportedError: a Hugging Face model whose attention does not return its weights, or a pattern.
    Cost: O(B·H·T²·D) a layer, and the whole matrix in memory.
    """
    a = taps.anatomy
    if not a.ours:
        out: Any = a.model(tokens.to(a.device), output_attentions=True)
        found = getattr(out, "attentions", None)
        if not found or found[0] is None:
            raise UnsupportedError(
                "this model does not return attention weights; load it with attn_implementation='eager'"
            )
        return dict(enumerate(found))
    tracks = {i: track for i, block in enumerate(a.blocks) if (track := _track(block)) is not None}
    if any(track.pattern is not None for track in tracks.values()):
        raise UnsupportedError("attention weights of a model with a pattern are not computed; use pattern='full'")
    names = {i: f"blocks.{i}.ln1.hook_normalized" for i in tracks}
    seen = taps.run(tokens, keep=names.values(), edits=edits or {})
    return {i: _weights(track, seen[names[i]]) for i, track in tracks.items()}


def _track(block: Any) -> AttentionTrack | None:
    return getattr(block.mixer, "attention", None)


def _weights(track: AttentionTrack, x: Tensor) -> Tensor:
    k, _ = track.keys_values(x, None)
    q = track.q(x).unflatten(-1, (track.heads, track.head_dim))
    if track.rope:
        q = rotate(q, torch.arange(x.shape[1], device=x.device))
    k = k.repeat_interleave(track.heads // track.kv_heads, dim=2)
    score = torch.einsum("bthd,bshd->bhts", q, k) * track.head_dim**-0.5
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
    return score.masked_fill(future, -torch.inf).softmax(-1)


def offset_score(weights: Tensor, offset: int, first: int = 0) -> Tensor:
    """Mean attention [H] to the token `offset` places back, over the rows from `first` on.

    offset 1 finds previous-token heads; length − 1 of a repeated text finds induction heads.
    """
    length = weights.shape[-1]
    rows = torch.arange(max(first, offset), length, device=weights.device)
    if offset < 0 or not len(rows):
        raise ConfigError(f"offset={offset} with {length} tokens; expected 0 <= offset < {length}")
    return weights[:, :, rows, rows - offset].mean((0, 2))


def strongest(scores: dict[int, Tensor], count: int) -> list[tuple[int, int]]:
    """The `count` (layer, head) with the highest scores, best first."""
    layers = sorted(scores)
    flat = torch.stack([scores[i] for i in layers])
    order = flat.flatten().argsort(descending=True)[:count].tolist()
    return [(layers[i // flat.shape[1]], i % flat.shape[1]) for i in order]
