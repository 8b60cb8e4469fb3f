"""Our own experiments on the routing test bed, as grids at the published size (T = 512, width 128).

`turnout reproduce routing-experiments` runs them all (RE1 to RE10: a quarter of an hour of one H200), `turnout
reproduce RE6` one; the study's own table (`turnout reproduce routing-paradox`) has none of them. Their routers train
alone, without the council: what is measured is where they look. Frozen models (RE10) run where TURNOUT_FROZEN names a
folder.
"""

from __future__ import annotations

import os
from itertools import product
from typing import Any

from turnout.recipes.routing_ladder import ONE
from turnout.recipes.routing_paradox import FULL, SMALL, UNTRAINED, BedArm, PaperRow

FROZEN = os.environ.get("TURNOUT_FROZEN", "")
FLOWS = {
    "raw": "none", "shift": "shift", "attention causal": "attention:form=causal", "attention": "attention",
    "ssm causal": "ssm", "ssm both": "ssm:form=both",
}  # fmt: skip
LABELS, DIRECTIONS = ("key", "value"), ("after", "before", "either")
RANKS, QUERIES = (1, 2, 4, 8, 16, 32, 64, 128), (1, 16)
POOLS, SIZES, TOPS = ("mean", "max", "decay"), (16, 32, 64), (1, 2, 4)
STATES, NEAREST = (4, 16, 64), 50
STDS, HEADS, PLATEAU_RATES = (0.02, 1.0), (1, 4, 16), (3e-4, 1e-3, 3e-3)
# Scans are dear: one rate at which they route, and the steps they need at it.
SCAN: dict[str, Any] = {"steps": 800, "lrs": (3e-3,)}
# Codes that are random and of one length, as the untrained control has them.
CODES: dict[str, Any] = {"expand": 0, "positions": "none", "init_std": 1.0}


def _arm(name: str, run: dict[str, Any] | None = None, **options: Any) -> BedArm:
    """At the published size, the router alone; `run` changes 1,500 steps at two rates."""
    usual = {"answer": False, "steps": 1500, "lrs": (1e-3, 3e-3), "evaluations": 15}
    return BedArm(name=name, scales=(FULL,), full=usual | (run or {}), **options)


def _directions() -> tuple[BedArm, ...]:
    """E1: where the answer lies; `after` is in the study's own table."""
    arms = []
    for direction, label in product(DIRECTIONS[1:], LABELS):
        task = {"direction": direction}
        for name, flow in FLOWS.items():
            run = SCAN if name.startswith("ssm") else {"steps": 1000} if "attention" in name else {}
            if (name, direction) == ("attention causal", "either"):
                # Half of the answers lie ahead: they are learned late, one seed of three not in 1,000 steps.
                run = {"steps": 2500, "lrs": (1e-3,)}
            arms.append(_arm(f"{name}, {direction}, {label}", run, flow=flow, label=label, task=task))
        prior = {"steps": 1000, "lrs": (1e-2,)}
        name = f"position only, {direction}, {label}"
        arms.append(_arm(name, prior, selector="position", label=label, task=task, control=True))
    return tuple(arms)


def _ranks() -> tuple[BedArm, ...]:
    """E3: rank of the score by queries of a sequence."""
    forms = {f"rank {rank}": f"low_rank:rank={rank}" for rank in RANKS} | {"pairwise": "pairwise"}
    told = {1: "1 query", 16: "16 queries"}
    arms = [_arm(f"{name}, {told[q]}", selector=s, task={"queries": q}) for q in QUERIES for name, s in forms.items()]
    one = {"one vector": "rank1", "one vector, without query": "rank1:query=none"}
    return *arms, *(_arm(f"{name}, 16 queries", selector=s, task={"queries": 16}) for name, s in one.items())


def _segments() -> tuple[BedArm, ...]:
    """E6: pool, size and codes of segments; "trained" codes are the random ones, trained; "projected" adds W_q and W_k.

    The numbers of picks are read off one run.
    """
    arms = []
    for pool, size in product(POOLS, SIZES):
        spec, tops = f"segment:size={size},pool={pool}", {"tops": TOPS}
        # A fixed set of 8,000 is learned by heart.
        fresh: dict[str, Any] = tops | {"steps": 2500, "train_sequences": 0}
        run: dict[str, Any] = fresh | {"lrs": (1e-2, 3e-2)}
        arms.append(_arm(f"{pool} of {size}, trained", run, selector=f"{spec},project=false", model=CODES))
        run = fresh | {"lrs": (1e-2,)}
        arms.append(_arm(f"{pool} of {size}, projected", run, selector=spec, model=CODES))
        told, spec = f"{pool} of {size}, random", f"{spec},project=false"
        arms.append(_arm(told, UNTRAINED | tops, selector=spec, model=CODES, control=True))
    return *arms, *(
        _arm(f"Bloom filter of {size}", UNTRAINED | {"tops": TOPS}, selector=f"bloom:size={size}", model=CODES)
        for size in SIZES
    )


def _scans() -> tuple[BedArm, ...]:
    """E8: direction, state and distance; distances are bands of one run's held-out sequences."""
    arms = []
    for direction, label in product(DIRECTIONS[:2], LABELS):
        task, told = {"direction": direction, "min_distance": NEAREST}, f"{direction}, {label}"
        prior: dict[str, Any] = {"steps": 1000, "lrs": (1e-2,), "band": 100}
        arms.append(_arm(f"position only, {told}", prior, selector="position", label=label, task=task, control=True))
        causal = FLOWS["attention causal"]
        run: dict[str, Any] = {"steps": 1000, "lrs": (1e-3,), "band": 100}
        arms.append(_arm(f"attention causal, {told}", run, flow=causal, label=label, task=task))
        for form, state in product(("causal", "both"), STATES):
            flow = f"ssm:form={form},state={state}"
            name = f"ssm {form}, state of {state}, {told}"
            arms.append(_arm(name, SCAN | {"band": 100}, flow=flow, label=label, task=task))
    return tuple(arms)


def _plateaus() -> tuple[BedArm, ...]:
    """E9: what sets how long nothing is learned; a point of the curve every 25 steps."""
    arms = []
    run = {"lrs": PLATEAU_RATES, "evaluations": 60}
    for (name, label), std in product((("raw", "key"), ("shift", "value")), STDS):
        for heads, norm in (*((h, True) for h in HEADS), (4, False)):
            told = f"{name}, {label}, std {std:g}, heads {heads}{'' if norm else ', no norm'}"
            model = {"init_std": std, "norm": norm}
            selector = f"pairwise:heads={heads}"
            arms.append(_arm(told, run, flow=FLOWS[name], label=label, selector=selector, model=model))
    return tuple(arms)


LAYERS = range(5)
BRIDGES = {"attention": "attention", "shift": "shift", "MLP": "attention:ablate=no_value"}


def _frozen() -> tuple[BedArm, ...]:
    """E10: every layer of a frozen model of four blocks, of its untrained twin, and bridges behind the last; T = 64."""

    def arm(name: str, layer: int, twin: bool, flow: str = "none", label: str = "key") -> BedArm:
        model = {"frozen": FROZEN or "frozen", "positions": "none", "frozen_layer": layer, "frozen_twin": twin}
        run = {"evaluations": 15}
        return BedArm(
            name=name, flow=flow, label=label, model=model, run=run, scales=(SMALL,), control=twin, quick=False,
            by_name=not FROZEN,
        )  # fmt: skip

    own = {False: "frozen model", True: "untrained twin"}
    layers = (arm(f"{own[twin]}, layer {n}", n, twin) for twin in own for n in LAYERS)
    bridges = (
        arm(f"{own[twin]}, {name} bridge, {label}", LAYERS[-1], twin, flow, label)
        for twin in own
        for name, flow in BRIDGES.items()
        for label in LABELS
    )
    return *layers, *bridges


GRIDS: dict[str, tuple[BedArm, ...]] = {
    "RE1": _directions(), "RE3": _ranks(), "RE6": _segments(), "RE8": _scans(), "RE9": _plateaus(), "RE10": _frozen(),
}  # fmt: skip


# A frozen convolution that carries the token beside the eight before it, and codes that are compared as they are.
TAPS: dict[str, Any] = {"flow": "shift:taps=9,split=true", "selector": "cosine:project=false"}


def _rung(match: str, name: str, run: dict[str, Any] | None = None, **options: Any) -> BedArm:
    """One rung; decoys share half of a key, so a query picks one position and no neighbour."""
    model = ONE | options.pop("model", {})
    task = {"match": match, "distractors": 0} | options.pop("task", {})
    return _arm(f"{match.replace('_', ' ')}, {name}", run, model=model, task=task, **options)


def _gap(width: int, run: dict[str, Any], told: str) -> BedArm:
    model = {"width": width, "positions": "none", "init_std": 1.0}
    return _rung("gap", f"frozen taps, {told} codes of {width}", run, model=model, **TAPS)


def _hops(name: str, flow: str, run: dict[str, Any], **task: Any) -> BedArm:
    """Two hops, sixteen labelled rows a sequence, fresh data."""
    task = {"queries": 16} | task
    control = "shift" not in name
    return _rung("two_hop", name, {"train_sequences": 0} | run, flow=flow, task=task, control=control)


def _rows(name: str, flow: str, queries: int, *, control: bool = False, placement: str = "contiguous") -> BedArm:
    """Trailing MQAR under label value; "contiguous" pairs are at the same positions of every sequence."""
    run = {"steps": 2500, "lrs": (1e-3, 3e-3)}
    told = f"mqar {name}, value, {queries} queries"
    task = {"queries": queries, "placement": placement}
    return _arm(told, run, flow=flow, label="value", mqar=True, task=task, control=control)


RUNGS = (
    PaperRow(
        claim="RE7",
        statement="(ours) keys of two adjacent tokens need a shift and nothing more",
        quoted="(ours; raw embeddings see one half, two candidates: 50 %)",
        published=0.99,
        arms=(_rung("two_token", "shift", flow="shift"), _rung("two_token", "raw", control=True)),
    ),
    PaperRow(
        claim="RE7",
        statement="(ours) keys whose halves lie 3 to 8 apart need a convolution over them, and width",
        quoted="(ours; one half: 50 %)",
        published=0.99,
        arms=(
            _gap(128, UNTRAINED, "random"),
            _gap(512, UNTRAINED, "random"),
            _gap(1024, UNTRAINED, "random"),
            _gap(128, {"steps": 1000, "lrs": (3e-3,)}, "trained"),
            _gap(512, {"steps": 1000, "lrs": (3e-3,)}, "trained"),
            _gap(1024, {"steps": 1000, "lrs": (3e-3,)}, "trained"),
            _rung("gap", "convolution of 9 taps", flow="shift:taps=9", control=True),
            _rung("gap", "shift", flow="shift", control=True),
            _rung("gap", "attention", flow="attention", control=True),
        ),
        note="frozen taps: half of the channels carry the token, half the sum of the eight before it",
    ),
    PaperRow(
        claim="RE7",
        statement="(ours) two hops need a shift and an attention layer before the router, and many labelled rows",
        quoted="(ours)",
        published=0.99,
        arms=(
            _hops("shift and attention, 16 queries", "attention:taps=2", {"steps": 4000}),
            _hops("two attention layers, 16 queries", "attention:layers=2", {"steps": 4000, "lrs": (1e-3,)}),
            *(
                _hops(
                    f"shift and attention, 16 queries in {length} tokens",
                    "attention:taps=2",
                    {"steps": 6000, "lrs": (3e-3,)},
                    length=length,
                    min_distance=least,
                )
                for length, least in ((128, 16), (256, 100))
            ),
        ),
        note="fresh data, 4,000 steps, 6,000 of the shorter sequences; RPL has 64 tokens and the controls",
    ),
    PaperRow(
        claim="RE7",
        statement="(ours) with 16 labelled rows a sequence one attention layer finds the value in trailing MQAR",
        quoted="(ours; with one row 25.7 % [25])",
        published=0.99,
        arms=(
            _rows("attention", "attention", 16),
            _rows("attention causal", "attention:form=causal", 16),
            _rows("attention", "attention", 4, control=True),
            _rows("attention, scattered pairs", "attention", 16, control=True, placement="scattered"),
            _rows("shift, scattered pairs", "shift", 16, control=True, placement="scattered"),
            _rows("ssm causal", "ssm", 16, control=True),
            _rows("raw", "none", 16, control=True),
        ),
        note="four picks among 16 values: 25 %",
    ),
)
