"""Steps of one token with everything that changes kept on the device: on a GPU one CUDA graph is every step.

B sequences, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from turnout.errors import ShapeError, UnsupportedError
from turnout.layers import MixerState
from turnout.models.causal_lm import CausalLM, Output, taken_of
from turnout.routers.mode import SKIP, RoutingMode


class DecodeStep:
    """The one-token step of `model` behind a state, for any number of steps.

    The position is a tensor that the step itself advances, and the memories of local tracks and routers are buffers
    that it rewrites, so nothing depends on the host: neither lengths nor which tokens attend. `close` gives the state
    back to ordinary calls of the model.

    Attributes:
        taken: who attended in the last step, bool [B, 1, layers with a router, G], overwritten by the next one; None
            without a router.

    Args:
        model: in evaluation mode.
        state: from `init_state`, usually after a prefill; it is used in place and must not be used elsewhere meanwhile.
        mode: execution of every step.
        compiler: backend of torch.compile for the blocks of the step, "inductor" on a GPU; None compiles nothing. Other
            calls of the model stay as they are.
        lengths: tokens behind each sequence, where they are not the same; places are then by sequence, which a pattern
            does not know, and `close` leaves a state that ordinary calls cannot continue.
    Raises:
        UnsupportedError: a memory that grows or counts on the host (random and periodic controls, a window track
            before its first token).
        ShapeError: no room for another token.
    Cost: two trial steps, on a GPU the capture, and the compilation: blocks of one kind share their code.
    """

    def __init__(
        self, model: CausalLM, state: list[MixerState], *, mode: RoutingMode = SKIP, compiler: str | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.state, self.mode = model, state, mode
        self.compiled = [] if compiler is None else compile_calls(model, compiler)
        self.caches = [memory.cache for memory in state if memory.cache is not None]
        device = model.embed.weight.device
        batch = _batch_of(state)
        self.tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        # Without a cache no layer asks for the position.
        start = self.caches[0].length if self.caches else 0
        if lengths is not None and (len(lengths) != batch or any(s != "full" for s in model.config.layer_patterns)):
            raise UnsupportedError(
                f"{len(lengths)} lengths for {batch} sequences, pattern {model.config.pattern!r}; sequences of several "
                "lengths step together one length each, without a pattern: step those of one length at a time"
            )
        self.position = torch.tensor([start] if lengths is None else list(lengths), device=device)
        self._check_room()
        for cache in self.caches:
            cache.position = self.position
        try:
            self.buffers = self._make_buffers()
            self.output: Output | None = None
            self.taken: Tensor | None = None
            self.graph = self._capture() if device.type == "cuda" else None
        except BaseException:
            self.close()
            raise

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Output:
        """Logits [B, 1, V] for the next token of each sequence, int64 [B, 1]; the next call overwrites them.

        Raises:
            ShapeError: other tokens, or a full cache.
        """
        if tokens.shape != self.tokens.shape:
            raise ShapeError(f"tokens {list(tokens.shape)}; expected one a sequence, {list(self.tokens.shape)}")
        self._check_room()
        self.tokens.copy_(tokens)
        if self.graph is not None:
            self.graph.replay()
        else:
            self._run()
        for cache in self.caches:
            cache.length += 1
        assert self.output is not None
        return self.output

    def close(self) -> None:
        """Let the host count again; the state continues where the last step ended."""
        for cache in self.caches:
            cache.position = None

    def _check_room(self) -> None:
        # All of them hold the same tokens.
        for cache in self.caches[:1]:
            cache.check_room(self.tokens.shape[0], 1)

    def _run(self) -> None:
        with _replaced(self.model, self.compiled):
            self.output = self.model(self.tokens, mode=self.mode, state=self.state)
        # Part of the graph: outside of it, a copy a layer and step would keep the host busier than the device.
        self.taken = taken_of(self.output.routes)
        _copy(self.buffers, [_memories(memory) for memory in self.state])
        for memory, buffers in zip(self.state, self.buffers, strict=True):
            _put(memory, buffers)
        self.position += 1

    @torch.no_grad()
    def _make_buffers(self) -> list[tuple[Any, ...]]:
        """Buffers with the value of the state before, in the dtype and shape that a trial step leaves behind.

        The trial's keys and values lie where the first real step writes its own.
        """
        before = [_memories(memory) for memory in self.state]
        try:
            self.model(self.tokens, mode=self.mode, state=self.state)
            buffers = []
            for i, (memory, olds) in enumerate(zip(self.state, before, strict=True)):
                parts = zip(_PARTS, olds, _memories(memory), strict=True)
                buffers.append(tuple(_buffer(old, new, f"{part} of layer {i}") for part, old, new in parts))
        finally:
            for memory, olds in zip(self.state, before, strict=True):
                _put(memory, olds)
        for memory, new in zip(self.state, buffers, strict=True):
            _put(memory, new)
        return buffers

    @torch.no_grad()
    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up on a side stream, put the memories back, and capture."""
        kept = [_clone(pair) for pair in self.buffers]
        start = self.position.clone()
        # Warm-up and capture on streams of their own, as torch.cuda.graph does, but without giving the memory that a
        # prompt has just used back to the driver, which takes time, and more when the next prompt asks for it again.
        warm, stream = _streams(self.position.device)
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            self._run()
            self.position.copy_(start)
        stream.wait_stream(warm)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            try:
                self._run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.position.copy_(start)
        _copy(self.buffers, kept)
        return graph


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """The same two for every capture: libraries keep a workspace for each stream that they have seen."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


def compile_calls(model: CausalLM, backend: str) -> list[Any]:
    """The calls of the blocks as compiled code."""
    import torch._dynamo

    # A kind of block or a dtype is code of its own; past the limit torch would fall back to eager silently.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return [torch.compile(block._call_impl, dynamic=False, backend=backend) for block in model.blocks]


@contextlib.contextmanager
def _replaced(model: CausalLM, calls: list[Any]) -> Iterator[None]:
    """The blocks run these calls instead of their own, none where the list is empty."""
    blocks = list(model.blocks)[: len(calls)]
    before = [block._compiled_call_impl for block in blocks]
    try:
        for block, call in zip(blocks, calls, strict=True):
            block._compiled_call_impl = call
        yield
    finally:
        for block, call in zip(blocks, before, strict=True):
            block._compiled_call_impl = call


_PARTS = ("local track", "router", "direction router")


def _memories(memory: MixerState) -> tuple[Any, ...]:
    """What a step replaces, in the order of `_PARTS`; the cache is written in place."""
    return memory.local, memory.router, memory.directions


def _put(memory: MixerState, parts: tuple[Any, ...]) -> None:
    memory.local, memory.router, memory.directions = parts


def _batch_of(state: list[MixerState]) -> int:
    """Sequences that a state was made for."""
    for memory in state:
        if memory.cache is not None:
            return memory.cache.k.shape[0]
        # Whatever is held has the batch first.
        for leaf in _leaves(_memories(memory)):
            if isinstance(leaf, Tensor):
                return leaf.shape[0]
    raise UnsupportedError("no layer of this state holds a tensor, so there is nothing to step; call the model itself")


def _buffer(old: Any, new: Any, whose: str) -> Any:
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return tuple(_buffer(a, b, whose) for a, b in zip(old, new, strict=True))
    if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape == new.shape:
        return old.to(new.dtype, copy=True)
    if old is None and new is None:
        return None
    raise UnsupportedError(
        f"the memory of the {whose} grows or counts on the host, so one step cannot be replayed; "
        "call the model with state= instead of DecodeStep"
    )


def _copy(buffers: Sequence[Any], values: Sequence[Any]) -> None:
    """Write the values of all layers into their buffers: one kernel for each dtype, not one for each memory."""
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for buffer, value in zip(_leaves(buffers), _leaves(values), strict=True):
        into, out = pairs.setdefault(buffer.dtype, ([], []))
        into.append(buffer)
        out.append(value)
    for into, out in pairs.values():
        torch._foreach_copy_(into, out)


def _leaves(value: Any) -> list[Tensor]:
    """The tensors of a nest of tuples, in order."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None else [value]


def _clone(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_clone, value))
    return value if value is None else value.clone()
