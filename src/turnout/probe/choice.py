"""Multiple choice from held-out text: which of four pieces of a document comes next?

Benchmarks of this kind are where the published router shows no gain. They score each ending by its log probability, and
an ending that is longer than a token can be read by a part of the model that sees the future, so every question is
scored twice, see `turnout.probe.honest`.

Q questions, O options, C context and E ending tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.probe.anatomy import Anatomy
from turnout.probe.honest import position_losses
from turnout.stats import wilson
from turnout.tasks import Task

OPTIONS = 4
_LONGEST_CONTEXT, _LONGEST_ENDING = 248, 8


@torch.no_grad()
def multiple_choice(
    model: nn.Module, task: Task, *, questions: int = 256, batch: int = 128, seed_offset: int = 4
) -> dict[str, Any]:
    """Accuracy on questions made of held-out windows: C tokens, then the E tokens that follow and three later pieces.

    Wrong endings are E tokens of the same window, evenly spaced behind the right one, so that topic and style do not
    give the answer away. Options have the same number of tokens; the least loss is the choice, and a tie is wrong.

    Args:
        model: see `Anatomy`; task: with a target at every position, windows of at least 16 tokens.
        questions: at most so many; the validation split may have fewer windows.
        batch: options a forward pass.
    Returns:
        {"n", "chance", "context", "ending", and for "teacher_forced", "honest" and "no context" (the endings behind the
        last token of the context alone) accuracy and its 95 % interval}.
    Cost: 4·Q forward passes of C + E tokens, and E times as many for the honest ones.
    """
    anatomy = Anatomy(model)
    windows = torch.cat([item.tokens for item in task.eval_batches(1, questions, seed_offset)])
    texts, context, ending = questions_of(windows)
    was_training = model.training
    model.eval()
    try:
        losses = {
            "teacher_forced": option_losses(anatomy, texts, ending, batch, honest=False),
            "honest": option_losses(anatomy, texts, ending, batch, honest=True),
            "no context": option_losses(anatomy, texts[:, :, context - 1 :], ending, batch, honest=True),
        }
    finally:
        model.train(was_training)
    n = len(texts)
    found: dict[str, Any] = {"n": n, "chance": 1 / OPTIONS, "context": context, "ending": ending}
    for name, loss in losses.items():
        right = int((loss[:, :1] < loss[:, 1:]).all(1).sum())
        found[name] = {"accuracy": right / n, "accuracy_95": list(wilson(right / n, n))}
    return found


def questions_of(windows: Tensor) -> tuple[Tensor, int, int]:
    """Texts [Q, O, C + E] of windows [Q, T], the right option first; C and E.

    Raises:
        ConfigError: windows too short for a context and four endings.
    """
    length = windows.shape[1]
    ending = min(_LONGEST_ENDING, length // 8)
    context = min(_LONGEST_CONTEXT, length // 2)
    if ending < 2:
        raise ConfigError(f"windows of {length} tokens; expected at least 16, for endings of two tokens or more")
    room = length - ending - context
    starts = [context + round(i * room / (OPTIONS - 1)) for i in range(OPTIONS)]
    pieces = torch.stack([windows[:, at : at + ending] for at in starts], 1)
    shared = windows[:, None, :context].expand(-1, OPTIONS, -1)
    return torch.cat((shared, pieces), 2), context, ending


def option_losses(anatomy: Anatomy, texts: Tensor, ending: int, batch: int, *, honest: bool) -> Tensor:
    """Loss of the last `ending` tokens of each option, [Q, O]."""
    flat = texts.flatten(0, 1)
    length = flat.shape[1] - 1
    places = list(range(length - ending, length))
    parts = [
        position_losses(anatomy, part[:, :-1], part[:, 1:], places, honest=honest).sum(1).cpu()
        for part in flat.split(batch)
    ]
    return torch.cat(parts).unflatten(0, texts.shape[:2])
