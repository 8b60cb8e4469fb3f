"""The causality certificate: perturb the future, and nothing in the past may move, bit for bit, gates included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from turnout.errors import ConfigError
from turnout.models.causal_lm import CausalLM
from turnout.routers.mode import RoutingMode


@dataclass(frozen=True, slots=True)
class Leak:
    """One place where a later token changed an earlier value.

    Attributes:
        where: module path, or "logits".
        changed_at: position that was perturbed.
        seen_at: first earlier position whose value moved.
        size: largest absolute change there.
    """

    where: str
    changed_at: int
    seen_at: int
    size: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """Result of `certify`: causal if and only if `leaks` is empty.

    Attributes:
        checks: (execution, perturbed position) pairs tried.
        leaks: in forward order of the modules, so the first is the module that leaks.
        length: of the test sequences.
    """

    checks: int
    leaks: list[Leak] = field(default_factory=list)
    length: int = 0

    @property
    def causal(self) -> bool:
        return not self.leaks

    def __str__(self) -> str:
        if self.causal:
            return (
                f"causal: {self.checks} perturbations of {self.length} tokens, "
                "nothing before them moved by a single bit"
            )
        leak = self.leaks[0]
        return (
            f"NOT causal: changing token {leak.changed_at} moved {leak.where} at position {leak.seen_at} "
            f"(by {leak.size:.3g}); {len(self.leaks)} leaks in {self.checks} perturbations"
        )


@torch.no_grad()
def certify(model: nn.Module, *, length: int = 64, batch: int = 2, positions: int = 6, seed: int = 0) -> Certificate:
    """Check that no output, gate or hidden value at t < s depends on token s.

    For each of `positions` places s (the second and the last among them) the tokens from s on are replaced, and
    everything at t < s is compared bit for bit: the logits, the gates and every submodule's output [B, T, ...].
    The model runs in evaluation mode, in float64, on the reference operator with static shapes, so that a difference
    can only be a leak and not another order of summation. Both the dense and the skipping execution are checked.

    Args:
        model: a `CausalLM`, or any module that maps int64 tokens [B, T] to logits [B, T, V] and has an attribute
            `vocab` (or an `nn.Embedding`). It is left as it was: the forward passes run on float64 copies of its
            parameters and buffers.
        length, batch: size of the test sequences. A length that is also a dimension of a weight is lowered to the next
            that is not, because a memory [B, E] would be taken for a value at each of E tokens.
        positions: perturbed places.
    Returns:
        Certificate; `str()` says what leaks where.
    Raises:
        ConfigError: length < 2, no length is left, the vocabulary cannot be found or has one token, or the model
            returns nothing of shape [B, T, ...].
    Cost: 2 · (positions + 1) forward passes.
    """
    if batch < 1 or positions < 1:
        raise ConfigError(f"certify batch={batch}, positions={positions}; expected >= 1")
    length = _free_length(model, length)
    vocab = _vocab(model)
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tokens = torch.randint(vocab, (batch, length), generator=generator).to(device)
    other = (tokens + 1 + torch.randint(vocab - 1, (batch, length), generator=generator).to(device)) % vocab
    places = sorted({1, length - 1, *torch.linspace(1, length - 1, positions).long().tolist()})
    training = {module: module.training for module in model.modules()}
    leaks: list[Leak] = []
    order: dict[str, int] = {}
    checks = 0
    model.eval()
    try:
        for skip in (False, True) if isinstance(model, CausalLM) else (False,):
            base = _trace(model, tokens, skip)
            for name in base:
                order.setdefault(name, len(order))
            for place in places:
                changed = torch.where(torch.arange(length, device=device) >= place, other, tokens)
                leaks += _compare(base, _trace(model, changed, skip), place)
                checks += 1
    finally:
        # One by one: a part that was in evaluation mode inside a model in training stays there.
        for module, was_training in training.items():
            module.training = was_training
    # A hard decision leaks only where the change tips it: the first module is the first that any pass caught.
    return Certificate(checks=checks, leaks=sorted(leaks, key=lambda leak: order[leak.where]), length=length)


def _free_length(model: nn.Module, length: int) -> int:
    """The longest sequence up to `length` whose length is no dimension of a weight."""
    if length < 2:
        raise ConfigError(f"certify length={length}; expected >= 2, one token to perturb and one before it")
    taken = {size for tensor in (*model.parameters(), *model.buffers()) for size in tensor.shape}
    free = next((n for n in range(length, 1, -1) if n not in taken), None)
    if free is None:
        raise ConfigError(
            f"certify length={length}: every length up to it is a dimension of a weight; use a longer one"
        )
    return free


def _vocab(model: nn.Module) -> int:
    vocab = getattr(model, "vocab", None)
    if vocab is None:
        vocab = next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if not isinstance(vocab, int) or vocab < 2:
        raise ConfigError(
            f"certify found vocabulary {vocab!r}; expected a model with an attribute vocab >= 2 or an nn.Embedding"
        )
    return vocab


def _trace(model: nn.Module, tokens: Tensor, skip: bool) -> dict[str, Tensor]:
    """Everything of shape [B, T, ...] that a forward pass makes, by module path in forward order."""
    # Copies for every pass: a module that writes to its buffers changes neither the model nor the next pass.
    weights = {
        name: t.to(torch.float64, copy=True) if t.is_floating_point() else t.clone()
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }
    seen: dict[str, Tensor] = {}
    shape = tokens.shape

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.shape[:2] == shape:
            # A module called twice keeps both calls.
            seen[name if name not in seen else f"{name}#{len(seen)}"] = value.clone()
        elif isinstance(value, tuple | list):
            for i, part in enumerate(value):
                keep(f"{name}[{i}]" if i else name, part)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                keep(f"{name}[{key}]", part)
        elif hasattr(value, "gate") and hasattr(value, "taken"):
            keep(f"{name}.gate", value.gate)
            keep(f"{name}.taken", value.taken)

    def watch(name: str) -> object:
        return lambda module, args, output: keep(name, output)

    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        if isinstance(model, CausalLM):
            # One slot too many, so that a list of rows taken is not mistaken for one value per token.
            mode = RoutingMode(skip=skip, capacity=shape[1] + 1 if skip else None, impl="reference")
            # The oracle's hint must itself be causal; every third token is as good as any.
            hint = (torch.arange(shape[1], device=tokens.device) % 3 == 0).expand(shape)
            out: object = functional_call(model, weights, (tokens,), {"mode": mode, "hint": hint}).logits
        else:
            out = functional_call(model, weights, (tokens,))
            out = getattr(out, "logits", out)
    finally:
        for hook in hooks:
            hook.remove()
    inside = len(seen)
    keep("logits", out)
    if len(seen) == inside:
        raise ConfigError(
            f"certify got {_describe(out)} from {type(model).__name__}; expected logits [B, T, ...] = {[*shape, '...']}"
        )
    return seen


def _describe(out: object) -> str:
    return f"a tensor of shape {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"


def _compare(base: dict[str, Tensor], changed: dict[str, Tensor], place: int) -> list[Leak]:
    leaks = []
    for name, value in base.items():
        other = changed.get(name)
        # A module that only one of the passes called, or a width that depends on the tokens: what it changes in the
        # past shows up in the modules after it.
        if other is None or other.shape != value.shape:
            continue
        past, changed_past = value[:, :place], other[:, :place]
        # Two NaNs are the same value.
        moved = (past != changed_past) & ((past == past) | (changed_past == changed_past))
        moved = moved.flatten(2).any(-1).any(0) if moved.ndim > 2 else moved.any(0)
        if bool(moved.any()):
            first = int(moved.nonzero()[0])
            size = float((value[:, first].double() - other[:, first].double()).abs().max())
            leaks.append(Leak(where=name, changed_at=place, seen_at=first, size=size))
    return leaks
