"""Gate decisions → the sorted list of rows that attend, on the device.

Axes: B batch, T tokens, G routing groups, C capacity (slots per list).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from turnout.errors import ConfigError, ShapeError, nearest
from turnout.ops.attend.triton.support import why_not_here

Overflow = Literal["earliest", "confident", "raise"]
POLICIES = ("earliest", "confident", "raise")


class Compacted(NamedTuple):
    """Rows that attend: `rows` int64 [B, G, C] ascending with -1 in empty slots; `count`, `dropped` int64 [B, G]."""

    rows: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which has no use here
    dropped: Tensor


def compact(
    taken: Tensor, capacity: int | None, *, overflow: Overflow = "earliest", gate: Tensor | None = None
) -> Compacted:
    """List the positions where `taken` is True, ascending, in a static number of slots.

        slot(t) = Σ_{i≤t} keep[i] − 1;   rows[slot(t)] = t where keep[t]

    "earliest" keeps the first C rows and is causal. "confident" keeps the C rows of highest `gate` (ties: the earlier
    row) and is *not* causal when it overflows, because a later token can displace an earlier one. "raise" raises.

    A token whose gate is NaN does not attend. An infinite gate ranks like the largest or smallest finite number.

    Args:
        taken: bool [B, T, G].
        capacity: slots C ≥ 1; None takes the largest count (at least 1).
        overflow: what to do with rows beyond the capacity.
        gate: probability [B, T, G]; ranks the rows under "confident".
    Returns:
        Compacted(rows, count, dropped); count + dropped = number of True with a gate that is not NaN.
    Raises:
        ShapeError: `taken` or `gate` has the wrong shape or dtype.
        ConfigError: capacity < 1, unknown policy, "confident" without a gate, or overflow under "raise".
    Cost: O(B·T·G), and a sort for "confident". One host synchronisation with capacity None or "raise", else none.
    """
    _check(taken, capacity, overflow, gate)
    if capacity is not None and overflow == "earliest" and _on_gpu(taken):
        from turnout.ops.compact_kernel import compact_rows

        return Compacted(*compact_rows(taken, None if gate is None else gate.detach(), capacity))
    if gate is not None:
        taken = taken & ~gate.isnan()
    taken = taken.transpose(1, 2)
    total = taken.sum(-1)
    if capacity is None:
        capacity = max(int(total.max()), 1) if total.numel() else 1
    elif overflow == "raise" and total.numel() and (most := int(total.max())) > capacity:
        raise ConfigError(
            f"capacity={capacity} but a sequence has {most} rows that attend; raise the capacity to {most}, "
            "or choose overflow='earliest' or 'confident'"
        )
    keep = _most_confident(taken, gate, capacity) if overflow == "confident" and gate is not None else taken
    rank = keep.cumsum(-1)
    # Rows that are not kept, or overflow, write into a spare slot that is cut off.
    slot = torch.where(keep & (rank <= capacity), rank - 1, capacity)
    position = torch.arange(taken.shape[-1], device=taken.device).expand_as(slot)
    rows = torch.full((*total.shape, capacity + 1), -1, dtype=torch.int64, device=taken.device)
    rows = rows.scatter(-1, slot, position)[..., :capacity]
    count = total.clamp_max(capacity)
    return Compacted(rows, count, total - count)


def _most_confident(taken: Tensor, gate: Tensor, capacity: int) -> Tensor:
    """bool [B, G, T]: the `capacity` taken rows of highest gate."""
    limits = torch.finfo(gate.dtype)
    gate = gate.detach().clamp(limits.min, limits.max)
    score = gate.transpose(1, 2).masked_fill(~taken, float("-inf"))
    best = score.sort(dim=-1, descending=True, stable=True).indices[..., :capacity]
    return torch.zeros_like(taken).scatter(-1, best, True) & taken


def _on_gpu(taken: Tensor) -> bool:
    """One launch of a Triton kernel instead of eight of torch's; the interpreter is for tests, never chosen here."""
    return taken.is_cuda and not why_not_here("cuda", taken.device.index or 0)


def _check(taken: Tensor, capacity: int | None, overflow: str, gate: Tensor | None) -> None:
    if taken.dim() != 3 or taken.dtype != torch.bool:
        raise ShapeError(
            f"taken is {taken.dtype} with shape {list(taken.shape)}; expected bool [B, T, G]; "
            "threshold the gate first, and use G=1 for one decision per token"
        )
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1):
        raise ConfigError(f"capacity={capacity!r}; expected a whole number >= 1, or None for the largest count")
    if overflow not in POLICIES:
        raise ConfigError(f"overflow={overflow!r} is not a policy{nearest(str(overflow), POLICIES)}")
    if gate is not None and (gate.shape != taken.shape or not gate.is_floating_point()):
        raise ShapeError(
            f"gate is {gate.dtype} with shape {list(gate.shape)}; expected floats with the shape of taken, "
            f"{list(taken.shape)}"
        )
    if overflow == "confident" and gate is None:
        raise ConfigError("overflow='confident' needs gate= to rank the rows; pass it, or use overflow='earliest'")
