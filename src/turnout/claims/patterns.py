"""TH1 to TH10: how far to look, hard-coded, learned and searched.

The text is the folder that the variable TURNOUT_TEXT names (default `data/mixture`), one folder a domain.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from turnout.claims.discovered import DISCOVERED, UNIFORM, discovered
from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

GROUP = "heuristics"
SOURCE = "jamesthesnake.github.io, 2023-07-06, and FoX (2503.02130)"
# Name of an arm -> its pattern. Windows and decay times are those of a model of 1,024 tokens.
FIXED = {
    "window 64": "window:size=64",
    "sinks + window 64": "sinks:size=60,sinks=4",
    "dilated": "dilated:branches=(64/1+256/4+1024/16)",
    "strided": "strided:block=16,near=3,stride=4",
    "ALiBi": "alibi",
    "RetNet decay": "retnet",
    "power law": "power_law",
    "fixed decay": "forget:gate=fixed,shortest=4,longest=64",
    "half of the heads window 64": "head_mixture:parts=(4 full;4 window:size=64)",
}
LEARNED = {
    "learned constant decay": "forget:gate=bias,shortest=4,longest=64",
    "forgetting": "forget:gate=full,shortest=4,longest=64",
    "KERPLE": "kerple",
    "FIRE": "fire",
    "adaptive span": "span:longest=960,ramp=64,cost=0.00002",
    "gated windows": "gated_window:size=60,sinks=4,closed=0.5,steps=600",
}
DENSE = {"dense": "full", "no decay, no positions": "forget:gate=none"}
# Patterns that choose keys by content, and the lot beside them.
SELECTORS = ("random_blocks", "top_blocks", "low_rank", "last_match", "buckets")
FIRST = (
    "dense", "fixed decay", "forgetting", "learned constant decay", "window 64", "ALiBi", "dilated",
    "no decay, no positions", "sinks + window 64", "gated windows",
)  # fmt: skip
DECAYING = ("ALiBi", "RetNet decay", "power law", "fixed decay", "window 64", "sinks + window 64")


def text_path() -> str:
    """The folder of text."""
    return os.environ.get("TURNOUT_TEXT", "data/mixture")


def look(trainer: Any) -> dict[str, Any]:
    """Loss by domain and position, a longer evaluation, and of a dense model the distances at which it attends."""
    from turnout.claims.pattern_runs import look as look_at

    return look_at(trainer)


def text_arm(name: str, pattern: str, **options: Any) -> Arm:
    """One pattern on text; options are those of the recipe `pattern_gpu`."""

    def config(seed: int) -> Any:
        from turnout.recipes.patterns import pattern_cpu, pattern_gpu

        size = os.environ.get("TURNOUT_PATTERN_STEPS")
        if size == "tiny":
            # Of a model of four layers and of 1,024 tokens are a span and what was discovered.
            short = pattern.replace("longest=960,ramp=64", "longest=96,ramp=8")
            short = "sinks:size=16,sinks=4" if name in (DISCOVERED, UNIFORM) else short
            small = pattern_cpu(text_path(), pattern=short, seed=seed, steps=20)
            return replace(small, loop=replace(small.loop, eval_sequences=8, final_sequences=32))
        return pattern_gpu(text_path(), pattern=pattern, seed=seed, **options)

    return Arm(name=name, config=config, control=name in DENSE, after=look)


def text_arms() -> list[Arm]:
    """One arm a pattern; what the statements hang on comes first: a reproduction that is cut short has it."""
    specs = {**DENSE, **FIXED, **LEARNED, **discovered()}
    return [text_arm(name, specs[name]) for name in dict.fromkeys((*FIRST, *specs))]


def by_slice(records: list[dict[str, Any]], slice_name: str) -> dict[str, list[float]]:
    """Loss of every seed for each value of a slice."""
    found: dict[str, list[float]] = {}
    for record in records:
        for item in record["slices"].get(slice_name, []):
            found.setdefault(str(item["value"]), []).append(item["loss"])
    return found


def excess(seen: Summaries, arm: str, slice_name: str, base: str = "dense") -> dict[str, list[float]]:
    """Loss of an arm minus that of `base` at the same seed, for each value of a slice."""
    ours = {r["seed"]: r for r in seen[arm]}
    theirs = {r["seed"]: r for r in seen[base]}
    pairs = [(by_slice([ours[s]], slice_name), by_slice([theirs[s]], slice_name)) for s in ours if s in theirs]
    found: dict[str, list[float]] = {}
    for mine, other in pairs:
        for value in mine.keys() & other.keys():
            found.setdefault(value, []).append(mine[value][0] - other[value][0])
    return found


def far_minus_near(more: dict[str, list[float]]) -> list[float]:
    """Of each seed, what `excess` by distance of the evidence is from 256 tokens on beyond what it is below 32."""
    near = [more[p] for p in ("4", "8", "16") if p in more]
    far = [more[p] for p in ("256", "512") if p in more]
    if not near or not far:
        return []
    # One column a seed.
    means = [[sum(column) / len(column) for column in zip(*rows, strict=True)] for rows in (near, far)]
    return [b - a for a, b in zip(*means, strict=True)]


def words(values: list[float], unit: str = "nats/byte", sign: bool = False) -> str:
    """Mean and 95 % half width."""
    mean, half = mean_interval(values)
    return f"{mean:+.4f} ± {half:.4f} {unit}" if sign else f"{mean:.4f} ± {half:.4f} {unit}"


def _table(seen: Summaries, slice_name: str) -> str:
    lines = []
    for arm, records in seen.items():
        cells = ", ".join(
            f"{value} {sum(v) / len(v):.4f}" for value, v in sorted(by_slice(records, slice_name).items())
        )
        lines.append(f"{arm}: {cells}")
    return "; ".join(lines)


def _judge_domains(seen: Summaries) -> list[Finding]:
    """One row a decaying pattern: does it cost more on dense text than on conversation?"""
    findings = []
    for arm in (name for name in (*FIXED, *LEARNED, DISCOVERED, UNIFORM) if name in seen and "dense" in seen):
        more = excess(seen, arm, "domain")
        dense_text = [name for name in ("academic", "reference") if name in more]
        if "conversation" not in more or not dense_text:
            continue
        rows = zip(more["conversation"], *(more[name] for name in dense_text), strict=True)
        gaps = [sum(rest) / len(rest) - chat for chat, *rest in rows]
        mean, half = mean_interval(gaps)
        quoted = "decay suits conversation, fails on dense academic text" if arm in DECAYING else "(ours)"
        losses = {name: words([r["loss"] for r in seen[name]]) for name in ("dense", arm)}
        ms = ", ".join(f"{r['ms_per_step_dense'] or 0:.2f}" for r in seen[arm])
        findings.append(
            Finding(
                statement=f"{arm}: costs more on dense text (academic, reference) than on conversation, beside dense",
                quoted=quoted,
                measured="; ".join(f"{name} {words(v, '', sign=True)}" for name, v in sorted(more.items())),
                n=len(gaps),
                interval=f"dense text minus conversation {words(gaps, sign=True)}",
                control=f"dense {losses['dense']}; this {losses[arm]}",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"ms a step {ms}",
            )
        )  # fmt: skip
    return findings


def _judge_forgetting(seen: Summaries) -> list[Finding]:
    """Fixed against learned constant against data-dependent decay, and discovered against uniform, all else equal."""
    ladder = [n for n in ("no decay, no positions", "fixed decay", "learned constant decay", "forgetting") if n in seen]
    findings = []
    for worse, better in (
        ("fixed decay", "learned constant decay"),
        ("learned constant decay", "forgetting"),
        ("fixed decay", "forgetting"),
        (UNIFORM, DISCOVERED),
    ):
        if worse not in seen or better not in seen:
            continue
        gain = [a["loss"] - b["loss"] for a, b in zip(seen[worse], seen[better], strict=False)]
        mean, half = mean_interval(gain)
        parts = excess(seen, better, "domain", base=worse)
        findings.append(
            Finding(
                statement=f"{better} has a lower loss than {worse}",
                quoted="learn the heuristic instead of hard-coding it (FoX: full beats fixed)",
                measured=words(gain, sign=True),
                n=len(gain),
                interval=f"± {half:.4f}",
                control="; ".join(
                    f"{name} {words([r['loss'] for r in seen[name]])}"
                    for name in dict.fromkeys((*ladder, worse, better))
                ),
                verdict="holds" if mean - half > 0 else "does not hold",
                detail="change by domain: "
                + "; ".join(f"{k} {words(v, '', sign=True)}" for k, v in sorted(parts.items())),
            )
        )
    return findings


def _judge_positions(seen: Summaries) -> list[Finding]:
    """Where in the sequence a pattern loses: early rows see everything anyway."""
    findings = []
    for arm in ("window 64", "dilated", "fixed decay", "learned constant decay", "forgetting", DISCOVERED):
        if arm not in seen or "dense" not in seen:
            continue
        more = excess(seen, arm, "position")
        places = sorted(more, key=int)
        early, late = places[len(places) // 2], places[-1]
        gaps = [b - a for a, b in zip(more[early], more[late], strict=True)]
        mean, half = mean_interval(gaps)
        longer = [r["longer"]["loss"] for r in seen[arm] if r.get("longer")]
        findings.append(
            Finding(
                statement=f"{arm}: what it loses beside dense grows with the position (from {early} to {late})",
                quoted="what is not correlated cannot be used",
                measured="; ".join(f"from {p}: {words(more[p], '', sign=True)}" for p in places[3:]),
                n=len(gaps),
                interval=f"late minus early {words(gaps, sign=True)}",
                control="dense at the same seeds and positions",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"at four times the trained length: {', '.join(f'{loss:.3f}' for loss in longer)}",
            )
        )
    return findings


def _judge_evidence(seen: Summaries) -> list[Finding]:
    """What is lost where the nearest evidence, the last occurrence of the same four bytes, is far."""
    findings = []
    for arm in (name for name in (*FIXED, *LEARNED, DISCOVERED, UNIFORM) if name in seen):
        if not any("evidence" in r["slices"] for r in seen[arm]) or "dense" not in seen:
            continue
        more = excess(seen, arm, "evidence")
        gaps = far_minus_near(more)
        if not gaps:
            continue
        mean, half = mean_interval(gaps)
        told = ((place, more[place]) for place in sorted(more, key=int))
        findings.append(
            Finding(
                statement=f"{arm}: loses more beside dense where the evidence is 256 tokens or more away than below 32",
                quoted="what is not correlated cannot be used",
                measured="; ".join(f"{p if p != '0' else 'nowhere'}: {words(v, '', sign=True)}" for p, v in told),
                n=len(gaps),
                interval=f"far minus near {words(gaps, sign=True)}",
                control="dense at the same seeds and bytes",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail="distance to the last place with the same four bytes, to a power of two; nowhere: not in sight",
            )
        )
    return findings


def _judge_spans(seen: Summaries) -> list[Finding]:
    """Where a dense model looks, by domain, and what patterns would cut there."""
    told = [r["distances"] for r in seen.get("dense", []) if r.get("distances")]
    domains = [name for name in (told[0]["span"] if told else {}) if name != "all"]
    if "conversation" not in domains:
        return []
    findings = []
    chat = [t["span"]["conversation"] for t in told]
    for domain in (name for name in domains if name != "conversation"):
        gaps = [t["span"][domain] - c for t, c in zip(told, chat, strict=True)]
        mean, half = mean_interval(gaps)
        by_layer = {spec: [share for t in told for share in t["lost"][spec][domain]] for spec in told[0]["lost"]}
        cuts = [f"{spec} {100 * sum(shares) / len(shares):.1f} %" for spec, shares in by_layer.items()]
        span = sum(t["span"][domain] for t in told) / len(told)
        findings.append(
            Finding(
                statement=f"a dense model looks farther in {domain} than in conversation (90 % of a head's attention)",
                quoted="decay is fine for a chat room, bad for a dense paper",
                measured=f"{span:.0f} against {sum(chat) / len(chat):.0f} tokens",
                n=len(gaps),
                interval=f"{mean:+.1f} ± {half:.1f} tokens",
                control="the same model and rows, by domain",
                verdict="holds" if mean - half > 0 else "does not hold",
                detail=f"attention that patterns would cut in {domain}: " + ", ".join(cuts),
            )
        )
    return findings


def _mechanism(row: dict[str, Any]) -> str:
    name: str = row["arm"].split(":")[1]
    return f"{name}, pruned" if "prune" in row["arm"] else name


def _judge_cost(seen: Summaries) -> list[Finding]:
    """Never slower than dense, from the rows of `turnout bench patterns`; those that choose keys are SEL4's."""
    measured = [row for record in seen.get("bench", []) for row in record["rows"] if row["ratio"]]
    rows = [row for row in measured if row["arm"].startswith("pattern:") and _mechanism(row) not in SELECTORS]
    flex = [row for row in measured if row["arm"].startswith("flex:")]
    findings = []
    for arm in dict.fromkeys(map(_mechanism, rows)):
        mine = [row for row in rows if _mechanism(row) == arm]
        theirs = [row for row in flex if _mechanism(row) == arm.partition(",")[0]]
        told, beside = ([f"N={r['case']['n']:,} {r['case']['step']} {min(r['ratio'].values()):.2f}x" for r in some]
                        for some in (mine, theirs))  # fmt: skip
        findings.append(
            Finding(
                statement=f"{arm} through the operator is never slower than dense attention",
                quoted="(ours) at most dense's time, 4K to 64K",
                measured="; ".join(told),
                n=len(mine),
                interval="medians of interleaved calls; the faster dense kernel decides",
                control="flash and cuDNN in the same run",
                verdict="holds" if all(min(r["ratio"].values()) >= 1 for r in mine) else "does not hold",
                detail="compiled FlexAttention, over all keys where it decays: " + "; ".join(beside) if beside else "",
            )
        )
    return findings


def bench_rows(device: str) -> dict[str, Any]:
    """The rows that `turnout bench patterns` has left for this device, or new ones."""
    from turnout.bench.patterns import default_cases, measure_patterns
    from turnout.bench.rows import read_rows
    from turnout.train.loop import pick_device
    from turnout.train.manifest import device_name

    where = pick_device(device)
    name = device_name(where)
    # Oldest first: the latest row of a case and an arm stands.
    latest = {(str(r["case"]), r["arm"]): r for r in read_rows() if r["kind"] == "pattern" and r["device"] == name}
    rows = list(latest.values())
    rows = rows or [row for case in default_cases(where) for row in measure_patterns(case, device=where, seconds=0.3)]
    return {"rows": rows, "device_name": name}


claim(Claim(id="TH1", source=SOURCE, title="loss by domain: dense, fixed and learned patterns", arms=text_arms,
            judge=_judge_domains, seeds=3, group=GROUP))  # fmt: skip
claim(Claim(id="TH2", source="2503.02130", title="decay hard-coded, learned, from the data", seeds=3, group=GROUP,
            arms=lambda: [replace(arm, owner="TH1") for arm in text_arms()], judge=_judge_forgetting))  # fmt: skip
claim(Claim(id="TH3", source="this library", title="loss by position and by distance of the evidence", seeds=3,
            arms=lambda: [replace(arm, owner="TH1") for arm in text_arms()], group=GROUP,
            judge=lambda seen: [*_judge_positions(seen), *_judge_evidence(seen)]))  # fmt: skip
claim(Claim(id="TH10", source=SOURCE, title="how far a dense model looks, by domain", seeds=3, group=GROUP,
            arms=lambda: [replace(arm, owner="TH1") for arm in text_arms() if arm.name == "dense"],
            judge=_judge_spans))  # fmt: skip
claim(Claim(id="TH8", source="this library", title="patterns are never slower than dense", bench=bench_rows,
            judge=_judge_cost, group=GROUP))  # fmt: skip
