"""`--dry-run`: what a run would be, measured on one small sequence and written nowhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnout.cli.numbers import count
from turnout.cli.result import Result, Table
from turnout.config import to_dict
from turnout.tasks import TextConfig
from turnout.train.config import CurriculumConfig, RunConfig

if TYPE_CHECKING:
    from turnout.models.causal_lm import CausalLM

_PROBE_LENGTH = 256
_SMALL_USAGE = 0.01


def plan(config: RunConfig) -> Result:
    """Parameters, operations, steps and memory of a run; builds the model and trains nothing.

    Raises:
        ConfigError: the model cannot be built; DataError: the text is missing, empty or binary.
    """
    from turnout.models.causal_lm import CausalLM
    from turnout.train.curriculum import PATIENCE
    from turnout.train.schedules import build_schedule

    if isinstance(config.task, TextConfig) and not _is_absent_default(config.task.path):
        from turnout.tasks.documents import read_corpus

        read_corpus(config.task.path)
    model = CausalLM(config.model, vocab=config.task.vocab, seed=config.seed)
    schedule = build_schedule(config.schedule)
    length = max((config.task.length, *getattr(config.schedule, "lengths", ())))
    routed = "R" in config.model.layer_kinds
    usages = {"every gate open": 1.0, "1 % of gates open": _SMALL_USAGE, "no gate open": 0.0} if routed else {"": 1.0}
    flops = {name: model.block_flops(length, [usage] * config.model.layers) for name, usage in usages.items()}
    dense = CausalLM(replace(config.model, layout="A"), vocab=config.task.vocab, seed=config.seed)
    flops["dense attention"] = dense.block_flops(length, [1.0] * config.model.layers)
    parameters = sum(p.numel() for p in model.parameters())
    memory = estimate_memory(model, config, length)
    most = schedule.total_steps
    if isinstance(config.schedule, CurriculumConfig) and config.schedule.guard:
        most += (PATIENCE - 1) * (config.schedule.ramp_steps + config.schedule.hold_steps)
    data = {
        "config": to_dict(config),
        "parameters": parameters,
        "length": length,
        "flops_per_sequence": flops,
        "steps": schedule.total_steps,
        "steps_at_most": most,
        "memory_bytes": memory,
    }
    rows = [
        ("parameters", f"{parameters:,}"),
        ("steps", f"{schedule.total_steps:,}, at most {most:,}"),
        *((f"forward FLOPs, {name}".rstrip(", "), f"{count(value)} per sequence") for name, value in flops.items()),
        ("memory, weights and AdamW", f"{count(memory['weights_and_optimizer'])}B"),
        ("memory, activations", f"{count(memory['activations'])}B, estimated"),
    ]
    title = f"{config.name}: {config.task.kind} at {length:,} tokens, dry run, nothing written"
    return Result(data, [Table(("what", "value"), rows, title)])


def _is_absent_default(path: str) -> bool:
    """A text that the recipe chose and that is not there: the size of the model can be told all the same."""
    from turnout.recipes.directional import default_text

    return path == default_text() and not Path(path).exists()


def estimate_memory(model: CausalLM, config: RunConfig, length: int) -> dict[str, int]:
    """Bytes that training holds: weights, gradients and moments exactly; activations of one micro-batch estimated.

    Activations are what autograd really saves on one short sequence, dense phase, scaled to the tokens of a
    micro-batch at `length`: everything it saves grows linearly with the tokens.
    """
    import torch

    probe = min(length, _PROBE_LENGTH)
    optim = config.optim
    sequences = optim.batch if not optim.max_tokens else max(1, min(optim.batch, optim.max_tokens // length))
    # Half precision halves most of what is saved.
    scale = sequences * length / (2 * probe) * (0.5 if optim.precision == "bf16" else 1.0)
    state = 4 * 4 * sum(p.numel() for p in model.parameters())
    graded = probe if config.task.kind == "text" else min(probe, getattr(config.task, "queries", 1))
    weights = {p.data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _dense_loss(model, probe, graded)
    del loss
    return {"weights_and_optimizer": state, "activations": round(sum(seen.values()) * scale)}


def _dense_loss(model: CausalLM, length: int, graded: int) -> Any:
    import torch

    from turnout.routers.mode import RoutingMode

    generator = torch.Generator().manual_seed(0)
    # Two sequences: a control that shuffles decisions between sequences needs a second one.
    tokens = torch.randint(model.vocab, (2, length), generator=generator)
    at = torch.arange(length - graded, length).expand(2, -1)
    mode = RoutingMode(skip=False, sample=True, generator=generator)
    hint = torch.zeros(tokens.shape, dtype=torch.bool)
    logits = model(tokens, mode=mode, at=at, hint=hint).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.gather(1, at).flatten())
