"""RP1-RP20: the numbers of "When Does Content-Based Routing Work?" re-measured with the controls that it lacks.

Source: Basu, arXiv 2603.20997 v2. A row quotes one number; the measured cell gives every reading of the task, each with
its exact chance in brackets. `holds`: ours is in the same class (at its floor / partly / routes) under every reading;
`holds with changes`: under some; `does not hold`: under none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_over_seeds

SOURCE = "Basu 2026, When Does Content-Based Routing Work? (arXiv 2603.20997 v2)"
GROUP = "routing-paradox"
# What the study has no rows for: our own experiments, which its table does without.
OWN = "Our own experiments on the routing test bed"
EXPERIMENTS = "routing-experiments"
TITLES = {
    "RP1": "raw embeddings cannot route",
    "RP2": "a causal SSM before the router does not help",
    "RP3": "segment routing is at 24-26 %",
    "RP4": "linear-attention scores fail",
    "RP5": "mean and Fourier mixing fail",
    "RP6": "one attention layer is enough",
    "RP7": "(ours) a token shift is enough",
    "RP8": "sparse attention is enough",
    "RP9": "a bidirectional SSM is enough",
    "RP10": "rank-1 scores are enough",
    "RP11": "one hub is enough",
    "RP12": "frozen language models and plain Transformers fail",
    "RP14": "contrastive training and semantic matching fail",
    "RP16": "memory banks and loops fail",
    "RP17": "a Bloom filter reaches 90.9 %",
    "RPL": "(ours) what a match needs, rung by rung",
    "RP19": "trailing MQAR: 25.6 / 24.2 / 100 %",
    "RE7": "(ours) what a match needs, at the published size",
}


def chance_of(record: dict[str, Any]) -> float:
    """Exact chance of the reported precision: k picks, neighbours included, among the other units."""
    from turnout.ops.precision import chance_level

    model = record["config"]["model"]
    return chance_level(record["units"], k=model["k"], expand=model["expand"])["precision"]


def best_lr(records: list[dict[str, Any]], worst: bool = False, metric: str = "precision") -> float:
    """The learning rate with the highest (or lowest) mean of the metric over seeds."""
    rates = [run["lr"] for run in records[0]["runs"]]
    means = {lr: sum(_run(r, lr)[metric] for r in records) / len(records) for lr in rates}
    return (min if worst else max)(means, key=lambda lr: means[lr])


def _run(record: dict[str, Any], lr: float) -> dict[str, Any]:
    return next(run for run in record["runs"] if run["lr"] == lr)


def precision(records: list[dict[str, Any]], lr: float | None = None, metric: str = "precision") -> Any:
    """Mean precision (or accuracy) over seeds at one learning rate (the best by default), with its interval."""
    rate = best_lr(records, metric=metric) if lr is None else lr
    values = [_run(r, rate)[metric] for r in records]
    return mean_over_seeds(values, proportion_of=[r["n_eval"] for r in records])


def routing_class(value: float, floor: float) -> str:
    """ "routes" from 90 %, "chance" up to 1.5 times the floor (at most halfway to 90 %), otherwise "partly"."""
    if value >= 0.9:
        return "routes"
    return "chance" if value <= min(1.5 * floor, (floor + 0.9) / 2) else "partly"


def floor_of(record: dict[str, Any], controls: Summaries, scale: str) -> float:
    """What needs no content: exact chance, or what the position-only control reaches, or k of the N pairs (MQAR)."""
    task, chance = record["config"]["task"], chance_of(record)
    if record["unit"] > 1:
        return chance
    if "pairs" in task:
        return max(chance, record["config"]["model"]["k"] / task["pairs"])
    # That of this very task if it was measured: near evidence is easier to guess.
    same = (r for name, r in controls.items() if name.startswith("position only") and r[0]["config"]["task"] == task)
    prior = next(same, controls.get(f"position only, {task['label']}, {scale}"))
    # Without learned positions there is no position to know.
    known = prior is not None and record["config"]["model"]["positions"] == "learned"
    return max(chance, precision(prior).mean) if known and prior is not None else chance


def _words(name: str, records: list[dict[str, Any]], metric: str = "precision") -> str:
    found = precision(records, metric=metric)
    if metric == "accuracy":
        return f"{name}: answers {100 * found.mean:.1f} [{100 * _guess(records[0]):.1f}]"
    rank = sum(_run(r, best_lr(records))["rank"] for r in records) / len(records)
    return f"{name}: {100 * found.mean:.1f} [{100 * chance_of(records[0]):.1f}] rank {rank:.1f}"


def _guess(record: dict[str, Any]) -> float:
    """A guess among the values."""
    task = record["config"]["task"]
    return 1 / (task["n_values"] or task["vocab"] - 1)


def _rates(name: str, records: list[dict[str, Any]], metric: str) -> str:
    best, worst = best_lr(records, metric=metric), best_lr(records, worst=True, metric=metric)
    return f"{name}: best lr {best:g}, worst lr {worst:g} gives {100 * precision(records, worst, metric).mean:.1f}"


def _answers(name: str, records: list[dict[str, Any]]) -> str:
    """Accuracy at its own best rate, which need not be that of the routing, and with the evidence handed over."""
    rate = best_lr(records, metric="accuracy")
    own, oracle = (precision(records, rate, metric).mean for metric in ("accuracy", "oracle_accuracy"))
    return f"{name} answers {100 * own:.1f} (oracle picks {100 * oracle:.1f})"


def chance_of_published(quoted: str) -> float:
    """The smallest chance that the study's own bracket allows; 1.6 % where it gives none."""
    inside = quoted.partition("[")[2].partition("]")[0].split()
    numbers = [float(word) for word in inside if word.replace(".", "").isdigit()]
    return max(numbers) / 100 if numbers else 0.016


def _finding(row: Any, seen: Summaries, controls: Summaries, scale: str) -> Finding | None:
    arms = [(arm, seen[f"{arm.name}, {scale}"]) for arm in row.arms if arm.name in _there(row, seen, scale)]
    tested = [(arm, records) for arm, records in arms if not arm.control]
    if not arms or (row.like and not tested):
        return None
    words = "; ".join(_words(arm.name, records, row.metric) for arm, records in arms)
    n = min(len(records) for _, records in tested or arms)
    routes = row.metric == "precision"
    priors = controls | {f"{arm.name}, {scale}": r for arm, r in arms if arm.selector == "position"}
    floors = {arm.name: floor_of(r[0], priors, scale) if routes else _guess(r[0]) for arm, r in tested}
    intervals = "; ".join(
        f"{arm.name} {100 * p.low:.1f}-{100 * p.high:.1f}"
        for arm, r in arms
        if (p := precision(r, metric=row.metric)).n
    )
    best_worst = "; ".join(_rates(arm.name, r, row.metric) for arm, r in tested if len(r[0]["runs"]) > 1)
    answers = [_answers(arm.name, r) for arm, r in tested if routes and "oracle_accuracy" in r[0]["runs"][0]]
    detail = ". ".join(part for part in (row.note, best_worst, "; ".join(answers)) if part)
    beside = "; ".join(
        _words(name.rpartition(", ")[0], r) for name, r in controls.items() if name.endswith(f", {scale}")
    )
    return Finding(
        statement=f"{row.statement} ({scale})", quoted=row.quoted, measured=f"% {words}", n=n,
        interval=f"% {intervals}", control=f"% {beside}" if beside and routes else "chance in brackets",
        verdict=_alike(row.like, arms) if row.like else _verdict(row, tested, floors), detail=detail,
    )  # fmt: skip


def _there(row: Any, seen: Summaries, scale: str) -> set[str]:
    """Names of the row's arms that were measured at this scale."""
    return {arm.name for arm in row.arms if scale in arm.scales and f"{arm.name}, {scale}" in seen}


def _verdict(row: Any, tested: list[tuple[Any, list[dict[str, Any]]]], floors: dict[str, float]) -> str:
    if row.published is None:
        return "cannot be tested as published"
    wanted = routing_class(row.published, chance_of_published(row.quoted))
    same = [routing_class(precision(r, None, row.metric).mean, floors[arm.name]) == wanted for arm, r in tested]
    return shared_verdict(same)


def _alike(like: str, arms: list[tuple[Any, list[dict[str, Any]]]]) -> str:
    """Whether the tested arms find what the arm of that name finds: their intervals overlap."""
    found = {arm.name: precision(records) for arm, records in arms}
    if like not in found:
        return "not measured"
    same = [
        found[arm.name].low <= found[like].high and found[arm.name].high >= found[like].low
        for arm, _ in arms
        if not arm.control
    ]
    return shared_verdict(same)


def shared_verdict(same: list[bool]) -> str:
    """The verdict of a row whose arms agree with it or do not."""
    if not same:
        return "not measured"
    return "holds" if all(same) else "holds with changes" if any(same) else "does not hold"


def judge_rows(claim_id: str, seen: Summaries) -> list[Finding]:
    """One finding per quoted number: at the published size once all its arms were measured there; until then the small
    size, and what there is of the published one beside it."""
    from turnout.recipes.routing_paradox import CONTROLS, FULL, SMALL, all_rows

    names = {arm.name for arm in CONTROLS}
    controls = {name: r for name, r in seen.items() if name.rpartition(", ")[0] in names}
    findings = []
    for row in all_rows():
        if row.claim == claim_id:
            there = {scale: _there(row, seen, scale) for scale in (SMALL, FULL)}
            scales = (FULL,) if there[SMALL] <= there[FULL] else (SMALL, FULL)
            findings += [found for scale in scales if (found := _finding(row, seen, controls, scale))]
    return findings


def arms_for(claim_id: str) -> list[Arm]:
    """Every arm of a claim at every scale, with the controls that RP1 owns."""
    from turnout.recipes.routing_paradox import CONTROLS, SMALL, arms_of

    def entry(arm: Any, scale: str) -> Arm:
        # Small arms that are too slow for a quick reproduction are run by name.
        small = "quick" if arm.quick else "named"
        return Arm(
            name=f"{arm.name}, {scale}", config=lambda seed: arm.config(scale, seed), control=arm.control,
            together=measure, when="named" if arm.by_name else small if scale == SMALL else "full",
        )  # fmt: skip

    own = [entry(arm, scale) for arm, scale in arms_of(claim_id)]
    if claim_id in ("RP1", "RP3", "RP17", "RP19"):
        return own
    return own + [replace(entry(arm, scale), owner="RP1") for arm in CONTROLS for scale in arm.scales]


def measure(configs: list[Any], device: str) -> list[dict[str, Any]]:
    """Train the seeds of one arm as one stacked model."""
    from turnout.train.loop import pick_device
    from turnout.train.stacked import train_together

    chosen = pick_device(device)
    if chosen.type == "cuda":
        import torch

        torch.set_float32_matmul_precision("high")
    rounded = "tf32, bfloat16 in attention" if configs[0].model.flow.startswith("attention") else "tf32"
    precision = rounded if chosen.type == "cuda" else "float32"
    return [record | {"matmul": precision} for record in train_together(configs, chosen)]


for _id, _title in TITLES.items():
    claim(
        Claim(
            id=_id, source=SOURCE if _id.startswith("RP") else OWN, title=_title, seeds=3,
            group=GROUP if _id.startswith("RP") else EXPERIMENTS,
            arms=lambda claim_id=_id: arms_for(claim_id),  # type: ignore[misc]
            judge=lambda seen, claim_id=_id: judge_rows(claim_id, seen),  # type: ignore[misc]
        )
    )  # fmt: skip
