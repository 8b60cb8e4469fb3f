"""Prompts of several lengths behind one cache: each length is read by itself, then all of them step together.

B sequences, T tokens, G routing groups. Nothing is padded, so no sequence sees its neighbours' lengths: memories of
convolutions and routers stand behind each sequence's own last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from turnout.layers import MixerState
from turnout.models.causal_lm import CausalLM, taken_of
from turnout.routers.mode import SKIP

# Sequences of a state that is only looked at; a count that nothing else in a memory has.
_PROBE = 3


def batches_of(model: CausalLM, lengths: Sequence[int]) -> list[list[int]]:
    """Which prompts step together, shortest first: all of them, or those of one length each.

    Places are by sequence, which patterns, and memories that count on the host (random and periodic controls), do not
    know.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    far = any(spec != "full" for spec in model.config.layer_patterns)
    parts = [
        part for memory in model.init_state(_PROBE, 1) for part in (memory.local, memory.router, memory.directions)
    ]
    if not far and all(map(_by_sequence, parts)):
        return [order]
    return [[i for i in order if lengths[i] == length] for length in sorted(set(lengths))]


def read_prompts(
    model: CausalLM, prompts: Sequence[Sequence[int]], room: int
) -> tuple[list[MixerState], Tensor, list[Tensor]]:
    """The state behind prompts that are sorted by length, in a cache of `room` tokens.

    Returns:
        state; logits [B, V] after each last token; of each prompt who attended, bool [T, layers, G] on the CPU (no
        entries without a router).
    """
    device = model.embed.weight.device
    state = model.init_state(len(prompts), room)
    logits, taken, parts, first = [], [], [], 0
    while first < len(prompts):
        length = len(prompts[first])
        rows = slice(first, first + sum(len(prompt) == length for prompt in prompts))
        part = [_part(memory, rows) for memory in state]
        tokens = torch.tensor(prompts[rows], device=device)
        at = torch.full((len(tokens), 1), length - 1, device=device)
        out = model(tokens, mode=SKIP, state=part, at=at)
        logits.append(out.logits[:, -1])
        found = taken_of(out.routes)
        taken += [] if found is None else list(found.cpu())
        parts.append(part)
        first = rows.stop
    for i, memory in enumerate(state):
        memory.local, memory.router, memory.directions, memory.pattern = (
            _joined([getattr(part[i], name) for part in parts]) for name in ("local", "router", "directions", "pattern")
        )
        if memory.cache is not None:
            memory.cache.length = len(prompts[-1])
    return state, torch.cat(logits), taken


def _part(memory: MixerState, rows: slice) -> MixerState:
    """The memory of some sequences; keys and values are written where those of all lie."""
    return MixerState(
        cache=None if memory.cache is None else memory.cache.part(rows),
        local=_rows(memory.local, rows), router=_rows(memory.router, rows), directions=_rows(memory.directions, rows),
        pattern=_rows(memory.pattern, rows),
    )  # fmt: skip


def _by_sequence(value: Any) -> bool:
    """Whether a memory has one row a sequence and nothing else."""
    if isinstance(value, tuple):
        return all(map(_by_sequence, value))
    return value is None or (isinstance(value, Tensor) and value.shape[:1] == (_PROBE,))


def _rows(value: Any, rows: slice) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(item, rows) for item in value)
    return value[rows] if isinstance(value, Tensor) and value.ndim > 0 else value


def _joined(values: list[Any]) -> Any:
    if len(values) == 1 or not isinstance(values[0], (Tensor, tuple)):
        return values[0]
    if isinstance(values[0], tuple):
        return tuple(_joined(list(items)) for items in zip(*values, strict=True))
    return torch.cat(values)
