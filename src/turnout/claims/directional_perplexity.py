"""DR1 judged: perplexity with and without the future, by domain, by length, and where no future can help.

A record is the summary of a run with `study` (see `turnout.probe.directional`).
"""

from __future__ import annotations

import math

from turnout.claims.directional_rows import ROUTED, Record, average, each_seed, half_width, judged, values, words
from turnout.claims.registry import Finding, Summaries
from turnout.stats import mean_interval


def reduction(routed: list[Record], base: list[Record], kind: str, domain: str = "") -> list[float]:
    """1 − ppl(routed) / ppl(base), seed by seed; `kind` of the routed one, the base read honestly."""

    def loss(record: Record, which: str) -> float:
        honest = record["study"]["honest"]
        if domain:
            honest = next(row for row in honest["by_domain"] if row["domain"] == domain)
        return float(honest[which])

    by_seed = {record["seed"]: record for record in base}
    pairs = [(record, by_seed[record["seed"]]) for record in routed if record["seed"] in by_seed]
    return [1 - math.exp(loss(a, kind) - loss(b, "honest")) for a, b in pairs]


def _windows(routed: list[Record], base: list[Record]) -> str:
    """What one seed's windows say of the two reductions: mean ± 1.96 standard errors of the paired differences."""
    by_seed = {record["seed"]: record["study"]["honest"].get("windows") for record in base}
    said = []
    for record in routed:
        own, other = record["study"]["honest"].get("windows"), by_seed.get(record["seed"])
        if not own or not other or len(own) != len(other):
            continue
        parts = []
        for i, kind in enumerate(("teacher-forced", "honest")):
            change = [a[i] - b[1] for a, b in zip(own, other, strict=True)]
            mean = average(change)
            error = math.sqrt(sum((c - mean) ** 2 for c in change) / max(1, len(change) - 1) / len(change))
            low, high = (100 * (1 - math.exp(mean + sign * 1.96 * error)) for sign in (1, -1))
            parts.append(f"{low:.1f} to {high:.1f} % {kind}")
        said.append(" and ".join(parts))
    return "; over windows " + "; ".join(said) if said else ""


def perplexity(seen: Summaries) -> list[Finding]:
    """DR1: against the baseline, teacher-forced and prefix-honest; the causal arms against each other; the leak."""
    if "baseline" not in seen:
        return []
    found = []
    others = "; ".join(
        f"{name} {words([math.exp(v) for v in values(r, 'honest', 'honest')], '.2f')}" for name, r in seen.items()
    )
    for name in ROUTED:
        if name not in seen:
            continue
        forced, honest = (reduction(seen[name], seen["baseline"], k) for k in ("teacher_forced", "honest"))
        domains = [row["domain"] for row in seen[name][0]["study"]["honest"]["by_domain"]]
        by_domain = "; ".join(
            f"{d} {words(reduction(seen[name], seen['baseline'], 'teacher_forced', d), '.1f', 100)} teacher-forced, "
            f"{words(reduction(seen[name], seen['baseline'], 'honest', d), '.1f', 100)} honest"
            for d in domains
        )
        found.append(Finding(
            statement=f"directional routing ({name}) lowers perplexity by 31 % or more",
            quoted="31-56 % lower by domain, teacher-forced, one seed",
            measured=f"{words(forced, '.1f', 100)} % lower teacher-forced, {words(honest, '.1f', 100)} % prefix-honest",
            n=len(honest), interval=each_seed(seen[name], lambda r: math.exp(r["study"]["honest"]["honest"]), ".2f")
            + _windows(seen[name], seen["baseline"]),
            control=f"honest perplexity: {others}", verdict=judged(average(honest) >= 0.31), detail=by_domain,
        ))  # fmt: skip
    return found + _leak(seen) + _lengths(seen) + _gain(seen) + _last(seen) + _choice(seen)


def _leak(seen: Summaries) -> list[Finding]:
    if "sequence" not in seen:
        return []
    gaps = values(seen["sequence"], "honest", "gap")
    errors = values(seen["sequence"], "honest", "gap_stderr")
    causal = {name: max(map(abs, values(r, "honest", "gap"))) for name, r in seen.items() if name != "sequence"}
    return [
        Finding(
            statement="the published router reads the future: prefix-honest loss is above teacher-forced loss",
            quoted="(ours) leaks by construction", measured=f"gap {words(gaps, '.4f')} nats/token", n=len(gaps),
            interval="; ".join(f"{g:.4f} ± {1.96 * e:.4f}" for g, e in zip(gaps, errors, strict=True)),
            control="largest gap of causal arms: " + ", ".join(f"{n} {g:.1e}" for n, g in causal.items()),
            verdict=judged(all(g > 1.96 * e for g, e in zip(gaps, errors, strict=True))),
        )
    ]  # fmt: skip


def _gain(seen: Summaries) -> list[Finding]:
    if "prefix" not in seen or "matched" not in seen:
        return []
    gains = {name: reduction(seen["prefix"], r, "honest") for name, r in seen.items() if name != "prefix"}
    mean, half = mean_interval(gains["matched"])
    return [
        Finding(
            statement="causal directional routing (prefix) beats a baseline with as many parameters",
            quoted="(ours) the control that is missing", measured=f"perplexity {100 * mean:.2f} % lower",
            n=len(gains["matched"]), interval=half_width(100 * half, " %"),
            control="lower than " + "; ".join(f"{n} by {words(g, '.2f', 100)} %" for n, g in gains.items()),
            verdict=judged(mean > (half if math.isfinite(half) else 0.0)),
        )
    ]  # fmt: skip


def _last(seen: Summaries) -> list[Finding]:
    """The published "no gain on benchmarks": answers are last tokens, where nothing can leak."""
    if "sequence" not in seen:
        return []
    base = {r["seed"]: r["study"]["honest"]["last"] for r in seen["baseline"]}
    pairs = [(r["study"]["honest"]["last"], base[r["seed"]]) for r in seen["sequence"] if r["seed"] in base]
    gains = [b - a for a, b in pairs]
    mean, half = mean_interval(gains)
    return [
        Finding(
            statement="no gain where nothing can leak: loss at the last token of a window, published router",
            quoted="no gain on multiple-choice benchmarks", measured=f"{mean:+.3f} nats better than the baseline",
            n=len(gains), interval=half_width(half),
            control="; ".join(f"{name} {words(values(r, 'honest', 'last'))}" for name, r in seen.items()),
            verdict=judged(mean <= (half if math.isfinite(half) else 0.0)),
            detail="one token a window; see also the row on multiple choice",
        )
    ]  # fmt: skip


def _lengths(seen: Summaries) -> list[Finding]:
    """The gap in windows shorter than in training: one mean of fewer tokens tells more about each."""
    records = [r for r in seen.get("sequence", []) if r["study"].get("lengths")]
    if not records:
        return []
    columns: dict[int, list[Record]] = {}
    for record in records:
        for row in record["study"]["lengths"]:
            columns.setdefault(row["length"], []).append(row)
    whole = values(records, "honest", "gap")
    base = {r["seed"]: {row["length"]: row for row in r["study"].get("lengths", ())} for r in seen.get("baseline", [])}
    parts, lower = [], []
    for length, rows in sorted(columns.items()):
        parts.append(f"{length} tokens {words([row['gap'] for row in rows], '.4f')}")
        pairs = [(r, row, base[r["seed"]][length]) for r, row in zip(records, rows, strict=True)
                 if length in base.get(r["seed"], {})]  # fmt: skip
        forced, honest = (
            [1 - math.exp(row[kind] - b["honest"]) for _, row, b in pairs] for kind in ("teacher_forced", "honest")
        )
        if pairs:
            lower.append(
                f"{length} tokens: perplexity {words(forced, '.1f', 100)} % below the baseline teacher-forced, "
                f"{words(honest, '.1f', 100)} % honest"
            )
    shortest = min(columns)
    causal = [
        abs(row["gap"]) for name, found in seen.items() if name != "sequence"
        for r in found for row in r["study"].get("lengths", ())
    ]  # fmt: skip
    short = [row["gap"] for row in columns[shortest]]
    return [
        Finding(
            statement="the shorter the window, the more of it the published router reads ahead",
            quoted="(ours) published gains are larger on short texts than in training",
            measured=f"gap in nats: {', '.join(parts)}, training length {words(whole, '.4f')}", n=len(records),
            interval=f"shortest windows by seed: {', '.join(f'{g:.4f}' for g in short)}",
            control=f"largest gap of causal arms {max(causal):.1e}" if causal else "causal arms not measured",
            verdict=judged(all(a > b for a, b in zip(short, whole, strict=True))), detail="; ".join(lower),
        )
    ]  # fmt: skip


def _choice(seen: Summaries) -> list[Finding]:
    """ "No gain on multiple choice", on questions made of the held-out text."""
    base = {r["seed"]: r["study"]["choice"] for r in seen["baseline"] if "choice" in r["study"]}
    found = []
    for name in ROUTED:
        pairs = [
            (r["study"]["choice"], base[r["seed"]]) for r in seen.get(name, [])
            if "choice" in r["study"] and r["seed"] in base
        ]  # fmt: skip
        if not pairs:
            continue
        gains = [own["honest"]["accuracy"] - other["honest"]["accuracy"] for own, other in pairs]
        asked = sum(own["n"] for own, _ in pairs)
        # Answers of two models to the same questions, taken as independent: wider than they are.
        p = [average([c[i]["honest"]["accuracy"] for c in pairs]) for i in (0, 1)]
        half = 1.96 * math.sqrt(sum(x * (1 - x) for x in p) / asked)
        own = [c["honest"]["accuracy"] for c, _ in pairs]
        forced = [c["teacher_forced"]["accuracy"] for c, _ in pairs]
        first = pairs[0][0]
        found.append(Finding(
            statement=f"no gain on multiple choice ({name})", quoted="no gain on multiple-choice benchmarks",
            measured=f"{words(own, '.1f', 100)} % right, {100 * average(gains):+.1f} points on the baseline",
            n=len(pairs), interval=f"± {100 * half:.1f} points over {asked} questions",
            control=f"chance {100 * first['chance']:.0f} %; without the context "
            f"{words([c['no context']['accuracy'] for c, _ in pairs], '.1f', 100)} %; scored teacher-forced "
            f"{words(forced, '.1f', 100)} %; "
            + "; ".join(f"{other} {words(values(r, 'choice', 'honest', 'accuracy'), '.1f', 100)} %"
                        for other, r in seen.items() if all("choice" in x["study"] for x in r)),
            verdict=judged(average(gains) <= half),
            detail=f"which of four pieces of {first['ending']} tokens of the same window follows {first['context']}?",
        ))  # fmt: skip
    return found
