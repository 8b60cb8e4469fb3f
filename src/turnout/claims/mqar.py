"""ZO1: Zoology's MQAR, attention against convolution, state space, static hybrid and routed mixers. ZO2: its bills.

Source: Arora et al., "Zoology" (2023), Figure 2: two-layer attention is at 1.0 in every cell, whatever its width;
gated convolutions need more width the longer the sequence. The best of a sweep of learning rates counts, as there.
Attention is the better of two layers of it (the figure) and a short convolution before one (`static hybrid`; the
repository's later configurations put such a convolution before every mixer).
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_over_seeds

GOOD, LEARNED = 0.99, 0.9
ATTENTION = ("attention", "static hybrid")
# Of every mixer in the cells of the figure: after 3,000 attention is still at 95 to 97 % of the smallest one.
STEPS = 8000
# What a quick reproduction shows of the figure, since it ends early on a CPU: both learn their cell and stop.
QUICK = ("static hybrid", "routed")


def _arms() -> list[Arm]:
    from turnout.recipes import mqar

    def arm(mixer: str, length: int, pairs: int, width: int, lr: float) -> Arm:
        billed = mixer == "routed" and width == min(mqar.WIDTHS)
        steps = STEPS if (length, pairs) in mqar.CELLS else 0
        return Arm(
            name=f"{mixer}, {cell(length, pairs, width)}, lr={lr:g}",
            config=lambda seed: mqar.mqar(seed, mixer, length, pairs, width, lr, steps),
            control=mixer != "routed",
            # Minutes on a GPU each, hours on a CPU.
            when="always" if (length, width, lr) == (64, 64, 3e-3) and mixer in QUICK else "full",
            after=cpu_bill if billed else None,
        )

    grid = [(c, width, mixer) for c in mqar.CELLS for width in mqar.WIDTHS for mixer in mqar.LAYOUTS]
    grid += [(c, min(mqar.WIDTHS), mixer) for c in mqar.LONG for mixer in ("routed", *ATTENTION)]
    return [arm(mixer, length, pairs, width, lr) for (length, pairs), width, mixer in grid for lr in mqar.LRS]


def cpu_bill(trainer: Any, *, seconds: float = 1.0) -> dict[str, Any]:
    """The trained model on one CPU core, where a length pays before it does on a GPU; moves the model there."""
    import torch

    from turnout.bench.savings import measure_run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, summary = trainer.model.cpu(), trainer.summary()
    bill = measure_run(model, trainer.config, trainer.task, summary, batch=1, seconds=seconds)
    torch.set_num_threads(threads)
    return {"savings_cpu": bill}


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
                verdict=_verdict(share, accuracy[top].mean, ordered),
                detail="; ".join(f"{name}: {_rates(runs)}" for name, runs in mixers.items()),
            )
        )
    return findings


def _verdict(share: float, top: float, ordered: bool) -> str:
    """Attention must have learned the cell: a share of nearly nothing says nothing, one of 90 % is a change."""
    if share < GOOD or not ordered or top < LEARNED:
        return "does not hold"
    return "holds" if top >= GOOD else "holds with changes"


def _rates(runs: dict[float, list[dict[str, Any]]]) -> str:
    """Every learning rate with the accuracy of every seed."""
    return ", ".join(
        f"lr {lr:g} " + "/".join(f"{100 * r['accuracy']:.1f}" for r in records) for lr, records in sorted(runs.items())
    )


def _judge_bill(seen: Summaries) -> list[Finding]:
    """Bills of the routed runs, the longest first: the trained model with its own decisions beside a dense one."""
    findings = []
    for place, mixers in sorted(sweeps(seen).items(), key=lambda item: by_length(item[0]), reverse=True):
        records = best(mixers.get("routed", {0.0: []}))[1]
        bills = [(r["savings_cpu"], r) for r in records if "savings_cpu" in r]
        for device in dict.fromkeys(bill["device"] for bill, _ in bills):
            findings.append(_bill(place, device, [(b, r) for b, r in bills if b["device"] == device]))
    return findings


def _bill(place: str, device: str, bills: list[tuple[dict[str, Any], dict[str, Any]]]) -> Finding:
    def ms(what: str, arm: str) -> float:
        """Median over the runs."""
        return median(
            row["ms"] for bill, _ in bills for row in bill["rows"] if (row["what"], row["arm"]) == (what, arm)
        )

    kinds = ("prefill", "decode", "train_step")
    usage = mean_over_seeds([r["usage"] for _, r in bills])
    faster = [ms(what, "routed") < ms(what, "dense") for what in kinds]
    rows = [row for bill, _ in bills for row in bill["rows"]]
    return Finding(
        statement=f"Zoology MQAR ({place}): routing saves time at the usage it reaches ({device})",
        quoted="(ours)",
        measured=f"{100 * usage.mean:.1f} % usage, ms routed / dense: "
        + ", ".join(f"{w.replace('_', ' ')} {ms(w, 'routed'):.3g} / {ms(w, 'dense'):.3g}" for w in kinds),
        n=len(bills),
        interval=f"median over runs of medians of {min(row['n'] for row in rows)} or more calls, interleaved",
        control="ms static hybrid: "
        + ", ".join(f"{what.replace('_', ' ')} {ms(what, 'static_hybrid'):.3g}" for what in kinds),
        verdict="holds" if all(faster) else "holds with changes" if any(faster) else "does not hold",
        detail=f"two layers, batch {rows[0]['batch']}, one core; trained weights and their decisions, accuracy "
        + "/".join(f"{100 * r['accuracy']:.1f}" for _, r in bills),
    )


def _routed_arms() -> list[Arm]:
    return [replace(arm, owner="ZO1") for arm in _arms() if arm.after is not None]


claim(
    Claim(
        id="ZO1", source="Arora et al. 2023, Zoology", title="MQAR: routed mixers against attention and convolution",
        arms=_arms, judge=_judge, seeds=3,
    )
)  # fmt: skip
claim(
    Claim(
        id="ZO2", source="Arora et al. 2023, Zoology", title="MQAR: what routing saves there", judge=_judge_bill,
        arms=_routed_arms, seeds=3, least_seeds=1,
    )
)  # fmt: skip
