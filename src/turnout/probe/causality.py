"""The causality certificate: perturb the future, and nothing in the past may move, bit for bit, gates included."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
        leaks: in forward order, so the first is the module that leaks.
    """

    checks: int
    leaks: list[Leak] = field(default_factory=list)

    @property
    def causal(self) -> bool:
        return not self.leaks

    def __str__(self) -> str:
        if self.causal:
            return f"causal: {self.checks} perturbations, nothing before them moved by a single bit"
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
    The model runs in float64 on the reference operator with static shapes, so that a difference can only be a leak and
    not another order of summation. Both the dense and the skipping execution are checked.

    Args:
        model: a `CausalLM`, or any module that maps int64 tokens [B, T] to logits [B, T, V] and has an attribute
            `vocab` (or an `nn.Embedding`). It is left as it was.
        length, batch: size of the test sequences.
        positions: perturbed places.
    Returns:
        Certificate; `str()` says what leaks where.
    Raises:
        ConfigError: length < 2, or the vocabulary cannot be found or has one token.
    Cost: 2 · (positions + 1) forward passes.
    """
    if length < 2:
        raise ConfigError(f"certify length={length}; expected >= 2, one token to perturb and one before it")
    vocab = _vocab(model)
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tokens = torch.randint(vocab, (batch, length), generator=generator).to(device)
    other = (tokens + 1 + torch.randint(vocab - 1, (batch, length), generator=generator).to(device)) % vocab
    places = sorted({1, length - 1, *torch.linspace(1, length - 1, positions).long().tolist()})
    dtypes = {name: p.dtype for name, p in (*model.named_parameters(), *model.named_buffers()) if p.is_floating_point()}
    training, leaks, checks = model.training, [], 0
    model.double().eval()
    try:
        for skip in (False, True) if isinstance(model, CausalLM) else (False,):
            base = _trace(model, tokens, skip)
            for place in places:
                changed = torch.where(torch.arange(length, device=device) >= place, other, tokens)
                leaks += _compare(base, _trace(model, changed, skip), place)
                checks += 1
    finally:
        for name, p in (*model.named_parameters(), *model.named_buffers()):
            if name in dtypes:
                p.data = p.data.to(dtypes[name])
        model.train(training)
    return Certificate(checks=checks, leaks=leaks)


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
    seen: dict[str, Tensor] = {}
    shape = tokens.shape

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.shape[:2] == shape:
            # A module called twice keeps both calls.
            seen[name if name not in seen else f"{name}#{len(seen)}"] = value.clone()
        elif isinstance(value, tuple | list):
            for i, part in enumerate(value):
                keep(f"{name}[{i}]" if i else name, part)
        elif hasattr(value, "gate") and hasattr(value, "taken"):
            keep(f"{name}.gate", value.gate)
            keep(f"{name}.taken", value.taken)

    def watch(name: str) -> object:
        return lambda module, args, output: keep(name, output)

    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        if isinstance(model, CausalLM):
            mode = RoutingMode(skip=skip, capacity=shape[1] if skip else None, impl="reference")
            # The oracle's hint must itself be causal; every third token is as good as any.
            hint = (torch.arange(shape[1], device=tokens.device) % 3 == 0).expand(shape)
            out: object = model(tokens, mode=mode, hint=hint).logits
        else:
            out = model(tokens)
            out = getattr(out, "logits", out)
    finally:
        for hook in hooks:
            hook.remove()
    keep("logits", out)
    return seen


def _compare(base: dict[str, Tensor], changed: dict[str, Tensor], place: int) -> list[Leak]:
    leaks = []
    for name, value in base.items():
        other = changed.get(name)
        if other is None:
            continue
        moved = (value[:, :place] != other[:, :place]).flatten(2).any(-1).any(0)
        if bool(moved.any()):
            first = int(moved.nonzero()[0])
            size = float((value[:, first].double() - other[:, first].double()).abs().max())
            leaks.append(Leak(where=name, changed_at=place, seen_at=first, size=size))
    return leaks
