"""The quoted numbers of arXiv 2603.20997 v2, one row each, with the arms that measure them again."""

from __future__ import annotations

import os
from typing import Any

from turnout.recipes.routing_paradox import (
    BRIEF,
    FULL,
    SEGMENT,
    UNTRAINED,
    BedArm,
    PaperRow,
    both,
    frozen_arms,
)

FROZEN = os.environ.get("TURNOUT_FROZEN", "")
# Four layers and no router: the head answers from the query's own row.
PLAIN: dict[str, Any] = {
    "flow": "attention:layers=4", "selector": "none", "label": "value", "scales": (FULL,), "full": BRIEF,
}  # fmt: skip
NEAR = {"min_distance": 4, "max_distance": 20}
FRESH = BRIEF | {"train_sequences": 0}
RANK_ONE = BedArm(name="raw, rank-1, key", selector="rank1", control=True, full=BRIEF)
NO_POSITIONS: dict[str, Any] = {"model": {"positions": "none"}, "full": BRIEF, "control": True}

ROWS = (
    PaperRow(
        claim="RP1",
        statement="raw embeddings → pairwise router stays at chance",
        quoted="1.2 % [1.6]",
        published=0.012,
        arms=(
            *both("raw"),
            BedArm(name="raw, key, filler may repeat", task={"filler": "may_repeat"}),
            BedArm(name="raw, key, no positions", model={"positions": "none"}),
            BedArm(name="raw, value, no positions", label="value", model={"positions": "none"}),
            BedArm(name="raw, key, N(0,1) embeddings", model={"init_std": 1.0}),
            BedArm(name="raw, key, 1 head", selector="pairwise:heads=1", scales=(FULL,), full=BRIEF),
            BedArm(name="raw, key, 16 heads", selector="pairwise:heads=16", scales=(FULL,), full=BRIEF),
            BedArm(name="raw, key, no norm", model={"norm": False}, scales=(FULL,), full=BRIEF),
        ),
    ),
    PaperRow(
        claim="RP2",
        statement="unidirectional selective SSM, 2 layers → pairwise stays at chance",
        quoted="2.2 % [1.6]",
        published=0.022,
        arms=both("ssm causal", flow="ssm"),
    ),
    PaperRow(
        claim="RP3",
        statement="segments of 1/16 of the sequence stay at chance",
        quoted="23.8 %, 25.6 % [25]",
        published=0.238,
        arms=(
            BedArm(name="raw, segment mean", selector=f"{SEGMENT}", full=BRIEF),
            BedArm(name="raw, segment max", selector=f"{SEGMENT},pool=max", full=BRIEF),
            BedArm(name="raw, segment decay", selector=f"{SEGMENT},pool=decay", full=BRIEF),
            BedArm(name="ssm causal, segment mean", flow="ssm", selector=SEGMENT, scales=(FULL,), full=BRIEF),
            BedArm(name="ssm both, segment mean", flow="ssm:form=both", selector=SEGMENT, scales=(FULL,), full=BRIEF),
            BedArm(
                name="untrained random codes, segment mean",
                selector=f"{SEGMENT},project=false",
                model={"init_std": 1.0, "positions": "none"},
                run=UNTRAINED,
                control=True,
            ),
            BedArm(name="identity match, segments", selector="bloom:size={segment}", run=UNTRAINED, control=True),
            BedArm(
                name="position only, segments",
                selector="position:size={segment}",
                run={"lrs": (1e-2, 1e-1)},
                full={"steps": 1000},
                control=True,
            ),
        ),
        note="an untrained sum of random codes is the control that the study lacks",
    ),
    PaperRow(
        claim="RP4",
        statement="linear-attention scores fail",
        quoted="28.7 % [25 or 1.6]",
        published=0.287,
        arms=both("raw, linear attention", selector="linear_attention"),
    ),
    PaperRow(
        claim="RP5",
        statement="global mean before the router stays at chance",
        quoted="1.9 % [1.6]",
        published=0.019,
        arms=(*both("mean", flow="mean"), BedArm(name="mean without residual, key", flow="mean:residual=false")),
    ),
    PaperRow(
        claim="RP5",
        statement="Fourier mixing before the router stays at chance",
        quoted="0.9 % [1.6]",
        published=0.009,
        arms=(
            *both("fourier", flow="fourier"),
            BedArm(name="fourier without residual, key", flow="fourier:residual=false"),
        ),
    ),
    PaperRow(
        claim="RP6",
        statement="one bidirectional attention layer → pairwise routes",
        quoted="98.4 ± 0.3 % [1.6]",
        published=0.984,
        arms=(
            *both("attention", flow="attention"),
            BedArm(
                name="attention, value, fresh data",
                flow="attention",
                label="value",
                run={"train_sequences": 0},
                quick=False,
            ),
            BedArm(
                name="attention, value, fresh data, 16 queries",
                flow="attention",
                label="value",
                task={"queries": 16},
                run={"train_sequences": 0},
                scales=(FULL,),
            ),
        ),
    ),
    PaperRow(
        claim="RP6",
        statement="one causal attention layer → pairwise routes",
        quoted="99.2 % / 98.9 % [1.6]",
        published=0.992,
        arms=both("attention causal", flow="attention:form=causal"),
    ),
    PaperRow(
        claim="RP6",
        statement="2 layers give no improvement over 1",
        quoted="99.1 % [1.6]",
        published=0.991,
        arms=both("attention 2 layers", flow="attention:layers=2", full=BRIEF, quick=False),
    ),
    PaperRow(
        claim="RP7",
        statement="(ours) a causal convolution of width 2 before the pairwise router is enough",
        quoted="(ours; one attention layer 98.4 % [1.6])",
        published=0.984,
        arms=(
            *both("shift", flow="shift"),
            *both("shift, then attention", flow="attention:taps=2", full=BRIEF, quick=False),
            # Embeddings of 0.02 drown in what a block of attention writes.
            BedArm(
                name="shift, then attention, value, N(0,1) embeddings",
                flow="attention:taps=2",
                label="value",
                full=BRIEF,
                model={"init_std": 1.0},
                quick=False,
            ),
            BedArm(
                name="attention, value, N(0,1) embeddings",
                flow="attention",
                label="value",
                full=BRIEF,
                model={"init_std": 1.0},
                quick=False,
                control=True,
            ),
            BedArm(name="shift of 4 taps, value", flow="shift:taps=4", label="value"),
            BedArm(name="shift split by halves, value", flow="shift:split=true", label="value"),
            BedArm(name="shift, value, filler may repeat", flow="shift", label="value", task={"filler": "may_repeat"}),
            BedArm(name="width 1, value", flow="shift:taps=1", label="value", control=True),
            BedArm(name="shift ahead, value", flow="shift:ahead=true", label="value", control=True),
            BedArm(
                name="attention reading only its predecessor, value", flow="attention:ablate=previous", label="value"
            ),
            BedArm(
                name="attention without values, value", flow="attention:ablate=no_value", label="value", control=True
            ),
        ),
    ),
    PaperRow(
        claim="RP8",
        statement="sparse attention (window and 16 global tokens) → pairwise routes",
        quoted="99.7 % [1.6]",
        published=0.997,
        arms=(
            BedArm(name="sparse, key", flow="attention:form=sparse"),
            BedArm(name="sparse, value", flow="attention:form=sparse", label="value", full=BRIEF),
            BedArm(
                name="sparse without globals, value",
                flow="attention:form=sparse,globals=0",
                label="value",
                full=BRIEF,
                quick=False,
                control=True,
            ),
        ),
        note="window 32 and 16 globals at both lengths",
    ),
    PaperRow(
        claim="RP9",
        statement="bidirectional selective SSM → pairwise routes",
        quoted="99.5 % [1.6]",
        published=0.995,
        arms=(
            BedArm(name="ssm both, key", flow="ssm:form=both", scales=(FULL,), full=BRIEF),
            BedArm(name="ssm both, value", flow="ssm:form=both", label="value", full=BRIEF, quick=False),
        ),
    ),
    PaperRow(
        claim="RP10",
        statement="bidirectional SSM → rank-1 router routes",
        quoted="99.7 % [1.6]",
        published=0.997,
        arms=(
            BedArm(
                name="ssm both, rank-1, key",
                flow="ssm:form=both",
                selector="rank1",
                scales=(FULL,),
                full=BRIEF,
            ),
            BedArm(
                name="ssm both, rank-1, value",
                flow="ssm:form=both",
                selector="rank1",
                label="value",
                full=BRIEF,
                quick=False,
            ),
            BedArm(
                name="ssm both, rank-1 without query, key",
                flow="ssm:form=both",
                selector="rank1:query=none",
                scales=(FULL,),
                full=BRIEF,
                control=True,
            ),
            BedArm(
                name="ssm both, rank-1, key, 4 queries",
                flow="ssm:form=both",
                selector="rank1",
                task={"queries": 4},
                scales=(FULL,),
                full=BRIEF,
            ),
        ),
    ),
    PaperRow(
        claim="RP10",
        statement="(ours) on raw embeddings rank 4 and 16 route where rank 1 cannot",
        quoted="(ours; rank 1 behind a bidirectional SSM 99.7 % [1.6])",
        published=0.997,
        arms=(
            BedArm(name="raw, low rank 4, key", selector="low_rank:rank=4", full=BRIEF),
            BedArm(name="raw, low rank 16, key", selector="low_rank:rank=16", full=BRIEF),
            BedArm(name="raw, pairwise, key, 4 queries", task={"queries": 4}, full=BRIEF),
            RANK_ONE,
        ),
    ),
    PaperRow(
        claim="RP10",
        statement="(ours) rank 1 finds as much without its query, with a random sign, with another sequence's query",
        quoted="(ours; for one query the order of the keys is one order or its reverse)",
        published=None,
        like=RANK_ONE.name,
        arms=(
            RANK_ONE,
            *(
                BedArm(name=f"raw, rank-1 {name}, key", selector=f"rank1:query={query}", full=BRIEF)
                for name, query in (("without query", "none"), ("random sign", "sign"), ("shuffled query", "shuffled"))
            ),
            BedArm(name="raw, rank-1, key, no positions", selector="rank1", **NO_POSITIONS),
            BedArm(name="raw, rank-1 without query, key, no positions", selector="rank1:query=none", **NO_POSITIONS),
            BedArm(name="raw, low rank 2, key", selector="low_rank:rank=2", full=BRIEF, control=True),
        ),
    ),
    PaperRow(
        claim="RP11",
        statement="Perceiver with 16 hubs → pairwise routes",
        quoted="99.5 % [1.6]",
        published=0.995,
        arms=both("perceiver 16", flow="perceiver:hubs=16"),
    ),
    PaperRow(
        claim="RP11",
        statement="Perceiver with 1 hub → pairwise routes",
        quoted="98.8 % [1.6]",
        published=0.988,
        arms=both("perceiver 1", flow="perceiver:hubs=1"),
    ),
    PaperRow(
        claim="RP12",
        statement="frozen Pythia-1B, Mamba-370M, Mamba-1.4B → pairwise",
        quoted="35.0 / 22.5 / 28.7 % [1.6]",
        published=None,
        arms=(
            BedArm(
                name="frozen random attention, 4 layers, key",
                flow="attention:form=causal,layers=4",
                run={"freeze_flow": True},
                full=BRIEF,
                model={"init_std": 1.0},
                scales=(FULL,),
                control=True,
            ),
            BedArm(
                name="frozen random embeddings, key", run={"freeze_flow": True}, model={"init_std": 1.0}, control=True
            ),
            *frozen_arms(FROZEN),
        ),
        note="no published weights are reachable here: the frozen model is a dense one of ours on bytes (`turnout "
        "train text_gpu --model.layout A`, `turnout export`, TURNOUT_FROZEN=folder); any folder of Hugging Face can "
        "take its place; the untrained twin is the control the study lacks; label value is of a second training, "
        "whose layers RE10 has",
    ),
    PaperRow(
        claim="RP12",
        statement="frozen Pythia-1B → one trainable attention layer → pairwise routes",
        quoted="99.4 % [1.6]",
        published=None,
        arms=(*frozen_arms(FROZEN, "attention"), *frozen_arms(FROZEN, "shift")),
        note="our own frozen byte model, as in the row above",
    ),
    PaperRow(
        claim="RP12",
        statement="a plain Transformer of 4 layers answers when the evidence is near",
        quoted="100 % [1.6]",
        published=1.0,
        arms=(
            BedArm(name="plain, 4 layers, near", task=NEAR, **PLAIN),
            BedArm(name="plain, 4 layers, near, fresh data", task=NEAR, **(PLAIN | {"full": FRESH})),
        ),
        metric="accuracy",
        note="no selector; bidirectional, positions learned; near is 4 to 20 tokens away",
    ),
    PaperRow(
        claim="RP12",
        statement="a plain Transformer of 4 layers does not answer when the evidence is far",
        quoted="1.9 % [1.6]",
        published=0.019,
        arms=(
            BedArm(name="plain, 4 layers, far", **PLAIN),
            BedArm(name="plain, 4 layers, far, fresh data", **(PLAIN | {"full": FRESH})),
        ),
        metric="accuracy",
        note="as the row above, at 200 tokens or more",
    ),
    PaperRow(
        claim="RP14",
        statement="InfoNCE-trained similarity stays at chance",
        quoted="1.6 % frozen, 2.2 % tuned [1.6]",
        published=0.016,
        arms=both("raw, contrastive", selector="cosine", full=BRIEF),
        note="in-sequence negatives, temperature 0.07: the loss is the cross entropy of cosine scores",
    ),
    PaperRow(
        claim="RP14",
        statement="semantic matching, the evidence key being related to the query's and not equal",
        quoted="0.6 to 11 % [1.6]",
        published=None,
        arms=(
            BedArm(name="raw, related, key", task={"match": "related"}, full=BRIEF),
            BedArm(name="shift, related, value", flow="shift", label="value", task={"match": "related"}, full=BRIEF),
        ),
        note="the relation was never defined: ours is one fixed map of ids, which a bilinear form can hold",
    ),
    PaperRow(
        claim="RP16",
        statement="memory bank fails",
        quoted="12 % [unit unknown]",
        published=None,
        arms=both("raw, memory of 16 slots", selector="memory"),
        note="never described: our definition",
    ),
    PaperRow(
        claim="RP16",
        statement="decision-optimal loop, 3 rounds, stays at chance",
        quoted="1.7 % [1.6]",
        published=0.017,
        arms=both("raw, loop of 3 rounds", selector="loop:rounds=3"),
    ),
    PaperRow(
        claim="RP16",
        statement="a budget of 50 % routes, but oscillates",
        quoted='91.2 %, "between 0 % and 90 %+" [1.6]',
        published=0.912,
        arms=(
            BedArm(name="raw, budget of a half, key", selector="budget:spend=0.5", full=BRIEF),
            BedArm(
                name="raw, budget of a half, value",
                selector="budget:spend=0.5",
                label="value",
                scales=(FULL,),
                full=BRIEF,
            ),
            BedArm(
                name="raw, fixed budget of a half, key",
                selector="budget:spend=0.5,adaptive=false",
                full=BRIEF,
                control=True,
            ),
        ),
        note="a controller in prose only: our definition, a query reads the more the less it knows",
    ),
    PaperRow(
        claim="RP16",
        statement="a budget of 25 % collapses to chance",
        quoted="1.6 % [1.6]",
        published=0.016,
        arms=(
            BedArm(name="raw, budget of a quarter, key", selector="budget:spend=0.25", full=BRIEF),
            BedArm(
                name="raw, budget of a quarter, value",
                selector="budget:spend=0.25",
                label="value",
                scales=(FULL,),
                full=BRIEF,
            ),
            BedArm(
                name="raw, fixed budget of a quarter, key",
                selector="budget:spend=0.25,adaptive=false",
                full=BRIEF,
                control=True,
            ),
        ),
        note="as the row above",
    ),
    PaperRow(
        claim="RP16",
        statement="(ours) soft clusters, 32 centroids, route raw embeddings",
        quoted="(ours; no clustered router was tried)",
        published=0.99,
        arms=(BedArm(name="raw, centroids, key", selector="centroid"),),
    ),
    PaperRow(
        claim="RP17",
        statement="Bloom filter, not learned, routes to segments",
        quoted="90.9 % [25 or 1.6]",
        published=0.909,
        arms=(
            BedArm(name="bloom", selector="bloom:size={segment}", run=UNTRAINED),
            BedArm(
                name="bloom, filler may repeat",
                selector="bloom:size={segment}",
                task={"filler": "may_repeat"},
                run=UNTRAINED,
            ),
            BedArm(name="bm25 over segments", selector="bm25:size={segment}", run=UNTRAINED),
            BedArm(
                name="bm25 over segments, filler may repeat",
                selector="bm25:size={segment}",
                task={"filler": "may_repeat"},
                run=UNTRAINED,
            ),
        ),
    ),
    PaperRow(
        claim="RP19",
        statement="trailing MQAR: raw embeddings stay at chance",
        quoted="25.6 % [25]",
        published=0.256,
        arms=both("mqar raw", mqar=True),
    ),
    PaperRow(
        claim="RP19",
        statement="trailing MQAR: selective SSM, 2 layers, stays at chance",
        quoted="24.2 % [25]",
        published=0.242,
        arms=(BedArm(name="mqar ssm causal, key", flow="ssm", mqar=True),),
    ),
    PaperRow(
        claim="RP19",
        statement="trailing MQAR: one attention layer routes",
        quoted="100 % [25]",
        published=1.0,
        arms=(
            *both("mqar attention", flow="attention", mqar=True),
            BedArm(name="mqar shift, value", flow="shift", label="value", mqar=True, control=True),
            BedArm(name="mqar identity match, key", selector="exact", mqar=True, run=UNTRAINED, control=True),
            BedArm(
                name="mqar position only, key", selector="position", mqar=True, run={"lrs": (1e-2, 1e-1)}, control=True
            ),
        ),
    ),
)
