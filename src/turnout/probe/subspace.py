"""What the layers of a causal model hold: spectra of W_q W_kᵀ and of activations, cosine gap, linear probes.

Every number stands beside the same number of an untrained twin.

B batch, T tokens, Q queries, E width, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turnout.models.causal_lm import CausalLM
from turnout.ops.precision import routing_metrics
from turnout.ops.spectrum import energy_rank
from turnout.probe.anatomy import Anatomy
from turnout.probe.taps import Taps
from turnout.routers.content import rows_at
from turnout.tasks.batch import Batch, Task
from turnout.tasks.retrieval import RoutedBatch

PICKS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProbe:
    """What one layer's input holds; layer = number of blocks before it, the last is the model's output.

    Attributes:
        layer: 0 = embeddings.
        k90_form: dimensions with 90 % of the energy of the layer's score form; None where nothing attends.
        k90_input: the same for the activations, centred.
        token: accuracy of a linear probe for the token itself; previous: for the token before it.
        cosine_gap: cos(query, evidence) - cos(query, random); None when the task does not say where evidence is.
        finds: how often the evidence is among the four tokens that the layer's score form scores highest; random: the
            same with independent random W_q and W_k; twin: with one random matrix as both. None without attention or
            evidence.
    """

    layer: int
    k90_form: int | None
    k90_input: int
    token: float
    previous: float
    cosine_gap: float | None
    finds: float | None = None
    finds_random: float | None = None
    finds_twin: float | None = None


@torch.no_grad()
def probe_layers(model: nn.Module, task: Task, *, sequences: int = 64) -> list[LayerProbe]:
    """Probe the input of every block, and the output of the last.

    Args:
        model: a causal model of this library, or a Hugging Face model that `Anatomy` knows.
        task: source of held-out sequences.
        sequences: how many are read; half train the linear probes, half score them.
    Cost: one forward pass and one ridge regression of E features per layer.
    """
    batch = next(iter(task.eval_batches(1, sequences)))
    states = activations(model, batch)
    return [_probe(i, x, batch, model) for i, x in enumerate(states)]


def activations(model: nn.Module, batch: Batch) -> list[Tensor]:
    """Inputs of all blocks and the output of the last, each [B, T, E]."""
    taps = Taps(model)
    last = len(taps.anatomy.blocks) - 1
    names = [f"blocks.{i}.hook_resid_pre" for i in range(last + 1)] + [f"blocks.{last}.hook_resid_post"]
    if not isinstance(model, CausalLM):
        seen = taps.run(batch.tokens, keep=names)
        return [seen[name] for name in names]
    # The oracle router needs the hint, which other models do not take.
    values: dict[str, Tensor] = {}
    with taps.hooked(values, names, {}):
        model(batch.tokens, hint=batch.hint)
    return [values[name] for name in names]


def score_form(model: nn.Module, layer: int) -> Tensor | None:
    """W_qᵀ W_k of a layer, averaged over heads; None for a layer without attention."""
    anatomy = Anatomy(model)
    maps = anatomy.query_key(layer) if layer < len(anatomy.blocks) else None
    return None if maps is None else torch.einsum("hde,hdf->ef", *maps) / len(maps[0])


def linear_probe(x: Tensor, label: Tensor, *, ridge: float = 1e-2) -> float:
    """Held-out accuracy of ridge regression to one-hot labels; the first half of the rows trains, the second scores.

    Args:
        x: features [N, E]; label: int64 [N].
    """
    half = len(x) // 2
    # Ids that never occur have no column: vocabularies are larger than samples.
    _, label = label.unique(return_inverse=True)
    x = x.double()
    x = torch.cat((x - x[:half].mean(0), torch.ones(len(x), 1, dtype=x.dtype)), dim=1)
    wanted = nn.functional.one_hot(label)[:half].double()
    gram = x[:half].T @ x[:half]
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
    weight = torch.linalg.solve(gram, x[:half].T @ wanted)
    return float(((x[half:] @ weight).argmax(-1) == label[half:]).double().mean())


def _probe(layer: int, x: Tensor, batch: Batch, model: nn.Module) -> LayerProbe:
    form = score_form(model, layer)
    flat, tokens = x[:, 1:].flatten(0, 1), batch.tokens
    gap, found = None, {}
    if isinstance(batch, RoutedBatch):
        gap = _cosine_gap(x, batch)
        found = {} if form is None else _findings(x, form, batch, layer)
    return LayerProbe(
        layer=layer,
        k90_form=None if form is None else energy_rank(form),
        k90_input=energy_rank(flat - flat.mean(0)),
        token=linear_probe(flat, tokens[:, 1:].flatten()),
        previous=linear_probe(flat, tokens[:, :-1].flatten()),
        cosine_gap=gap,
        **found,
    )


def _cosine_gap(x: Tensor, batch: RoutedBatch) -> float:
    rows, found = rows_at(x, batch.at), rows_at(x, batch.evidence)
    place = torch.randint(x.shape[1], batch.at.shape, generator=torch.Generator().manual_seed(0))
    cosine = nn.functional.cosine_similarity
    return float((cosine(rows, found, dim=-1) - cosine(rows, rows_at(x, place), dim=-1)).mean())


def _findings(x: Tensor, form: Tensor, batch: RoutedBatch, layer: int) -> dict[str, float]:
    """The random-projection test on a layer: its own form, independent random maps, one random map twice."""
    source = torch.Generator().manual_seed(layer)
    a, b = (torch.randn(form.shape, generator=source) for _ in range(2))
    # A norm without learned gain: what decides here is the direction of a token's state.
    x = nn.functional.layer_norm(x, x.shape[-1:])
    own = torch.arange(x.shape[1]) == batch.at[..., None]
    found = {}
    for name, tried in (("finds", form), ("finds_random", a.T @ b), ("finds_twin", a.T @ a)):
        score = (rows_at(x, batch.at) @ tried @ x.transpose(1, 2)).masked_fill(own, -torch.inf)
        found[name] = float(routing_metrics(score, batch.evidence, k=PICKS)["pk"])
    return found
