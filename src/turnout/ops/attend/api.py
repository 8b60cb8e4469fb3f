"""`attend`: the one attention operator, and the choice between its implementations.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, K keys kept (or directions) per query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from turnout.errors import ConfigError, UnsupportedError, nearest
from turnout.ops.attend.breakeven import break_even
from turnout.ops.attend.call import Call, check_call
from turnout.ops.attend.gathered import gathered_attend, scattered_attend
from turnout.ops.attend.listed import listed_attend, why_not_listed
from turnout.ops.attend.reference import reference_attend
from turnout.ops.attend.triton.support import why_not_triton
from turnout.ops.suppress import suppress

# Tokens from which on directions are removed in the specialised kernel's epilogue.
EPILOGUE_FROM = 1024
# So many times the keys of a list are cheaper to score than a list is to gather (one core of an EPYC, float32).
LISTED_FROM = 32
IMPLS = ("auto", "reference", "gathered", "listed", "triton", "scattered", "dense")


class Choice(NamedTuple):
    """The implementation that runs and the reason, in words."""

    impl: str
    reason: str


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: Tensor | None = None,
    starts: Tensor | None = None,
    keys: Tensor | None = None,
    key_block: int = 1,
    row_block: int = 1,
    log_decay: Tensor | None = None,
    window: int | None = None,
    sinks: int = 0,
    directions: Tensor | None = None,
    suppress: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal attention of the query rows that were taken; k and v stay whole.

        s[t, j] = scale · <q_t, k_j> + Σ_{j<i≤t} log_decay[i]     over starts[t] ≤ j ≤ t, in window or sinks, in keys[t]
        o_t     = Σ_j softmax_j(s[t, j]) v_j                      exactly 0 in an empty slot or if nothing is visible
        o'_t    = o_t − Σ_k suppress[t, k] · <o_t, d_k> d_k

    Every option is the identity when absent. Values of `rows`, `starts`, `keys` and `log_decay` are checked on the CPU
    only, because elsewhere a check would synchronise the device: TURNOUT_CHECK_VALUES=1 checks them everywhere.

    Args:
        q: queries of the rows taken, float [B, R, H, D].
        k: keys of all positions, [B, S, G, D]; H % G == 0, head h reads kv head h // (H // G).
        v: values, like k.
        rows: position of each query row, int64 [B, R], or [B, G, R] with one list per kv head; strictly ascending,
            -1 = empty slot, at the end of the list. None: the last R positions.
        starts: first key position that each row may read, int like `rows`, ≥ 0, at most the row's own and never
            falling within a list; for sequences packed one after another it is the first position of the row's own
            sequence, where its sinks begin too. What it holds in an empty slot does not matter. None: 0.
        keys: what a row may read, int [B, ceil(R / row_block), G, K], -1 = empty slot; the causal ones of them.
        key_block: block n of `keys` is the positions n · key_block .. (n + 1) · key_block − 1; 1: tokens.
        row_block: consecutive query rows (slots) that share one list of `keys`; 1: one list a row.
        log_decay: log of the decay at each step, [B, S, H], finite and ≤ 0; [H] is the same decay at every step, which
            the kernels then need not sum.
        window: a row at t sees t − window < j ≤ t.
        sinks: the first positions (from `starts` on), visible in spite of the window.
        directions: unit vectors [H, K, D].
        suppress: how much of each direction is removed, [B, R, H, K]; 1 removes it.
        scale: default D ** -0.5.
        impl: "auto", or one of "reference", "gathered", "listed", "triton", "scattered", "dense", which then runs
            or raises.
    Returns:
        o: like q, [B, R, H, D]; under autocast in autocast's dtype.
    Raises:
        ShapeError: a tensor has the wrong shape, dtype, device or index values.
        ConfigError: an option has no meaning, or `impl` is unknown.
        UnsupportedError: the implementation asked for does not do this call.
    Cost: O(B·H·R·S·D) multiply-adds at most; the CPU computes only the keys at or before each chunk of rows.
    """
    call = check_call(
        q, k, v, rows=rows, starts=starts, keys=keys, key_block=key_block, row_block=row_block, log_decay=log_decay,
        window=window, sinks=sinks, directions=directions, suppress=suppress, scale=scale,
    )  # fmt: skip
    return _RUN[choose(call, impl).impl](call)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: Tensor | None = None,
    starts: Tensor | None = None,
    keys: Tensor | None = None,
    key_block: int = 1,
    row_block: int = 1,
    log_decay: Tensor | None = None,
    window: int | None = None,
    sinks: int = 0,
    directions: Tensor | None = None,
    suppress: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> str:
    """Say which implementation `attend` would run for these arguments, and why: `"gathered: ..."`."""
    call = check_call(
        q, k, v, rows=rows, starts=starts, keys=keys, key_block=key_block, row_block=row_block, log_decay=log_decay,
        window=window, sinks=sinks, directions=directions, suppress=suppress, scale=scale,
    )  # fmt: skip
    return ": ".join(choose(call, impl))


def choose(call: Call, impl: str) -> Choice:
    """Pick the implementation; an explicit one that cannot do the call raises."""
    if impl not in IMPLS:
        raise ConfigError(f"impl={impl!r} is not an implementation of attend{nearest(impl, IMPLS)}")
    if impl == "auto":
        return _choose_fastest(call)
    reason = _WHY_NOT[impl](call)
    if reason:
        raise UnsupportedError(
            f"impl={impl!r} cannot run this call, because {reason}; use impl='auto' or impl='reference'"
        )
    return Choice(impl, "asked for")


def _choose_fastest(call: Call) -> Choice:
    not_dense = _why_not_dense(call)
    if not not_dense:
        if _epilogue_pays(call):
            return Choice("triton", "its epilogue removes directions on the way, dense attention in a pass of its own")
        return Choice("dense", "every row is taken and no option changes the scores")
    if call.q.is_cuda and not why_not_triton(call):
        return _triton_or_scattered(call, not_dense)
    not_gathered = _why_not_gathered(call)
    if not not_gathered:
        return Choice("gathered", f"not dense, because {not_dense}")
    if call.keys is not None and not why_not_listed(call):
        listed = call.keys.shape[3] * call.key_block
        if LISTED_FROM * listed <= call.k.shape[1]:
            return Choice("listed", f"a row reads at most {listed} of {call.k.shape[1]} keys")
    return Choice("reference", f"the only implementation for this call, because {not_gathered}")


def _epilogue_pays(call: Call) -> bool:
    """Whether directions are cheaper in the kernel's epilogue than behind torch's attention: by the rows of DR12 where
    the specialised kernel runs, from EPILOGUE_FROM tokens on, and as long as no backward pass follows."""
    q = call.q
    if call.directions is None or not q.is_cuda or q.element_size() != 2:
        return False
    if _backward_follows(call) or q.shape[1] < EPILOGUE_FROM or q.shape[3] != 128 or why_not_triton(call):
        return False
    return torch.cuda.get_device_capability(q.device) == (9, 0)


def _backward_follows(call: Call) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in (call.q, call.k, call.v))


def _triton_or_scattered(call: Call, not_dense: str) -> Choice:
    """On a GPU: dense attention with scattered queries from the measured break-even on, else the Triton kernels."""
    not_scattered = _why_not_scattered(call)
    if not_scattered:
        return Choice("triton", f"not dense, because {not_dense}")
    q = call.q
    found = break_even(q.device, q.dtype, call.k.shape[1], head_dim=q.shape[3], backward=_backward_follows(call))
    taken = call.q.shape[1] / max(call.k.shape[1], 1)
    impl = "scattered" if taken >= found.scattered else "triton"
    from_here = "at no fraction" if found.scattered == math.inf else f"from {found.scattered:.2f}"
    return Choice(impl, f"{taken:.2f} of the positions have a slot; scattered is faster {from_here} ({found.row})")


def _why_not_dense(call: Call) -> str:
    if call.rows is not None:
        return "rows are given"
    if call.q.shape[1] != call.k.shape[1]:
        return f"q has {call.q.shape[1]} rows and k {call.k.shape[1]} positions"
    return _changes_scores(call)


def _changes_scores(call: Call) -> str:
    options = ("starts", call.starts), ("keys", call.keys), ("log_decay", call.log_decay), ("window", call.window)
    for name, value in options:
        if value is not None:
            return f"{name} is given"
    return ""


def _why_not_scattered(call: Call) -> str:
    if call.rows is None:
        return "rows are not given"
    return _changes_scores(call)


def _why_not_gathered(call: Call) -> str:
    if call.keys is not None:
        return "keys is given"
    if call.starts is not None:
        return "starts is given (packed sequences have a fast path on a GPU only)"
    if call.log_decay is not None and call.q.dtype == torch.float16:
        return "log_decay in float16 does not have the range to sum a decay"
    return ""


def dense_attend(call: Call) -> Tensor:
    """Dense causal attention of all rows by torch's fused kernel."""
    out = scaled_dot_product_attention(
        call.q.transpose(1, 2),
        call.k.transpose(1, 2),
        call.v.transpose(1, 2),
        is_causal=True,
        scale=call.scale,
        enable_gqa=call.group_size > 1,
    ).transpose(1, 2)
    if call.directions is None or call.suppress is None:
        return out.to(call.q.dtype)
    return suppress(out, call.directions, call.suppress).to(call.q.dtype)


def _triton_attend(call: Call) -> Tensor:
    # Not at the top: `import turnout` does not import Triton.
    from turnout.ops.attend.triton.op import triton_attend

    return triton_attend(call)


_RUN = {
    "reference": reference_attend,
    "gathered": gathered_attend,
    "listed": listed_attend,
    "triton": _triton_attend,
    "scattered": scattered_attend,
    "dense": dense_attend,
}
_WHY_NOT: dict[str, Callable[[Call], str]] = {
    "reference": lambda call: "",
    "gathered": _why_not_gathered,
    "listed": why_not_listed,
    "triton": why_not_triton,
    "scattered": _why_not_scattered,
    "dense": _why_not_dense,
}
