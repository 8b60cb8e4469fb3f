"""Heads in another order: the same model, so that heads that read alike stand side by side and share one call.

L layers, G kv heads, H query heads, D head dim, E width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from turnout.layers.attention import AttentionTrack
from turnout.models.causal_lm import CausalLM

# Parameters of a track that have a row (or, of Wo, a column) for each channel of a head.
Weights = dict[str, Tensor]


def weights_of(track: AttentionTrack) -> Weights:
    """The weights that an order of heads moves, copied."""
    wanted = ("q.weight", "q.bias", "kv.weight", "kv.bias", "out.weight")
    return {name: value.detach().clone() for name, value in track.named_parameters() if name in wanted}


@torch.no_grad()
def put_in_order(track: AttentionTrack, weights: Weights, order: Sequence[int]) -> None:
    """Write `weights` into the track with its kv heads (and their query heads) in `order`; its outputs stay the same.

    Cost: one copy of the weights.
    """
    at = torch.tensor(order, device=track.q.weight.device)
    parameters = dict(track.named_parameters())
    for name, value in weights.items():
        axis, parts = (1, 1) if name == "out.weight" else (0, 2 if name.startswith("kv") else 1)
        split = value.unflatten(axis, (parts, track.kv_heads, -1))
        parameters[name].copy_(split.index_select(axis + 1, at).flatten(axis, axis + 2))


def order_model(model: CausalLM, orders: Sequence[Sequence[int]]) -> None:
    """Put the kv heads of every layer in an order of their own, in place."""
    tracks = [module for module in model.modules() if isinstance(module, AttentionTrack)]
    for track, order in zip(tracks, orders, strict=True):
        put_in_order(track, weights_of(track), order)
