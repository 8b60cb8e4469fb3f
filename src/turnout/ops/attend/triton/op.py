"""`turnout::routed_attend` as a torch operator: fake kernels for the compiler, autograd, and the way in from a `Call`.

Axes: B batch, R query rows, S keys, H query heads, G kv heads, D head dim, F packed heads, P packed rows, K directions.
"""

# The operators' schemas are read from their annotations, which therefore are not postponed.
import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from turnout.ops.attend.call import Call
from turnout.ops.attend.reference import total_decay
from turnout.ops.attend.triton.backward import backward
from turnout.ops.attend.triton.configs import Plan, numbers_of
from turnout.ops.attend.triton.forward import forward
from turnout.ops.attend.triton.inverse import chosen_blocks
from turnout.ops.attend.triton.job import Job, last_contiguous

SAVED = ("q", "k", "v", "rows", "starts", "total", "rates", "blocks", "n_blocks", "directions", "suppress")
NUMBERS = ("window", "sinks", "scale", "key_block", "row_block", "tiles")


@torch.library.custom_op("turnout::routed_attend", mutates_args=())
def routed_attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, starts: Tensor | None, total: Tensor | None,
    rates: Tensor | None, blocks: Tensor | None, n_blocks: Tensor | None, directions: Tensor | None,
    suppress: Tensor | None,
    window: int, sinks: int, scale: float, key_block: int, row_block: int, tiles: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [B, R, H, D], its products with the directions [B, R, H, K] (empty without) and the lse [B, F, P]."""
    job = _job(
        (q, k, v, rows, starts, total, rates, blocks, n_blocks, directions, suppress),
        (window, sinks, scale, key_block, row_block, tiles),
    )
    with _on_device(q):
        return forward(job)


@routed_attend.register_fake
def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    q, k, directions = arguments[0], arguments[1], arguments[9]
    pack = 1 if arguments[5] is not None or arguments[6] is not None else q.shape[2] // k.shape[2]
    o = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[0], q.shape[2] // pack, q.shape[1] * pack, dtype=torch.float32)
    n_directions = 0 if directions is None else directions.shape[1]
    return o, q.new_empty((*q.shape[:3], n_directions) if n_directions else 0, dtype=torch.float32), lse


@torch.library.custom_op("turnout::routed_attend_backward", mutates_args=())
def routed_attend_backward(
    grad: Tensor, o: Tensor, along: Tensor, lse: Tensor, need_q: bool, need_kv: bool, need_decay: bool,
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, starts: Tensor | None, total: Tensor | None,
    rates: Tensor | None, blocks: Tensor | None, n_blocks: Tensor | None, directions: Tensor | None,
    suppress: Tensor | None,
    window: int, sinks: int, scale: float, key_block: int, row_block: int, tiles: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, d total, d directions, d suppress; empty where absent or not needed."""
    job = _job(
        (q, k, v, rows, starts, total, rates, blocks, n_blocks, directions, suppress),
        (window, sinks, scale, key_block, row_block, tiles),
    )
    with _on_device(q):
        return backward(job, grad.contiguous(), o, along, lse, need_q=need_q, need_kv=need_kv, need_decay=need_decay)


@routed_attend_backward.register_fake
def _fake_backward(
    grad: Tensor,
    o: Tensor,
    along: Tensor,
    lse: Tensor,
    need_q: bool,
    need_kv: bool,
    need_decay: bool,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, _, _, total, _, _, _, directions, suppress = arguments[: len(SAVED)]
    none = q.new_empty(0)
    return (
        q.new_empty(q.shape) if need_q else none,
        k.new_empty(k.shape) if need_kv else q.new_empty(0),
        v.new_empty(v.shape) if need_kv else q.new_empty(0),
        total.new_empty(total.shape) if need_decay else q.new_empty(0, dtype=torch.float64),
        q.new_empty(0, dtype=torch.float32) if directions is None else directions.new_empty(directions.shape),
        q.new_empty(0, dtype=torch.float32) if suppress is None else suppress.new_empty(suppress.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    o, along, lse = output
    ctx.mark_non_differentiable(along, lse)
    # Nothing is filled with zeros in place of gradients that these have not.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: len(SAVED)], o, along, lse)
    ctx.numbers = inputs[len(SAVED) :]


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    *inputs, o, along, lse = ctx.saved_tensors
    need = ctx.needs_input_grad
    dq, dk, dv, d_total, d_directions, d_suppress = routed_attend_backward(
        grad, o, along, lse, need[0], need[1] or need[2] or need[5], need[5], *inputs, *ctx.numbers
    )
    out = {0: dq, 1: dk, 2: dv, 5: d_total, 9: d_directions, 10: d_suppress}
    return tuple(out.get(i) if wanted else None for i, wanted in enumerate(need))


routed_attend.register_autograd(_gradients, setup_context=_save)


def triton_attend(call: Call, tiles: Plan | None = None) -> Tensor:
    """Attention by the Triton kernels; same meaning as `reference_attend`.

    Args:
        call: a call that `why_not_triton` has no objection to.
        tiles: use these instead of the tables'; for tuning.
    Returns:
        o: like q, [B, R, H, D].
    """
    q, k, v, scale = call.q, call.k, call.v, call.scale
    if scale <= 0:
        # The kernels scale after taking the maximum, which needs a positive factor.
        q, scale = q * (-1.0 if scale < 0 else 0.0), abs(scale) or 1.0
    blocks = n_blocks = None
    if call.keys is not None:
        blocks, n_blocks = chosen_blocks(
            call.keys, call.positions(), row_block=call.row_block, key_block=call.key_block, n_keys=k.shape[1]
        )
    total = None if call.log_decay is None or call.rates is not None else total_decay(call)
    rates = None if call.rates is None else call.rates.float()
    numbers = [] if tiles is None else numbers_of(tiles)
    tensors = (q, k, v, call.rows, call.starts, total, rates, blocks, n_blocks, call.directions, call.suppress)
    rest = (call.window or 0, call.sinks, scale, call.key_block, call.row_block, numbers)
    if _plainly(tensors):
        # The operator's own way through the dispatcher takes as long as a small kernel.
        with _on_device(q):
            return forward(_job(tensors, rest), keep=False)[0]
    return routed_attend(*tensors, *rest)[0]


def _plainly(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether nobody looks on: no compiler, no gradient, no tensor that stands for another."""
    if torch.compiler.is_compiling():
        return False
    grad = torch.is_grad_enabled()
    return all(
        t is None or ((type(t) is Tensor or type(t) is Parameter) and not (grad and t.requires_grad)) for t in tensors
    )


def _job(tensors: tuple[Tensor | None, ...], numbers: tuple[Any, ...]) -> Job:
    """The inputs as the kernels read them: last dimension without gaps in q, k, v, all others contiguous."""
    given: dict[str, Any] = {}
    for name, tensor in zip(SAVED, tensors, strict=True):
        whole = name in ("q", "k", "v")
        given[name] = tensor if tensor is None else last_contiguous(tensor) if whole else tensor.contiguous()
    return Job(**given, **dict(zip(NUMBERS, numbers, strict=True)))


def _on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
