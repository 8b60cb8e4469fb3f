"""RA5: what "99.7 % / 75 % compute savings" are in milliseconds and operations of the whole block."""

from __future__ import annotations

from typing import Any

from turnout.claims.registry import Claim, Finding, Summaries, claim
from turnout.claims.routed_attention import SOURCE


def _bench(device: str) -> dict[str, Any]:
    from turnout.bench.block_cost import measure

    return measure(device)


def _ratio_by_length(rows: list[dict[str, Any]], arm: str, base: str) -> dict[int, float]:
    """ms(base) / ms(arm) by length; above 1 the arm is faster."""
    ms = {(r["arm"], r["length"]): r["ms"] for r in rows}
    lengths = sorted({r["length"] for r in rows})
    return {t: _hybrid(ms, t) / ms[arm, t] if base == "static hybrid" else ms[base, t] / ms[arm, t] for t in lengths}


def _hybrid(ms: dict[tuple[str, int], float], length: int) -> float:
    return (ms["attention", length] + 3 * ms["local", length]) / 4


def _words(ratios: dict[int, float]) -> str:
    return ", ".join(f"{t:,}: {r:.2f}x" for t, r in ratios.items())


def _judge(seen: Summaries) -> list[Finding]:
    findings = []
    for record in seen.get("bench", []):
        for size in sorted({r["size"] for r in record["rows"]}):
            for what in ("forward", "forward+backward"):
                rows = [r for r in record["rows"] if r["size"] == size and r["what"] == what]
                findings.append(_finding(rows, size, what, record["device_name"]))
    return findings


def _finding(rows: list[dict[str, Any]], size: str, what: str, device: str) -> Finding:
    router = "ema" if size == "published" else "linear"
    bases = [a for a in ("attention (flash)", "attention (cuDNN)") if any(r["arm"] == a for r in rows)] or ["attention"]
    detail = []
    for name in ("one gate", "a sixth", "a quarter"):
        for base in bases:
            ratios = _ratio_by_length(rows, f"routed {router}, {name}", base)
            detail.append(f"{name} against {base} {_words(ratios)}")
    one = _ratio_by_length(rows, f"routed {router}, one gate", bases[-1])
    pays = [t for t, r in one.items() if r > 1]
    start = f"pays from T = {min(pays):,}" if pays else "never pays"
    hybrid = _ratio_by_length(rows, f"routed {router}, one gate", "static hybrid")
    flops = {(r["arm"], r["length"]): r["flops"] for r in rows}
    counted = {t: flops["attention", t] / flops[f"routed {router}, one gate", t] for t in one}
    detail.append(f"counted operations, one gate {_words(counted)}")
    return Finding(
        statement=f"compute saved by routing, whole block ({size} size, {router} router, {what}, {device})",
        quoted="99.7 % at 0.3 % usage, 75 % at 25 % (1 - mean gate)",
        measured=f"one gate: {start}; {_words(one)}",
        n=min(r["n"] for r in rows),
        interval="median of n calls; p20 and p80 in the committed rows",
        control=f"one gate against the static 1-of-4 hybrid {_words(hybrid)}",
        verdict="does not hold" if one[min(one)] < 1 or hybrid[min(hybrid)] < 1 else "holds with changes",
        detail="; ".join(detail),
    )


claim(Claim(id="RA5", source=SOURCE, title="99.7 % / 75 % compute savings", judge=_judge, bench=_bench, seeds=1))
