"""What routing says about a text's domain: nearest centroid on r, beside bags of words and the residual stream.

N texts, F features, C domains, L layers, H heads, K directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError
from turnout.probe.taps import Taps


def leave_one_out(features: Tensor, labels: Tensor) -> float:
    """Accuracy of the nearest class mean (Euclidean), each text classified by the means of all others.

    Args:
        features: [N, F]; labels: int64 [N].
    Raises:
        ShapeError: sizes differ; ConfigError: a class has one text only, whose own mean would be missing.
    """
    if len(features) != len(labels):
        raise ShapeError(f"{len(features)} texts and {len(labels)} labels; expected as many")
    x = features.double().flatten(1)
    one_hot = torch.nn.functional.one_hot(labels).double()
    counts = one_hot.sum(0)
    if bool((counts == 1).any()) or int((counts > 0).sum()) < 2:
        raise ConfigError(f"domains of {counts.long().tolist()} texts; expected two domains with two texts at least")
    means = one_hot.T @ x / counts.clamp(min=1)[:, None]
    distance = torch.cdist(x, means).masked_fill(counts == 0, torch.inf)
    # Without its own text a class mean lies n / (n − 1) times as far away.
    own = distance.gather(1, labels[:, None]) * (counts / (counts - 1))[labels][:, None]
    return float((distance.scatter(1, labels[:, None], own).argmin(1) == labels).double().mean())


def bag_of_tokens(tokens: Tensor, vocab: int) -> Tensor:
    """Relative frequencies [N, V] of token ids [N, T]."""
    counts = torch.zeros(len(tokens), vocab, dtype=torch.float64)
    return counts.scatter_add(1, tokens, torch.ones(tokens.shape, dtype=torch.float64)) / tokens.shape[1]


@torch.no_grad()
def text_features(taps: Taps, batches: Iterable[tuple[Tensor, Tensor]], vocab: int) -> dict[str, Tensor]:
    """Features of texts for classification, all averaged over their tokens.

    Args:
        batches: (tokens [B, T], domain [B]).
    Returns:
        "domain" [N]; "bag of tokens" [N, V]; "embedding", "residual" (the last layer's stream) [N, E];
        with directions also "r" [N, L, H, K].
    """
    last = f"blocks.{len(taps.anatomy.blocks) - 1}.hook_resid_post"
    amounts = taps.find("hook_r")
    parts: dict[str, list[Tensor]] = {}
    for tokens, domain in batches:
        seen = taps.run(tokens, keep=["hook_embed", last, *amounts])
        found = {
            "domain": domain, "bag of tokens": bag_of_tokens(tokens.cpu(), vocab),
            "embedding": seen["hook_embed"].double().mean(1).cpu(), "residual": seen[last].double().mean(1).cpu(),
        }  # fmt: skip
        if amounts:
            found["r"] = torch.stack([seen[name].double().mean(1).cpu() for name in amounts], 1)
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def classify(features: dict[str, Tensor]) -> dict[str, float]:
    """Leave-one-out accuracy by feature, r of each layer alone too, and chance (the largest class)."""
    labels = features["domain"]
    found = {name: leave_one_out(x, labels) for name, x in features.items() if name != "domain"}
    if "r" in features:
        found |= {f"r, layer {i}": leave_one_out(features["r"][:, i], labels) for i in range(features["r"].shape[1])}
    return found | {"chance": float(labels.bincount().max() / len(labels))}


def regimes(r: Tensor, labels: Tensor, *, threshold: float = 0.1) -> list[dict[str, Any]]:
    """By layer: variance of r over texts, and specialist heads.

    Args:
        r: [N, L, H, K], averaged over tokens.
        labels: [N].
        threshold: a head is a specialist where the range of its domain means (over K averaged) is larger.
    """
    domains = [r[labels == c].mean(0) for c in labels.unique()]
    spread = torch.stack(domains).mean(-1)
    wide = (spread.amax(0) - spread.amin(0)) > threshold
    variance = r.var(0, unbiased=False)
    return [
        {
            "layer": i, "mean": float(r[:, i].mean()), "max": float(r[:, i].mean(0).max()),
            "variance": float(variance[i].mean()), "specialists": int(wide[i].sum()), "heads": r.shape[2],
        }
        for i in range(r.shape[1])
    ]  # fmt: skip
