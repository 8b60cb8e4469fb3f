"""A window and single keys beside it, on a GPU: the window by the forward kernel, the rest merged into its softmax.

    m = log-sum-exp over the window and the chosen keys of a row;   p_s = exp(s - m);   o = sum_s p_s v_s

The backward kernels of the window take m and o as they are: their weights are then those of the whole softmax.

Axes: B batch, R query rows (the last of S), H query heads, G kv heads, D head dim (BD padded to a power of two),
L lists (1 or G), K chosen keys of a row, F = H / G, BM rows of a program, BE entries of a list read at a time.
"""

# mypy: disable-error-code="no-untyped-def"
# The operators' schemas are read from their annotations, which therefore are not postponed.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turnout.ops.attend.triton.backward import backward
from turnout.ops.attend.triton.forward import forward
from turnout.ops.attend.triton.job import LOG2E, Job, last_contiguous, run
from turnout.ops.attend.triton.op import _on_device

ROWS, ENTRIES = 16, 8


def _warps(shared: dict[str, Any], channels: int) -> int:
    """One for so many channels of a head, at most eight."""
    return max(1, min(8, shared["BD"] // channels))


@triton.jit
def _row_places(batch, head, row, n_rows, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LISTS: tl.constexpr):
    """Of rows of a head: elements of [B, R, H, .], of the lse [B, G, R · F], and of the lists [B, R, L, .]."""
    F: tl.constexpr = HEADS // KV_HEADS
    group = head // F
    place = (batch.to(tl.int64) * n_rows + row) * HEADS + head
    lse = ((batch.to(tl.int64) * KV_HEADS + group) * n_rows + row) * F + head % F
    listed = (batch.to(tl.int64) * n_rows + row) * LISTS + group % LISTS
    return place, lse, listed


@triton.jit
def merge_kernel(
    q_ptr, k_ptr, v_ptr, keys_ptr, mark_ptr, o_ptr, lse_ptr, out_ptr, out_lse_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, n_rows, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LISTS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, MARK: tl.constexpr,
):  # fmt: skip
    """Output and base-2 log-sum-exp with the chosen keys, from those of the window."""
    pid = tl.program_id(0)
    head, batch = pid % HEADS, pid // HEADS // tl.cdiv(n_rows, BM)
    row = pid // HEADS % tl.cdiv(n_rows, BM) * BM + tl.arange(0, BM)
    channel = tl.arange(0, BD)
    inside = row < n_rows
    both = inside[:, None] & (channel < D)[None, :]
    place, lse_place, listed = _row_places(batch, head, row, n_rows, HEADS, KV_HEADS, LISTS)
    group, batch64 = head // (HEADS // KV_HEADS), batch.to(tl.int64)
    q_place = batch64 * stride_qb + row[:, None].to(tl.int64) * stride_qt + head * stride_qh + channel[None, :]
    q = tl.load(q_ptr + q_place, mask=both, other=0.0).to(tl.float32)
    acc = tl.load(o_ptr + place[:, None] * D + channel[None, :], mask=both, other=0.0).to(tl.float32)
    peak = tl.load(lse_ptr + lse_place, mask=inside, other=0.0)
    total = tl.full([BM], 1.0, tl.float32)
    mark = tl.load(mark_ptr + head) if MARK else 0.0
    k_base = k_ptr + batch64 * stride_kb + group * stride_kh
    v_base = v_ptr + batch64 * stride_vb + group * stride_vh
    for j in range(K):
        key = tl.load(keys_ptr + listed * K + j, mask=inside, other=-1)
        seen = key >= 0
        read = seen[:, None] & (channel < D)[None, :]
        at = tl.maximum(key, 0).to(tl.int64)[:, None]
        k = tl.load(k_base + at * stride_kt + channel[None, :], mask=read, other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(q * k, 1) * scale + mark, float("-inf"))
        top = tl.maximum(peak, score)
        shrink, weight = tl.exp2(peak - top), tl.exp2(score - top)
        v = tl.load(v_base + at * stride_vt + channel[None, :], mask=read, other=0.0).to(tl.float32)
        acc = acc * shrink[:, None] + weight[:, None] * v
        total = total * shrink + weight
        peak = top
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place[:, None] * D + channel[None, :], out, mask=both)
    tl.store(out_lse_ptr + lse_place, peak + tl.log2(total), mask=inside)


@triton.jit
def rows_kernel(
    q_ptr, k_ptr, v_ptr, keys_ptr, mark_ptr, o_ptr, grad_ptr, lse_ptr, dq_ptr, weight_ptr, ds_ptr,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, n_rows, scale,
    slope,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LISTS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, MARK: tl.constexpr,
):  # fmt: skip
    """Adds to dq what the chosen keys give; their weights and score gradients, float32 [B, R, H, K]."""
    pid = tl.program_id(0)
    head, batch = pid % HEADS, pid // HEADS // tl.cdiv(n_rows, BM)
    row = pid // HEADS % tl.cdiv(n_rows, BM) * BM + tl.arange(0, BM)
    channel = tl.arange(0, BD)
    inside = row < n_rows
    both = inside[:, None] & (channel < D)[None, :]
    place, lse_place, listed = _row_places(batch, head, row, n_rows, HEADS, KV_HEADS, LISTS)
    group, batch64 = head // (HEADS // KV_HEADS), batch.to(tl.int64)
    q_place = batch64 * stride_qb + row[:, None].to(tl.int64) * stride_qt + head * stride_qh + channel[None, :]
    q = tl.load(q_ptr + q_place, mask=both, other=0.0).to(tl.float32)
    packed = place[:, None] * D + channel[None, :]
    grad = tl.load(grad_ptr + packed, mask=both, other=0.0).to(tl.float32)
    delta = tl.sum(grad * tl.load(o_ptr + packed, mask=both, other=0.0).to(tl.float32), 1)
    lse = tl.load(lse_ptr + lse_place, mask=inside, other=0.0)
    acc = tl.load(dq_ptr + packed, mask=both, other=0.0).to(tl.float32)
    mark = tl.load(mark_ptr + head) if MARK else 0.0
    k_base = k_ptr + batch64 * stride_kb + group * stride_kh
    v_base = v_ptr + batch64 * stride_vb + group * stride_vh
    for j in range(K):
        key = tl.load(keys_ptr + listed * K + j, mask=inside, other=-1)
        seen = key >= 0
        read = seen[:, None] & (channel < D)[None, :]
        at = tl.maximum(key, 0).to(tl.int64)[:, None]
        k = tl.load(k_base + at * stride_kt + channel[None, :], mask=read, other=0.0).to(tl.float32)
        v = tl.load(v_base + at * stride_vt + channel[None, :], mask=read, other=0.0).to(tl.float32)
        weight = tl.where(seen, tl.exp2(tl.sum(q * k, 1) * scale + mark - lse), 0.0)
        ds = weight * (tl.sum(grad * v, 1) - delta)
        acc += (ds * slope)[:, None] * k
        tl.store(weight_ptr + place * K + j, weight, mask=inside)
        tl.store(ds_ptr + place * K + j, ds, mask=inside)
    tl.store(dq_ptr + packed, acc.to(dq_ptr.dtype.element_ty), mask=both)


@triton.jit
def keys_kernel(
    q_ptr, grad_ptr, weight_ptr, ds_ptr, entry_ptr, bound_ptr, dk_ptr, dv_ptr, stride_qb, stride_qt, stride_qh,
    n_rows, n_keys, slope,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, LISTS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Adds to dk and dv of one key what the rows that chose it give, in their order: the same in every run."""
    F: tl.constexpr = HEADS // KV_HEADS
    pid = tl.program_id(0)
    group, key, batch = pid % KV_HEADS, pid // KV_HEADS % n_keys, pid // KV_HEADS // n_keys
    batch64, channel = batch.to(tl.int64), tl.arange(0, BD)
    list_ = batch64 * LISTS + group % LISTS
    begin = tl.load(bound_ptr + list_ * (n_keys + 1) + key)
    end = tl.load(bound_ptr + list_ * (n_keys + 1) + key + 1)
    if begin < end:
        wide = channel < D
        target = ((batch64 * n_keys + key) * KV_HEADS + group) * D + channel
        dk = tl.load(dk_ptr + target, mask=wide, other=0.0).to(tl.float32)
        dv = tl.load(dv_ptr + target, mask=wide, other=0.0).to(tl.float32)
        for first in range(begin, end, BE):
            offset = first + tl.arange(0, BE)
            there = offset < end
            entry = tl.load(entry_ptr + list_ * n_rows * K + offset, mask=there, other=0)
            row, slot = entry // K, entry % K
            both = there[:, None] & wide[None, :]
            for f in range(F):
                head = group * F + f
                place = (batch64 * n_rows + row) * HEADS + head
                q_place = batch64 * stride_qb + row.to(tl.int64)[:, None] * stride_qt + head * stride_qh
                q = tl.load(q_ptr + q_place + channel[None, :], mask=both, other=0.0).to(tl.float32)
                grad = tl.load(grad_ptr + place[:, None] * D + channel[None, :], mask=both, other=0.0).to(tl.float32)
                weight = tl.load(weight_ptr + place * K + slot, mask=there, other=0.0)
                ds = tl.load(ds_ptr + place * K + slot, mask=there, other=0.0)
                dk += tl.sum((ds * slope)[:, None] * q, 0)
                dv += tl.sum(weight[:, None] * grad, 0)
        tl.store(dk_ptr + target, dk.to(dk_ptr.dtype.element_ty), mask=wide)
        tl.store(dv_ptr + target, dv.to(dv_ptr.dtype.element_ty), mask=wide)


def _job(q: Tensor, k: Tensor, v: Tensor, window: int) -> Job:
    nothing = dict.fromkeys(("rows", "starts", "total", "blocks", "n_blocks", "directions", "suppress"))
    return Job(
        q=q, k=k, v=v, window=window, sinks=0, scale=q.shape[-1] ** -0.5, key_block=1, row_block=1, tiles=(), **nothing
    )  # fmt: skip


def _shared(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mark: Tensor | None) -> dict[str, Any]:
    """What the kernels over rows have in common."""
    of = {"q": q, "k": k, "v": v}
    strides = {f"stride_{name}{'bth'[i]}": x.stride(i) for name, x in of.items() for i in range(3)}
    dim = q.shape[-1]
    return strides | {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "keys_ptr": keys, "mark_ptr": mark, "n_rows": q.shape[1],
        "scale": dim**-0.5 * LOG2E, "HEADS": q.shape[2], "KV_HEADS": k.shape[2], "LISTS": keys.shape[2],
        "K": keys.shape[3], "D": dim, "BD": max(16, triton.next_power_of_2(dim)), "BM": _rows(dim),
        "MARK": mark is not None,
    }  # fmt: skip


def _programs(q: Tensor) -> int:
    return q.shape[0] * -(-q.shape[1] // _rows(q.shape[3])) * q.shape[2]


def _rows(dim: int) -> int:
    """Rows of a program: fewer of wide heads, for their registers."""
    return ROWS if dim <= 128 else ROWS // 2


def window_and_singles(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, window: int, mark: Tensor | None
) -> Tensor:  # fmt: skip
    """Softmax attention of the last R rows to t - window < s <= t and to their keys: [B, R, H, D].

    Args:
        q: [B, R, H, D]; k, v: [B, S, G, D]; float32 or half precision.
        keys: int64 [B, R, L, K], none in the window, none twice in a list; -1 = empty slot.
        mark: log weight of a chosen key [H].
    """
    scaled = None if mark is None else mark.float() * LOG2E
    out: Tensor = singles_attend(q, k, v, keys.to(torch.int32), scaled, window)[0]
    return out


@torch.library.custom_op("turnout::singles_attend", mutates_args=())
def singles_attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mark: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """Output [B, R, H, D] and base-2 log-sum-exp [B, G, R · F] over the window and the keys.

    Args:
        keys: int32 [B, R, L, K], none in the window, none twice in a list; -1 = empty slot.
        mark: base-2 log weight of a chosen key, float32 [H].
    """
    q, k, v = (last_contiguous(x) for x in (q, k, v))
    with _on_device(q):
        near, _, lse = forward(_job(q, k, v, window), keep=False)
        out, total = torch.empty_like(near), torch.empty_like(lse)
        own = {"o_ptr": near, "lse_ptr": lse, "out_ptr": out, "out_lse_ptr": total}
        shared = _shared(q, k, v, keys.contiguous(), mark)
        run(merge_kernel, _programs(q), shared | own, warps=_warps(shared, 32))
    return out, total


@singles_attend.register_fake
def _fake(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mark: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    shape = q.shape[0], k.shape[2], q.shape[1] * (q.shape[2] // k.shape[2])
    return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("turnout::singles_backward", mutates_args=())
def singles_backward(
    grad: Tensor, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mark: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, and the gradient of the mark [H], in base 2."""
    q, k, v = (last_contiguous(x) for x in (q, k, v))
    grad, keys = grad.contiguous(), keys.contiguous()
    slope, n_keys = q.shape[-1] ** -0.5, k.shape[1]
    with _on_device(q):
        none = grad.new_empty(0, dtype=torch.float32)
        dq, dk, dv, *_ = backward(
            _job(q, k, v, window), grad, o, none, lse, need_q=True, need_kv=True, need_decay=False
        )
        weight = torch.empty(*q.shape[:3], keys.shape[3], dtype=torch.float32, device=q.device)
        ds, shared = torch.empty_like(weight), _shared(q, k, v, keys, mark)
        own = {"o_ptr": o, "grad_ptr": grad, "lse_ptr": lse, "dq_ptr": dq, "weight_ptr": weight, "ds_ptr": ds}
        run(rows_kernel, _programs(q), shared | own | {"slope": slope}, warps=_warps(shared, 32))
        flat = torch.where(keys < 0, n_keys, keys).transpose(1, 2).flatten(2)
        ordered, entries = flat.sort(dim=-1, stable=True)
        wanted = torch.arange(n_keys + 1, dtype=ordered.dtype, device=q.device).expand(*flat.shape[:2], -1).contiguous()
        names = ("q_ptr", "n_rows", "HEADS", "KV_HEADS", "LISTS", "K", "D", "BD", "stride_qb", "stride_qt", "stride_qh")
        own = {name: shared[name] for name in names} | {
            "grad_ptr": grad, "weight_ptr": weight, "ds_ptr": ds, "entry_ptr": entries.to(torch.int32),
            "bound_ptr": torch.searchsorted(ordered, wanted, out_int32=True), "dk_ptr": dk, "dv_ptr": dv,
            "n_keys": n_keys, "slope": slope, "BE": ENTRIES,
        }  # fmt: skip
        run(keys_kernel, k.shape[0] * n_keys * k.shape[2], own, warps=_warps(shared, 64))
    return dq, dk, dv, ds.sum((0, 1, 3)) / LOG2E


@singles_backward.register_fake
def _fake_backward(
    grad: Tensor, o: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mark: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    made = (x.new_empty(x.shape) for x in (q, k, v))
    return (*made, q.new_empty(q.shape[2], dtype=torch.float32))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    q, k, v, keys, mark, o, lse = ctx.saved_tensors
    dq, dk, dv, d_mark = singles_backward(grad, o, lse, q, k, v, keys, mark, ctx.window)
    return dq, dk, dv, None, None if mark is None else d_mark, None


singles_attend.register_autograd(_gradients, setup_context=_save)
