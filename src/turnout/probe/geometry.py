"""The directions themselves: how they lie to each other, what they write, and what steering along them does.

L layers, H heads, K directions, D head dim, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.probe.taps import Edit, Hook, Taps
from turnout.routers.direction import DirectionRouter


def directions_of(taps: Taps) -> Tensor:
    """Unit directions [L', H, K, D] of the layers that have them; ConfigError if none has."""
    routers = [m for m in taps.anatomy.model.modules() if isinstance(m, DirectionRouter)]
    if not routers:
        raise ConfigError("this model has no directions (model.directions is none)")
    return torch.stack([router.unit().detach() for router in routers])


def cosines(directions: Tensor) -> dict[str, float]:
    """How orthogonal directions are, in three readings.

    Returns:
        layers_*: off-diagonal cosines of the layers' flattened tensors (the published 12 x 12 matrix): mean, std, max.
        heads_abs: mean |cosine| of directions of different heads of a layer; own_abs: of the same head.
    """
    flat = nn.functional.normalize(directions.double().flatten(1), dim=-1)
    across = (flat @ flat.T)[~torch.eye(len(flat), dtype=torch.bool, device=flat.device)]
    heads, k = directions.shape[1:3]
    d = directions.double().flatten(1, 2)
    gram = (d @ d.transpose(1, 2)).abs().unflatten(1, (heads, k)).unflatten(3, (heads, k))
    same = torch.eye(heads, dtype=torch.bool, device=d.device)[None, :, None, :, None].expand(gram.shape)
    diagonal = same & torch.eye(k, dtype=torch.bool, device=d.device)[None, None, :, None, :]
    found = {"heads_abs": float(gram[~same].mean()) if heads > 1 else 0.0}
    found["own_abs"] = float(gram[same & ~diagonal].mean()) if k > 1 else 0.0
    if len(flat) > 1:
        found |= {
            "layers_mean": float(across.mean()), "layers_std": float(across.std()) if len(across) > 1 else 0.0,
            "layers_max": float(across.abs().max()),
        }  # fmt: skip
    return found


def random_cosines(shape: tuple[int, ...], *, draws: int = 20, seed: int = 0) -> dict[str, tuple[float, float]]:
    """`cosines` of random unit directions of the same shape: (lowest, highest) of `draws`."""
    generator = torch.Generator().manual_seed(seed)
    found = [cosines(nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)) for _ in range(draws)]
    return {name: (min(f[name] for f in found), max(f[name] for f in found)) for name in found[0]}


@torch.no_grad()
def vocabulary_projection(taps: Taps, layer: int, directions: Tensor) -> Tensor:
    """What each direction writes, W_U (g * W_O,h d): [H, K, V] for directions [H, K, D] of one layer."""
    a = taps.anatomy
    a.check_layer(layer)
    norm: Any = a.part(a.layout.norm)
    wo = a.projection(layer).unflatten(1, (a.heads, -1))
    written = torch.einsum("ehd,hkd->hke", wo.to(directions.dtype), directions) * norm.weight
    return written @ a.unembed().to(directions.dtype).T


def class_share(scores: Tensor, members: Tensor, *, top: int = 10) -> Tensor:
    """Share [H, K] of a class of tokens (bool [V]) among each direction's top tokens, the better of both signs."""
    count = min(top, scores.shape[-1])
    shares = [members.to(scores.device)[(sign * scores).topk(count).indices].double().mean(-1) for sign in (1, -1)]
    return torch.maximum(*shares)


@torch.no_grad()
def steer(
    taps: Taps, batches: Iterable[Tensor], members: Tensor, picks: Iterable[tuple[int, int, int]], *, value: float = 1.0
) -> float:
    """Mean probability of a class of tokens while r of some directions (layer, head, k) is held at `value`."""
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for layer, head, k in picks:
        by_layer.setdefault(taps.anatomy.check_layer(layer), []).append((taps.anatomy.check_head(head), k))

    def hold(places: list[tuple[int, int]]) -> Edit:
        def edit(r: Tensor, hook: Hook) -> Tensor:
            r = r.clone()
            for head, k in places:
                r[..., head, k] = value
            return r

        return edit

    edits: dict[str, Edit] = {f"blocks.{i}.attn.hook_r": hold(places) for i, places in by_layer.items()}
    return class_probability(taps, batches, members, edits)


@torch.no_grad()
def class_probability(
    taps: Taps, batches: Iterable[Tensor], members: Tensor, edits: dict[str, Edit] | None = None
) -> float:
    """Mean over tokens of the probability that the next token is of a class, bool [V]."""
    total, count = 0.0, 0
    for tokens in batches:
        p = taps.run(tokens, edits=edits or {}).logits.float().softmax(-1)
        total += float(p[..., members.to(p.device)].sum(-1).double().sum())
        count += tokens.numel()
    return total / count


def token_classes(decode: Callable[[int], str], vocab: int) -> dict[str, Tensor]:
    """Classes of tokens by their text, bool [V] each: space, punctuation, number, capital, article, other letters."""
    words = [decode(i) for i in range(vocab)]
    articles = {" a", " an", " the", " A", " An", " The"}
    tests: dict[str, Callable[[str], bool]] = {
        "space": lambda w: w != "" and (w.isspace() or w in ("\\n", "\\t", "\\r")),
        "punctuation": lambda w: bool(w.strip()) and all(not c.isalnum() and c != "\\" for c in w.strip()),
        "number": lambda w: w.strip().isdigit(),
        "capital": lambda w: w.strip()[:1].isupper(),
        "article": lambda w: w in articles,
    }
    return {name: torch.tensor([bool(test(w)) for w in words]) for name, test in tests.items()}
