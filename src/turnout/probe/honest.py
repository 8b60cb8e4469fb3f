"""Honest perplexity: every position scored with only its prefix given to every part of the model.

    teacher-forced   −log p(x_{t+1} | model on x_0..x_{T−1}, read at t)
    prefix-honest    −log p(x_{t+1} | model on x_0..x_t, read at t)

The two are one number for a causal model. Where they differ, the teacher-forced one has read the future.

B batch, T tokens, P scored positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.probe.anatomy import Anatomy
from turnout.tasks import Task


def scored_positions(length: int, count: int) -> list[int]:
    """`count` positions of 0..length-1, evenly spaced, the first and the last among them; all if there are no more."""
    if count < 1:
        raise ConfigError(f"positions={count}; expected >= 1")
    if count >= length:
        return list(range(length))
    return sorted({round(i * (length - 1) / max(1, count - 1)) for i in range(count)}) if count > 1 else [length - 1]


@torch.no_grad()
def position_losses(anatomy: Anatomy, tokens: Tensor, targets: Tensor, positions: list[int], *, honest: bool) -> Tensor:
    """Loss in nats of `targets` [B, T] at some positions, float64 [B, P].

    Cost: one forward pass of T tokens; honest: one of t + 1 tokens for each position t.
    """
    targets = targets.to(anatomy.device)

    def score(logits: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), wanted, reduction="none").double()

    if honest:
        columns = [score(anatomy.logits(tokens[:, : t + 1])[:, -1], targets[:, t]) for t in positions]
        return torch.stack(columns, 1)
    logits = anatomy.logits(tokens)
    return torch.stack([score(logits[:, t], targets[:, t]) for t in positions], 1)


def honest_perplexity(
    model: nn.Module, task: Task, *, sequences: int = 64, positions: int = 32, batch: int = 32, seed_offset: int = 1
) -> dict[str, Any]:
    """Both perplexities of a model at the same positions of held-out text, in all, by length of prefix and by domain.

    Args:
        model: see `Anatomy`; it is put in evaluation mode for the call.
        task: with a target at every position.
        sequences, positions: how many; every sequence is scored at each position.
        batch: sequences a forward pass.
    Returns:
        {"n", "sequences", "positions", "teacher_forced", "honest" (nats), "gap" with its standard error over
        sequences, "last" (loss at the last position, where nothing can leak), "by_length", "by_domain"}.
    """
    anatomy = Anatomy(model)
    was_training = model.training
    model.eval()
    try:
        found = _score(anatomy, task, sequences, scored_positions(task.length, positions), batch, seed_offset)
    finally:
        model.train(was_training)
    places, forced, honest, domain = found
    gap = (honest - forced).mean(1)
    names = getattr(task, "slice_names", {}).get("domain", [])
    by_length = [
        {"from": low, "to": high, **_pair(forced[:, at], honest[:, at])}
        for low, high in _octaves(task.length)
        if (at := [i for i, t in enumerate(places) if low <= t + 1 <= high])
    ]
    by_domain = []
    if domain is not None:
        for number in domain.unique().tolist():
            own = domain == number
            name = names[number] if number < len(names) else str(number)
            by_domain.append({"domain": name, "n": int(own.sum()), **_pair(forced[own], honest[own])})
    return {
        "n": forced.numel(), "sequences": len(forced), "positions": places, **_pair(forced, honest),
        "gap": float(gap.mean()), "gap_stderr": float(gap.std() / math.sqrt(len(gap))) if len(gap) > 1 else 0.0,
        "last": float(forced[:, -1].mean()), "by_length": by_length, "by_domain": by_domain,
        "windows": [[round(float(v.mean()), 5) for v in pair] for pair in zip(forced, honest, strict=True)],
    }  # fmt: skip


def _score(
    anatomy: Anatomy, task: Task, sequences: int, places: list[int], batch: int, seed_offset: int
) -> tuple[list[int], Tensor, Tensor, Tensor | None]:
    forced: list[Tensor] = []
    honest: list[Tensor] = []
    domain: list[Tensor] = []
    for item in _some(task, sequences, batch, seed_offset):
        if item.at.shape != item.tokens.shape:
            raise ConfigError(
                f"task {task.config.kind!r} has targets at some positions only; expected one at each, as in text"
            )
        for into, is_honest in ((forced, False), (honest, True)):
            into.append(position_losses(anatomy, item.tokens, item.targets, places, honest=is_honest).cpu())
        if "domain" in item.slices:
            domain.append(item.slices["domain"][:, places])
    return places, torch.cat(forced), torch.cat(honest), torch.cat(domain) if domain else None


def _some(task: Task, sequences: int, batch: int, seed_offset: int) -> Iterable[Any]:
    if sequences < 1 or batch < 1:
        raise ConfigError(f"sequences={sequences}, batch={batch}; expected >= 1")
    size = min(batch, sequences)
    return task.eval_batches(-(-sequences // size), size, seed_offset)


def _pair(forced: Tensor, honest: Tensor) -> dict[str, float]:
    return {"teacher_forced": float(forced.mean()), "honest": float(honest.mean())}


def _octaves(length: int) -> list[tuple[int, int]]:
    """1, 2, 3-4, 5-8, ... up to `length`."""
    ends = [2**i for i in range(math.ceil(math.log2(max(2, length))) + 1)]
    return [(1 if i == 0 else ends[i - 1] + 1, end) for i, end in enumerate(ends)]
