"""Gate logits of a linear router: one pass over the input, as fast as memory gives it.

B batch, T tokens, E width, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from turnout.ops.one_pass import one_pass

# Fewer tokens are a decode step, which a matrix product serves as well.
LEAST_TOKENS = 4096


def linear_gate(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """z = x W^T + b for one output or few, as `torch.nn.functional.linear`.

    A matrix product with one column reads its input at 3 TB/s on an H200, whose memory gives 4.3. Where no gradient is
    wanted, one group is asked for and the sequence is long, a kernel of ours reads it at that speed.

    Args:
        x: [B, T, E]; weight: [G, E]; bias: [G] or None.
    Returns:
        [B, T, G] in x's dtype; under autocast in autocast's.
    """
    if torch.compiler.is_compiling() and x.shape[1] == 1 and weight.shape[0] == 1 and not torch.is_grad_enabled():
        # A step of decoding: a sum, which the compiler joins to the norm before it; a product is a launch of 5 us.
        z = (x.float() * weight[0].float()).sum(-1, keepdim=True)
        return (z if bias is None else z + bias.float()).to(x.dtype)
    if not _reads_once(x, weight):
        return linear(x, weight, bias)
    from turnout.ops.gate_kernel import gate_rows

    return gate_rows(x, weight, bias)


def _reads_once(x: Tensor, weight: Tensor) -> bool:
    whole = x.is_contiguous() and weight.is_contiguous() and weight.shape[0] == 1 and x.dtype == weight.dtype
    return whole and x.numel() >= LEAST_TOKENS * x.shape[-1] and one_pass(x)
