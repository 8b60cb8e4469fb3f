"""`TurnoutCache`: keys and values, local tracks' memory and routers' memory of a batch, as `generate` handles them.

Sequences of one length share one state of the library (a *piece*); a padded batch has a piece for each length, so that
what a sequence holds never depends on its neighbours' padding.

B sequences, T new tokens, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from turnout.errors import ShapeError, UnsupportedError
from turnout.layers import MixerState
from turnout.layers.kv_cache import KVCache
from turnout.models.causal_lm import CausalLM

_FIRST_ROOM = 64


@dataclass(slots=True)
class Piece:
    """Sequences `rows` [b] of the batch, all `length` tokens long."""

    rows: Tensor
    length: int
    state: list[MixerState]


class TurnoutCache(Cache):
    """Memory of `TurnoutForCausalLM`, empty at first; the model fills it.

    Args:
        max_cache_len: room in tokens, allocated once (the static cache); None grows by doubling.
    Attributes:
        pieces: what is held, by sequence length; empty before the first token.
        padded_length: tokens seen with padding, what `generate` counts.
        prompt: the first tokens that it holds, int64 [B, T]; None before any or with embeddings in their place.
        checked: whether this call of `generate` has compared its prompt with what is held.
        stepping: one-token calls leave nothing to the host, so that they can be compiled (static and unpadded only).
    """

    def __init__(self, max_cache_len: int | None = None) -> None:
        super().__init__(layers=[])
        self.room = max_cache_len
        self.pieces: list[Piece] = []
        self.padded_length = 0
        self.prompt: Tensor | None = None
        self.checked = False
        self.stepping = False

    @property
    def is_compileable(self) -> bool:
        return self.stepping

    @property
    def is_initialized(self) -> bool:
        return bool(self.pieces)

    @property
    def max_batch_size(self) -> int:
        return sum(len(piece.rows) for piece in self.pieces)

    @property
    def max_cache_len(self) -> int:
        return -1 if self.room is None else self.room

    def get_seq_length(self, layer_idx: int = 0, **_: Any) -> int:
        """Tokens seen, padding included."""
        if self.stepping:
            position = self._caches()[0].position if self._caches() else None
            return self.padded_length if position is None else int(position)
        return self.padded_length

    def get_max_length(self, *_: Any) -> int:
        return self.max_cache_len

    def get_max_cache_shape(self, *_: Any) -> int:
        return self.max_cache_len

    def __len__(self) -> int:
        return len(self.pieces[0].state) if self.pieces else 0

    def __repr__(self) -> str:
        held = ", ".join(f"{len(piece.rows)} x {piece.length}" for piece in self.pieces)
        return f"TurnoutCache(sequences x tokens: {held or 'empty'}; room {self.room or 'grows'})"

    def reset(self) -> None:
        """Forget everything."""
        self.pieces, self.padded_length, self.prompt = [], 0, None
        self.checked = self.stepping = False

    def split(self, model: CausalLM, new: Tensor, like: Tensor) -> list[tuple[Piece, int]]:
        """Pieces, cut so that all sequences of one get the same number of tokens, with that number; room is made.

        Args:
            new: tokens that each sequence is about to get, int64 [B], on the CPU.
            like: a tensor of the dtype and on the device of the activations.
        Raises:
            ShapeError: another batch size, or a static cache that is full.
        """
        self.end_steps()
        if not self.pieces:
            everyone = torch.arange(len(new))
            empty = model.init_state(len(new), 0, device=like.device, dtype=like.dtype)
            self.pieces = [Piece(everyone, 0, empty)]
        if self.max_batch_size != len(new):
            raise ShapeError(
                f"the cache holds {self.max_batch_size} sequences, got {len(new)}; it belongs to another prompt: "
                "pass a new TurnoutCache(), or none"
            )
        done: list[tuple[Piece, int]] = []
        for piece in self.pieces:
            counts = new[piece.rows]
            for count in sorted(set(counts.tolist())):
                mine = (counts == count).nonzero()[:, 0]
                part = piece if len(mine) == len(piece.rows) else _select(piece, mine)
                self._make_room(part, count)
                done.append((part, count))
        self.pieces = [part for part, _ in done]
        return done

    def _make_room(self, piece: Piece, count: int) -> None:
        needed = piece.length + count
        if self.room is not None and needed > self.room:
            raise ShapeError(
                f"the static cache holds {self.room} tokens, got {needed}; use max_cache_len >= {needed}, or the "
                "dynamic cache"
            )
        for memory in piece.state:
            cache = memory.cache
            if cache is not None and cache.k.shape[1] < needed:
                room = self.room or max(needed, 2 * cache.k.shape[1], _FIRST_ROOM)
                memory.pattern = _grown(memory.pattern, cache.k.shape[1], room)
                memory.cache = _resized(cache, room)

    def advance(self, tokens: int) -> None:
        """Count the padded tokens of a call."""
        self.padded_length += tokens

    def begin_steps(self) -> None:
        """Put all that a one-token call changes on the device, if this is a static cache of one length that can."""
        if self.room is None or len(self.pieces) != 1 or self.stepping:
            return
        (piece,) = self.pieces
        if piece.length != self.padded_length or not all(
            all(map(_is_fixed, _replaced(memory))) for memory in piece.state
        ):
            return
        caches = self._caches()
        if not caches:
            return
        position = torch.full((1,), piece.length, dtype=torch.int64, device=caches[0].k.device)
        for cache in caches:
            cache.position = position
        self.stepping = True

    def check_step(self, batch: int) -> None:
        """Raise ShapeError unless another token of `batch` sequences fits."""
        if batch != self.max_batch_size:
            raise ShapeError(f"the cache holds {self.max_batch_size} sequences, got {batch}; pass a new TurnoutCache()")
        length = self.get_seq_length()
        if self.room is not None and length >= self.room:
            raise ShapeError(f"the static cache is full ({self.room} tokens); use a larger max_cache_len")

    def step(self, model: CausalLM, x: Tensor, **options: Any) -> tuple[Tensor, list[Any]]:
        """One token a sequence, x [B, 1, E], in place: the same tensors hold the memory before and after."""
        (piece,) = self.pieces
        before = [_replaced(memory) for memory in piece.state]
        y, routes = model.features(x, state=piece.state, **options)
        for memory, buffers in zip(piece.state, before, strict=True):
            for buffer, value in zip(buffers, _replaced(memory), strict=True):
                _overwrite(buffer, value)
            memory.local, memory.router, memory.directions = buffers
        position = self._caches()[0].position
        assert position is not None
        position += 1
        return y, routes

    def end_steps(self) -> None:
        """Let the host count again."""
        if not self.stepping:
            return
        (piece,) = self.pieces
        length = self.get_seq_length()
        self.stepping = False
        self.padded_length = piece.length = length
        for cache in self._caches():
            cache.length, cache.position = length, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was."""
        was_stepping = self.stepping
        self.end_steps()
        order = beam_idx.to("cpu")
        self.pieces = [_reordered(piece, order) for piece in self.pieces]
        self.prompt = _of_rows(self.prompt, order)
        if was_stepping:
            self.begin_steps()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times in a row."""
        n = self.max_batch_size
        self._take(torch.arange(n).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`, in that order."""
        chosen = indices.to("cpu")
        self._take(chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen)

    def crop(self, *_: Any, **__: Any) -> None:
        raise UnsupportedError(
            "a TurnoutCache cannot be cut back: the memory of convolutions and routers cannot be undone; "
            "start from a new cache"
        )

    def _take(self, source: Tensor) -> None:
        """New sequence i is old sequence source[i]."""
        self.end_steps()
        taken = []
        for piece in self.pieces:
            place = {int(row): i for i, row in enumerate(piece.rows)}
            new = [i for i, row in enumerate(source.tolist()) if row in place]
            if new:
                part = _select(piece, torch.tensor([place[int(source[i])] for i in new]))
                part.rows = torch.tensor(new)
                taken.append(part)
        self.pieces, self.prompt = taken, _of_rows(self.prompt, source)

    def _caches(self) -> list[KVCache]:
        return [memory.cache for piece in self.pieces for memory in piece.state if memory.cache is not None]


def _replaced(memory: MixerState) -> tuple[Any, Any, Any]:
    """What a call replaces by new tensors; the cache and the pattern's memory are written in place."""
    return memory.local, memory.router, memory.directions


def _is_fixed(value: Any) -> bool:
    """Whether a memory is tensors only, whose shapes a step keeps: a count or a growing window is not."""
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    return value is None or isinstance(value, Tensor)


def _overwrite(buffer: Any, value: Any) -> None:
    if isinstance(buffer, tuple):
        for a, b in zip(buffer, value, strict=True):
            _overwrite(a, b)
    elif buffer is not None:
        buffer.copy_(value)


def _resized(cache: KVCache, room: int) -> KVCache:
    batch, _, groups, dim = cache.k.shape
    larger = KVCache(batch, room, groups, dim, device=cache.k.device, dtype=cache.k.dtype)
    larger.k[:, : cache.length] = cache.k[:, : cache.length]
    larger.v[:, : cache.length] = cache.v[:, : cache.length]
    larger.length = cache.length
    return larger


def _grown(value: Any, old: int, room: int) -> Any:
    """A pattern's memory [B, old, ...] with room for more tokens."""
    if isinstance(value, tuple):
        return tuple(_grown(part, old, room) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != old:
        return value
    larger = value.new_zeros(value.shape[0], room, *value.shape[2:])
    larger[:, :old] = value
    return larger


def _of_rows(value: Any, index: Tensor) -> Any:
    """Rows of a memory whose tensors have the batch first."""
    if isinstance(value, tuple):
        return tuple(_of_rows(part, index) for part in value)
    return value.index_select(0, index.to(value.device)) if isinstance(value, Tensor) else value


def _select(piece: Piece, index: Tensor) -> Piece:
    """The sequences of a piece at `index`, as a piece with memory of its own."""
    state = []
    for memory in piece.state:
        cache = memory.cache
        if cache is not None:
            kept = KVCache(len(index), cache.k.shape[1], *cache.k.shape[2:], device=cache.k.device, dtype=cache.k.dtype)
            where = index.to(cache.k.device)
            kept.k[:, : cache.length] = cache.k[:, : cache.length].index_select(0, where)
            kept.v[:, : cache.length] = cache.v[:, : cache.length].index_select(0, where)
            kept.length = cache.length
            cache = kept
        others = ("local", "router", "pattern", "directions")
        state.append(MixerState(cache=cache, **{name: _of_rows(getattr(memory, name), index) for name in others}))
    return Piece(piece.rows[index], piece.length, state)


def _reordered(piece: Piece, order: Tensor) -> Piece:
    source = order[piece.rows]
    place = {int(row): i for i, row in enumerate(piece.rows)}
    if any(int(row) not in place for row in source):
        raise ShapeError("beams changed places between prompts of different lengths; reorder within one prompt only")
    part = _select(piece, torch.tensor([place[int(row)] for row in source]))
    part.rows = piece.rows
    return part
