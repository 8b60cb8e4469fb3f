"""Causal language model: embedding, blocks, norm, head; whole sequences and step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.layers import MixerState
from turnout.models.block import Block, build_norm
from turnout.models.config import ModelConfig
from turnout.models.recompute import recomputed
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import Pattern
from turnout.routers.query import Route

T = TypeVar("T")


@dataclass(slots=True)
class Output:
    """What a forward pass returns.

    Attributes:
        logits: [B, T, V], or [B, Q, V] at the positions asked for.
        routes: one a layer; None for a layer that has no router.
        state: memory after the last token, when one was given.
    """

    logits: Tensor
    routes: list[Route | None]
    state: list[MixerState] | None


class CausalLM(nn.Module):
    """Token sequences to next-token logits, with a routed mixer in each layer that the layout marks R.

    Args:
        config: the architecture.
        vocab: token ids are 0..vocab-1.
        seed: of the initial weights; the global generator is left as it was.
    Attributes:
        checkpointing: keep only the input of each block for the backward pass and compute the rest again there.
        compiled: blocks run as compiled code, see `compile_blocks`.
    """

    blocks: Sequence[Block]
    checkpointing = False
    compiled = False

    def __init__(self, config: ModelConfig, *, vocab: int, seed: int = 0) -> None:
        super().__init__()
        if vocab < 1:
            raise ConfigError(f"vocab={vocab}; expected >= 1")
        self.config, self.vocab = config, vocab
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.embed = nn.Embedding(vocab, config.width)
            blocks = nn.ModuleList(Block(config, layer, seed) for layer in range(config.layers))
            # A ModuleList does not know the type of what it holds.
            self.blocks = cast("Sequence[Block]", blocks)
            self.norm = build_norm(config)
            self.head = nn.Linear(config.width, vocab, bias=config.form == "gpt")
            if config.form == "llama":
                self._small_init()
        if config.tie:
            self.head.weight = self.embed.weight

    def _small_init(self) -> None:
        for name, p in self.named_parameters():
            elsewhere = (".router.", ".pattern.", ".directions.", ".local.weight", ".local.mixer.conv")
            if p.ndim != 2 or any(part in name for part in elsewhere):
                continue
            residual = name.endswith((".out.weight", ".down.weight"))
            nn.init.normal_(p, std=0.02 / (2 * self.config.layers) ** 0.5 if residual else 0.02)

    def init_state(
        self, batch: int, max_len: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> list[MixerState]:
        """Empty memory for `batch` sequences of up to `max_len` tokens (inference only)."""
        device = device or self.embed.weight.device
        dtype = dtype or self.embed.weight.dtype
        return [block.init_state(batch, max_len, device=device, dtype=dtype) for block in self.blocks]

    def forward(
        self,
        tokens: Tensor,
        *,
        mode: RoutingMode = SKIP,
        state: list[MixerState] | None = None,
        at: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> Output:
        """Logits for `tokens`.

        Args:
            tokens: int64 [B, T]; with `state`, the tokens that follow it.
            mode: execution; the default computes attention only for the rows taken.
            state: from `init_state`, updated in place and returned.
            at: int64 [B, Q], the only positions whose logits are wanted (-1 = empty, read at position 0).
            hint: bool [B, T] for the oracle router.
        Raises:
            ShapeError: tokens are not [B, T] or, on a CPU where looking costs nothing, outside the vocabulary; or the
                state is full, of another batch size or of another model. The state is then as it was.
        """
        if tokens.ndim != 2:
            raise ShapeError(f"tokens {tuple(tokens.shape)}; expected [batch, length]")
        self.check_vocab(tokens)
        mode = replace(mode, tokens=tokens)
        x, routes = self.features(self.embed(tokens), mode=mode, state=state, hint=hint)
        if at is not None:
            x = x.gather(1, at.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        return Output(logits=self.head(self.norm(x)), routes=routes, state=state)

    def pattern_penalty(self) -> Tensor | None:
        """What the patterns of all layers add to the loss for reading far; None where none does."""
        found = [p for p in (pattern.penalty() for pattern in self._patterns()) if p is not None]
        return torch.stack(found).sum() if found else None

    def check_length(self, length: int) -> None:
        """Raise ConfigError where a pattern cannot matter in sequences of `length` tokens."""
        for pattern in self._patterns():
            pattern.check_length(length)

    def check_packing(self) -> None:
        """Raise UnsupportedError where something cannot keep several documents of one sequence apart."""
        for layer, block in enumerate(self.blocks):
            attention = getattr(block.mixer, "attention", None)
            parts = {"router": getattr(block.mixer, "router", None), "local track": getattr(block.mixer, "local", None)}
            wrong = [name for name, part in parts.items() if part is not None and not part.packs]
            if attention is not None and attention.directions is not None:
                wrong.append("direction router")
            if wrong:
                raise UnsupportedError(
                    f"the {wrong[0]} of layer {layer} cannot keep packed documents apart; use another one, or "
                    "task.packing=false"
                )

    def _patterns(self) -> list[Pattern]:
        tracks = (getattr(block.mixer, "attention", None) for block in self.blocks)
        return [track.pattern for track in tracks if track is not None and track.pattern is not None]

    def features(
        self,
        x: Tensor,
        *,
        mode: RoutingMode = SKIP,
        state: list[MixerState] | None = None,
        hint: Tensor | None = None,
    ) -> tuple[Tensor, list[Route | None]]:
        """Embeddings [B, T, E] through all blocks, before the last norm, and the routes; arguments as in `forward`."""
        if state is not None:
            self._check_state(state, x)
        if mode.starts is not None:
            self.check_packing()
            if state is not None or mode.starts.shape != x.shape[:2]:
                raise ShapeError(
                    f"starts {list(mode.starts.shape)} for {list(x.shape[:2])} tokens; expected one a token, and no "
                    "state: continue one document at a time"
                )
        routes: list[Route | None] = []
        recompute = self.checkpointing and state is None and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            if self.compiled and mode.sample:
                mode = replace(mode, noise=None)
                mode = replace(mode, noise=mode.uniform((*x.shape[:2], self.config.routing_groups), x.device))
            if recompute:
                x, route = recomputed(block, x, mode, hint)
            else:
                x, route, _ = block(x, mode=mode, state=state[i] if state else None, hint=hint)
            routes.append(route)
        return x, routes

    def during(self, call: Callable[[], T]) -> T:
        """`call()`, inside what counts as a forward pass of this module: where shards gather its own weights."""
        return call()

    def compile_blocks(self) -> None:
        """Compile each block; blocks of one kind share their code. Weights keep their names.

        Gate noise is then drawn for every routed layer, whether its router asks for it or not.
        """
        import torch._dynamo

        # A capacity, a phase or a layout is code of its own; past the limit torch would fall back to eager silently.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for block in self.blocks:
            block.compile(dynamic=False)
        self.compiled = True

    def check_vocab(self, tokens: Tensor) -> None:
        if tokens.device.type != "cpu" or torch.compiler.is_compiling() or not tokens.numel():
            return
        low, high = (int(value) for value in tokens.aminmax())
        if low < 0 or high >= self.vocab:
            raise ShapeError(
                f"tokens hold {low}..{high}, but the model knows 0..{self.vocab - 1}; they were made with another "
                "tokenizer: use the one that the model was trained with"
            )

    def _check_state(self, state: list[MixerState], tokens: Tensor) -> None:
        if len(state) != len(self.blocks):
            raise ShapeError(f"state of {len(state)} layers; expected {len(self.blocks)}: use this model's init_state")
        for memory in state:
            if memory.cache is not None:
                memory.cache.check_room(*tokens.shape[:2])

    def block_flops(self, length: int, usage: list[float]) -> float:
        """Forward multiply-adds × 2 of the blocks on one sequence at a usage per layer; embedding and head left out."""
        return sum(block.flops(length, u) for block, u in zip(self.blocks, usage, strict=True))


def taken_of(routes: Sequence[Route | None]) -> Tensor | None:
    """Who attended, bool [B, T, layers with a router, G]; None without one."""
    found = [route.taken for route in routes if route is not None]
    return torch.stack(found, 2) if found else None
