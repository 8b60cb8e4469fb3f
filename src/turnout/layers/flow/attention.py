"""Attention layers before the router: bidirectional, causal, sparse, and the ablations of what one layer writes.

B batch, T tokens, E width, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from turnout.errors import ConfigError, nearest
from turnout.layers.flow.base import FLOWS, Flow, FlowBlock, FlowContext
from turnout.layers.flow.shift import Shift

ABLATIONS = ("", "uniform", "no_value", "mlp_only", "previous")


def fused_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's fused attention over the pairs of `allowed`, which are those of the past where it is `causal`.

    Where float32 products may be rounded (`torch.set_float32_matmul_precision`), a GPU computes it in bfloat16: its
    kernel for float32 rounds three times to keep what the products before and behind it have dropped.
    """
    if not q.is_cuda or torch.get_float32_matmul_precision() == "highest":
        return scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    q, k, v = (part.bfloat16() for part in (q, k, v))
    mask = None if causal else allowed
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).float()


class StackedAttention(torch.autograd.Function):
    """`fused_attention` with the batching rule that it lacks: stacked models become more sequences.

    Under `torch.func.vmap` only `vmap` runs, on plain tensors, so that the gradient is the fused kernel's own.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool = False) -> Tensor:
        return fused_attention(q, k, v, allowed, causal)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.causal = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, allowed = ctx.saved_tensors
        with torch.enable_grad():
            q, k, v = (t.detach().requires_grad_() for t in saved)
            out = fused_attention(q, k, v, allowed, ctx.causal)
        return *torch.autograd.grad(out, (q, k, v), grads[0]), None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        allowed: Tensor | None,
        causal: bool = False,
    ) -> tuple[Tensor, int]:
        def folded(part: Tensor, dim: int | None) -> Tensor:
            stacked = part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            return stacked.flatten(0, 1)

        # Copies of one model carry copies of one mask.
        mask = allowed if allowed is None or in_dims[3] is None else allowed.select(in_dims[3], 0)
        q, k, v = (folded(part, dim) for part, dim in zip((q, k, v), in_dims, strict=False))
        return fused_attention(q, k, v, mask, causal).unflatten(0, (info.batch_size, -1)), 0


class SelfAttention(nn.Module):
    """Softmax attention over the pairs that `allowed` [T, T] admits; `causal` says that those are all of the past.

    o_t = Σ_j softmax_j(<q_t, k_j> / sqrt(D)) v_j

    Cost: O(B·T²·E).
    """

    allowed: Tensor | None

    def __init__(
        self, width: int, heads: int, allowed: Tensor | None, ablate: str = "", *, causal: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"flow attention: width={width} is not a multiple of heads={heads}")
        self.heads, self.ablate, self.causal = heads, ablate, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.ablate == "no_value":
            return torch.zeros_like(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.ablate in ("uniform", "previous"):
            q = q * 0
        out: Tensor = StackedAttention.apply(q, k, v, self.allowed, self.causal)
        return self.out(out.transpose(1, 2).flatten(-2))


@FLOWS.register("attention")
class AttentionFlow(Flow):
    """`layers` pre-norm blocks of attention and MLP.

    Args:
        layers: blocks, >= 1.
        form: "full" (bidirectional), "causal", or "sparse": |i - j| <= window / 2, plus `globals` random tokens that
            all see and that see all. The published "window of 32" with 16 globals is 12 % of the pairs at 512.
        window: of "sparse".
        globals: of "sparse"; drawn once, from a seed of its own.
        ablate: "" or, of what a layer writes: "uniform" (scores 0), "no_value" (attention output 0: the MLP alone),
            "previous" (every token reads its predecessor and itself, equally).
        taps: of a causal depthwise convolution before the first block; 1 = none.
    """

    pairwise = True

    def __init__(
        self,
        context: FlowContext,
        *,
        layers: int = 1,
        form: str = "full",
        window: int = 32,
        globals: int = 16,
        ablate: str = "",
        taps: int = 1,
    ) -> None:
        super().__init__(context)
        if form not in ("full", "causal", "sparse"):
            raise ConfigError(f"flow attention: form={form!r}{nearest(form, ('full', 'causal', 'sparse'))}")
        if ablate not in ABLATIONS:
            raise ConfigError(f"flow attention: ablate={ablate!r}{nearest(ablate, ABLATIONS)}")
        self.causal = form == "causal" or ablate in ("no_value", "previous")
        allowed = self._allowed(context.length, form, window, globals)
        if ablate == "previous":
            allowed = torch.ones(context.length, context.length).tril().triu(-1).bool()
        past = form == "causal" and not ablate
        self.shift = Shift(context, taps=taps) if taps != 1 else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                FlowBlock(context.width, SelfAttention(context.width, context.heads, allowed, ablate, causal=past))
                for _ in range(layers)
            )
        )

    @staticmethod
    def _allowed(length: int, form: str, window: int, n_globals: int) -> Tensor | None:
        if form == "full":
            return None
        if form == "causal":
            return torch.ones(length, length, dtype=torch.bool).tril()
        at = torch.arange(length)
        chosen = torch.randperm(length, generator=torch.Generator().manual_seed(0))[:n_globals]
        is_global = torch.zeros(length, dtype=torch.bool).index_fill_(0, chosen, True)
        return ((at[:, None] - at).abs() <= window // 2) | is_global[:, None] | is_global

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.shift(x))
