"""What the tests compare with: brute-force attention, and a tolerance that is derived instead of chosen.

Axes: B batch, T tokens, R query rows, S keys, H query heads, G kv heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def value_and_grads(function: Function, inputs: Sequence[Tensor], *, grads: bool = True) -> list[Tensor]:
    """The output of `function` and its gradient for every input, pulled back from one fixed random cotangent.

    The cotangent has unit norm along the last axis, so that its product with a vector of the inputs has unit size too.
    """
    if not grads:
        with torch.no_grad():
            return [function(*inputs)]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cotangent = torch.nn.functional.normalize(cotangent, dim=-1).to(out.device, out.dtype)
    pulled = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
    zeros = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, pulled, strict=True)]
    return [out.detach(), *zeros]


def assert_as_exact_as_eager(
    fast: Function,
    eager: Function,
    inputs: Sequence[Tensor],
    *,
    reduction: int,
    dtype: torch.dtype = torch.float32,
    exact: Function | None = None,
    grads: bool = True,
) -> None:
    """Require of `fast` the accuracy of `eager` in the same dtype, forward and for every gradient.

        err(fast) ≤ err(eager) + sqrt(reduction) · eps · size          maximum and mean over the elements

    The inputs are rounded to the dtype and then promoted to float64 for the exact answer, so that the rounding of the
    inputs is nobody's error. `size` is the largest exact value, and at least 1, the size of the inputs: where terms
    cancel to nothing, the rounding of the terms stays.

    Args:
        fast: the implementation under test.
        eager: plain torch, run in the same dtype.
        inputs: float64 tensors.
        reduction: terms in the longest sum.
        dtype: the dtype under test.
        exact: the function run in float64; `eager` if None.
        grads: False for a function that has no backward.
    """
    rounded = [tensor.to(dtype) for tensor in inputs]
    truth = value_and_grads(exact or eager, [tensor.double() for tensor in rounded], grads=grads)
    plain, result = value_and_grads(eager, rounded, grads=grads), value_and_grads(fast, rounded, grads=grads)
    names = ["output", *(f"gradient of input {i}" for i in range(len(inputs)))][: len(truth)]
    for name, want, have, base in zip(names, truth, result, plain, strict=True):
        assert have.shape == want.shape and have.dtype == dtype, f"{name}: {have.dtype} {list(have.shape)}"
        if not want.numel():
            continue
        slack = math.sqrt(reduction) * torch.finfo(dtype).eps * max(1.0, float(want.abs().max()))
        wrong, allowed = (have.double() - want).abs(), (base.double() - want).abs()
        for kind, error, limit in (
            ("largest", float(wrong.max()), float(allowed.max()) + slack),
            ("mean", float(wrong.mean()), float(allowed.mean()) + slack),
        ):
            # Written so that a NaN fails.
            assert error <= limit, f"{name}: {kind} error {error:.3g} is above {limit:.3g}"


def brute_visible(
    rows: Tensor, n_keys: int, n_heads: int, *, window: int | None = None, sinks: int = 0, keys: Tensor | None = None
) -> Tensor:
    """Which keys each row sees, one pair at a time: rows [B, G or 1, R], keys [B, R, G, K] → bool [B, H, R, S]."""
    n_batch, n_lists, n_rows = rows.shape
    visible = torch.zeros(n_batch, n_heads, n_rows, n_keys, dtype=torch.bool)
    for b in range(n_batch):
        for h in range(n_heads):
            for r in range(n_rows):
                t = int(rows[b, h * n_lists // n_heads, r])
                allowed = None if keys is None else set(keys[b, r, h * keys.shape[2] // n_heads].tolist())
                for s in range(t + 1):
                    near = window is None or s > t - window or s < sinks
                    visible[b, h, r, s] = near and (allowed is None or s in allowed)
    return visible


def brute_bias(log_decay: Tensor, rows: Tensor) -> Tensor:
    """Sum of log_decay over s < i ≤ t, one pair at a time: log_decay [B, S, H], rows [B, G or 1, R] → [B, H, R, S]."""
    n_batch, n_keys, n_heads = log_decay.shape
    n_lists, n_rows = rows.shape[1:]
    bias = log_decay.new_zeros(n_batch, n_heads, n_rows, n_keys)
    for b in range(n_batch):
        for h in range(n_heads):
            for r in range(n_rows):
                t = int(rows[b, h * n_lists // n_heads, r])
                for s in range(t):
                    bias[b, h, r, s] = log_decay[b, s + 1 : t + 1, h].sum()
    return bias


def eager_attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention in plain torch, in the dtype of its inputs: visible and bias [B, H, R, S] → [B, R, H, D]."""
    group_size = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group_size, 2), v.repeat_interleave(group_size, 2)
    score = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
    if bias is not None:
        score = score + bias.to(score.dtype)
    weight = score.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weight @ v.transpose(1, 2)).transpose(1, 2)


def rows_of(taken: Tensor) -> Tensor:
    """taken bool [B, T, G] → rows int64 [B, G, R] with -1 in empty slots, one list at a time."""
    lists = [[taken[b, :, g].nonzero()[:, 0].tolist() for g in range(taken.shape[2])] for b in range(taken.shape[0])]
    longest = max(1, *(len(one) for batch in lists for one in batch))
    return torch.tensor([[one + [-1] * (longest - len(one)) for one in batch] for batch in lists])


def scan_inputs(length: int, n_states: int, *, channels: int = 16, size: int = 16) -> list[Tensor]:
    """x, log decay, write, read of two sequences and two heads, and as many states (0 or 1)."""
    source = torch.Generator().manual_seed(length)
    shapes = [(2, length, 2, channels), (2, length, 2), (2, length, size), (2, length, size)]
    shapes += [(2, 2, channels, size)] * n_states
    x, decay, *rest = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes)
    return [x, -decay.abs(), *rest]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Several outputs as one."""
    return torch.cat([part.flatten() for part in parts])
