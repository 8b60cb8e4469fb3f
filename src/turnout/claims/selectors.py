"""SEL1 to SEL4: keys chosen by content inside language models, at equal keys read, beside a window, a lot and all keys.

The text is the folder that the variable TURNOUT_TEXT names (default `data/mixture`). Not built, and why: a Bloom filter
a block answers what the n-gram index answers exactly at the same sort; k-means are buckets with learned axes, whose
update hangs on the whole batch; hubs updated with the prefix are buckets too, without their exactness. What looks over
the whole sequence (top keys of it, pooled segments that include the future) is refused when a model is built.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from turnout.claims.patterns import SELECTORS, bench_rows, text_path, words
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_interval, mean_over_seeds

GROUP, SOURCE = "selectors", "this library, after 2603.20997 and 2502.13189"
DENSE, WINDOW, LOT, MARKLESS = "dense", "window", "random blocks", "n-gram index, no mark"
# At 1,024 tokens: a row reads at most 57 keys, or 64 where its own block is full (56 on average).
LONG = {
    DENSE: "full",
    WINDOW: "window:size=57",
    "sinks + window": "sinks:size=53,sinks=4",
    LOT: "random_blocks:block=16,keep=2,near=1",
    "centroid blocks": "top_blocks:block=16,keep=2,near=1",
    "n-gram index": "last_match:size=41,ngram=4,matches=4,follow=4",
    "n-gram index, bigrams": "last_match:size=41,ngram=2,matches=4,follow=4",
    "n-gram index, one token each": "last_match:size=41,ngram=4,matches=16",
    MARKLESS: "last_match:size=41,ngram=4,matches=4,follow=4,mark=false",
    "rank-8 blocks, token shift": "low_rank:block=16,keep=2,near=1,rank=8",
    "rank-8 blocks": "low_rank:block=16,keep=2,near=1,rank=8,shift=false",
    "rank-8 blocks, token shift, shared": "low_rank:block=16,keep=2,near=1,rank=8,share=16",
    "buckets": "buckets:size=41,keep=8,tables=2,buckets=16",
    "buckets, token shift": "buckets:size=41,keep=8,tables=2,buckets=16,shift=1",
}
# At 128 tokens, for a CPU: at most 14 keys, or 16.
SHORT = {
    DENSE: "full",
    WINDOW: "window:size=14",
    LOT: "random_blocks:block=4,keep=2,near=1",
    "centroid blocks": "top_blocks:block=4,keep=2,near=1",
    "n-gram index": "last_match:size=10,ngram=3,matches=2,follow=2",
    "rank-8 blocks, token shift": "low_rank:block=4,keep=2,near=1,rank=8",
    "buckets": "buckets:size=10,keep=2,tables=2,buckets=8",
}
# MQAR of 256 tokens: at most 41 keys, or 48 (40 on average).
RECALL = {
    DENSE: "full",
    WINDOW: "window:size=41",
    LOT: "random_blocks:block=16,keep=2",
    "centroid blocks": "top_blocks:block=16,keep=2",
    "n-gram index": "last_match:size=25,ngram=1,matches=16",
    "rank-8 blocks, token shift": "low_rank:block=16,keep=2,rank=8",
    "rank-8 blocks": "low_rank:block=16,keep=2,rank=8,shift=false",
    "rank-8 blocks, token shift, shared": "low_rank:block=16,keep=2,rank=8,share=16",
    "buckets": "buckets:size=25,keep=8,tables=2,buckets=16",
}
SMALL, LRS = "small", (3e-3, 1e-3, 1e-2)
NEAR = {"": 57, SMALL: 14}
PLAIN = (DENSE, WINDOW, LOT, "sinks + window")


def text_arms() -> list[Arm]:
    """Every selector on text, at 1,024 tokens on a GPU and at 128 on a CPU."""

    def arm(name: str, spec: str, size: str) -> Arm:
        def config(seed: int) -> Any:
            from turnout.recipes.patterns import pattern_cpu, pattern_gpu

            if not size:
                return pattern_gpu(text_path(), pattern=spec, seed=seed)
            tiny = os.environ.get("TURNOUT_PATTERN_STEPS") == "tiny"
            small = pattern_cpu(text_path(), pattern=spec, seed=seed, steps=20 if tiny else 600)
            loop = replace(small.loop, eval_sequences=8, final_sequences=32) if tiny else small.loop
            return replace(small, loop=loop)

        return Arm(
            name=f"{name}, {size}" if size else name, config=config, control=name in PLAIN, after=look,
            # Minutes on a GPU each, hours on a CPU.
            when="always" if size else "full",
        )  # fmt: skip

    return [arm(*item, "") for item in LONG.items()] + [arm(*item, SMALL) for item in SHORT.items()]


def look(trainer: Any) -> dict[str, Any]:
    """Loss by distance of the evidence, and of a dense model what every selector would have read of its attention."""
    from turnout.claims.pattern_runs import look_at_choice

    small = trainer.config.task.length < 1024
    specs = [spec for spec in (SHORT if small else LONG).values() if spec != "full"]
    return look_at_choice(trainer, specs, near=NEAR[SMALL if small else ""])


def mqar_arms() -> list[Arm]:
    """A short convolution, then attention through each selector: keys of 8 pairs and their questions in 256 tokens."""

    def arm(name: str, spec: str, lr: float) -> Arm:
        def config(seed: int) -> Any:
            from turnout.recipes.mqar import mqar

            base = mqar(seed, "static hybrid", 256, 8, 64, lr)
            return replace(base, name="mqar_selected", model=replace(base.model, pattern=f"full/{spec}"))

        return Arm(name=f"{name}, lr={lr:g}", config=config, control=name in PLAIN, when="full")

    return [arm(name, spec, lr) for lr in LRS for name, spec in RECALL.items()]


def sizes(seen: Summaries) -> list[tuple[str, Summaries]]:
    """The runs of either size under the names of their selectors: ("", long ones), ("small", short ones)."""
    end = f", {SMALL}"
    short = {name.removesuffix(end): records for name, records in seen.items() if name.endswith(end)}
    return [("", {name: r for name, r in seen.items() if not name.endswith(end)}), (SMALL, short)]


def gaps(records: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Loss minus that of another arm at the same seed."""
    theirs = {r["seed"]: r["loss"] for r in others}
    return [r["loss"] - theirs[r["seed"]] for r in records if r["seed"] in theirs]


def _judge_loss(seen: Summaries) -> list[Finding]:
    """One row a selector: is its loss lower than that of a window of as many keys?"""
    findings = []
    for size, arms in sizes(seen):
        for name in (n for n in arms if n not in (DENSE, WINDOW)):
            apart = gaps(arms[name], arms.get(WINDOW, []))
            if not apart:
                continue
            mean, half = mean_interval(apart)
            beside = {n: gaps(arms[name], arms.get(n, [])) for n in (LOT, DENSE) if n != name}
            ms = ", ".join(f"{r['ms_per_step_dense'] or 0:.1f}" for r in arms[name])
            loss = {n: words([r["loss"] for r in arms[n]]) for n in (name, WINDOW)}
            findings.append(
                Finding(
                    statement=f"{name} ({(SHORT if size else LONG)[name]}): lower loss than a window of as many keys, "
                    f"{arms[name][0]['config']['task']['length']} bytes",
                    quoted="(ours)",
                    measured=f"{loss[name]}; window {loss[WINDOW]}",
                    n=len(apart),
                    interval=f"minus window {words(apart, sign=True)}",
                    control="; ".join(f"minus {n} {words(g, sign=True)}" for n, g in beside.items() if g),
                    verdict="holds" if mean + half < 0 else "does not hold",
                    detail=f"{_by_evidence(arms, name)}; {_certified(arms[name])}; ms a step, machine shared: {ms}",
                )
            )
    return findings


def _by_evidence(arms: Summaries, name: str) -> str:
    """Loss beside the window by how far back the last four bytes stood before."""
    from turnout.claims.patterns import excess

    more = excess(arms, name, "evidence", WINDOW)
    told = (f"{p if p != '0' else 'nowhere'} {words(more[p], '', sign=True)}" for p in sorted(more, key=int))
    return "minus window, by distance of the last place with the same four bytes: " + ", ".join(told)


def _certified(records: list[dict[str, Any]]) -> str:
    """What the causality certificates of the trained models say."""
    leaks = [r["certificate"] for r in records if not r.get("causal", True)]
    return leaks[0] if leaks else f"{sum(r.get('causal', False) for r in records)} trained models certified causal"


def _judge_recall(seen: Summaries) -> list[Finding]:
    """One row a selector: does it hold more of a dense model's far attention than as many blocks drawn by lot?"""
    findings = []
    for size, arms in sizes(seen):
        records = [r for r in arms.get(DENSE, []) if r.get("recall")]
        specs = SHORT if size else LONG
        for name in (n for n in specs if n not in (DENSE, WINDOW, LOT, MARKLESS) and records):
            spec = specs[name]
            found = {key: [_mean(r["recall"][spec][key]) for r in records] for key in records[0]["recall"][spec]}
            by_lot = [_mean(r["recall"][specs[LOT]]["far"]) for r in records]
            near = [_mean(r["recall"][specs[WINDOW]]["mass"]) for r in records]
            apart = [a - b for a, b in zip(found["far"], by_lot, strict=True)]
            mean, half = mean_interval(apart)
            layers = zip(*(r["recall"][spec]["far"] for r in records), strict=True)
            length = records[0]["config"]["task"]["length"]
            findings.append(
                Finding(
                    statement=f"{name}: its keys hold more of a dense model's attention beyond {NEAR[size]} "
                    f"bytes than blocks drawn by lot, {length} bytes",
                    quoted="(ours)",
                    measured=f"{_share(found['far'])} of the far attention, {_share(found['mass'])} of all",
                    n=len(apart),
                    interval=f"minus random blocks {100 * mean:+.2f} ± {100 * half:.2f} points",
                    control=f"as many of the heaviest keys {_share(found['best_far'])} and {_share(found['best'])}; "
                    f"random blocks {_share(by_lot)} of the far attention; a window {_share(near)} of all",
                    verdict="holds" if mean - half > 0 else "does not hold",
                    detail=f"{_mean(found['keys']):.1f} keys a row; far attention by layer, %: "
                    + ", ".join(f"{100 * _mean(list(layer)):.1f}" for layer in layers),
                )
            )
    return findings


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _share(values: list[float]) -> str:
    mean, half = mean_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f} %"


def _judge_mqar(seen: Summaries) -> list[Finding]:
    """One row a selector: 99 % of dense attention's accuracy, each at its best learning rate."""
    from turnout.claims.mqar import best

    sweeps: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for arm, records in seen.items():
        name, _, lr = arm.rpartition(", lr=")
        sweeps.setdefault(name, {})[float(lr)] = records
    chosen = {name: best(runs) for name, runs in sweeps.items()}
    accuracy = {
        name: mean_over_seeds([r["accuracy"] for r in rs], proportion_of=[r["n_eval"] for r in rs])
        for name, (_, rs) in chosen.items()
    }
    told = {name: f"{100 * a.mean:.1f} % ({100 * a.low:.1f}-{100 * a.high:.1f})" for name, a in accuracy.items()}
    findings = []
    for name in (n for n in accuracy if n != DENSE and DENSE in accuracy):
        share = accuracy[name].mean / max(1e-9, accuracy[DENSE].mean)
        findings.append(
            Finding(
                statement=f"MQAR, T=256, N=8: {name} ({RECALL[name]}) reaches 99 % of dense attention's accuracy",
                quoted="(ours)",
                measured=f"{told[name]}, {100 * share:.1f} % of dense",
                n=min(accuracy[n].n for n in (name, DENSE)),
                interval="95 % over seeds, in brackets",
                control="; ".join(f"{n} {told[n]}" for n in (DENSE, WINDOW, LOT) if n in told and n != name),
                verdict="holds" if share >= 0.99 and accuracy[DENSE].mean >= 0.9 else "does not hold",
                detail="; ".join(
                    f"lr {lr:g} " + "/".join(f"{100 * r['accuracy']:.1f}" for r in records)
                    for lr, records in sorted(sweeps[name].items())
                ),
            )
        )
    return findings


def _judge_cost(seen: Summaries) -> list[Finding]:
    """One row a selector: from which length on it is faster than dense attention, its choice included."""
    measured = [row for record in seen.get("bench", []) for row in record["rows"] if row["ratio"]]
    findings = []
    arms = dict.fromkeys(row["arm"] for row in measured if row["arm"].split(":")[1] in SELECTORS)
    for arm in sorted(arms, key=lambda arm: (SELECTORS.index(arm.split(":")[1]), arm)):
        rows, name = [row for row in measured if row["arm"] == arm], arm.removeprefix("pattern:")
        told = [
            f"N={row['case']['n']:,} {row['case']['step']} {row['ms']:.3g} ms, {min(row['ratio'].values()):.2f}x"
            for row in rows
        ]
        case = rows[0]["case"]
        longest = [row for row in rows if row["case"]["n"] == max(r["case"]["n"] for r in rows)]
        faster = [min(row["ratio"].values()) > 1 for row in longest]
        findings.append(
            Finding(
                statement=f"{name} is faster than dense attention at {longest[0]['case']['n']:,} tokens, its choice "
                "included",
                quoted="(ours)",
                measured="; ".join(told),
                n=len(rows),
                interval="medians of interleaved calls; the faster dense kernel decides",
                control="flash and cuDNN in the same run; random_blocks chooses nothing",
                verdict="holds" if all(faster) else "holds with changes" if any(faster) else "does not hold",
                detail=f"{case['heads']} heads of {case['dim']}, {case['dtype']}; behind the comma times dense's speed",
            )
        )
    return findings


def _dense_arms() -> list[Arm]:
    return [replace(arm, owner="SEL2") for arm in text_arms() if arm.name.startswith(DENSE)]


claim(Claim(id="SEL1", source=SOURCE, title="which keys hold a dense model's attention", seeds=3, group=GROUP,
            arms=_dense_arms, judge=_judge_recall))  # fmt: skip
claim(Claim(id="SEL2", source=SOURCE, title="loss with each selector of keys, at equal keys read", seeds=3, group=GROUP,
            arms=text_arms, judge=_judge_loss))  # fmt: skip
claim(Claim(id="SEL3", source=SOURCE, title="MQAR with each selector of keys, at equal keys read", seeds=3, group=GROUP,
            arms=mqar_arms, judge=_judge_mqar))  # fmt: skip
claim(Claim(id="SEL4", source=SOURCE, title="what choosing keys costs, 4K to 64K", group=GROUP, bench=bench_rows,
            judge=_judge_cost))  # fmt: skip
