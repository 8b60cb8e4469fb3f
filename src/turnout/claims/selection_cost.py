"""RPC: what each content-routing mechanism costs in milliseconds; the study reports no wall-clock time."""

from __future__ import annotations

from typing import Any

from turnout.claims.registry import Claim, Finding, Summaries, claim
from turnout.claims.routing_paradox import GROUP, SOURCE


def _bench(device: str) -> dict[str, Any]:
    from turnout.bench.selection_cost import measure

    return measure(device)


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for record in seen.get("bench", []):
        ms = {row["name"]: row["ms"] for row in record["rows"]}
        peak = [f"{row['name']} {row['peak_bytes'] / 1e6:.2f}" for row in record["rows"] if row["peak_bytes"]]
        order = sorted(ms, key=lambda name: ms[name])
        findings.append(
            Finding(
                statement=f"O(n) preprocessing is cheaper than one attention layer (T = {record['length']}, "
                f"{record['device_name']})",
                quoted="no wall-clock time given",
                measured="ms: " + ", ".join(f"{name} {ms[name]:.2f}" for name in order),
                n=min(row["n"] for row in record["rows"]),
                interval="median of n calls; p20 and p80 in the committed rows",
                control=f"one attention layer {ms['attention']:.2f} ms, token shift {ms['shift']:.2f} ms",
                verdict="holds"
                if max(ms["perceiver 16"], ms["ssm both"], ms["mean"]) < ms["attention"]
                else "holds with changes"
                if min(ms["perceiver 16"], ms["ssm both"], ms["mean"]) < ms["attention"]
                else "does not hold",
                detail=f"width {record['width']}, batch {record['batch']}, float32, plain PyTorch on both sides; "
                "embedding, flow and selector, one query a sequence. Peak beyond weights and inputs, MB: "
                + ", ".join(peak),
            )
        )
    return findings


claim(
    Claim(
        id="RPC", source=SOURCE, title="cost of content routing in milliseconds", group=GROUP,
        judge=_judge, bench=_bench, seeds=1,
    )
)  # fmt: skip
