"""How the claims on directional routing are judged: records of eight arms at one scale -> rows of the table.

A record is the summary of a run with `study` (see `turnout.probe.directional`). The published router is the arm
"sequence", its causal variant "prefix".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from turnout.claims.registry import Finding, Summaries
from turnout.stats import mean_interval, wilson

Record = dict[str, Any]
ROUTED = ("sequence", "prefix")


def words(values: Sequence[float], form: str = ".3f", scale: float = 1.0, unit: str = "") -> str:
    """Mean ± half of the 95 % interval over seeds; the mean alone for one seed."""
    mean, half = mean_interval([scale * v for v in values])
    spread = f" ± {half:{form.lstrip('+')}}" if len(values) > 1 and math.isfinite(half) else ""
    return f"{mean:{form}}{spread}{unit}"


def values(records: list[Record], *path: str | int) -> list[float]:
    """One number a record, at a path of keys below `study`."""
    found = []
    for record in records:
        value: Any = record["study"]
        for key in path:
            value = value[key]
        found.append(float(value))
    return found


def half_width(half: float, unit: str = "") -> str:
    return f"± {half:.3f}{unit}" if math.isfinite(half) else "one seed"


def judged(holds: bool, partly: bool = False) -> str:
    return "holds" if holds else "holds with changes" if partly else "does not hold"


def each_seed(records: list[Record], read: Callable[[Record], float], form: str = ".3f") -> str:
    each = [read(record) for record in records]
    return f"seeds {', '.join(f'{v:{form}}' for v in each)}"


def average(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def half_of(numbers: Sequence[float]) -> float:
    """Half of the 95 % interval over seeds, 0 where there is one seed."""
    half = mean_interval(numbers)[1]
    return half if math.isfinite(half) else 0.0


def of_draws(each: list[list[float]], form: str, scale: float = 1.0) -> str:
    """A random control, draws a record: mean ± over seeds; of one seed the range of its draws."""
    if len(each) != 1:
        return words([average(draws) for draws in each], form, scale)
    low, high = (f"{scale * edge(each[0]):{form}}" for edge in (min, max))
    return low if low == high else f"{low} to {high}"


def _ablation(seen: Summaries, action: str, statement: str, quoted: str) -> list[Finding]:
    """Perplexity under an ablation of r as a multiple of the intact model's; mean, swapped and random beside it."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        plain = values(seen[name], "routing", "plain")

        def times(key: str, name: str = name, plain: list[float] = plain) -> list[float]:
            after = values(seen[name], "routing", key)
            return [math.exp(a - p) for a, p in zip(after, plain, strict=True)]

        drawn = [
            [math.exp(loss - p) for loss in r["study"]["routing"]["random"]]
            for r, p in zip(seen[name], plain, strict=True)
        ]
        factor = average(times(action))
        found.append(Finding(
            statement=f"{statement} ({name})", quoted=quoted,
            measured=f"perplexity {words([math.exp(p) for p in plain], '.2f')} x {words(times(action), '.2f')}",
            n=len(plain), interval=f"factors {', '.join(_factors(seen[name], times(action), action))}",
            control=f"x {words(times('mean'), '.3f')} with r at its mean, {words(times('swap'), '.3f')} with another "
            f"sequence's r, {of_draws(drawn, '.3f')} with as much of random directions removed on top",
            verdict=judged(factor >= 100, factor >= 2),
            detail="holds from a factor of 100 on, with changes from 2",
        ))  # fmt: skip
        # Of next to nothing no share can be taken.
        pairs = zip(times("mean"), times(action), strict=True)
        share = [math.log(m) / math.log(z) for m, z in pairs if z > 1.05]
        if len(share) == len(plain) and action == "zero":
            found.append(Finding(
                statement=f"what routing-off destroys is what r says about the input, not a constant map ({name})",
                quoted="(implied) routing is what the model computes with",
                measured=f"r at its mean adds {words(share, '.1f', 100)} % of the loss that r = 0 adds",
                n=len(share), interval=f"shares {', '.join(f'{100 * s:.1f}' for s in share)} %",
                control="the data-set mean of r is itself the control", verdict=judged(average(share) >= 0.5),
            ))  # fmt: skip
    return found


def _factors(records: list[Record], factors: list[float], action: str) -> list[str]:
    """The factor of each seed, ± 1.96 standard errors over windows where the record has them."""
    errors = [r["study"]["routing"].get("stderr", {}).get(action) for r in records]
    return [
        f"{f:.2f}" if error is None else f"{f:.2f} ± {1.96 * f * error:.2f}"
        for f, error in zip(factors, errors, strict=True)
    ]


def routing_off(seen: Summaries) -> list[Finding]:
    """DR2."""
    return _ablation(seen, "zero", "routing off (r = 0) destroys the model", "perplexity 15 -> 7.7 million")


def static_half(seen: Summaries) -> list[Finding]:
    """DR3."""
    return _ablation(seen, "half", "static routing (r = 0.5) destroys the model", "perplexity 15 -> 5,284")


def one_layer(seen: Summaries) -> list[Finding]:
    """DR4: the layer whose r matters most, at zero and at its mean."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        firsts, seconds, means, drawn, which = [], [], [], [], []
        for record in seen[name]:
            plain = record["study"]["routing"]["plain"]
            rises = [
                (math.exp(row["zero"]) - math.exp(plain), math.exp(row["mean"]) - math.exp(plain), row["layer"])
                for row in record["study"]["layers"]
            ]
            random = [v for row in record["study"]["layers"] for v in row.get("random", ())]
            drawn += [math.exp(max(random)) - math.exp(plain)] if random else []
            first, second = sorted(rises, reverse=True)[:2]
            firsts.append(first[0])
            seconds.append(second[0])
            means.append(first[1])
            which.append(first[2])
        intact = average([math.exp(v) for v in values(seen[name], "routing", "plain")])
        dominates = average(firsts) > max(3 * average(seconds), 0.05 * intact)
        found.append(Finding(
            statement=f"routing off in one layer hurts far more than in any other ({name})",
            quoted="layer 9: +42.6 perplexity, the next +5.8", n=len(firsts),
            measured=f"layer {'/'.join(str(int(i)) for i in which)}: {words(firsts, '+.2f')}, the next "
            f"{words(seconds, '+.2f')}", interval=f"seeds {', '.join(f'{v:+.2f}' for v in firsts)}",
            control=f"{words(means, '+.3f')} with that layer's r at its mean"
            + (f"; {words(drawn, '+.3f')} in the worst layer with as much at random removed" if drawn else ""),
            verdict=judged(dominates),
            detail="holds if the largest rise is three times the next, and 5 % of the intact perplexity",
        ))  # fmt: skip
    return found


def recall(seen: Summaries) -> list[Finding]:
    """DR5."""
    found = []
    for name in ROUTED:
        records = [r for r in seen.get(name, []) if r["study"]["facts"]]
        if not records:
            continue
        plain, off, mean = (values(records, "facts", key) for key in ("plain", "zero", "mean"))
        knows = average(plain) >= 0.01
        verdict = judged(average(off) < 0.01 * average(plain)) if knows else "cannot be tested as published"
        base = values([r for r in seen.get("baseline", []) if r["study"].get("facts")], "facts", "plain")
        drawn = [r["study"]["facts"]["random"] for r in records if "random" in r["study"]["facts"]]
        found.append(Finding(
            statement=f"with routing off all eight facts have near-zero probability ({name})",
            quoted="near zero on 8 of 8 prompts", measured=f"mean P {average(plain):.1e} -> {average(off):.1e}",
            n=len(plain), interval=f"intact, by seed: {', '.join(f'{p:.1e}' for p in plain)}",
            control=f"r at its mean {average(mean):.1e}"
            + (f"; as much of random directions removed {of_draws(drawn, '.1e')}" if drawn else "")
            + (f"; baseline {average(base):.1e}" if base else ""),
            verdict=verdict, detail="" if knows else "the intact model does not know the facts (mean P < 0.01)",
        ))  # fmt: skip
    return found


def attribution(seen: Summaries) -> list[Finding]:
    """DR6: parts of the logit of the true next token."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        parts = {k: values(seen[name], "attribution", "parts", k) for k in ("heads", "routing delta", "MLPs", "total")}
        sizes = [values(seen[name], "attribution", key) for key in ("heads_abs", "deltas_abs")]
        off = values(seen[name], "attribution", "r = 0", "total")
        averaged = values(seen[name], "attribution", "r = mean", "total")
        drawn = [r["study"]["attribution"]["random totals"] for r in seen[name]]
        delta, rest = average(parts["routing delta"]), max(average(parts["heads"]), average(parts["MLPs"]))
        base = seen.get("baseline", [])
        heads = values(base, "attribution", "parts", "heads") if base else []
        found.append(Finding(
            statement=f"what routing removes is the largest contribution to the right token's logit ({name})",
            quoted="routing delta +25.57, heads -4.94, MLPs -3.81 (one prompt)", n=len(parts["total"]),
            measured=", ".join(f"{k} {words(v, '+.2f')}" for k, v in parts.items()),
            interval=f"delta by seed: {', '.join(f'{v:+.2f}' for v in parts['routing delta'])}",
            control=f"total {words(off, '+.2f')} with r = 0, {words(averaged, '+.2f')} with r at its mean, "
            f"{of_draws(drawn, '+.2f')} with as much of random directions removed; "
            f"sums of magnitudes: heads {words(sizes[0], '.2f')}, deltas {words(sizes[1], '.2f')}"
            + (f"; baseline's heads {words(heads, '+.2f')}" if heads else ""),
            verdict=judged(delta > max(rest, 0.0)), detail="32 windows a seed, logit minus the mean logit",
        ))  # fmt: skip
    return found


def heads(seen: Summaries) -> list[Finding]:
    """DR7: knocking out a head beside its mean and beside as many random dimensions."""
    found = []
    for name in (*ROUTED, "baseline"):
        if name not in seen:
            continue
        worst: dict[str, list[float]] = {"zero": [], "mean": [], "random": []}
        for record in seen[name]:
            study = record["study"]["heads"]
            for action in ("zero", "mean"):
                worst[action].append(max(math.exp(row[action] - study["plain"]) for row in study["each"]))
            worst["random"].append(max(math.exp(average(row["random"]) - study["plain"]) for row in study["random"]))
        found.append(Finding(
            statement=f"no single head matters ({name})", quoted="mover head x 1.07; induction keeps 98.6 %",
            measured=f"worst head at zero: perplexity x {words(worst['zero'], '.3f')}", n=len(worst["zero"]),
            interval=f"seeds {', '.join(f'{v:.3f}' for v in worst['zero'])}",
            control=f"worst at its mean x {words(worst['mean'], '.3f')}; worst layer with as many random dimensions of "
            f"all heads removed x {words(worst['random'], '.3f')}", verdict=judged(average(worst["zero"]) <= 1.07),
            detail=_copying_detail(seen[name]),
        ))  # fmt: skip
    return found


def _copying_detail(records: list[Record]) -> str:
    plain = values(records, "copying", "plain")
    zero, mean = (values(records, "copying", f"top 1, {action}") for action in ("zero", "mean"))
    return (
        f"induction {words(plain, '.1f', 100)} %, without its strongest head {words(zero, '.1f', 100)} % (zero), "
        f"{words(mean, '.1f', 100)} % (mean)"
    )


def induction(seen: Summaries) -> list[Finding]:
    """DR8."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        plain, off, mean, swap = (
            values(seen[name], "copying", key) for key in ("plain", "r, zero", "r, mean", "r, swap")
        )
        can = average(plain) >= 0.2
        verdict = judged(average(off) <= 0.05 * average(plain), average(off) <= 0.5 * average(plain))
        base = values(seen["baseline"], "copying", "plain") if "baseline" in seen else []
        drawn = [r["study"]["copying"]["r, random"] for r in seen[name]]
        found.append(Finding(
            statement=f"induction vanishes with routing off ({name})", quoted="93.4 % -> 0.0 %", n=len(plain),
            measured=f"{words(plain, '.1f', 100)} % -> {words(off, '.1f', 100)} %",
            interval=f"intact by seed: {', '.join(f'{100 * p:.1f}' for p in plain)} %",
            control=f"{words(mean, '.1f', 100)} % with r at its mean, {words(swap, '.1f', 100)} % with another "
            f"sequence's r, {of_draws(drawn, '.1f', 100)} % with as much of random directions removed"
            + (f"; baseline {words(base, '.1f', 100)} %" if base else ""),
            verdict=verdict if can else "cannot be tested as published",
            detail="" if can else "the intact model copies less than 20 %",
        ))  # fmt: skip
    return found


def domains(seen: Summaries) -> list[Finding]:
    """DR9."""
    found = []
    for name in ROUTED:
        records = [r for r in seen.get(name, []) if r["study"]["domains"]]
        if not records:
            continue
        path = ("domains", "accuracy")
        r, words_, residual, chance = (
            values(records, *path, key) for key in ("r", "bag of tokens", "residual", "chance")
        )
        high = average(r) >= 0.9
        ahead = [a - max(b, c) for a, b, c in zip(r, words_, residual, strict=True)]
        beaten = average(ahead) > half_of(ahead)
        found.append(Finding(
            statement=f"r alone tells domains apart, and better than what needs no routing ({name})",
            quoted="23 of 24 texts = 96 %, no baseline", measured=f"{words(r, '.1f', 100)} %", n=len(r),
            interval=f"seeds {', '.join(_share(record, v) for record, v in zip(records, r, strict=True))} %",
            control=f"bag of tokens {words(words_, '.1f', 100)} %, mean residual {words(residual, '.1f', 100)} %, "
            f"largest domain {words(chance, '.1f', 100)} %", verdict=judged(high and beaten, high or beaten),
            detail="holds at 90 % and above both baselines, interval included; with changes at one of the two",
        ))  # fmt: skip
    return found


def _share(record: Record, share: float) -> str:
    low, high = wilson(share, sum(record["study"]["domains"]["texts"]))
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def regimes(seen: Summaries) -> list[Finding]:
    """DR10."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        ratios: dict[str, list[float]] = {"trained": [], "untrained": []}
        specialists = []
        for record in seen[name]:
            for which in ratios:
                variance = [row["variance"] for row in record["study"]["regimes"][which]]
                ratios[which].append(variance[0] / max(min(variance), 1e-12))
            specialists.append([row["specialists"] for row in record["study"]["regimes"]["trained"]])
        highest = [
            max(record["study"]["regimes"]["trained"], key=lambda row: row["variance"])["layer"]
            for record in seen[name]
        ]
        found.append(Finding(
            statement=f"r varies most in the first layer, 100 times as much as in the steadiest ({name})",
            quoted="variance 0.070 in layer 0, 0.00055 in layer 9: 127 times", n=len(ratios["trained"]),
            measured=f"first layer / steadiest {words(ratios['trained'], '.1f')}; most variable layer "
            f"{'/'.join(map(str, highest))}", interval=f"seeds {', '.join(f'{v:.1f}' for v in ratios['trained'])}",
            control=f"untrained twin {words(ratios['untrained'], '.1f')}",
            verdict=judged(average(ratios["trained"]) >= 100, all(layer == 0 for layer in highest)),
            detail=f"specialist heads by layer (range of domain means > 0.1), by seed: {specialists}",
        ))  # fmt: skip
    return found


def steering(seen: Summaries) -> list[Finding]:
    """DR11."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        kind = seen[name][0]["study"]["steering"]["class"]
        change, controls = [], []
        for record in seen[name]:
            s = record["study"]["steering"]
            change.append(s["steered"] / s["plain"] - 1)
            controls += [v / s["plain"] - 1 for v in s["random"]]
        share = [average(r["study"]["steering"]["share"]) for r in seen[name]]
        null = [average(r["study"]["steering"]["random_share"]) for r in seen[name]]
        beyond = average(change) + half_of(change) < min(controls)
        found.append(Finding(
            statement=f"removing the directions that write a class lowers its probability ({name}, class: {kind})",
            quoted="an article direction forced to r = 1: P(article) -6.2 %",
            measured=f"{words(change, '+.2f', 100)} %", n=len(change),
            interval=f"seeds {', '.join(f'{100 * v:+.2f}' for v in change)} %",
            control=f"random directions of the same layers {100 * min(controls):+.2f} to {100 * max(controls):+.2f} %; "
            f"share of the class in top tokens: learned {words(share, '.3f')}, random directions {words(null, '.3f')}",
            verdict=judged(beyond and average(change) <= -0.03, beyond),
            detail="holds if it falls by 3 % or more and, interval included, below every random choice; with changes "
            "if by less",
        ))  # fmt: skip
    return found


def geometry(seen: Summaries) -> list[Finding]:
    """DR12: cosines against random directions."""
    found = []
    for name in ROUTED:
        if name not in seen:
            continue
        mean, spread, own = (
            values(seen[name], "geometry", "trained", key) for key in ("layers_mean", "layers_std", "own_abs")
        )
        first = seen[name][0]["study"]["geometry"]
        low, high = first["random"]["layers_std"]
        own_low, own_high = first["random"]["own_abs"]
        found.append(Finding(
            statement=f"layers' directions are no more orthogonal than random ones ({name})",
            quoted="mean cosine -0.0001, read as emergent orthogonality", n=len(mean),
            measured=f"mean {words(mean, '.4f')}, std {words(spread, '.4f')}",
            interval=f"std by seed {', '.join(f'{v:.4f}' for v in spread)}",
            control=f"random: std {low:.4f} to {high:.4f}; |cosine| within a head {words(own, '.3f')}, random "
            f"{own_low:.3f} to {own_high:.3f}", verdict=judged(average(spread) >= low),
            detail="holds: chance explains the published number; less than random would be more orthogonal",
        ))  # fmt: skip
    return found + training_cost(seen)


def training_cost(seen: Summaries) -> list[Finding]:
    """DR12: what directions add to a compiled train step of a whole model, from the paces of the runs themselves."""
    paces = {
        name: [r["tokens_per_s"] / r["gpus"] for r in found] for name, found in seen.items()
        if all("tokens_per_s" in r for r in found)
    }  # fmt: skip
    found = []
    for name in ROUTED:
        if name not in paces or "baseline" not in paces:
            continue
        slower = average(paces["baseline"]) / average(paces[name]) - 1
        found.append(Finding(
            statement=f"directions slow training down by no more than the parameters that they add ({name})",
            quoted="+3.9 % parameters, time not reported", measured=f"{100 * slower:+.1f} % time a token",
            n=len(paces[name]), interval=f"{words(paces[name], ',.0f')} tokens/s a GPU",
            control="; ".join(f"{arm} {words(p, ',.0f')}" for arm, p in paces.items()) + " tokens/s a GPU",
            verdict=judged(slower <= 0.039), detail="of whole runs, compiled, with their own input",
        ))  # fmt: skip
    return found


def costs(records: list[Record]) -> list[Finding]:
    """DR12: what directions add to attention's time, in the kernel's epilogue and behind the fastest attention, and to
    a model's train step, forward pass and decoding."""
    return [row for record in records for row in (*_attention_costs(record), *_model_costs(record))]


def _attention_costs(record: Record) -> list[Finding]:
    ways = {
        "epilogue": "the epilogue adds at most 3 % to the kernel without directions",
        "best": "directions add at most 3 % to the fastest attention",
    }
    found = []
    for row in record["attention"]:
        n_batch, tokens, heads, width = row["shape"]
        where = f"{row['what']}, {n_batch} x {tokens:,} tokens, {heads} heads of {width}, {record['device_name']}"
        for key, statement in ways.items():
            if key not in row:
                continue
            holds = row[key] <= 1.03
            found.append(Finding(
                statement=f"{statement} ({where})", quoted="not reported", n=row["n"],
                measured=f"{100 * (row[key] - 1):+.1f} %", interval=f"median of interleaved calls{_when(row)}",
                control=", ".join(f"{arm} {t:.3f} ms" for arm, t in row["ms"].items()), verdict=judged(holds),
                detail="" if holds or key == "best" else _where_it_goes(row.get("profile", {})),
            ))  # fmt: skip
    return found


def _when(row: dict[str, Any]) -> str:
    """The commit of a row that is not of the record's own run."""
    return f", commit {row['commit'][:7]}" if "commit" in row else ""


def _where_it_goes(profile: dict[str, list[dict[str, Any]]]) -> str:
    """Kernel by kernel, microseconds without and with directions: what a target that is missed is missed by."""
    without, with_ = ({p["name"]: p["us"] for p in profile.get(arm, [])} for arm in ("kernel", "kernel + epilogue"))
    parts = [
        f"{name} {without.get(name, 0.0):.1f} -> {with_.get(name, 0.0):.1f}" for name in without | with_
        if abs(with_.get(name, 0.0) - without.get(name, 0.0)) >= 0.5
    ]  # fmt: skip
    return f"us by kernel: {', '.join(parts)}" if parts else ""


def _model_costs(record: Record) -> list[Finding]:
    """A row a size and kind of work; the causal router is judged, all arms are named."""
    found = []
    names = {"train": "a train step", "forward": "a forward pass", "decode": "one more token of one sequence"}
    for size in dict.fromkeys(row["size"] for row in record["models"]):
        arms = {row["arm"]: row for row in record["models"] if row["size"] == size}
        for what, name in names.items():
            if not {"baseline", "prefix"} <= arms.keys():
                continue
            slower = arms["prefix"][what] / arms["baseline"][what] - 1
            found.append(Finding(
                statement=f"in {name} the causal router costs no more than the parameters that it adds ({size}, "
                f"{record['device_name']})", quoted="+3.9 % parameters, time not reported",
                measured=f"{100 * slower:+.1f} % time a token", n=1, interval="median of repeated calls, fresh weights",
                control=", ".join(f"{arm} {row[what]:.4g}" for arm, row in arms.items()) + " us a token",
                verdict=judged(slower <= 0.039),
                detail="; ".join(f"{arm}: cache {row['cache']}" for arm, row in arms.items() if "cache" in row)
                if what == "decode" else "",
            ))  # fmt: skip
    return found
