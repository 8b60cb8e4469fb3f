"""How much of a dense model's attention the keys hold that a selector would read, beside the best as many keys.

B batch, L layers, H query heads, G kv heads, T rows, S keys, D head dim, N blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.layers.attention import AttentionTrack
from turnout.layers.reading import read
from turnout.models.block import build_pattern
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.probe.distance import inputs_of, queries_keys, tracks_of
from turnout.routers.mode import SKIP
from turnout.routers.pattern import Pattern, Reach
from turnout.routers.pattern.low_rank import LowRankPattern
from turnout.tasks import Batch, Task

# Steps and rate at which an index is fitted to a frozen model.
FIT_STEPS, FIT_RATE = 200, 1e-2


@dataclass(frozen=True, slots=True)
class Recall:
    """What one selector reads of the attention of a dense model, by layer, from rows in the second half.

    Attributes:
        mass: share of a row's attention that its keys hold, mean over rows and heads.
        best: the same of as many keys, row by row, chosen by attention itself.
        far: of the attention beyond `near` tokens, the share that its keys hold.
        best_far: the same of as many of the keys beyond `near` tokens, chosen by attention itself.
        keys: keys of a row.
    """

    mass: list[float]
    best: list[float]
    far: list[float]
    best_far: list[float]
    keys: list[float]


@torch.no_grad()
def attention_recall(
    model: CausalLM, task: Task, *, patterns: Sequence[str], near: int, sequences: int = 4, seed_offset: int = 1
) -> dict[str, Recall]:
    """Ask each pattern, layer by layer, which keys it would read of a trained dense model, and weigh them.

    A pattern gets the model's own queries, keys, inputs and tokens. One with an index of its own has it fitted first,
    to the attention of the frozen model on sequences that are not looked at.

    Args:
        model: all of its attention reads everything.
        patterns: specs as in `ModelConfig.pattern`.
        near: tokens within which attention counts as near, 1 .. T / 2.
        sequences: held-out sequences.
    Raises:
        ConfigError: the model has a pattern of its own, or `near` leaves nothing far.
    Cost: O(B·L·H·T²) memory, and S / D calls of a pattern's attention a layer.
    """
    if any(pattern != "full" for pattern in model.config.layer_patterns):
        raise ConfigError(
            f"pattern {model.config.pattern!r} is not dense; recall is measured of a model that reads all"
        )
    if not 1 <= near <= task.length // 2:
        raise ConfigError(f"near={near}; expected 1 to {task.length // 2} tokens, half of the sequence")
    tracks, device = tracks_of(model), model.embed.weight.device
    batch = next(iter(task.eval_batches(1, sequences, seed_offset))).to(device)
    other = next(iter(task.eval_batches(1, sequences, seed_offset + 1))).to(device)
    seen, fitted_on = inputs_of(model, tracks, batch), inputs_of(model, tracks, other)
    found: dict[str, list[tuple[float, ...]]] = {spec: [] for spec in patterns}
    for (layer, track), x, x_fit in zip(tracks, seen, fitted_on, strict=True):
        weight = attention_weights(track, x)
        built = {spec: pattern_of(model.config, spec, layer).to(device) for spec in patterns}
        learned = [pattern for pattern in built.values() if isinstance(pattern, LowRankPattern)]
        if learned:
            # Of these rows all indices of a layer learn.
            to_fit = attention_weights(track, x_fit)
            for index in learned:
                fit_index(index, x_fit, to_fit)
        for spec, pattern in built.items():
            found[spec].append(_weigh(weight, keys_read(track, pattern.eval(), x, batch), near))
    return {spec: Recall(*map(list, zip(*rows, strict=True))) for spec, rows in found.items()}


def pattern_of(config: ModelConfig, spec: str, layer: int) -> Pattern:
    """The pattern that `spec` makes of one layer."""
    pattern = build_pattern(replace(config, pattern=spec), layer)
    if pattern is None:
        raise ConfigError("pattern 'full' reads everything; its recall is 1")
    return pattern


def attention_weights(track: AttentionTrack, x: Tensor) -> Tensor:
    """Dense causal attention of the inputs [B, T, E] of a track: [B, H, T, S]."""
    q, k = queries_keys(track, x)
    at = torch.arange(x.shape[1], device=x.device)
    k = k.repeat_interleave(track.heads // track.kv_heads, 2)
    score = torch.einsum("bthd,bshd->bhts", q.float(), k.float()) * track.head_dim**-0.5
    return score.masked_fill(at > at[:, None], -torch.inf).softmax(-1)


def keys_read(track: AttentionTrack, pattern: Pattern, x: Tensor, batch: Batch) -> Tensor:
    """Which keys a pattern's attention gives weight to, bool [B, H, T, S]: one key after another is the only value."""
    q, k = (part.float() for part in queries_keys(track, x))
    length, at = x.shape[1], torch.arange(x.shape[1], device=x.device)
    reach: Reach = pattern.reach(x, at=at, length=length, state=None, mode=replace(SKIP, tokens=batch.tokens))
    parts = []
    for first in range(0, length, track.head_dim):
        one = torch.eye(length, track.head_dim, device=x.device).roll(first, 0)
        one[:first] = 0.0
        v = one[None, :, None].expand(len(x), -1, track.kv_heads, -1).contiguous()
        parts.append(read(q, k, v, reach)[..., : length - first] > 0)
    return torch.cat(parts, -1).transpose(1, 2)


def _weigh(weight: Tensor, chosen: Tensor, near: int) -> tuple[float, ...]:
    """The fields of `Recall` from weights and keys [B, H, T, S]."""
    half = weight.shape[2] // 2
    weight, chosen = weight[:, :, half:], chosen[:, :, half:]
    place = torch.arange(chosen.shape[3], device=chosen.device)
    beyond = place <= place[half:, None] - near

    def best(of: Tensor, count: Tensor) -> Tensor:
        """Sum of the `count` largest of each row."""
        total = torch.nn.functional.pad(of.sort(-1, descending=True).values.cumsum(-1), (1, 0))
        return total.gather(-1, count[..., None])[..., 0]

    far, far_keys = weight * beyond, chosen & beyond
    all_far = float(far.sum())
    return (
        float((weight * chosen).sum(-1).mean()),
        float(best(weight, chosen.sum(-1)).mean()),
        float((far * chosen).sum()) / all_far,
        float(best(far, far_keys.sum(-1)).sum()) / all_far,
        float(chosen.sum(-1).double().mean()),
    )


@torch.enable_grad()
def fit_index(pattern: LowRankPattern, x: Tensor, weight: Tensor) -> None:
    """Fit an index to frozen attention: cross entropy of its bounds with the mass of each block that it may choose.

        target(t, n) = mean over heads of sum_{s in n} a_ts, over n < block(t) - near, normalised

    Args:
        x: inputs [B, T, E]; weight: attention [B, H, T, S].
    """
    x, size, source = x.detach(), pattern.block, torch.Generator().manual_seed(0)
    for p in pattern.parameters():
        p.data = torch.randn(p.shape, generator=source).to(p) * p.shape[1] ** -0.5
    whole = x.shape[1] // size
    mass = weight.mean(1)[..., : whole * size].unflatten(-1, (whole, size)).sum(-1)
    own = torch.arange(x.shape[1], device=x.device)[:, None] // size - pattern.near
    open_ = torch.arange(whole, device=x.device) < own
    mass = mass * open_
    target, rows = mass / mass.sum(-1, keepdim=True).clamp(min=1e-9), own[:, 0] > 0
    optimiser = torch.optim.Adam(pattern.parameters(), lr=FIT_RATE)
    for _ in range(FIT_STEPS):
        asks, holds = pattern.index(x)
        score = pattern.bounds(asks, holds).masked_fill(~open_, -1e9)
        loss = -(target * score.log_softmax(-1)).sum(-1)[:, rows].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
