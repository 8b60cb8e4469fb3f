"""Interventions as edits of taps: zero, constant, mean, swapped and random, for r, heads, attentions, MLPs and layers.

Every removal has a control beside it: zero beside the dataset mean, learned directions beside random ones of the same
rank, one head beside random directions of as many dimensions.

B batch, T tokens, E width, H heads, D head dim, K directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.probe.taps import Edit, Hook, Taps

ACTIONS = ("zero", "constant", "mean", "swap", "random")
KINDS = ("r", "head", "attn", "mlp", "layer")
_TAPS = {"r": ("attn.hook_r",), "attn": ("hook_attn_out",), "mlp": ("hook_mlp_out",),
         "layer": ("hook_attn_out", "hook_mlp_out"), "head": ("attn.hook_z",)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """What is intervened on: "r" (all layers or one), "head" (of a layer), "attn", "mlp" or "layer".

    Attributes:
        kind: one of `KINDS`; layer: None = all of them; head: for kind "head".
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f":{self.layer}"
        return self.kind + where + ("" if self.head is None else f".{self.head}")


def parse_unit(text: str) -> Unit:
    """`r`, `r:3`, `head:3.5`, `attn:3`, `mlp:3`, `layer:3`; ConfigError says what is wrong."""
    kind, colon, where = text.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"intervention {text!r}: unknown part {kind!r}{nearest(kind, KINDS)}")
    layer, dot, head = where.partition(".")
    numbers = [layer] * bool(colon) + [head] * bool(dot)
    if not all(n.isdigit() for n in numbers) or bool(dot) is not (kind == "head"):
        form = "head:LAYER.HEAD" if kind == "head" else f"{kind} or {kind}:LAYER"
        raise ConfigError(f"intervention {text!r}; expected {form}, counted from 0")
    return Unit(kind, int(layer) if colon else None, int(head) if dot else None)


def names_of(taps: Taps, unit: Unit) -> list[str]:
    """The taps of a unit.

    Raises:
        ConfigError: no such part; the model has no such layer or head, or no directions.
    """
    a = taps.anatomy
    if unit.kind not in KINDS:
        raise ConfigError(f"intervention {str(unit)!r}: unknown part {unit.kind!r}{nearest(unit.kind, KINDS)}")
    if unit.head is not None:
        a.check_head(unit.head)
    layers = range(len(a.blocks)) if unit.layer is None else [a.check_layer(unit.layer)]
    names = [f"blocks.{i}.{tap}" for i in layers for tap in _TAPS[unit.kind]]
    found = [name for name in names if name in taps.places]
    if not found:
        what = "directions (model.directions is none)" if unit.kind == "r" else "attention track"
        raise ConfigError(f"intervention {str(unit)!r}: no {what} there")
    return found


@torch.no_grad()
def mean_values(taps: Taps, batches: Iterable[Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Mean of each tap over all sequences and tokens, without its first two axes, in float64."""
    wanted, count = list(names), 0
    total: dict[str, Tensor] = {}
    for tokens in batches:
        seen = taps.run(tokens, keep=wanted).values
        for name, value in seen.items():
            total[name] = value.double().sum((0, 1)) + total.get(name, 0)
        count += tokens.numel()
    return {name: value / count for name, value in total.items()}


def edits_of(
    taps: Taps, unit: Unit, action: str, *, value: float = 0.5, means: dict[str, Tensor] | None = None, seed: int = 0
) -> dict[str, Edit]:
    """The edits that do `action` to `unit`.

        zero       v <- 0; of r: nothing is removed
        constant   v <- value; of r: static routing
        mean       v <- its mean over a data set: removes what it says about this input and keeps what is constant
        swap       v <- what it is for the next sequence of the batch
        random     the same rank, at random: of r, K random unit directions a head are removed on top, with the amounts
                   that the model gives; of a head, D random orthonormal directions of all heads' outputs together

    Args:
        means: from `mean_values`, for "mean".
        seed: of "random".
    Raises:
        ConfigError: an unknown action or part, or "mean" without means.
    """
    if action not in ACTIONS:
        raise ConfigError(f"action {action!r}{nearest(action, ACTIONS)}")
    names = names_of(taps, unit)
    if action == "mean" and (means is None or any(name not in means for name in names)):
        raise ConfigError(f"the mean of {unit} is not known; pass means=mean_values(taps, batches, {names})")
    if action == "random":
        return _random_edits(taps, unit, names, seed)

    def change(v: Tensor, hook: Hook) -> Tensor:
        if action == "zero":
            return torch.zeros_like(v)
        if action == "constant":
            return torch.full_like(v, value)
        if action == "swap":
            return v.roll(1, 0)
        assert means is not None
        return means[hook.name].to(v).expand_as(v)

    if unit.head is None:
        return dict.fromkeys(names, change)
    head = unit.head

    def change_head(v: Tensor, hook: Hook) -> Tensor:
        new = v.clone()
        new[:, :, head] = change(v, hook)[:, :, head]
        return new

    return dict.fromkeys(names, change_head)


def _random_edits(taps: Taps, unit: Unit, names: list[str], seed: int) -> dict[str, Edit]:
    if unit.kind == "r":
        return _random_directions(taps, names, seed)
    if unit.kind != "head":
        raise ConfigError(f"action 'random' is for r and heads, not for {unit}; use zero, mean or swap")

    def remove(z: Tensor, hook: Hook) -> Tensor:
        heads, dim = z.shape[-2:]
        generator = torch.Generator().manual_seed(seed * 1009 + (hook.layer or 0))
        basis = torch.linalg.qr(torch.randn(heads * dim, dim, generator=generator, dtype=torch.float64)).Q.to(z)
        flat = z.flatten(-2)
        return (flat - flat @ basis @ basis.T).unflatten(-1, (heads, dim))

    return dict.fromkeys(names, remove)


def _random_directions(taps: Taps, names: list[str], seed: int) -> dict[str, Edit]:
    """Read r where it is decided, and remove as much of random directions from what is left."""
    amounts: dict[int | None, Tensor] = {}

    def remember(r: Tensor, hook: Hook) -> None:
        amounts[hook.layer] = r

    def remove(z: Tensor, hook: Hook) -> Tensor:
        r = amounts[hook.layer]
        generator = torch.Generator().manual_seed(seed * 1009 + (hook.layer or 0))
        d = torch.randn(z.shape[-2], r.shape[-1], z.shape[-1], generator=generator)
        d = nn.functional.normalize(d, dim=-1).to(z)
        along = torch.einsum("bthd,hkd->bthk", z, d)
        return z - torch.einsum("bthk,hkd->bthd", r.to(z) * along, d)

    edits: dict[str, Edit] = {}
    for name in names:
        edits |= {name: remember, name.replace("hook_r", "hook_z"): remove}
    return edits


@torch.no_grad()
def loss_under(
    taps: Taps, batches: Iterable[tuple[Tensor, Tensor]], edits: dict[str, Edit] | None = None
) -> tuple[float, list[float]]:
    """Mean next-token loss in nats over (tokens, targets) [B, T] under edits, and that of each sequence."""
    each: list[float] = []
    for tokens, targets in batches:
        logits = taps.run(tokens, edits=edits or {}).logits.float()
        wanted = targets.to(logits.device).flatten()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="none")
        each += loss.double().unflatten(0, targets.shape).mean(1).tolist()
    return sum(each) / len(each), each
