"""The attention track: projections around `turnout.ops.attend`, for all tokens or for the rows taken.

B batch, T tokens, E width, H query heads, G kv heads, D head dim, R rows taken, N routing groups (1 or G).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from turnout.errors import ConfigError, UnsupportedError
from turnout.layers.gate import OutputGate
from turnout.layers.kv_cache import KVCache
from turnout.layers.reading import read, step
from turnout.layers.rope import rotate
from turnout.ops.attend import attend
from turnout.ops.attend.gathered import ROW_TILE
from turnout.ops.attend.reference import suppress_directions
from turnout.ops.few_rows import few_rows
from turnout.ops.untouched import plain, untouched
from turnout.routers.direction import Cut, DirectionRouter
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern import Pattern, Reach

EVERYTHING = Reach()


class AttentionTrack(nn.Module):
    """Causal softmax attention with grouped heads.

    Rows are gathered *before* Wq and projected alone through Wo, so a token that stays local skips Wq, the scores, the
    values and Wo; keys and values are made for every token, because any later row may read them.

    Args:
        width: model dimension E.
        heads: query heads H; kv_heads: key/value heads G, H % G == 0; head dim D = E / H.
        rope: rotate queries and keys by position; False leaves position to the local track and the causal mask.
        bias: of the projections.
        pattern: how far the heads read; None = every earlier token.
        directions: which directions of the heads' outputs are removed, before the gate; None removes nothing. Whoever
            calls `whole`, `taken`, `absorbed` and `step` asks it and hands them its `Cut`.
        gate: "none", or the form of an `OutputGate`.
    Attributes:
        hook_o, hook_z: identities that the heads' outputs [..., H, D] pass, before and after directions and gate: where
            probes look. `hook_o` is passed only while `split` is set, which takes directions out of the operator.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, *, rope: bool, bias: bool, pattern: Pattern | None = None,
        directions: DirectionRouter | None = None, gate: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or heads % kv_heads:
            raise ConfigError(
                f"width={width}, heads={heads}, kv_heads={kv_heads}; "
                "expected heads to divide width and kv_heads to divide heads"
            )
        self.heads, self.kv_heads, self.head_dim, self.rope = heads, kv_heads, width // heads, rope
        if rope and self.head_dim % 2:
            raise ConfigError(
                f"head dim {self.head_dim} is odd; rotary positions need an even one: change width or heads"
            )
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.pattern = pattern
        self.directions = directions
        self.gate = None if gate == "none" else OutputGate(width, heads, form=gate, bias=bias)
        self.hook_o, self.hook_z = nn.Identity(), nn.Identity()
        self.split = False

    def reach(self, x: Tensor, cache: KVCache | None, memory: Any, mode: RoutingMode, *, buffers: bool) -> Reach:
        """How far the tokens `x` [B, T, E] read; call it before their keys are appended.

        Args:
            memory: of the pattern, updated in place.
            buffers: a decay is wanted for all places of the cache, as `step` reads it, not only for those in use.
        """
        if self.pattern is None:
            return Reach(starts=mode.starts)
        tokens = x.shape[1]
        if cache is None:
            at = torch.arange(tokens, device=x.device)
            reach = self.pattern.reach(x, at=at, length=tokens, state=None, mode=mode)
            return reach if mode.starts is None else _packed(reach, mode.starts)
        length = cache.k.shape[1] if buffers else cache.length + tokens
        return self.pattern.reach(x, at=cache.next_positions(tokens), length=length, state=memory, mode=mode)

    def keys_values(self, x: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, G, D] of the past and of `x` [B, T, E]; S = T without a cache."""
        return self._place(self.kv(x), cache)

    def _place(self, made: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the past and of the tokens whose keys and values, side by side, are `made` [B, T, ..]."""
        k, v = made.unflatten(-1, (2, self.kv_heads, self.head_dim)).unbind(-3)
        if self.rope:
            length = made.shape[1]
            k = rotate(k, torch.arange(length, device=k.device) if cache is None else cache.next_positions(length))
        if cache is None:
            return k, v
        first = cache.position is None and cache.length == 0 and cache.k.dtype == k.dtype
        kept = cache.append(k, v)
        # A prompt attends to what was just made: packed sequences, which kernels with bulk copies ask for.
        return (k, v) if first else kept

    def whole(
        self, x: Tensor, k: Tensor, v: Tensor, *, impl: str, reach: Reach = EVERYTHING, cut: Cut | None = None
    ) -> Tensor:
        """Heads' outputs [B, T, H, D] of every token of `x`, the last T positions of the S keys; before Wo."""
        q = self.q(x).unflatten(-1, (self.heads, self.head_dim))
        if self.rope:
            q = rotate(q, torch.arange(k.shape[1] - x.shape[1], k.shape[1], device=x.device))
        return self._finish(self._read(q, k, v, None, reach, cut, impl), x)

    def _read(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, reach: Reach, cut: Cut | None, impl: str
    ) -> Tensor:
        """Heads' outputs without the directions: in the operator's epilogue unless a probe wants to look before it."""
        if not self.split:
            return read(q, k, v, reach, rows=rows, impl=impl, cut=cut)
        o = self.hook_o(read(q, k, v, reach, rows=rows, impl=impl))
        return o if cut is None else suppress_directions(o, *cut)

    def _finish(self, o: Tensor, x: Tensor) -> Tensor:
        """Gate the heads' outputs [B, T, H, D] by their inputs, and let probes see them."""
        return self.hook_z(o if self.gate is None else self.gate(o, x))

    def taken(
        self, x_rows: Tensor, k: Tensor, v: Tensor, rows: Tensor, *, impl: str, reach: Reach = EVERYTHING,
        cut: Cut | None = None,
    ) -> Tensor:  # fmt: skip
        """Heads' outputs [B, N, R, H/N · D] of gathered inputs `x_rows` [B, N, R, E] at positions `rows` [B, N, R]."""
        groups = rows.shape[1]
        per_group = self.heads // groups
        if groups == 1:
            q = self.q(x_rows[:, 0]).unflatten(-1, (self.heads, self.head_dim))
        else:
            q = self._queries_by_group(x_rows)
            q = q.unflatten(-1, (per_group, self.head_dim)).transpose(1, 2).flatten(2, 3)
        if self.rope:
            at = rows.transpose(1, 2)
            q = rotate(q, at[..., 0] if groups == 1 else at.repeat_interleave(per_group, dim=2))
        o = self._read(q, k, v, rows[:, 0] if groups == 1 else rows, reach, cut, impl)
        o = self._finish(o, x_rows[:, 0] if groups == 1 else x_rows)
        return o.unflatten(2, (groups, per_group)).flatten(3).transpose(1, 2)

    def _queries_by_group(self, x_rows: Tensor) -> Tensor:
        """Each list's own heads of Wq: [B, N, R, E] -> [B, N, R, H/N · D]."""
        groups = x_rows.shape[1]
        if not untouched(self.q):
            wide = self.q(x_rows).unflatten(-1, (groups, -1))
            return torch.stack([wide[:, n, :, n] for n in range(groups)], 1)
        q = torch.einsum("bnre,nfe->bnrf", x_rows, self.q.weight.unflatten(0, (groups, -1)).to(x_rows.dtype))
        return q if self.q.bias is None else q + self.q.bias.view(groups, 1, -1)

    def absorbed_rows(self, groups: int) -> int:
        """How many rows of a sequence are cheaper to attend to the inputs than to projected keys and values.

        One row against S inputs costs 2·H·E·S on average over positions; keys and values of S tokens cost 4·E·G·D·S.
        The limit is a quarter of where the two are equal, in whole tiles of rows, because a sequence with one row more
        pays for both. 0 where positions are rotated, because the rotation stands between the query and Wk, and where a
        pattern says what is read.
        """
        if self.rope or groups > 1 or self.pattern is not None or not untouched(self.kv):
            return 0
        return self.kv_heads * self.head_dim // (2 * self.heads) // ROW_TILE * ROW_TILE

    def absorbed(self, x_rows: Tensor, x: Tensor, rows: Tensor, *, impl: str, cut: Cut | None = None) -> Tensor:
        """`taken` without keys and values: they are linear in `x` [B, T, E], so Wk moves to the query and Wv behind.

            <q, Wk x_s + bk> = <Wk^T q, x_s> + const of the row;    sum_s a_s (Wv x_s + bv) = Wv (sum_s a_s x_s) + bv

        The absorbed projections of multi-head latent attention (DeepSeek-AI 2024, sec. 2.1.2), here because few rows
        attend rather than because the cache is small. One kv head of width E serves all query heads.
        """
        w_k, w_v = self.kv.weight.unflatten(0, (2, self.kv_heads, self.head_dim)).to(x_rows.dtype).unbind(0)
        q = self.q(x_rows[:, 0]).unflatten(-1, (self.kv_heads, -1, self.head_dim))
        q = torch.einsum("brghd,gde->brghe", q, w_k.to(q.dtype)).flatten(2, 3)
        keys = x.to(q.dtype)[:, :, None]
        o = attend(q, keys, keys, rows=rows[:, 0], scale=self.head_dim**-0.5, impl=impl)
        o = torch.einsum("brghe,gde->brghd", o.unflatten(2, (self.kv_heads, -1)), w_v.to(o.dtype))
        if self.kv.bias is not None:
            bias = self.kv.bias.unflatten(0, (2, self.kv_heads, 1, self.head_dim))[1].to(o.dtype)
            # An empty slot stays exactly 0.
            o = o + bias * (rows[:, 0] >= 0)[..., None, None, None]
        o = o.flatten(2, 3)
        if cut is not None:
            o = suppress_directions(o, *cut)
        return self._finish(o, x_rows[:, 0]).flatten(2)[:, None]

    def step(
        self, x: Tensor, cache: KVCache, taken: Tensor | None, *, impl: str, reach: Reach = EVERYTHING,
        cut: Cut | None = None,
    ) -> Tensor:  # fmt: skip
        """Append one token `x` [B, 1, E] to the cache; outputs [B, 1, H, D] where `taken` [B, N], else exactly 0.

        Nothing is read on the host. `taken=None` attends everywhere. Wq runs for all B tokens or for none: its weights
        are what is read, and they are read once.
        """
        at = cache.next_positions(1)
        if plain(self.q, self.kv):
            query, made = few_rows(x, self.q.weight, self.kv.weight, taken=taken)
        else:
            query, made = self.q(x), self.kv(x)
        self._place(made, cache)
        q = query.unflatten(-1, (self.heads, self.head_dim))
        if self.rope:
            q = rotate(q, at)
        rows = at.expand(x.shape[0], 1) if taken is None else torch.where(taken, at, -1)
        now = cut and Cut(cut.directions, cut.amount[:, 0])
        o = step(q[:, 0].to(cache.k.dtype), cache.k, cache.v, reach, rows, impl=impl, cut=now)
        return self._finish(o.to(q.dtype)[:, None], x)

    def project(self, o: Tensor) -> Tensor:
        """Wo, group by group and without bias: [B, N, R, H/N · D] -> [B, N, R, E]."""
        groups = o.shape[1]
        if groups == 1:
            return self.merge(o)
        if not untouched(self.out):
            apart = [pad(o[:, n], (n * o.shape[-1], (groups - 1 - n) * o.shape[-1])) for n in range(groups)]
            return self.merge(torch.stack(apart, 1))
        return torch.einsum("bnrf,enf->bnre", o, self.out.weight.unflatten(1, (groups, -1)).to(o.dtype))

    def merge(self, o: Tensor) -> Tensor:
        """Wo of all heads without its bias, [.., E] -> [.., E]; by the layer itself where somebody changed it."""
        if untouched(self.out):
            return nn.functional.linear(o, self.out.weight)
        y = self.out(o)
        return y if self.out.bias is None else y - self.out.bias

    def flops(self, length: int, rows: float | None = None, absorbed: int = 0) -> float:
        """Forward multiply-adds × 2 of one sequence; `rows` taken at uniform positions, None = all.

        `absorbed` is how many of the rows, at most, need no keys and values.
        """
        rows = length if rows is None else rows
        extra = 0.0 if self.directions is None else self.directions.flops(length, rows)
        extra += 0.0 if self.gate is None else self.gate.flops(rows)
        absorbed_rows = min(rows, absorbed)
        rows -= absorbed_rows
        width, kv_width = self.q.in_features, self.kv_heads * self.head_dim
        seen = (length + 1) / 2 if self.pattern is None else self.pattern.mean_keys(length)
        flops = absorbed_rows * (8 * width**2 + 4 * self.heads * width * seen)
        if rows or not absorbed:
            flops += length * 4 * width * kv_width + rows * (4 * width**2 + 4 * width * seen)
        return flops + extra


def _packed(reach: Reach, starts: Tensor) -> Reach:
    """The same reach, inside each token's own document."""
    if not reach.in_operator or reach.prune is not None or reach.blocks is not None:
        raise UnsupportedError(
            "this pattern cannot be kept inside one document of several in a sequence; use window, sinks, a decay or "
            "full, or task.packing=false"
        )
    return replace(reach, starts=starts)
