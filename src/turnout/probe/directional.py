"""Everything the study of directional routing asks of a trained model, each number with its missing control beside it.

B batch, T tokens, L layers, H heads, K directions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from turnout.errors import ConfigError
from turnout.models.causal_lm import CausalLM
from turnout.probe.behaviour import facts, induction, induction_heads, repeated_tokens
from turnout.probe.choice import multiple_choice
from turnout.probe.domains import classify, regimes, text_features
from turnout.probe.edits import Unit, edits_of, loss_under, mean_values, names_of
from turnout.probe.geometry import (
    class_probability,
    class_share,
    cosines,
    directions_of,
    random_cosines,
    steer,
    token_classes,
    vocabulary_projection,
)
from turnout.probe.honest import honest_perplexity
from turnout.probe.lens import attribute, logit_lens
from turnout.probe.taps import Edit, Edits, Taps
from turnout.tasks import Task, TextConfig

R = Unit("r")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySize:
    """How much each part reads.

    Args:
        honest, positions: sequences and positions of the two perplexities.
        sequences, batch: of everything that is scored teacher-forced.
        texts: windows for domains and for variances.
        copies: sequences of the induction test; each copy is as long as half the context allows, at most 50 tokens.
        draws: of random controls.
        questions: of the multiple choice.
    """

    honest: int = 64
    positions: int = 32
    sequences: int = 64
    batch: int = 32
    texts: int = 192
    copies: int = 100
    draws: int = 5
    questions: int = 256


Part = Callable[[], Any]


@torch.no_grad()
def study(
    model: CausalLM, task: Task, size: StudySize | None = None, *, seed: int = 0, parts: Collection[str] = ()
) -> dict[str, Any]:
    """Probe one trained model; a JSON-able record.

    Args:
        model: with or without directions; in evaluation mode for the call.
        task: text, with `encode` and domains where it has them.
        seed: the model's, for its untrained twin.
        parts: names of `study_parts`; empty = all that the model has.
    Raises:
        ConfigError: no such part.
    Cost: a few hundred forward passes, most of them for prefix-honest perplexity and single heads.
    """
    was_training = model.training
    model.eval()
    try:
        every = study_parts(model, task, size or StudySize(), seed)
        unknown = set(parts) - every.keys() - ROUTED_PARTS
        if unknown:
            raise ConfigError(f"study: no part {sorted(unknown)}; expected some of {', '.join(every)}")
        return {name: part() for name, part in every.items() if not parts or name in parts}
    finally:
        model.train(was_training)


# What only a model with directions has.
ROUTED_PARTS = frozenset(("routing", "layers", "regimes", "geometry", "steering"))


def study_parts(model: CausalLM, task: Task, size: StudySize, seed: int) -> dict[str, Part]:
    """What can be asked of a model, by name, each to be called: they share no work but the held-out windows."""
    taps = Taps(model)
    batches = held_out(task, size.sequences, size.batch)

    def untrained() -> Taps:
        return Taps(CausalLM(model.config, vocab=model.vocab, seed=seed).to(taps.anatomy.device).eval())

    def both_regimes() -> dict[str, Any]:
        return {
            "trained": layer_regimes(taps, task, size), "untrained": layer_regimes(untrained(), task, size),
        }  # fmt: skip

    found: dict[str, Part] = {
        "honest": lambda: honest_perplexity(
            model, task, sequences=size.honest, positions=size.positions, batch=size.batch
        ),
        "lengths": lambda: shorter_windows(model, task, size),
        "choice": lambda: multiple_choice(model, task, questions=size.questions),
        "lens": lambda: logit_lens(taps, *batches[0]),
        "heads": lambda: head_knockouts(taps, batches, size.draws),
        "copying": lambda: copying(taps, task, size),
        "attribution": lambda: attribution(taps, batches, size.draws),
        "facts": lambda: recall(taps, task, batches, size.draws),
        "domains": lambda: domains(taps, task, size),
    }
    if taps.find("hook_r"):
        found |= {
            "routing": lambda: routing_ablations(taps, batches, size.draws),
            "layers": lambda: layer_ablations(taps, batches, size.draws),
            "regimes": both_regimes,
            "geometry": lambda: geometry(taps, untrained()),
            "steering": lambda: steering(taps, task, batches, size.draws),
        }
    return found


def shorter_windows(model: CausalLM, task: Task, size: StudySize) -> list[dict[str, Any]]:
    """Both perplexities of windows a quarter, a sixteenth and a 64th as long as in training, those of 8 tokens or more:
    what a mean of the whole window tells about a token grows as the window shrinks."""
    config = task.config
    rows = []
    for length in (task.length // 64, task.length // 16, task.length // 4):
        if length >= 8 and isinstance(config, TextConfig):
            own = config.with_length(length).build(0)
            found = honest_perplexity(model, own, sequences=size.honest, positions=size.positions, batch=size.batch)
            rows.append({"length": length, **{k: found[k] for k in ("n", *_BOTH, "gap", "gap_stderr", "last")}})
    return rows


_BOTH = ("teacher_forced", "honest")


Pairs = list[tuple[Tensor, Tensor]]


def held_out(task: Task, sequences: int, batch: int) -> Pairs:
    """Validation windows, (tokens, targets)."""
    size = min(batch, sequences)
    return [(b.tokens, b.targets) for b in task.eval_batches(-(-sequences // size), size, 2)]


def _means(taps: Taps, batches: Pairs, unit: Unit) -> dict[str, Tensor]:
    return mean_values(taps, [tokens for tokens, _ in batches], names_of(taps, unit))


def _routing_edits(taps: Taps, batches: Pairs, unit: Unit = R) -> dict[str, dict[str, Edit]]:
    """The ablations of r that need no draw, by name."""
    means = _means(taps, batches, unit)
    return {
        "zero": edits_of(taps, unit, "zero"), "half": edits_of(taps, unit, "constant", value=0.5),
        "mean": edits_of(taps, unit, "mean", means=means), "swap": edits_of(taps, unit, "swap"),
    }  # fmt: skip


def routing_ablations(taps: Taps, batches: Pairs, draws: int) -> dict[str, Any]:
    """Teacher-forced loss with r as it is, zero, one half, its data-set mean, another sequence's, and with as much of
    random directions removed on top (a list, one a draw); "stderr": of what an ablation adds, over windows."""
    plain, intact = loss_under(taps, batches)
    found: dict[str, Any] = {"plain": plain, "stderr": {}}
    for name, edits in _routing_edits(taps, batches).items():
        found[name], each = loss_under(taps, batches, edits)
        added = torch.tensor(each, dtype=torch.float64) - torch.tensor(intact, dtype=torch.float64)
        found["stderr"][name] = float(added.std()) / len(each) ** 0.5
    return found | {"random": [loss_under(taps, batches, edits_of(taps, R, "random", seed=i))[0] for i in range(draws)]}


def layer_ablations(taps: Taps, batches: Pairs, draws: int) -> list[dict[str, Any]]:
    """Loss with r of one layer alone at zero, at its mean, and with as much of random directions removed on top of it
    (a list, at most two draws)."""
    rows = []
    for name in taps.find("hook_r"):
        unit = Unit("r", int(name.split(".")[1]))
        edits = _routing_edits(taps, batches, unit)
        rows.append({
            "layer": unit.layer or 0, **{a: loss_under(taps, batches, edits[a])[0] for a in ("zero", "mean")},
            "random": [
                loss_under(taps, batches, edits_of(taps, unit, "random", seed=i))[0] for i in range(min(2, draws))
            ],
        })  # fmt: skip
    return rows


def head_knockouts(taps: Taps, batches: Pairs, draws: int) -> dict[str, Any]:
    """Loss with one head at zero and at its mean, for every head; and with as many random dimensions of all heads of a
    layer removed (a list a layer). One batch."""
    some = batches[:1]
    a = taps.anatomy
    rows = []
    randoms = []
    for layer in range(len(a.blocks)):
        if f"blocks.{layer}.attn.hook_z" not in taps.places:
            continue
        means = _means(taps, some, Unit("head", layer, 0))
        for head in range(a.heads):
            unit = Unit("head", layer, head)
            losses = {
                action: loss_under(taps, some, edits_of(taps, unit, action, means=means))[0]
                for action in ("zero", "mean")
            }
            rows.append({"layer": layer, "head": head, **losses})
        edits = [edits_of(taps, Unit("head", layer, 0), "random", seed=i) for i in range(draws)]
        randoms.append({"layer": layer, "random": [loss_under(taps, some, e)[0] for e in edits]})
    return {"plain": loss_under(taps, some)[0], "each": rows, "random": randoms}


def copying(taps: Taps, task: Task, size: StudySize) -> dict[str, Any]:
    """Accuracy on the second copy of random text: as it is, with heads knocked out, with routing ablated."""
    length = min(50, (task.length - 1) // 2)
    letters = [i for i in range(task.vocab) if task.decode_token(i).strip().isalpha()]
    symbols = letters[:512] if len(letters) > 1 else list(range(min(task.vocab, 64)))
    tokens = repeated_tokens(symbols, length=length, sequences=size.copies)
    best = induction_heads(taps, tokens, 10)

    def without(edits: Edits) -> float:
        return induction(taps, tokens, edits=edits)

    def several(heads: list[tuple[int, int]], action: str) -> float:
        pairs: list[tuple[str, Edit]] = []
        for layer, head in heads:
            unit = Unit("head", layer, head)
            means = mean_values(taps, [tokens[:, :-1]], names_of(taps, unit)) if action == "mean" else None
            pairs += edits_of(taps, unit, action, means=means).items()
        return without(pairs)

    found: dict[str, Any] = {"plain": without(()), "length": length, "heads": best, "chance": 1 / len(symbols)}
    for count in (1, 3):
        found |= {f"top {count}, {action}": several(best[:count], action) for action in ("zero", "mean")}
    layer = best[0][0]
    found["top 1, random"] = [
        without(edits_of(taps, Unit("head", layer, 0), "random", seed=i)) for i in range(size.draws)
    ]
    if taps.find("hook_r"):
        pairs = [(tokens[:, :-1], tokens[:, 1:])]
        found |= {f"r, {name}": without(edits) for name, edits in _routing_edits(taps, pairs).items()}
        found["r, random"] = [without(edits_of(taps, R, "random", seed=i)) for i in range(size.draws)]
    return found


def attribution(taps: Taps, batches: Pairs, draws: int) -> dict[str, Any]:
    """Parts of the logit of the true next token at the last position, beside the sizes that a sum of signed parts
    hides, and the same logit with as much of random directions removed."""
    tokens, targets = batches[0]
    found = attribute(taps, tokens, targets[:, -1].cpu())
    result: dict[str, Any] = {
        "parts": found.summary(), "heads_abs": float(found.heads.abs().sum()),
        "deltas_abs": float(found.deltas.abs().sum()),
    }  # fmt: skip
    if not taps.find("hook_r"):
        return result
    for name, edits in {
        "r = 0": edits_of(taps, R, "zero"), "r = mean": _routing_edits(taps, batches)["mean"],
    }.items():  # fmt: skip
        with taps.hooked({}, [], edits):
            result[name] = attribute(taps, tokens, targets[:, -1].cpu()).summary()
    totals = []
    for i in range(draws):
        with taps.hooked({}, [], edits_of(taps, R, "random", seed=i)):
            totals.append(attribute(taps, tokens, targets[:, -1].cpu()).total)
    return result | {"random totals": totals}


def recall(taps: Taps, task: Task, batches: Pairs, draws: int) -> dict[str, Any]:
    """Mean probability of the answers of the fact set, as it is, with routing ablated and with as much of random
    directions removed (a list); {} without `encode`."""
    encode = getattr(task, "encode", None)
    if encode is None:
        return {}
    rows = facts(taps, encode)
    found: dict[str, Any] = {"each": rows, "plain": _mean_p(rows)}
    if taps.find("hook_r"):
        edits = {name: e for name, e in _routing_edits(taps, batches).items() if name != "swap"}
        found |= {name: _mean_p(facts(taps, encode, edits=e)) for name, e in edits.items()}
        drawn = [edits_of(taps, R, "random", seed=i) for i in range(draws)]
        found["random"] = [_mean_p(facts(taps, encode, edits=e)) for e in drawn]
    return found


def _mean_p(rows: list[dict[str, Any]]) -> float:
    return sum(row["p"] for row in rows) / len(rows)


def _texts(task: Task, size: StudySize) -> list[tuple[Tensor, Tensor]]:
    """Windows of one domain each, (tokens, domain); without domains all are of domain 0."""
    found = []
    for batch in task.eval_batches(-(-size.texts // size.batch), size.batch, 3):
        domain = batch.slices.get("domain", torch.zeros_like(batch.tokens))
        pure = (domain == domain[:, :1]).all(1)
        if bool(pure.any()):
            found.append((batch.tokens[pure], domain[pure, 0]))
    return found


def domains(taps: Taps, task: Task, size: StudySize) -> dict[str, Any]:
    """Leave-one-out accuracy of nearest centroids by feature; {} for a text of one domain."""
    texts = _texts(task, size)
    labels = torch.cat([domain for _, domain in texts])
    counts = labels.bincount()
    if int((counts > 1).sum()) < 2 or bool((counts == 1).any()):
        return {}
    features = text_features(taps, texts, task.vocab)
    return {"texts": counts.tolist(), "accuracy": classify(features)}


def layer_regimes(taps: Taps, task: Task, size: StudySize) -> list[dict[str, Any]]:
    """`regimes` of held-out windows."""
    features = text_features(taps, _texts(task, size), task.vocab)
    return regimes(features["r"], features["domain"])


def geometry(taps: Taps, untrained: Taps) -> dict[str, Any]:
    """Cosines of the directions, of the untrained twin's, and the range of random ones of the same shape."""
    directions = directions_of(taps)
    return {
        "trained": cosines(directions), "untrained": cosines(directions_of(untrained)),
        "random": random_cosines(tuple(directions.shape)), "shape": list(directions.shape),
    }  # fmt: skip


def steering(taps: Taps, task: Task, batches: Pairs, draws: int, *, picked: int = 4) -> dict[str, Any]:
    """Hold r at 1 for the directions whose top tokens are most of one class, and for random ones of the same layers.

    The class is "article" where tokens are words and "space" where they are bytes. Also the mean share of the class
    among the top tokens of learned and of random unit directions, by layer.
    """
    classes = token_classes(task.decode_token, task.vocab)
    name = "article" if int(classes["article"].sum()) > 1 else "space"
    members = classes[name].to(taps.anatomy.device)
    directions = directions_of(taps)
    layers = [int(tap.split(".")[1]) for tap in taps.find("hook_r")]
    generator = torch.Generator().manual_seed(0)
    shares, null = [], []
    for layer, own in zip(layers, directions, strict=True):
        shares.append(class_share(vocabulary_projection(taps, layer, own), members).cpu())
        drawn = nn.functional.normalize(torch.randn(own.shape, generator=generator), dim=-1).to(own)
        null.append(float(class_share(vocabulary_projection(taps, layer, drawn), members).mean()))
    share = torch.stack(shares)
    order = share.flatten().argsort(descending=True)[:picked].tolist()
    heads, k = share.shape[1:]
    picks = [(layers[i // (heads * k)], i // k % heads, i % k) for i in order]
    tokens = [t for t, _ in batches]
    controls = []
    for _ in range(draws):
        drawn_picks = [
            (layer, int(torch.randint(heads, (), generator=generator)), int(torch.randint(k, (), generator=generator)))
            for layer, _, _ in picks
        ]
        controls.append(steer(taps, tokens, members, drawn_picks))
    return {
        "class": name, "picks": picks, "plain": class_probability(taps, tokens, members),
        "steered": steer(taps, tokens, members, picks), "random": controls,
        "share": [float(x.mean()) for x in shares], "random_share": null,
    }  # fmt: skip
