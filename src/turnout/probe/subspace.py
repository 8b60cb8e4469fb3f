"""What the layers of a causal model hold: spectra of W_q W_kᵀ and of activations, cosine gap, linear probes.

Every number stands beside the same number of an untrained twin.

B batch, T tokens, Q queries, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnout.models.causal_lm import CausalLM
from turnout.ops.spectrum import energy_rank
from turnout.routers.content import rows_at
from turnout.tasks.batch import Batch, Task
from turnout.tasks.retrieval import RoutedBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProbe:
    """What one layer's input holds; layer = number of blocks before it, the last is the model's output.

    Attributes:
        layer: 0 = embeddings.
        k90_form: dimensions with 90 % of the energy of the layer's score form; None where nothing attends.
        k90_input: the same for the activations, centred.
        token: accuracy of a linear probe for the token itself; previous: for the token before it.
        cosine_gap: cos(query, evidence) - cos(query, random); None when the task does not say where evidence is.
    """

    layer: int
    k90_form: int | None
    k90_input: int
    token: float
    previous: float
    cosine_gap: float | None


@torch.no_grad()
def probe_layers(model: CausalLM, task: Task, *, sequences: int = 64) -> list[LayerProbe]:
    """Probe the input of every block, and the output of the last.

    Args:
        model: any causal model of this library.
        task: source of held-out sequences.
        sequences: how many are read; half train the linear probes, half score them.
    Cost: one forward pass and one ridge regression of E features per layer.
    """
    batch = next(iter(task.eval_batches(1, sequences)))
    states = activations(model, batch)
    return [_probe(i, x, batch, model) for i, x in enumerate(states)]


def activations(model: CausalLM, batch: Batch) -> list[Tensor]:
    """Inputs of all blocks and the output of the last, each [B, T, E]."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.append(inputs[0].detach())

    hooks = [block.register_forward_pre_hook(keep) for block in model.blocks]
    hooks.append(model.norm.register_forward_pre_hook(keep))
    try:
        model(batch.tokens, hint=batch.hint)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def score_form(model: CausalLM, layer: int) -> Tensor | None:
    """W_qᵀ W_k of a layer, averaged over heads; None for a layer without attention."""
    mixer = model.blocks[layer].mixer if layer < len(model.blocks) else None
    track = getattr(mixer, "attention", None)
    if track is None:
        return None
    q = track.q.weight.unflatten(0, (track.heads, track.head_dim))
    k = track.kv.weight.unflatten(0, (2, track.kv_heads, track.head_dim))[0]
    k = k.repeat_interleave(track.heads // track.kv_heads, dim=0)
    return torch.einsum("hde,hdf->ef", q, k) / track.heads


def linear_probe(x: Tensor, label: Tensor, *, classes: int, ridge: float = 1e-2) -> float:
    """Held-out accuracy of ridge regression to one-hot labels; the first half of the rows trains, the second scores.

    Args:
        x: features [N, E]; label: int64 [N].
    """
    half = len(x) // 2
    x = x.double()
    x = torch.cat((x - x[:half].mean(0), torch.ones(len(x), 1, dtype=x.dtype)), dim=1)
    wanted = torch.nn.functional.one_hot(label[:half], classes).double()
    gram = x[:half].T @ x[:half]
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
    weight = torch.linalg.solve(gram, x[:half].T @ wanted)
    return float(((x[half:] @ weight).argmax(-1) == label[half:]).double().mean())


def _probe(layer: int, x: Tensor, batch: Batch, model: CausalLM) -> LayerProbe:
    form = score_form(model, layer)
    flat, tokens = x[:, 1:].flatten(0, 1), batch.tokens
    gap = None
    if isinstance(batch, RoutedBatch):
        rows, found = rows_at(x, batch.at), rows_at(x, batch.evidence)
        place = torch.randint(x.shape[1], batch.at.shape, generator=torch.Generator().manual_seed(0))
        cosine = nn.functional.cosine_similarity
        gap = float((cosine(rows, found, dim=-1) - cosine(rows, rows_at(x, place), dim=-1)).mean())
    return LayerProbe(
        layer=layer,
        k90_form=None if form is None else energy_rank(form),
        k90_input=energy_rank(flat - flat.mean(0)),
        token=linear_probe(flat, tokens[:, 1:].flatten(), classes=model.vocab),
        previous=linear_probe(flat, tokens[:, :-1].flatten(), classes=model.vocab),
        cosine_gap=gap,
    )
