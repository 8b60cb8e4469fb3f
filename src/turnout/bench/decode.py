"""Rows of one-token decoding: a batch in which a fraction of the tokens attends, against a batch that attends whole.

B sequences, N cached tokens, H query heads, G kv heads, D head dim, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from turnout.bench.arms import Arm, add_ratios, dtype_of, generator_of, measure_arms, pinned
from turnout.bench.cases import Case
from turnout.bench.floors import decode_bytes
from turnout.bench.rows import Row
from turnout.bench.self_check import check_decode
from turnout.ops.attend.decode import decode_attend

# Steps with routes of their own in one call: 8 sequences for 10 steps make 80 decisions, of which p are open.
STEPS = 10


def measure_decode(case: Case, *, device: torch.device, seconds: float = 1.0) -> list[Row]:
    """Milliseconds of one step, mean over steps with random routes, the linear router's own cost included.

    Exactly round(p · B · STEPS) decisions are open, at random places. The dense arms are torch's attention with one
    query (on a GPU pinned to flash and to cuDNN) and our own kernel with every gate open.
    """
    generator, dtype = generator_of(case, device), dtype_of(case)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, generator=generator)

    q, cache = randn(case.batch, case.heads, case.dim), (case.batch, case.n, case.kv_heads, case.dim)
    k, v, x, weight = randn(*cache), randn(*cache), randn(case.batch, case.width), randn(1, case.width)
    order = torch.rand(STEPS * case.batch, device=device, generator=generator).argsort().argsort()
    open_gates = (order < round(case.p * STEPS * case.batch)).view(STEPS, case.batch, 1)
    everyone = torch.full((case.batch, 1), case.n - 1, device=device)

    def dense() -> Tensor:
        return scaled_dot_product_attention(
            q[:, :, None], k.transpose(1, 2), v.transpose(1, 2), enable_gqa=case.heads != case.kv_heads
        )

    def routed() -> None:
        for taken in open_gates:
            # The router's logit is paid for; the decision is the case's.
            decided = taken & (linear(x, weight) < torch.inf)
            decode_attend(q, k, v, torch.where(decided, case.n - 1, -1))

    def flops(p: float) -> float:
        return 4.0 * case.batch * p * case.n * case.heads * case.dim

    wrong = check_decode(case, device)
    whole = decode_bytes(case, 1.0)
    arms = {
        f"dense:{backend or 'sdpa'}": Arm(call=pinned(backend, dense), flops=flops(1.0), n_bytes=whole)
        for backend in (("flash", "cudnn") if device.type == "cuda" else ("",))
    }
    arms["dense:all gates open"] = Arm(
        call=lambda: decode_attend(q, k, v, everyone), flops=flops(1.0), n_bytes=whole, wrong=wrong
    )
    arms["routed:auto"] = Arm(call=routed, flops=flops(case.p), n_bytes=decode_bytes(case), wrong=wrong, calls=STEPS)
    with torch.no_grad():
        return add_ratios(measure_arms("decode", case, arms, device=device, seconds=seconds))
