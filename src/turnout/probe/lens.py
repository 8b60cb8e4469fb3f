"""What the logits are made of: direct logit attribution and the logit lens.

B batch, T tokens, E width, H heads, D head dim, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ShapeError, UnsupportedError
from turnout.probe.anatomy import Anatomy
from turnout.probe.taps import Taps


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """Contributions to one logit minus the mean logit, averaged over the batch; they sum to `total`.

    Attributes:
        embedding: of the stream that enters the first block.
        heads: [L, H], each head's output before directions are removed, through Wo.
        deltas: [L, H], what removing the directions adds (0 without directions).
        other: [L], what the attention adds that is no head's: biases, the local track.
        mlps: [L].
        constant: of the final norm's bias.
        total: the logit minus the mean logit, computed by the model itself.
    """

    embedding: float
    heads: Tensor
    deltas: Tensor
    other: Tensor
    mlps: Tensor
    constant: float
    total: float

    def summary(self) -> dict[str, float]:
        """The published four parts, and the sum of magnitudes that a sum of signed parts hides."""
        parts = {
            "embedding": self.embedding, "heads": float(self.heads.sum()), "routing delta": float(self.deltas.sum()),
            "attention, other": float(self.other.sum()), "MLPs": float(self.mlps.sum()), "constant": self.constant,
        }  # fmt: skip
        return parts | {"total": self.total}


@torch.no_grad()
def attribute(taps: Taps, tokens: Tensor, targets: Tensor, position: int = -1) -> Attribution:
    """Direct logit attribution: the final norm's scale is frozen, then every part of the stream is linear in the logit.

        contribution(c) = <norm'(c), W_U[target] − mean_v W_U[v]>       norm'(c) = g (c − mean c) / scale (LayerNorm)
                                                                        norm'(c) = g c / scale             (RMSNorm)

    Args:
        tokens: [B, T]; targets: [B], the token whose logit is taken apart.
        position: where it is read.
    Raises:
        ShapeError: targets are not [B].
    """
    if targets.shape != tokens.shape[:1]:
        raise ShapeError(f"targets {tuple(targets.shape)}; expected one a sequence, {tuple(tokens.shape[:1])}")
    a = taps.anatomy
    n = len(a.blocks)
    keep = [f"blocks.{i}.{tap}" for i in range(n) for tap in ("hook_resid_pre", "hook_resid_post", "hook_attn_out",
            "hook_mlp_out", "attn.hook_z", "attn.hook_o", "ln1.hook_normalized")]  # fmt: skip
    seen = taps.run(tokens, keep=[name for name in keep if name in taps.places])
    read = _Reader(a, seen[f"blocks.{n - 1}.hook_resid_post"][:, position], targets.to(a.device))
    heads, deltas, other, mlps = [], [], [], []
    for i in range(n):
        at = f"blocks.{i}."
        attended = seen[at + "hook_attn_out"][:, position]
        raw, cut = _by_head(taps, seen.values, i, position)
        heads.append(read(raw))
        deltas.append(read(cut))
        other.append(read(attended - raw.sum(1) - cut.sum(1)))
        mlps.append(read(seen[at + "hook_mlp_out"][:, position]))
    logits = seen.logits[:, position].float()
    total = logits.gather(1, targets.to(a.device)[:, None])[:, 0] - logits.mean(1)
    return Attribution(
        embedding=float(read(seen["blocks.0.hook_resid_pre"][:, position])), heads=torch.stack(heads),
        deltas=torch.stack(deltas), other=torch.stack(other), mlps=torch.stack(mlps), constant=read.constant,
        total=float(total.mean()),
    )  # fmt: skip


class _Reader:
    """Contribution of parts of the stream, [B, ..., E] -> mean over B, behind a frozen final norm."""

    def __init__(self, anatomy: Anatomy, stream: Tensor, targets: Tensor) -> None:
        norm: Any = anatomy.part(anatomy.layout.norm)
        weight = anatomy.unembed()
        bias: Any = getattr(norm, "bias", None)
        eps: Any = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", 1e-6)
        self.centred = isinstance(norm, nn.LayerNorm)
        x = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        self.scale = norm.weight / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        self.read = (weight[targets] - weight.mean(0)).to(stream.dtype)
        constant: Any = torch.zeros(()) if bias is None else (self.read @ bias).mean()
        head_bias: Any = getattr(anatomy.part(anatomy.layout.head), "bias", None)
        if head_bias is not None:
            constant = constant + (head_bias[targets] - head_bias.mean()).mean()
        self.constant = float(constant)

    def __call__(self, part: Tensor) -> Tensor:
        if self.centred:
            part = part - part.mean(-1, keepdim=True)
        extra = (slice(None),) + (None,) * (part.ndim - 2)
        return (part * self.scale[extra] * self.read[extra]).sum(-1).mean(0).cpu()


def _by_head(taps: Taps, values: dict[str, Tensor], layer: int, position: int) -> tuple[Tensor, Tensor]:
    """What each head adds to the stream, [B, H, E]: before the cut, and by the cut."""
    a = taps.anatomy
    at = f"blocks.{layer}."
    if at + "attn.hook_z" not in values:
        nothing = values[at + "hook_attn_out"][:, position, None] * 0
        return nothing.expand(-1, a.heads, -1), nothing.expand(-1, a.heads, -1)
    z = values[at + "attn.hook_z"][:, position]
    wo = a.projection(layer).unflatten(1, (a.heads, -1))
    raw = z
    if at + "attn.hook_o" in values:
        raw = values[at + "attn.hook_o"][:, position]
        gate: Any = getattr(getattr(a.blocks[layer].mixer, "attention", None), "gate", None)
        if gate is not None:
            raw = gate(raw[:, None], values[at + "ln1.hook_normalized"][:, position, None])[:, 0]
    weight = wo.to(z.dtype)
    return torch.einsum("bhd,ehd->bhe", raw, weight), torch.einsum("bhd,ehd->bhe", z - raw, weight)


@torch.no_grad()
def logit_lens(taps: Taps, tokens: Tensor, targets: Tensor) -> list[dict[str, float]]:
    """What each layer's stream would answer if the model ended there (nostalgebraist 2020).

    Returns:
        One entry a layer, the embedding first: loss (nats) and top-1 accuracy against `targets` [B, T], and how often
        its top token is already the model's own.
    """
    a = taps.anatomy
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(len(a.blocks)))]
    seen = taps.run(tokens, keep=names)
    final = seen.logits.argmax(-1)
    wanted = targets.to(final.device)
    rows = []
    for name in names:
        logits = a.part(a.layout.head)(a.part(a.layout.norm)(seen[name])).float()
        top = logits.argmax(-1)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        rows.append({
            "loss": float(loss), "accuracy": float((top == wanted).double().mean()),
            "agreement": float((top == final).double().mean()),
        })  # fmt: skip
    return rows


@torch.no_grad()
def patch(taps: Taps, clean: Tensor, corrupt: Tensor, targets: Tensor, wrong: Tensor, tap: str) -> Tensor:
    """Activation patching: values of the clean run put into the corrupt one, layer by layer and token by token.

    effect[l, t] = (d(patched) − d(corrupt)) / (d(clean) − d(corrupt))      d = logit[target] − logit[wrong] at the end

    Args:
        clean, corrupt: [B, T], of the same length; targets, wrong: [B], the answers to each.
        tap: ending of the tap that is patched, "hook_resid_pre", "hook_attn_out", "attn.hook_r", ...
    Returns:
        effect [L', T] over the layers that have the tap; 1 restores the clean answer.
    Raises:
        ShapeError: other lengths; UnsupportedError: no layer has the tap, or the runs do not differ.
    """
    if clean.shape != corrupt.shape:
        raise ShapeError(f"clean {tuple(clean.shape)} and corrupt {tuple(corrupt.shape)}; expected one shape")
    names = [name for name in taps.find(tap) if name.startswith("blocks.")]
    if not names:
        raise UnsupportedError(f"no layer of this model has a tap {tap!r}; taps.names lists them")

    def answer(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        picked = [last.gather(1, ids.to(last.device)[:, None]) for ids in (targets, wrong)]
        return (picked[0] - picked[1]).mean()

    source = taps.run(clean, keep=names)
    low, high = answer(taps.run(corrupt).logits), answer(source.logits)
    if low == high:
        raise UnsupportedError("the clean and the corrupt prompt give the same answer, so nothing can be restored")
    effect = torch.zeros(len(names), clean.shape[1])
    for i, name in enumerate(names):
        for t in range(clean.shape[1]):

            def put(value: Tensor, hook: Any, t: int = t, name: str = name) -> Tensor:
                new = value.clone()
                new[:, t] = source[name][:, t]
                return new

            effect[i, t] = (answer(taps.run(corrupt, edits={name: put}).logits) - low) / (high - low)
    return effect
