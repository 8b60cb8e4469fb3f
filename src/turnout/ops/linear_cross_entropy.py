"""Cross-entropy behind the output projection, chunk by chunk: the logits of all tokens never exist together.

N tokens, E width, V vocabulary, C tokens a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from turnout.errors import ConfigError, ShapeError

IGNORED = -100
# Rows of half-precision logits start at multiples of 128 bytes, whatever the vocabulary: products are several times
# slower where they do not.
_ALIGNED = 64


class Graded(NamedTuple):
    """Mean loss over the targets (differentiable), how many were right, and how many there are."""

    loss: Tensor
    correct: Tensor
    targets: Tensor


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk: int, compiled: bool = False
) -> Graded:
    """Mean of -log softmax(W x + b)[target] over the targets that are not -100.

    The gradients are made in the forward pass, while a chunk's logits are there: dlogits = (softmax - onehot) / n
    (the fusion of Liger-Kernel, 2410.10989, in plain torch).

    Args:
        x: [N, E]; under autocast the products run in autocast's dtype, sums in float32.
        weight: [V, E]; bias: [V].
        targets: int64 [N].
        chunk: C >= 1.
        compiled: compile what happens to a chunk's logits.
    Raises:
        ShapeError, ConfigError: shapes that do not fit, chunk < 1.
    Cost: 6·N·E·V multiply-adds × 2 with gradients, all here. Memory: C·V logits, and a float32 copy of W for its
        gradient.
    """
    if chunk < 1:
        raise ConfigError(f"chunk={chunk}; expected >= 1 token")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or targets.shape != x.shape[:1]:
        raise ShapeError(
            f"x {list(x.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}; "
            "expected [N, E], [V, E], [N]"
        )
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(x, weight, bias, targets, chunk, compiled)
    return Graded(loss, correct, (targets != IGNORED).sum())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        grade = _compiled_grade() if compiled else _grade
        graded = any(ctx.needs_input_grad[:3])
        vocab = weight.shape[0]
        if x.dtype in (torch.bfloat16, torch.float16) and vocab % _ALIGNED:
            weight = pad(weight, (0, 0, 0, -vocab % _ALIGNED))
            bias = None if bias is None else pad(bias, (0, -vocab % _ALIGNED))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = 1.0 / (targets != IGNORED).sum().clamp(min=1).to(wide)
        loss = torch.zeros((), device=x.device, dtype=wide)
        correct = torch.zeros((), device=x.device, dtype=torch.int64)
        dx = torch.empty_like(x) if graded else None
        dw = torch.zeros_like(weight, dtype=wide) if graded else None
        db = torch.zeros_like(bias, dtype=wide) if graded and bias is not None else None
        for start in range(0, x.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = linear(x[part], weight, bias)
            some_loss, some_correct, dlogits = grade(logits, targets[part], scale, vocab)
            loss += some_loss
            correct += some_correct
            if dx is not None and dw is not None:
                dx[part] = dlogits @ weight
                dw += dlogits.t() @ x[part]
            if db is not None:
                db += dlogits.sum(0, dtype=wide)
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(dx, None if dw is None else dw[:vocab], None if db is None else db[:vocab])
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        loss = grads[0]
        return (
            (dx * loss).to(dx.dtype),
            (dw * loss).to(weight_dtype),
            None if db is None else (db * loss).to(bias_dtype),
            None,
            None,
            None,
        )


def _grade(logits: Tensor, targets: Tensor, scale: Tensor, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (scaled sum), number right, and gradient of a chunk's logits; columns from `vocab` on only fill up."""
    real = targets != IGNORED
    wide = logits if logits.dtype == torch.float64 else logits.float()
    column = torch.arange(wide.shape[1], device=wide.device)
    if vocab < wide.shape[1]:
        wide = wide.masked_fill(column >= vocab, float("-inf"))
    index = targets.clamp(min=0)[:, None]
    top, best = wide.max(-1)
    lse = (wide - top[:, None]).exp().sum(-1).log() + top
    own = wide.gather(1, index)[:, 0]
    loss = torch.where(real, lse - own, 0.0).sum() * scale
    onehot = column == index
    weight = torch.where(real, scale, 0.0)[:, None]
    dlogits = ((wide - lse[:, None]).exp() - onehot.to(wide.dtype)) * weight
    return loss, ((best == targets) & real).sum(), dlogits.to(logits.dtype)


_COMPILED: list[Any] = []


def _compiled_grade() -> Any:
    """`_grade`, compiled on first use."""
    if not _COMPILED:
        _COMPILED.append(torch.compile(_grade, dynamic=False))
    return _COMPILED[0]
