"""ZO1: Zoology's MQAR, attention against convolution, state space, static hybrid and routed mixers. ZO2: their bill.

Source: Arora et al., "Zoology" (2023), Figure 2: two-layer attention is at 1.0 in every cell, whatever its width;
gated convolutions need more width the longer the sequence. The best of a sweep of learning rates counts, as there.
Attention is the better of two layers of it (the figure) and a short convolution before one (`static hybrid`; the
repository's later configurations put such a convolution before every mixer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_over_seeds

GOOD = 0.99
ATTENTION = ("attention", "static hybrid")


def _arms() -> list[Arm]:
    from turnout.recipes import mqar

    def arm(mixer: str, length: int, pairs: int, width: int, lr: float) -> Arm:
        return Arm(
            name=f"{mixer}, {cell(length, pairs, width)}, lr={lr:g}",
            config=lambda seed: mqar.mqar(seed, mixer, length, pairs, width, lr),
            control=mixer != "routed",
            # Minutes on a GPU each, hours on a CPU; the first cell is what a quick reproduction shows.
            when="always" if (length, width, lr) == (64, 64, 3e-3) else "full",
        )

    return [
        arm(mixer, length, pairs, width, lr)
        for length, pairs in mqar.CELLS
        for width in mqar.WIDTHS
        for mixer in mqar.LAYOUTS
        for lr in mqar.LRS
    ]


def cell(length: int, pairs: int, width: int) -> str:
    """A cell of the figure."""
    return f"T={length}, N={pairs}, d={width}"


def sweeps(seen: Summaries) -> dict[str, dict[str, dict[float, list[dict[str, Any]]]]]:
    """cell -> mixer -> learning rate -> records, from arm names "mixer, T=64, N=4, d=64, lr=0.003"."""
    found: dict[str, dict[str, dict[float, list[dict[str, Any]]]]] = {}
    for name, records in seen.items():
        mixer, _, rest = name.partition(", ")
        place, _, lr = rest.rpartition(", lr=")
        if place:
            found.setdefault(place, {}).setdefault(mixer, {})[float(lr)] = records
    return found


def best(runs: dict[float, list[dict[str, Any]]]) -> tuple[float, list[dict[str, Any]]]:
    """The learning rate of the most seeds, among those of as many the one of the highest mean accuracy."""
    return max(runs.items(), key=lambda item: (len(item[1]), sum(r["accuracy"] for r in item[1]) / len(item[1])))


def by_length(place: str) -> list[int]:
    """Order of cells: "T=64, N=4, d=64" by its numbers, length and width before pairs."""
    length, pairs, width = (int(part.partition("=")[2]) for part in place.split(", "))
    return [width, length, pairs]


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for place, mixers in sorted(sweeps(seen).items(), key=lambda item: by_length(item[0])):
        if "routed" not in mixers or not set(ATTENTION) & mixers.keys():
            continue
        chosen = {name: best(runs)[1] for name, runs in mixers.items()}
        accuracy = {
            name: mean_over_seeds([r["accuracy"] for r in rs], proportion_of=[r["n_eval"] for r in rs])
            for name, rs in chosen.items()
        }
        top = max((name for name in ATTENTION if name in accuracy), key=lambda name: accuracy[name].mean)
        usage = mean_over_seeds([r["usage"] for r in chosen["routed"]])
        share = accuracy["routed"].mean / max(1e-9, accuracy[top].mean)
        others = [accuracy[name].mean for name in ("convolution", "state space") if name in accuracy]
        ordered = all(value <= accuracy[top].mean + 0.005 for value in others)
        findings.append(
            Finding(
                statement=f"Zoology MQAR ({place}): routed mixers reach 99 % of attention's accuracy",
                quoted="attention 100 %, convolutions below it (Zoology, Figure 2)",
                measured=f"routed {100 * accuracy['routed'].mean:.1f} % at {100 * usage.mean:.1f} % usage, "
                f"{100 * share:.1f} % of {top}",
                n=min(len(chosen[name]) for name in ("routed", top)),
                interval="; ".join(f"{name} {100 * a.low:.1f}-{100 * a.high:.1f} %" for name, a in accuracy.items()),
                control="; ".join(
                    f"{name} {100 * a.mean:.1f} % (n = {a.n})" for name, a in accuracy.items() if name != "routed"
                ),
                verdict="holds" if share >= GOOD and accuracy[top].mean >= GOOD and ordered else "does not hold",
                detail="; ".join(f"{name}: {_rates(runs)}" for name, runs in mixers.items()),
            )
        )
    return findings


def _rates(runs: dict[float, list[dict[str, Any]]]) -> str:
    """Every learning rate with the accuracy of every seed."""
    return ", ".join(
        f"lr {lr:g} " + "/".join(f"{100 * r['accuracy']:.1f}" for r in records) for lr, records in sorted(runs.items())
    )


def _bench(device: str) -> dict[str, Any]:
    """Time the routed cells of width 64 at the usage of each layer that their runs reached.

    What a step costs depends on how many rows are taken, not on what the weights know: fresh weights, with the bias of
    every router moved so that as many gates open.
    """
    from turnout.bench.savings import measure_run
    from turnout.claims.store import summaries
    from turnout.config import from_dict
    from turnout.models.causal_lm import CausalLM
    from turnout.train.config import RunConfig
    from turnout.train.loop import pick_device
    from turnout.train.manifest import device_name

    where, rows = pick_device(device), []
    for place, mixers in sorted(sweeps(summaries("ZO1")).items(), key=lambda item: by_length(item[0])):
        if "routed" not in mixers or not place.endswith("d=64"):
            continue
        record = best(mixers["routed"])[1][0]
        config = from_dict(RunConfig, record["config"])
        task = config.task.build(config.seed)
        model = CausalLM(config.model, vocab=task.vocab, seed=config.seed).to(where)
        open_gates(model, next(iter(task.eval_batches(1, 64))).to(where), record["usage_layers"])
        bill = measure_run(model, config, task, record, seconds=1.0)
        rows += [{"cell": place, "accuracy": record["accuracy"], **row} for row in bill["rows"]]
    return {"rows": rows, "device": str(where), "device_name": device_name(where)}


def open_gates(model: Any, batch: Any, usage: Sequence[float]) -> None:
    """Move the bias of every linear router so that it opens this fraction of the gates on a batch."""
    import torch

    seen: list[Any] = []
    for block, share in zip(model.blocks, usage, strict=True):
        proj = block.mixer.router.proj
        hook = block.mixer.router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad():
            # The inputs of a layer depend on what the layers before it take.
            model(batch.tokens)
            logits = torch.nn.functional.linear(seen.pop(), proj.weight, proj.bias)
            proj.bias -= torch.quantile(logits.flatten().float(), min(1.0, 1.0 - share))
        hook.remove()


def _judge_bill(seen: Summaries) -> list[Finding]:
    findings = []
    for record in seen.get("bench", []):
        for place in dict.fromkeys(row["cell"] for row in record["rows"]):
            mine = [row for row in record["rows"] if row["cell"] == place]
            ms = {(row["what"], row["arm"]): row["ms"] for row in mine}
            usage = next(row["usage"] for row in mine if row["arm"] == "routed")
            kinds = [what for what in ("prefill", "decode", "train_step") if (what, "routed") in ms]
            faster = [ms[what, "routed"] < ms[what, "dense"] for what in kinds]
            findings.append(
                Finding(
                    statement=f"Zoology MQAR ({place}): routing saves time at the usage it reaches "
                    f"({record['device_name']})",
                    quoted="(ours)",
                    measured=f"{100 * usage:.1f} % usage, ms routed / dense: "
                    + ", ".join(
                        f"{what.replace('_', ' ')} {ms[what, 'routed']:.3g} / {ms[what, 'dense']:.3g}" for what in kinds
                    ),
                    n=min(row["n"] for row in mine),
                    interval="median of n calls; p20 and p80 in the committed rows",
                    control="ms static hybrid: "
                    + ", ".join(f"{what.replace('_', ' ')} {ms[what, 'static_hybrid']:.3g}" for what in kinds),
                    verdict="holds" if all(faster) else "holds with changes" if any(faster) else "does not hold",
                    detail="two layers of width 64, batch 8; fresh weights whose gates open as often as trained ones",
                )
            )
    return findings


claim(
    Claim(
        id="ZO1", source="Arora et al. 2023, Zoology", title="MQAR: routed mixers against attention and convolution",
        arms=_arms, judge=_judge, seeds=3,
    )
)  # fmt: skip
claim(
    Claim(
        id="ZO2", source="Arora et al. 2023, Zoology", title="MQAR: what routing saves there", judge=_judge_bill,
        bench=_bench, seeds=1,
    )
)  # fmt: skip
