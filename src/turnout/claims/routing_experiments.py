"""RE1-RE10: our own experiments on the routing test bed, each a grid told in one cell and whole in the detail.

The arms are those of `recipes/routing_grids.py`; where the study's own table has a cell of a grid, its runs are read.
RE7 has rows like the study's and is judged with them (`routing_paradox.py`), RE9's curves are read by
`routing_plateaus.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.claims.routing_cells import Cells
from turnout.claims.routing_paradox import (
    EXPERIMENTS,
    OWN,
    arms_for,
    best_lr,
    chance_of,
    measure,
    routing_class,
    shared_verdict,
)
from turnout.claims.routing_plateaus import judge_plateaus
from turnout.recipes import routing_grids as grids
from turnout.recipes.routing_paradox import FULL, SMALL

# Cells of E1 that the study's own table has: flow -> claim.
AFTER = {
    "raw": "RP1", "shift": "RP7", "attention causal": "RP6", "attention": "RP6", "ssm causal": "RP2", "ssm both": "RP9",
}  # fmt: skip


def _arms(claim_id: str) -> list[Arm]:
    own = [
        Arm(
            name=f"{arm.name}, {scale}", config=lambda seed, arm=arm, scale=scale: arm.config(scale, seed),  # type: ignore[misc]
            control=arm.control, together=measure, when="named" if arm.by_name else "full",
        )
        for arm in grids.GRIDS[claim_id]
        for scale in arm.scales
    ]  # fmt: skip
    if claim_id != "RE1":
        return own
    wanted = {f"{flow}, {label}, {FULL}": owner for flow, owner in AFTER.items() for label in grids.LABELS}
    wanted |= {f"position only, {label}, {FULL}": "RP1" for label in grids.LABELS}
    shared = {arm.name: arm for owner in dict.fromkeys(wanted.values()) for arm in arms_for(owner) if not arm.owner}
    return own + [replace(shared[name], owner=owner) for name, owner in wanted.items()]


def _judge_directions(seen: Summaries) -> list[Finding]:
    cells = Cells(seen)

    def name(flow: str, direction: str, label: str) -> str:
        return f"{flow}, {label}" if direction == "after" else f"{flow}, {direction}, {label}"

    # The study's own cells alone say nothing about directions.
    if not any(name(flow, "before", label) in cells for flow, label in product(grids.FLOWS, grids.LABELS)):
        return []

    def row(flow: str, label: str) -> str:
        return f"{flow} {cells.words(name(flow, d, label) for d in grids.DIRECTIONS)}"

    same = []
    for flow, direction, label in product(grids.FLOWS, grids.DIRECTIONS, grids.LABELS):
        if name(flow, direction, label) in cells:
            prior = cells.value(name("position only", direction, label))
            found = routing_class(cells.value(name(flow, direction, label)), max(0.008, prior))
            same.append(found == ("routes" if label == "key" or flow == "shift" else "chance"))
    told = "; ".join(f"{label}: {', '.join(row(flow, label) for flow in grids.FLOWS)}" for label in grids.LABELS)
    return [
        cells.finding(
            "wherever the answer lies, every flow routes under label key and a token shift alone under label value",
            f"% with the answer {'/'.join(grids.DIRECTIONS)} the query; {told}",
            same,
            "; ".join(row("position only", label) + f" ({label})" for label in grids.LABELS),
        )
    ]


def _judge_ranks(seen: Summaries) -> list[Finding]:
    cells = Cells(seen)
    forms = [f"rank {rank}" for rank in grids.RANKS] + ["pairwise"]
    told = {1: "1 query", 16: "16 queries"}
    rows = [f"{told[q]}: {cells.words(f'{form}, {told[q]}' for form in forms)}" for q in grids.QUERIES]
    lone = [n for n in ("rank 1, 16 queries", "one vector, 16 queries") if n in cells]
    ceiling = 2 * 4 / 16
    full = [cells.value(f"pairwise, {told[q]}") >= 0.9 for q in grids.QUERIES if f"pairwise, {told[q]}" in cells]
    least = [
        next((str(r) for r in grids.RANKS if cells.value(f"rank {r}, {told[q]}") >= 0.9), "none") for q in grids.QUERIES
    ]
    return [
        cells.finding(
            "a score of rank 1 finds no more than the 2k of Q keys it can reach, the full form all",
            f"% at rank {'/'.join(map(str, grids.RANKS))}/full, {'; '.join(rows)}; 90 % from rank "
            + " and ".join(least),
            [cells.value(n) <= ceiling for n in lone] + full,
            f"ceiling of rank 1 at 16 queries {100 * ceiling:.0f}; one vector for queries and keys "
            f"{cells.words(['one vector, 16 queries'])}, without its query "
            f"{cells.words(['one vector, without query, 16 queries'])}",
        )
    ]


def _judge_segments(seen: Summaries) -> list[Finding]:
    cells = Cells(seen)

    def top(name: str, k: int) -> float:
        if name not in cells:
            return math.nan
        records = cells.seen[name]
        rate = best_lr(records)
        return fmean(run["tops"][str(k)] for record in records for run in record["runs"] if run["lr"] == rate)

    codes = ("random", "trained", "projected")

    def told(k: int, *names: str) -> str:
        return "/".join("–" if math.isnan(v) else f"{100 * v:.0f}" for v in (top(name, k) for name in names))

    def row(k: int) -> str:
        parts = []
        for size in grids.SIZES:
            pools = (f"{pool} {told(k, *(f'{pool} of {size}, {code}' for code in codes))}" for pool in grids.POOLS)
            chance = 100 * k / (512 // size - 1)
            bloom = told(k, f"Bloom filter of {size}")
            parts.append(f"{size} tokens [{chance:.1f}]: {', '.join(pools)}, Bloom {bloom}")
        return "; ".join(parts)

    names = (f"{pool} of {size}" for pool, size in product(grids.POOLS, grids.SIZES))
    same = [
        top(f"{n}, trained", k) > top(f"{n}, random", k)
        for n, k in product(names, grids.TOPS)
        if f"{n}, trained" in cells and f"{n}, random" in cells
    ]
    return [
        cells.finding(
            "trained codes find more segments than random ones, at every pool, size and number of picks",
            f"% with {'/'.join(codes)} codes at {grids.TOPS[-1]} picks; {row(grids.TOPS[-1])}",
            same,
            "random codes and Bloom filters are not trained; chance in brackets",
            f"trained codes are ahead in {sum(same)} of {len(same)} cells. "
            + ". ".join(f"At {k} pick{'s' if k > 1 else ''}: {row(k)}" for k in grids.TOPS[:-1]),
        )
    ]


def _judge_scans(seen: Summaries) -> list[Finding]:
    cells = Cells(seen)

    def names(flow: str, direction: str, label: str) -> list[str]:
        told = f"{direction}, {label}"
        if flow.startswith("attention"):
            return [f"{flow}, {told}"]
        return [f"{flow}, state of {state}, {told}" for state in grids.STATES]

    flows = ("ssm causal", "ssm both", "attention causal")
    rows, same = [], []
    for label in grids.LABELS:
        parts = []
        for flow, direction in product(flows, grids.DIRECTIONS[:2]):
            there = names(flow, direction, label)
            parts.append(f"{flow} {direction} {cells.words(there)}")
            floor = max(0.008, cells.value(f"position only, {direction}, {label}"))
            for name in there:
                if name in cells:
                    found = routing_class(cells.value(name), floor)
                    same.append(found == ("routes" if label == "key" else "chance"))
        rows.append(f"{label}: {', '.join(parts)}")
    bands = "; ".join(f"{name}: {_bands(records)}" for name, records in cells.seen.items() if _bands(records))
    priors = ", ".join(f"{d} {cells.words([f'position only, {d}, value'])}" for d in grids.DIRECTIONS[:2])
    finding = cells.finding(
        "whatever the direction, the state and the distance, scans and causal attention route under label key alone",
        f"% with a state of {'/'.join(map(str, grids.STATES))}, {grids.NEAREST} tokens away or more; {'; '.join(rows)}",
        same,
        f"position only, value: {priors}",
        f"by distance (tokens from): {bands}",
    )
    return [finding, *_certificate(cells)]


def _bands(records: list[dict[str, Any]]) -> str:
    """Precision by distance at the best rate, mean over seeds."""
    if "bands" not in records[0]["runs"][0]:
        return ""
    rate = best_lr(records)
    best = [run["bands"] for record in records for run in record["runs"] if run["lr"] == rate]
    return " ".join(f"{d}+ {100 * fmean(b[d] for b in best if d in b):.1f}" for d in best[0])


def _certificate(cells: Cells) -> list[Finding]:
    """What a change of the second half of the sequences does to the rows of the first, after training."""
    moved: dict[str, float] = {}
    for name, records in cells.seen.items():
        flow = next((f for f in ("ssm causal", "ssm both", "attention causal") if name.startswith(f)), "")
        sizes = [run["past_moved"] for record in records for run in record["runs"] if "past_moved" in run]
        if flow and sizes:
            moved[flow] = max([moved.get(flow, 0.0), *sizes])
    if not moved:
        return []
    return [
        Finding(
            statement="(ours) causal flows read nothing of the future after training", quoted="(ours)",
            measured="largest change of earlier rows when the second half is replaced: "
            + ", ".join(f"{flow} {size:g}" for flow, size in moved.items()),
            n=cells.seeds(), interval="every run", control="bidirectional scans, which must move",
            verdict=shared_verdict([(size == 0) == ("causal" in flow) for flow, size in moved.items()]),
        )
    ]  # fmt: skip


def _judge_frozen(seen: Summaries) -> list[Finding]:
    cells = Cells(seen, SMALL)
    if not cells.seen:
        return []
    own, twin = "frozen model", "untrained twin"

    def layers(name: str) -> str:
        return cells.words(f"{name}, layer {n}" for n in grids.LAYERS)

    def bridges(name: str, label: str) -> str:
        return ", ".join(f"{b} {cells.words([f'{name}, {b} bridge, {label}'])}" for b in grids.BRIDGES)

    worse = [
        cells.value(f"{own}, layer {n}") < cells.value(f"{twin}, layer {n}")
        for n in grids.LAYERS[1:]
        if f"{own}, layer {n}" in cells and f"{twin}, layer {n}" in cells
    ]
    keys = [f"{own}, {bridge} bridge, key" for bridge in grids.BRIDGES]
    mended = [cells.value(name) >= 0.9 for name in keys if name in cells]
    last = f"{own}, layer {grids.LAYERS[-1]}"
    chance = f"[{100 * chance_of(cells.seen[last][0]):.1f}]" if last in cells else ""
    note = "T = 64; a byte model of ours with four blocks and a width of 128; `turnout probe` has its identity probe"
    return [
        cells.finding("training takes the token's identity out of every block of a language model",
                      f"% key {chance} at the embeddings and behind blocks 1 to 4: {layers(own)}", worse,
                      f"untrained twin {layers(twin)}", note),
        cells.finding("a trained bridge behind the last block mends a frozen model",
                      f"% key: {bridges(own, 'key')}; value: {bridges(own, 'value')}", mended,
                      f"untrained twin, key: {bridges(twin, 'key')}; value: {bridges(twin, 'value')}", note),
    ]  # fmt: skip


TITLES: dict[str, tuple[str, Callable[[Summaries], list[Finding]]]] = {
    "RE1": ("(ours) flows by direction and label", _judge_directions),
    "RE3": ("(ours) rank of the score by queries of a sequence", _judge_ranks),
    "RE6": ("(ours) segments by pool, size, picks and codes", _judge_segments),
    "RE8": ("(ours) scans by direction, state and distance", _judge_scans),
    "RE9": ("(ours) plateaus by rate, initial scale, heads and norm", judge_plateaus),
    "RE10": ("(ours) layers of a frozen model, bridges behind it", _judge_frozen),
}

for _id, (_title, _judge) in TITLES.items():
    claim(
        Claim(
            id=_id, source=OWN, title=_title, group=EXPERIMENTS, seeds=3, judge=_judge,
            arms=lambda claim_id=_id: _arms(claim_id),  # type: ignore[misc]
        )
    )  # fmt: skip
