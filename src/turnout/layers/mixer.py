"""Mixers: what a block does across tokens. `RoutedMixer` is the turnout; the other two are its ends.

B batch, T tokens, E width, N routing groups (1 or kv heads), R rows taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, nearest
from turnout.layers.attention import AttentionTrack
from turnout.layers.kv_cache import KVCache
from turnout.layers.local import LocalTrack
from turnout.ops.attend.breakeven import break_even
from turnout.ops.attend.decode import has_decode_kernel
from turnout.ops.compact import compact
from turnout.ops.few_rows import few_rows
from turnout.ops.untouched import untouched
from turnout.routers.direction import Cut
from turnout.routers.gate_options import MIXES
from turnout.routers.mode import RoutingMode
from turnout.routers.pattern import Reach
from turnout.routers.query import QueryRouter, Route


@dataclass(slots=True)
class MixerState:
    """Memory of a mixer while decoding; parts a mixer lacks are None."""

    cache: KVCache | None = None
    local: Any = None
    router: Any = None
    pattern: Any = None
    directions: Any = None


class AttentionMixer(nn.Module):
    """Every token attends; there is no other track (dense attention)."""

    def __init__(self, attention: AttentionTrack) -> None:
        super().__init__()
        self.attention = attention

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> MixerState:
        return MixerState(
            cache=_cache(self.attention, batch, max_len, device, dtype),
            pattern=_memory(self.attention, batch, max_len, device, dtype),
            directions=_direction_state(self.attention, batch, device, dtype),
        )

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: MixerState | None = None, hint: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Route | None, MixerState | None]:  # fmt: skip
        cache, memory = (state.cache, state.pattern) if state else (None, None)
        stepping = cache is not None and cache.position is not None
        reach = self.attention.reach(x, cache, memory, mode, buffers=stepping)
        cut = _cut(self.attention, x, residual, state)
        if cache is not None and stepping:
            o = self.attention.step(x, cache, None, impl=mode.impl, reach=reach, cut=cut)
        else:
            k, v = self.attention.keys_values(x, cache)
            o = self.attention.whole(x, k, v, impl=mode.impl, reach=reach, cut=cut)
        return self.attention.out(o.flatten(-2)), None, state

    def flops(self, length: int, usage: float) -> float:
        return self.attention.flops(length)


class LocalMixer(nn.Module):
    """Every token stays on the local track; no keys or values exist."""

    def __init__(self, local: LocalTrack) -> None:
        super().__init__()
        self.local = local

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> MixerState:
        return MixerState(local=self.local.init_state(batch, device=device, dtype=dtype))

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: MixerState | None = None, hint: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Route | None, MixerState | None]:  # fmt: skip
        y, memory = _local(self.local, x, mode, state)
        if state is not None:
            state.local = memory
        return y, None, state

    def flops(self, length: int, usage: float) -> float:
        return self.local.flops(length)


class RoutedMixer(nn.Module):
    """Local track for all tokens, attention for the rows that the router takes.

    replace   y_t = (1 - w_t) local_t + w_t attention_t                            one routing group
              y_t = sum_n [(1 - w_tn) local_t / N + w_tn Wo_n attention_tn]        one group per kv head
    add       y_t = local_t + sum_n w_tn Wo_n attention_tn

    w is 0 for a row not taken, so its attention is never needed: with `mode.skip` only the rows taken are gathered,
    projected through Wq, attend, and pass Wo. Without it both tracks run for every token and both get gradient.

    Args:
        router: who attends.
        local: the local track.
        attention: the attention track; the router's groups must be 1 or its kv heads.
        mix: "replace" or "add".
    Raises:
        ConfigError: the router decides for another number of groups, or an unknown mix.
    Cost: local + router + keys/values for T tokens, 4·E² + 2·E·T per row taken; where few rows are taken and positions
        are not rotated, no keys and values (`AttentionTrack.absorbed`).
    """

    def __init__(
        self, router: QueryRouter, local: LocalTrack, attention: AttentionTrack, *, mix: str = "replace"
    ) -> None:
        super().__init__()
        if mix not in MIXES:
            raise ConfigError(f"mix={mix!r}{nearest(mix, MIXES)}")
        self.replaces = mix == "replace"
        groups = self.groups = router.context.groups
        if groups not in (1, attention.kv_heads):
            raise ConfigError(
                f"router with {groups} groups beside attention with {attention.kv_heads} kv heads; "
                f"expected groups=1 or groups={attention.kv_heads}"
            )
        self.router, self.local, self.attention = router, local, attention

    def init_state(self, batch: int, max_len: int, *, device: torch.device, dtype: torch.dtype) -> MixerState:
        """Memory for sequences of up to `max_len` tokens: key/value cache, local track, routers."""
        return MixerState(
            cache=_cache(self.attention, batch, max_len, device, dtype),
            local=self.local.init_state(batch, device=device, dtype=dtype),
            router=self.router.init_state(batch, device=device, dtype=dtype),
            pattern=_memory(self.attention, batch, max_len, device, dtype),
            directions=_direction_state(self.attention, batch, device, dtype),
        )

    def forward(
        self, x: Tensor, *, mode: RoutingMode, state: MixerState | None = None, hint: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Route, MixerState | None]:  # fmt: skip
        """Mix `x` [B, T, E].

        Args:
            mode: execution (skip or dense phase, capacity, sampling).
            state: from `init_state`; it is updated in place and returned. None processes whole sequences.
            hint: bool [B, T] for the oracle router.
            residual: [B, T, E], the stream before the norm, for a direction router that reads it; None: `x`.
        Returns:
            Output [B, T, E], the Route (with its dropped rows), the state.
        """
        route, router_state = self.router(x, mode=mode, state=state.router if state else None, hint=hint)
        local, local_state = _local(self.local, x, mode, state)
        if state is not None:
            state.router, state.local = router_state, local_state
        cache, memory = (state.cache, state.pattern) if state else (None, None)
        stepping = cache is not None and _steps(x, cache, mode)
        reach = self.attention.reach(x, cache, memory, mode, buffers=stepping)
        if cache is not None and stepping and not reach.stepwise and cache.position is None:
            # The decode kernel is a choice here, and has no such pattern; what was remembered is written once more.
            stepping, reach = False, self.attention.reach(x, cache, memory, mode, buffers=False)
        if cache is not None and stepping:
            taken = route.taken[:, 0] if mode.skip else None
            cut = _cut(self.attention, x, residual, state)
            o = self.attention.step(x, cache, taken, impl=mode.impl, reach=reach, cut=cut)
            return self._mix(o, local, route.weight, taken=taken), route, state
        nobody = mode.skip and mode.capacity is None and not bool(route.taken.any())
        if nobody and state is None:
            return local, route, state
        dense = not mode.skip or self._dense_pays(x, mode)
        keys_values = None if not dense and cache is None else self.attention.keys_values(x, cache)
        if nobody:
            _cut(self.attention, x, residual, state, rows=x.new_empty(len(x), 1, 0, dtype=torch.int64))
            return local, route, state
        if keys_values is None or not dense:
            return self._skip(x, local, keys_values, route, mode, reach, residual, state), route, state
        weight = _within_capacity(route, mode.capacity) if mode.skip and mode.capacity is not None else route.weight
        cut = _cut(self.attention, x, residual, state)
        o = self.attention.whole(x, *keys_values, impl=mode.impl, reach=reach, cut=cut)
        return self._mix(o, local, weight), route, state

    def _dense_pays(self, x: Tensor, mode: RoutingMode) -> bool:
        """Whether so many rows fit the capacity that dense attention of all tokens is the faster way to skip.

        The same output and gradients: the weight of what is not taken is 0. Goes by the measured break-even.
        """
        if not x.is_cuda or mode.capacity is None or mode.impl != "auto" or mode.overflow != "earliest":
            return False
        if self.attention.pattern is not None or mode.starts is not None:
            # The table is of plain causal attention.
            return False
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        length, head_dim = x.shape[1], self.attention.head_dim
        found = break_even(x.device, dtype, length, head_dim=head_dim, backward=torch.is_grad_enabled())
        return mode.capacity >= found.dense * length

    def _mix(self, o: Tensor, local: Tensor, weight: Tensor, *, taken: Tensor | None = None) -> Tensor:
        """Both tracks at every token: heads' outputs `o` [B, T, H, D] by their weights, Wo, and the local track.

        `taken` [B, N] of a step says that o is 0 elsewhere: where nobody attends Wo is not read.
        """
        weight = weight.to(o.dtype)
        if taken is not None and weight.shape[-1] == 1 and untouched(self.attention.out):
            (y,) = few_rows(o.flatten(2), self.attention.out.weight, taken=taken, scale=weight[:, 0, 0])
        else:
            o = o.unflatten(2, (weight.shape[-1], -1)) * weight[..., None, None]
            y = self.attention.merge(o.flatten(2))
        mean = weight.mean(dim=-1, keepdim=True)
        if self.attention.out.bias is not None:
            y = y + mean * self.attention.out.bias
        return y + ((1 - mean) * local if self.replaces else local)

    def _skip(
        self, x: Tensor, local: Tensor, keys_values: tuple[Tensor, Tensor] | None, route: Route, mode: RoutingMode,
        reach: Reach, residual: Tensor | None, state: MixerState | None,
    ) -> Tensor:  # fmt: skip
        picked = compact(route.taken, mode.capacity, overflow=mode.overflow, gate=route.gate.detach())
        route.dropped = picked.dropped
        rows = picked.rows
        groups, index = rows.shape[1], rows.clamp(min=0)
        x_rows = torch.stack([_gather(x, index[:, n]) for n in range(groups)], dim=1)
        cut = _cut(self.attention, x, residual, state, rows=index)
        o = self._attend_rows(x, x_rows, keys_values, rows, mode, reach, cut)
        # An empty slot points at row 0 with weight 0: it adds an exact zero there.
        weight = torch.where(rows >= 0, route.weight.transpose(1, 2).gather(2, index), 0.0).to(o.dtype)[..., None]
        gain = self.attention.project(o * weight)
        bias = self.attention.out.bias
        changes = []
        for n in range(groups):
            change = gain[:, n]
            if self.replaces:
                change = change - weight[:, n] / groups * _gather(local, index[:, n])
            if bias is not None:
                change = change + weight[:, n] / groups * bias
            changes.append(change.to(local.dtype))
        # Without autograd the local track's output is ours to write into: one copy of [B, T, E] less.
        add = torch.Tensor.scatter_add if torch.is_grad_enabled() else torch.Tensor.scatter_add_
        y = local
        for n, change in enumerate(changes):
            y = add(y, 1, index[:, n, :, None].expand(-1, -1, y.shape[-1]), change)
        return y

    def _attend_rows(
        self, x: Tensor, x_rows: Tensor, keys_values: tuple[Tensor, Tensor] | None, rows: Tensor, mode: RoutingMode,
        reach: Reach, cut: Cut | None,
    ) -> Tensor:  # fmt: skip
        """Heads' outputs of the rows; a sequence with few rows needs no keys and values, where no cache wants them.

        The first rows of a sequence attend to the inputs and the others to keys and values: where a row belongs must
        not hang on how many rows come after it. A static capacity is known before, and then it is all or none.
        """
        attention, impl = self.attention, mode.impl
        first = attention.absorbed_rows(rows.shape[1]) if keys_values is None and reach.starts is None else 0
        if mode.capacity is not None and rows.shape[2] > first:
            first = 0
        parts = []
        if first:
            some = cut and Cut(cut.directions, cut.amount[:, :first])
            parts.append(attention.absorbed(x_rows[:, :, :first], x, rows[..., :first], impl=impl, cut=some))
        if rows.shape[2] > first:
            k, v = keys_values or attention.keys_values(x, None)
            past = k.shape[1] - x.shape[1]
            rest = rows[..., first:]
            rest = torch.where(rest >= 0, rest + past, rest)
            some = cut and Cut(cut.directions, cut.amount[:, first:])
            parts.append(attention.taken(x_rows[:, :, first:], k, v, rest, impl=impl, reach=reach, cut=some))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def flops(self, length: int, usage: float, *, skip: bool = True) -> float:
        """Forward multiply-adds × 2 of one sequence at a usage, router included; `skip` as in `RoutingMode`."""
        router = 2 * length * sum(p.numel() for p in self.router.parameters() if p.ndim == 2)
        absorbed = self.attention.absorbed_rows(self.groups) if skip else 0
        return self.local.flops(length) + router + self.attention.flops(length, usage * length, absorbed)


def _local(track: LocalTrack, x: Tensor, mode: RoutingMode, state: MixerState | None) -> tuple[Tensor, Any]:
    if mode.starts is not None:
        return track(x, starts=mode.starts)
    return track(x, state.local if state else None)


def _steps(x: Tensor, cache: KVCache, mode: RoutingMode) -> bool:
    """Whether one token goes through the decode kernel, which waits for no decision on the host."""
    if cache.position is not None:
        return True
    return x.shape[1] == 1 and mode.skip and mode.impl in ("auto", "triton") and has_decode_kernel(cache.k)


def _within_capacity(route: Route, capacity: int) -> Tensor:
    """Weights [B, T, G] of the rows that `compact` would list, 0 elsewhere; notes the rows it would drop."""
    taken = route.taken & ~route.gate.isnan()
    kept = taken
    if capacity < taken.shape[1]:
        # Along the last axis: along a middle one torch sums in one thread a column on a GPU.
        kept = taken & (taken.transpose(1, 2).cumsum(-1).transpose(1, 2) <= capacity)
    route.dropped = taken.sum(1) - kept.sum(1)
    return torch.where(kept, route.weight, 0.0)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, E] at index [B, R] -> [B, R, E]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _cut(
    track: AttentionTrack, x: Tensor, residual: Tensor | None, state: MixerState | None, *, rows: Tensor | None = None
) -> Cut | None:
    """Ask the track's direction router, if it has one, for every token or for `rows` [B, N, R]; its state moves on."""
    router = track.directions
    if router is None:
        return None
    source = residual if router.raw and residual is not None else x
    amount, memory = router(source, state=state.directions if state else None, rows=rows)
    if state is not None:
        state.directions = memory
    return Cut(router.unit(), amount)


def _direction_state(track: AttentionTrack, batch: int, device: torch.device, dtype: torch.dtype) -> Any:
    return None if track.directions is None else track.directions.init_state(batch, device=device, dtype=dtype)


def _cache(track: AttentionTrack, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> KVCache:
    return KVCache(batch, max_len, track.kv_heads, track.head_dim, device=device, dtype=dtype)


def _memory(track: AttentionTrack, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> Any:
    return track.pattern and track.pattern.init_state(batch, max_len, device=device, dtype=dtype)
