"""`TurnoutForCausalLM`: the library's causal language model as a Hugging Face model.

B sequences, T tokens, E width, V vocabulary, G routing groups.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from turnout.errors import ConfigError, ShapeError, UnsupportedError
from turnout.models.causal_lm import CausalLM
from turnout.models.hf.cache import TurnoutCache
from turnout.models.hf.configuration import TurnoutConfig
from turnout.models.hf.loading import check_files, check_loaded
from turnout.models.hf.padding import route_back, spans, to_back, to_front
from turnout.routers.mode import RoutingMode
from turnout.routers.query import Route

_CACHES = (None, "dynamic", "static")


@dataclass
class TurnoutOutput(ModelOutput):
    """What a forward pass returns.

    Attributes:
        loss: next-token cross-entropy plus the routing cost, when labels were given.
        logits: [B, T, V], or of the last places that `logits_to_keep` asks for.
        past_key_values: the cache after these tokens.
        routes: with `output_routes=True`, one `Route` a layer (None for a layer without a router): `gate` and `taken`
            are [B, T, G], False at padding.
        hidden_states: with `output_hidden_states=True`, [B, T, E] of the embeddings, behind every block but the last,
            and behind the last norm; zeros at padding, but for the last.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: TurnoutCache | None = None
    routes: tuple[Route | None, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class TurnoutForCausalLM(PreTrainedModel, GenerationMixin):
    """`turnout.models.CausalLM` behind the interface of `transformers`.

    Padding on either side changes nothing: sequences are moved to the front before the first layer, and cached by
    length. In training both tracks run and gates are drawn; otherwise attention runs for the rows taken only.
    """

    config_class = TurnoutConfig
    config: TurnoutConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"model.head.weight": "model.embed.weight"}  # noqa: RUF012
    # A cache cannot be cut back, which assisted generation needs.
    _is_stateful = True

    def __init__(self, config: TurnoutConfig) -> None:
        super().__init__(config)
        self.model = CausalLM(config.architecture, vocab=config.vocab_size, seed=config.init_seed)
        self._gates: torch.Generator | None = None
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: `CausalLM` draws its own weights, and loading refuses a checkpoint that leaves any out."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.model.embed = value  # type: ignore[assignment]
        # Embeddings may have been resized.
        self.model.vocab = getattr(value, "num_embeddings", self.model.vocab)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.model.head

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        self.model.head = new_embeddings  # type: ignore[assignment]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, but a file that is missing or does not fit is an error and not a warning.

        Raises:
            CheckpointError: a shard is missing, or tensors are missing, unexpected or of another shape. With
                `ignore_mismatched_sizes=True` those of another shape are drawn anew.
        """
        check_files(pretrained_model_name_or_path)
        wanted = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        forgiving = bool(kwargs.get("ignore_mismatched_sizes", False))
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        check_loaded(model, info, str(pretrained_model_name_or_path), forgiving=forgiving)
        return (model, info) if wanted else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: TurnoutCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_routes: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> TurnoutOutput | tuple[Any, ...]:
        """Next-token logits.

        Args:
            input_ids: int64 [B, T]; with a cache, the tokens that follow it.
            attention_mask: 1 = real token, [B, T] or, with a cache, [B, past + T].
            past_key_values: from an earlier call.
            inputs_embeds: float [B, T, E] instead of `input_ids`.
            labels: int64 [B, T], -100 = no target; shifted here.
            use_cache: return a cache, which no gradient passes; default: of the config, off where autograd records.
            logits_to_keep: only the last so many places (0 = all), or these places.
            output_routes: return who attended.
            output_hidden_states: return what passes between the blocks.
            output_attentions: cannot be had: weights of attention never exist.
            num_items_in_batch: targets of the whole batch, of which this is a part; the loss is then this part's share.
        Raises:
            ShapeError: no or two kinds of input, tokens of another tokenizer (seen on a CPU), padding between real
                tokens, a cache of another prompt.
            UnsupportedError: `output_attentions`; hidden states of padded sequences or single steps behind a cache.
        """
        if output_attentions:
            raise UnsupportedError(
                "attention weights never exist as a matrix here; output_routes=True says who attended"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ShapeError("pass either input_ids or inputs_embeds")
        if input_ids is not None:
            self.model.check_vocab(input_ids)
        x = self.model.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not torch.is_grad_enabled()
        cache = past_key_values
        if cache is None and use_cache:
            cache = TurnoutCache()
        passed: list[Tensor] | None = None
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            passed = []
        with _watched(self.model, passed):
            if cache is None:
                y, routes = self._whole(x, input_ids, attention_mask)
            else:
                # The cache is written in place, which autograd cannot follow.
                with torch.no_grad():
                    y, routes = self._cached(x, input_ids, attention_mask, cache)
        hidden = None if passed is None else self._hidden(x, passed, y, attention_mask)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else None
        if isinstance(logits_to_keep, Tensor):
            y = y[:, logits_to_keep]
        elif keep is not None:
            y = y[:, keep]
        logits = self.model.head(self.model.norm(y))
        loss = None
        if labels is not None:
            items = num_items_in_batch
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=items
            )
            share = 1.0 if items is None else (labels[:, 1:] != -100).sum() / items
            loss = loss + share * self._routing_cost(routes, attention_mask)
        shown = tuple(routes) if output_routes else None
        kept = cache if use_cache else None
        out = TurnoutOutput(loss=loss, logits=logits, past_key_values=kept, routes=shown, hidden_states=hidden)
        return out.to_tuple() if return_dict is False else out

    def _hidden(self, x: Tensor, passed: list[Tensor], y: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """What passed between the blocks, of all sequences and in their places."""
        between = passed[:-1]
        if len(passed) != len(self.model.blocks) or any(part.shape != x.shape for part in between):
            raise UnsupportedError(
                "hidden states of padded sequences or of single steps behind a cache are not kept; pass use_cache=False"
            )
        mask = None if mask is None else mask[:, -x.shape[1] :]
        if mask is not None and not bool(mask.all()):
            first, count = spans(mask)
            between = [to_back(part, first, count) for part in between]
            x = x * mask[..., None].to(x.dtype)
        return (x, *between, self.model.norm(y))

    def _mode(self, device: torch.device) -> RoutingMode:
        if not self.training:
            return RoutingMode()
        if self._gates is None or self._gates.device != device:
            self._gates = torch.Generator(device).manual_seed(self.config.gate_seed)
        return RoutingMode(skip=False, sample=True, generator=self._gates)

    def _whole(self, x: Tensor, ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor, list[Route | None]]:
        """Sequences without a past."""
        mode = replace(self._mode(x.device), tokens=ids)
        self.model.checkpointing = self.gradient_checkpointing and self.training
        if mask is None or torch.compiler.is_compiling() or bool(mask.all()):
            return self.model.features(x, mode=mode)
        first, count = spans(mask)
        mode = replace(mode, tokens=None if ids is None else to_front(ids, first))
        y, routes = self.model.features(to_front(x, first), mode=mode)
        return to_back(y, first, count), [route_back(route, first, count) for route in routes]

    def _cached(
        self, x: Tensor, ids: Tensor | None, mask: Tensor | None, cache: TurnoutCache
    ) -> tuple[Tensor, list[Route | None]]:
        """Sequences behind a cache, each piece of it on its own."""
        if not isinstance(cache, TurnoutCache):
            raise ConfigError(f"past_key_values is a {type(cache).__name__}; expected a TurnoutCache, or none")
        mode, length = replace(self._mode(x.device), tokens=ids), x.shape[1]
        if cache.stepping and length == 1 and torch.compiler.is_compiling():
            return cache.step(self.model, x, mode=mode)
        past = cache.get_seq_length()
        if past == 0 and cache.prompt is None and ids is not None:
            cache.prompt = ids.detach().clone()
        if mask is not None and mask.shape[1] not in (length, past + length):
            raise ShapeError(
                f"attention_mask covers {mask.shape[1]} tokens, but the cache holds {past} and {length} are new; the "
                "cache belongs to another prompt: pass a new TurnoutCache(), or none"
            )
        recent = None if mask is None else mask[:, -length:]
        padded = recent is not None and not bool(recent.all())
        if cache.stepping and length == 1 and not padded:
            cache.check_step(x.shape[0])
            return cache.step(self.model, x, mode=mode)
        if padded:
            assert recent is not None
            first, count = spans(recent)
        else:
            first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            count = torch.full_like(first, length)
        if past == 0 and not bool(count.all()):
            raise ShapeError("attention_mask has a sequence without a real token; expected at least one in each")
        front = to_front(x, first) if padded else x
        if padded and ids is not None:
            mode = replace(mode, tokens=to_front(ids, first))
        parts = cache.split(self.model, count.cpu(), x)
        if len(parts) == 1 and not padded:
            (piece, _), *_ = parts
            y, routes = self.model.features(x, mode=mode, state=piece.state)
            piece.length += length
        else:
            y, routes = self._by_piece(front, parts, mode)
            y, routes = to_back(y, first, count), [route_back(route, first, count) for route in routes]
        cache.advance(length)
        cache.begin_steps()
        return y, routes

    def _by_piece(self, x: Tensor, parts: list[Any], mode: RoutingMode) -> tuple[Tensor, list[Route | None]]:
        """x [B, T, E] with each sequence at the front; zeros and closed gates behind its end."""
        y = torch.zeros_like(x)
        routes: list[Route | None] = [None] * len(self.model.blocks)
        for piece, count in parts:
            if not count:
                continue
            rows = piece.rows.to(x.device)
            here = mode if mode.tokens is None else replace(mode, tokens=mode.tokens[rows, :count])
            out, found = self.model.features(x[rows, :count], mode=here, state=piece.state)
            piece.length += count
            y = y.to(out.dtype)
            y[rows, :count] = out
            for i, route in enumerate(found):
                if route is not None:
                    routes[i] = _merged(routes[i], route, rows, x.shape[:2])
        return y, routes

    def _routing_cost(self, routes: list[Route | None], mask: Tensor | None) -> Tensor | float:
        gates = [route.gate for route in routes if route is not None and route.gate.requires_grad]
        if not self.config.routing_cost or not gates:
            return 0.0
        mean = torch.stack(gates).mean((0, 3))
        weight = torch.ones_like(mean) if mask is None else mask.to(mean.dtype)
        return self.config.routing_cost * (mean * weight).sum() / weight.sum()

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adds the checks of a prompt; see `GenerationMixin`."""
        if kwargs.get("is_first_iteration", False):
            cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
            # A mask that covers more says that these are the tokens behind the cache, and not the whole text.
            self._check_prompt(input_ids, cache, whole=mask is None or mask.shape[1] == input_ids.shape[1])
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def _check_prompt(self, ids: Tensor, cache: TurnoutCache | None, *, whole: bool) -> None:
        highest = int(ids.max()) if ids.numel() else 0
        if highest >= self.config.vocab_size:
            raise ShapeError(
                f"the prompt holds token {highest}, but the model knows 0..{self.config.vocab_size - 1}; it was made "
                "with another tokenizer: use the one saved beside the model"
            )
        if ids.shape[1] > self.config.max_position_embeddings:
            warnings.warn(
                f"the prompt has {ids.shape[1]} tokens; the model was trained on {self.config.max_position_embeddings}",
                stacklevel=4,
            )
        if cache is None or cache.checked or not whole:
            return
        # Further chunks of the same prompt come here too.
        cache.checked = True
        held = cache.padded_length
        if held and cache.prompt is not None:
            old = cache.prompt.to(ids.device)
            if ids.shape[1] <= held or not torch.equal(ids[:, : old.shape[1]], old):
                raise ShapeError(
                    f"the cache holds {held} tokens of another prompt than the one given ({ids.shape[1]} tokens); pass "
                    "a new TurnoutCache(), or the old prompt followed by the new tokens"
                )
        cache.prompt = ids.detach().clone()

    @staticmethod
    def create_masks_for_generate(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
        """The mask as it is: the model needs to know real tokens only."""
        return attention_mask

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int,
        max_cache_length: int, *_: Any,
    ) -> None:  # fmt: skip
        kind = generation_config.cache_implementation
        if kind not in _CACHES:
            raise ConfigError(f"cache_implementation={kind!r}; expected one of dynamic, static")
        given = model_kwargs.get("past_key_values")
        if given is not None:
            if not isinstance(given, TurnoutCache):
                raise ConfigError(f"past_key_values is a {type(given).__name__}; expected a TurnoutCache, or none")
            given._is_user_defined, given.checked = True, False
        elif generation_config.use_cache is not False:
            room = max(max_cache_length, generation_config.max_cache_len or 0) if kind == "static" else None
            model_kwargs["past_key_values"] = TurnoutCache(room)


@contextlib.contextmanager
def _watched(model: CausalLM, passed: list[Tensor] | None) -> Iterator[None]:
    """Notes what each block returns, unless nobody asks."""
    if passed is None:
        yield
        return

    def note(block: torch.nn.Module, given: Any, made: Any) -> None:
        passed.append(made[0])

    handles = [block.register_forward_hook(note) for block in model.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _merged(whole: Route | None, part: Route, rows: Tensor, shape: torch.Size) -> Route:
    """Put the route of a piece into the route of the batch; places that nobody fills are closed."""
    count, groups = part.gate.shape[1:]
    if whole is None:
        empty = part.gate.new_zeros(*shape, groups)
        whole = Route(gate=empty, weight=empty.clone(), taken=torch.zeros_like(empty, dtype=torch.bool))
    whole.gate[rows, :count] = part.gate
    whole.weight[rows, :count] = part.weight
    whole.taken[rows, :count] = part.taken
    return whole
