"""Losses of single tokens, grouped by how many layers attended when they were predicted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from turnout.errors import ConfigError
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import SKIP
from turnout.tasks import Task


@torch.no_grad()
def losses_by_route(model: CausalLM, task: Task, *, sequences: int, batch: int) -> list[dict[str, Any]]:
    """Mean loss of the predictions made where k of the routed layers attended, for each k that occurs.

    Attention may be spent where prediction is hard, so a higher loss of attended tokens does not say that attending
    harms; an intervention does (turnout probe).

    Returns:
        One row for each k: layers (k), n, share of all predictions, loss, and its standard error.
    Raises:
        ConfigError: the model has no router.
    """
    if "R" not in model.config.layer_kinds:
        raise ConfigError(f"layout {model.config.layer_kinds} has no router, so nothing is routed")
    model.eval()
    device = model.embed.weight.device
    routed = model.config.layer_kinds.count("R")
    count, total, squares = (torch.zeros(routed + 1, dtype=torch.float64) for _ in range(3))
    for item in task.eval_batches(-(-sequences // batch), batch, 1):
        moved = item.to(device)
        out = model(moved.tokens, mode=replace(SKIP, starts=moved.starts), at=moved.at, hint=moved.hint)
        losses = torch.nn.functional.cross_entropy(
            out.logits.float().transpose(1, 2), moved.targets.clamp(min=0), reduction="none"
        ).double()
        attended = torch.stack([route.taken.any(-1) for route in out.routes if route is not None]).sum(0)
        real = moved.at >= 0
        group = attended.gather(1, moved.at.clamp(min=0))[real].cpu()
        values = losses[real].cpu()
        count += torch.bincount(group, minlength=routed + 1)
        total += torch.bincount(group, weights=values, minlength=routed + 1)
        squares += torch.bincount(group, weights=values.square(), minlength=routed + 1)
    rows = []
    for k in range(routed + 1):
        n = int(count[k])
        if not n:
            continue
        mean = float(total[k]) / n
        spread = math.sqrt(max(0.0, float(squares[k]) / n - mean**2) / n)
        rows.append({"layers": k, "n": n, "share": n / float(count.sum()), "loss": mean, "loss_se": spread})
    return rows
