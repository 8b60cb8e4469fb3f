"""What finding the evidence costs: time and memory of flow and selector together, by mechanism."""

from __future__ import annotations

from typing import Any

import torch

from turnout.bench.memory import peak_bytes
from turnout.bench.timing import time_interleaved
from turnout.models.testbed import TestBed
from turnout.models.testbed_config import TestBedConfig

LENGTH, WIDTH, BATCH, VOCAB = 512, 128, 8, 256

# Name as in the arms without label -> flow, selector.
MECHANISMS = {
    "raw": ("none", "pairwise"),
    "raw, rank-1": ("none", "rank1"),
    "raw, low rank 4": ("none", "low_rank:rank=4"),
    "raw, low rank 16": ("none", "low_rank:rank=16"),
    "raw, linear attention": ("none", "linear_attention"),
    "raw, contrastive": ("none", "cosine"),
    "raw, memory of 16 slots": ("none", "memory"),
    "raw, loop of 3 rounds": ("none", "loop"),
    "raw, budget of a half": ("none", "budget"),
    "raw, segment mean": ("none", "segment:size=32"),
    "identity match": ("none", "exact"),
    "bloom": ("none", "bloom:size=32"),
    "shift": ("shift", "pairwise"),
    "mean": ("mean", "pairwise"),
    "fourier": ("fourier", "pairwise"),
    "attention": ("attention", "pairwise"),
    "attention causal": ("attention:form=causal", "pairwise"),
    "sparse": ("attention:form=sparse", "pairwise"),
    "perceiver 16": ("perceiver:hubs=16", "pairwise"),
    "perceiver 1": ("perceiver:hubs=1", "pairwise"),
    "ssm causal": ("ssm", "pairwise"),
    "ssm both": ("ssm:form=both", "pairwise"),
    "ssm both, rank-1": ("ssm:form=both", "rank1"),
}


@torch.no_grad()
def measure(device: str, *, seconds: float = 8.0) -> dict[str, Any]:
    """Time scoring one query per sequence against all keys, representations included.

    Args:
        device: "auto", "cpu" (one thread) or "cuda".
        seconds: for all mechanisms together.
    Returns:
        One record: `rows` with name, ms, ms_p20, ms_p80, n, parameter bytes, peak bytes of one call.
    """
    from turnout.train.loop import pick_device
    from turnout.train.manifest import device_name

    where = pick_device(device)
    if where.type == "cpu":
        torch.set_num_threads(1)
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCAB, (BATCH, LENGTH), generator=source).to(where)
    at = torch.full((BATCH, 1), 40, device=where)
    beds = {
        name: TestBed(TestBedConfig(flow=flow, selector=selector, width=WIDTH), vocab=VOCAB, length=LENGTH).to(where)
        for name, (flow, selector) in MECHANISMS.items()
    }

    def call(bed: TestBed) -> Any:
        return lambda: bed.selector(bed.represent(tokens), tokens, at)

    calls = {name: call(bed) for name, bed in beds.items()}
    times = time_interleaved(calls, device=where, seconds=seconds)
    rows = []
    for name, timing in times.items():
        bed = beds[name]
        parts = [bed.flow, bed.norm, bed.selector]
        rows.append({
            "name": name, "ms": timing.ms, "ms_p20": timing.ms_p20, "ms_p80": timing.ms_p80, "n": timing.n,
            "parameter_bytes": sum(4 * p.numel() for part in parts for p in part.parameters()),
            "peak_bytes": peak_bytes(calls[name], where),
        })  # fmt: skip
    return {
        "rows": rows, "length": LENGTH, "width": WIDTH, "batch": BATCH,
        "device": str(where), "device_name": device_name(where),
    }  # fmt: skip
