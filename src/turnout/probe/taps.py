"""Named places inside a model that can be read and replaced: TransformerLens's names, by forward hooks.

    hook_embed · blocks.{i}.hook_resid_pre · .ln1.hook_normalized · .attn.hook_z · .hook_attn_out · .hook_resid_mid
    .ln2.hook_normalized · .mlp.hook_post · .hook_mlp_out · .hook_resid_post · ln_final.hook_normalized
    with directions also blocks.{i}.attn.hook_o (heads' outputs before the cut) and .attn.hook_r (amounts [B, T, H, K])

B batch, T tokens, E width, H heads, D head dim, K directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError, ShapeError, nearest
from turnout.layers.attention import AttentionTrack
from turnout.probe.anatomy import Anatomy


@dataclass(frozen=True, slots=True)
class Hook:
    """What an edit is told about where it stands: `name`, and the layer (None outside the blocks)."""

    name: str
    layer: int | None


Edit = Callable[[Tensor, Hook], Tensor | None]
Edits = Mapping[str, Edit] | Sequence[tuple[str, Edit]]


@dataclass(frozen=True, slots=True)
class _Place:
    """The input or the output of a module; `heads` > 0 shows [B, T, H·D] as [B, T, H, D]."""

    module: nn.Module
    side: str
    layer: int | None
    heads: int = 0


@dataclass(frozen=True, slots=True)
class Recording:
    """Logits [B, T, V] of one run, and the values that were kept, by name."""

    logits: Tensor
    values: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]


class Taps:
    """Read and replace values inside a model.

        taps = Taps(model)
        seen = taps.run(tokens, keep=["blocks.2.attn.hook_z"])
        off = taps.run(tokens, edits={"blocks.2.attn.hook_r": lambda r, hook: 0 * r})

    Args:
        model: see `Anatomy`; it is left as it was, hooks are there only while `run` runs.
        context: most tokens of a prompt, where the model does not say.
    """

    def __init__(self, model: nn.Module, *, context: int | None = None) -> None:
        self.anatomy = Anatomy(model, context=context)
        self.places = _places(self.anatomy)

    @property
    def names(self) -> list[str]:
        """All names, in the order of the forward pass."""
        return list(self.places)

    def find(self, *endings: str) -> list[str]:
        """The names that end so: `find("hook_r")`."""
        return [name for name in self.places if name.endswith(endings)]

    def check(self, name: str) -> str:
        """ConfigError, which names the nearest or the layers there are, unless the name exists."""
        if name in self.places:
            return name
        parts = name.split(".")
        if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
            self.anatomy.check_layer(int(parts[1]))
            own = [n for n in self.places if n.startswith(f"blocks.{parts[1]}.")]
            raise ConfigError(f"unknown tap {name!r}{nearest(name, own)}")
        raise ConfigError(f"unknown tap {name!r}{nearest(name, self.places)}")

    @torch.no_grad()
    def run(self, tokens: Tensor, *, keep: Iterable[str] = (), edits: Edits = ()) -> Recording:
        """One forward pass.

        Args:
            tokens: int64 [B, T].
            keep: names whose values are recorded, after any edit.
            edits: name -> function of (value, hook) that returns another value of the same shape, or None.
        Raises:
            ConfigError: an unknown name; ShapeError: an edit changed the shape or returned a NaN; a prompt too long.
        """
        values: dict[str, Tensor] = {}
        with self.hooked(values, keep, edits):
            logits = self.anatomy.logits(tokens)
        return Recording(logits, values)

    @contextmanager
    def hooked(self, values: dict[str, Tensor], keep: Iterable[str], edits: Edits) -> Iterator[None]:
        """While inside, every forward pass of the model is recorded into `values` and edited."""
        wanted: dict[str, list[Edit]] = {self.check(name): [] for name in keep}
        recorded = set(wanted)
        for name, edit in edits.items() if isinstance(edits, Mapping) else edits:
            wanted.setdefault(self.check(name), []).append(edit)
        with ExitStack() as stack:
            if any(name.endswith("hook_o") for name in wanted):
                stack.enter_context(_split(self.anatomy.model))
            for name, own in wanted.items():
                target = values if name in recorded else None
                stack.callback(self._attach(name, own, target).remove)
            yield

    def _attach(self, name: str, edits: list[Edit], values: dict[str, Tensor] | None) -> Any:
        place = self.places[name]
        hook = Hook(name, place.layer)

        def visit(value: Tensor) -> Tensor | None:
            new = value.unflatten(-1, (place.heads, -1)) if place.heads else value
            for edit in edits:
                new = _checked(edit(new, hook), new, name)
            if values is not None:
                values[name] = new.detach().clone()
            if not edits:
                return None
            return new.flatten(-2) if place.heads else new

        if place.side == "out":

            def after(module: nn.Module, args: Any, out: Any) -> Any:
                first = out[0] if isinstance(out, tuple) else out
                new = visit(first)
                return None if new is None else (new, *out[1:]) if isinstance(out, tuple) else new

            return place.module.register_forward_hook(after)

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                new = visit(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            key = next(iter(kwargs))
            new = visit(kwargs[key])
            return None if new is None else (args, {**kwargs, key: new})

        return place.module.register_forward_pre_hook(before, with_kwargs=True)


def run_with_cache(
    model: nn.Module, tokens: Tensor, names: Iterable[str] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """TransformerLens's call: logits, and the values of the names (all of them by default)."""
    taps = Taps(model)
    seen = taps.run(tokens, keep=taps.names if names is None else names)
    return seen.logits, seen.values


def run_with_hooks(model: nn.Module, tokens: Tensor, fwd_hooks: Sequence[tuple[str, Edit]]) -> Tensor:
    """TransformerLens's call: logits of a run whose values are replaced by `fwd_hooks`, (name, function) pairs."""
    return Taps(model).run(tokens, edits=fwd_hooks).logits


def _checked(new: Tensor | None, old: Tensor, name: str) -> Tensor:
    if new is None:
        return old
    if new.shape != old.shape:
        raise ShapeError(f"the edit of {name} returned {tuple(new.shape)}; expected {tuple(old.shape)}")
    if bool(new.isnan().any()) and not bool(old.isnan().any()):
        raise ShapeError(f"the edit of {name} returned NaN; expected finite numbers")
    return new.to(old.dtype)


@contextmanager
def _split(model: nn.Module) -> Iterator[None]:
    """Attention tracks compute the cut outside the operator, so that the values on both sides of it exist."""
    tracks = [m for m in model.modules() if isinstance(m, AttentionTrack)]
    before = [track.split for track in tracks]
    try:
        for track in tracks:
            track.split = True
        yield
    finally:
        for track, was in zip(tracks, before, strict=True):
            track.split = was


def _places(a: Anatomy) -> dict[str, _Place]:
    layout = a.layout
    places = {"hook_embed": _Place(a.part(layout.embed), "out", None)}
    for i, block in enumerate(a.blocks):

        def add(name: str, path: str, side: str, heads: int = 0, i: int = i) -> None:
            if path and a.has(path, i):
                places[f"blocks.{i}.{name}"] = _Place(a.part(path, i), side, i, heads)

        places[f"blocks.{i}.hook_resid_pre"] = _Place(block, "in", i)
        add("ln1.hook_normalized", layout.norms[0], "out")
        if a.ours:
            add("attn.hook_r", "mixer.attention.directions", "out")
            if f"blocks.{i}.attn.hook_r" in places:
                add("attn.hook_o", "mixer.attention.hook_o", "out")
            add("attn.hook_z", "mixer.attention.hook_z", "out")
        else:
            add("attn.hook_z", layout.projection, "in", a.heads)
        add("hook_attn_out", layout.attention, "out")
        add("hook_resid_mid", layout.norms[1], "in")
        add("ln2.hook_normalized", layout.norms[1], "out")
        add("mlp.hook_post", layout.down, "in")
        add("hook_mlp_out", layout.mlp, "out")
        places[f"blocks.{i}.hook_resid_post"] = _Place(block, "out", i)
    places["ln_final.hook_normalized"] = _Place(a.part(layout.norm), "out", None)
    return places
