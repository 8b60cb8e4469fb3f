"""How far a model looks, by layer, head and domain; what a pattern would cut; how far a stack can see at all.

B batch, L layers, H query heads, T rows, S keys, N distance bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ConfigError
from turnout.layers.attention import AttentionTrack
from turnout.layers.explicit import explicit_log_weights
from turnout.layers.local import LOCAL_TRACKS
from turnout.layers.reading import HIDDEN
from turnout.layers.rope import rotate
from turnout.models.block import build_pattern
from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.routers.mode import SKIP
from turnout.tasks import Batch, Task

# A key below this weight, beside the same score without decay, counts as out of sight.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Distances:
    """Attention mass by distance.

    Attributes:
        edges: first distance of each bin: 0, 1, 2, 4, 8, ...
        mass: domain -> share of a row's attention in each bin, float64 [L, H, N]; "all" is every row.
        spans: tokens within which a head finds 90 % of its mass, [L][H].
        lost: pattern -> domain -> share of the mass that the pattern would not let through, by layer.
    """

    edges: list[int]
    mass: dict[str, Tensor]
    spans: list[list[int]]
    lost: dict[str, dict[str, list[float]]]

    def mean_span(self, domain: str, share: float = 0.9) -> float:
        """Distance within which heads find `share` of their mass in one domain, mean over heads and layers."""
        return float(torch.tensor(_spans(self.mass[domain], self.edges, share), dtype=torch.float64).mean())


@torch.no_grad()
def attention_distances(
    model: CausalLM, task: Task, *, patterns: Sequence[str] = (), sequences: int = 8, seed_offset: int = 1
) -> Distances:
    """Read the attention of a model on held-out sequences, from rows in the second half: all of them can look far.

    Args:
        patterns: specs as in `ModelConfig.pattern`; for each, the mass of this model's attention that it would cut.
            A decayed pair lets the share exp(decay) through.
        sequences: held-out sequences, one at a time.
    Raises:
        ConfigError: the model has no attention.
    Cost: O(L·H·T²) memory for one sequence.
    """
    tracks = tracks_of(model)
    length, device = task.length, model.embed.weight.device
    bins = torch.zeros(length, dtype=torch.int64, device=device)
    bins[1:] = torch.arange(1, length, device=device).log2().floor().long() + 1
    edges = [0, *(2**i for i in range(int(bins.max())))]
    names = getattr(task, "slice_names", {}).get("domain", [])
    cuts = {spec: [_passed(model.config, spec, i, length, device) for i, _ in tracks] for spec in patterns}
    mass = {
        name: torch.zeros(len(tracks), model.config.heads, len(edges), dtype=torch.float64) for name in ["all", *names]
    }
    rows_seen = dict.fromkeys(mass, 0)
    lost = {spec: {name: torch.zeros(len(tracks), dtype=torch.float64) for name in mass} for spec in patterns}
    half = torch.arange(length, device=device) >= length // 2
    distance = (torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)).clamp(min=0)
    for weights, domains in _attention(model, tracks, task, sequences, seed_offset):
        groups = {"all": half} | {n: half & (domains == i) for i, n in enumerate(names) if domains is not None}
        for name, chosen in groups.items():
            if not bool(chosen.any()):
                continue
            rows_seen[name] += int(chosen.sum())
            for layer, weight in enumerate(weights):
                mine = weight[:, chosen].double()
                found = torch.zeros(mine.shape[0], len(edges), dtype=torch.float64, device=device)
                place = bins[distance[chosen]].flatten().expand(mine.shape[0], -1)
                mass[name][layer] += found.scatter_add(1, place, mine.flatten(1)).cpu()
                for spec, passed in cuts.items():
                    through = (mine * passed[layer][:, chosen]).sum(-1)
                    lost[spec][name][layer] += float((1 - through).mean(0).sum())
    mass = {name: total / rows_seen[name] for name, total in mass.items() if rows_seen[name]}
    shares = {s: {n: (v / rows_seen[n]).tolist() for n, v in by.items() if rows_seen[n]} for s, by in lost.items()}
    return Distances(edges=edges, mass=mass, spans=_spans(mass["all"], edges, 0.9), lost=shares)


def reachable(config: ModelConfig, length: int) -> list[dict[str, Any]]:
    """What the last token can have read from after each layer: farthest distance, and share of earlier positions.

    A position counts where some head of the layer reads it with a weight above `NEGLIGIBLE`, undecayed scores equal,
    or its local track does; sight passes from layer to layer through the positions between. Learned patterns are taken
    as they start, what is chosen by content as if it chose everything.
    """
    found = []
    sights = [_sight(config, layer, length) for layer in range(config.layers)]
    for depth in range(1, config.layers + 1):
        # Information flows from the first layer up: the last token's sight is traced down from the top.
        seen = torch.zeros(length, dtype=torch.bool)
        seen[-1] = True
        for layer in reversed(range(depth)):
            seen = seen | (sights[layer][seen].any(0))
        farthest = length - 1 - int(seen.nonzero()[0])
        found.append({"layer": depth - 1, "farthest": farthest, "share": float(seen.double().mean())})
    return found


def _sight(config: ModelConfig, layer: int, length: int) -> Tensor:
    """Which positions a row of one layer reads, bool [T, S]."""
    kind, near = config.layer_kinds[layer], torch.eye(length, dtype=torch.bool)
    if kind != "A":
        with torch.device("meta"):
            local = LOCAL_TRACKS.build(config.local, width=config.width, heads=config.heads)
        near = torch.ones(length, length, dtype=torch.bool).tril().triu(-local.farthest(length))
    if kind == "L":
        return near
    spec = config.layer_patterns[layer]
    passed = _passed(config, spec, layer, length, torch.device("cpu"), one=True, by_content=True)
    return near | (passed > NEGLIGIBLE).any(0)


def _passed(
    config: ModelConfig, spec: str, layer: int, length: int, device: torch.device, *, one: bool = False,
    by_content: bool = False,
) -> Tensor:  # fmt: skip
    """Share of an undecayed weight that a pattern lets through, [H, T, S]; `one`: spec is that of the layer alone."""
    made = replace(config, pattern=spec, **({"layers": 1, "layout": "A"} if one else {"layout": "A"}))
    pattern = build_pattern(made, 0 if one else layer)
    if pattern is None:
        return torch.ones(length, length, device=device).tril().expand(config.heads, -1, -1)
    pattern = pattern.to(device).eval()
    x = torch.zeros(1, length, config.width, device=device)
    at = torch.arange(length, device=device)
    # Where every token is the same, an index finds everything.
    mode = replace(SKIP, tokens=torch.zeros(1, length, device=device, dtype=torch.int64)) if by_content else SKIP
    reach = pattern.reach(x, at=at, length=length, state=None, mode=mode)
    added = explicit_log_weights(reach, config.heads, config.n_kv_heads, length, device, by_content=by_content)
    return torch.where(added > HIDDEN, added.exp().clamp(max=1), 0.0)


def tracks_of(model: CausalLM) -> list[tuple[int, AttentionTrack]]:
    """The layers with attention.

    Raises:
        ConfigError: there is none.
    """
    mixers = ((i, getattr(block.mixer, "attention", None)) for i, block in enumerate(model.blocks))
    tracks = [(i, track) for i, track in mixers if isinstance(track, AttentionTrack)]
    if not tracks:
        raise ConfigError(f"layout {model.config.layer_kinds} has no attention to read")
    return tracks


def _attention(
    model: CausalLM, tracks: list[tuple[int, AttentionTrack]], task: Task, sequences: int, seed_offset: int
) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """Attention [H, T, S] of each layer on one sequence, and the domain of each of its rows."""
    for batch in task.eval_batches(sequences, 1, seed_offset):
        moved = batch.to(model.embed.weight.device)
        seen, domains = inputs_of(model, tracks, moved), moved.slices.get("domain")
        yield (
            [_weights(track, x) for (_, track), x in zip(tracks, seen, strict=True)],
            None if domains is None else domains[0],
        )


def inputs_of(model: CausalLM, tracks: list[tuple[int, AttentionTrack]], batch: Batch) -> list[Tensor]:
    """What the tracks are given on one batch, [B, T, E] each."""
    seen: dict[int, Tensor] = {}
    hooks = [
        model.blocks[i].mixer.register_forward_pre_hook(lambda module, args, i=i: seen.__setitem__(i, args[0]))
        for i, _ in tracks
    ]
    was_training = model.training
    model.eval()
    try:
        model(batch.tokens, mode=SKIP, hint=batch.hint)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return [seen[i] for i, _ in tracks]


def queries_keys(track: AttentionTrack, x: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, T, H, D] and k [B, T, G, D] of the inputs [B, T, E] of a track, at their positions."""
    q = track.q(x).unflatten(-1, (track.heads, track.head_dim))
    k, _ = track.keys_values(x, None)
    return rotate(q, torch.arange(x.shape[1], device=x.device)) if track.rope else q, k


def _weights(track: AttentionTrack, x: Tensor) -> Tensor:
    """Softmax weights of every row of one sequence `x` [1, T, E], whoever takes the track: [H, T, S]."""
    length, device = x.shape[1], x.device
    at = torch.arange(length, device=device)
    q, k = queries_keys(track, x)
    k = k.repeat_interleave(track.heads // track.kv_heads, 2)
    score = torch.einsum("bthd,bshd->bhts", q, k)[0].float() * track.head_dim**-0.5
    score = score.masked_fill(at > at[:, None], HIDDEN)
    reach = track.reach(x, None, None, SKIP, buffers=False)
    return (score + explicit_log_weights(reach, track.heads, track.kv_heads, length, device)).softmax(-1)


def _spans(mass: Tensor, edges: list[int], share: float) -> list[list[int]]:
    """End of the bin in which the cumulative mass reaches `share`."""
    reached = (mass.cumsum(-1) >= share * mass.sum(-1, keepdim=True)).int().argmax(-1)
    ends = [*edges[1:], 2 * max(1, edges[-1])]
    return [[ends[i] for i in row] for row in reached.tolist()]
