"""LM1: what routing costs a language model of 124M weights at each usage, beside dense, static, window and random.

The text is what the variable TURNOUT_TEXT names (default `data/corpus`): a folder of text, or one of the token cache.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.stats import mean_interval

SOURCE = "this library"
# 32,768 tokens a step: as many as the corpus has.
STEPS = 610
USAGES = (0.0625, 0.125, 0.25, 0.5)
EVERYWHERE = "dense + local"
# Learned arms: what their names begin with, and what is said of them.
LEARNED = {
    "routed": "",
    "early": ", closing from a tenth of the steps on",
    "even": ", closing from a tenth of the steps on, every layer by itself",
    "alternate": ", a router in every second layer",
}
# Nats a token that a routed model may lose to attention in every slot and still count as equal, interval included.
MARGIN = 0.01
SEEDS = 3
# How much more of its usage another arm may take and still count as no more.
NEAR = 0.05


def text_path() -> str:
    """Where the text is."""
    return os.environ.get("TURNOUT_TEXT", "data/corpus")


def _arms() -> list[Arm]:
    def arm(name: str, kind: str, usage: float = 0.25, control: bool = True) -> Arm:
        def config(seed: int) -> Any:
            from turnout.recipes.lm import lm_run

            return lm_run(text_path(), kind, usage=usage, seed=seed, steps=STEPS)

        return Arm(name=name, config=config, control=control, when="full", after=_numbers)

    return [
        *(arm(f"routed {usage}", "routed", usage, control=False) for usage in USAGES),
        *(arm(f"early {usage}", "early", usage, control=False) for usage in (0.0625, 0.25)),
        *(arm(f"even {usage}", "even", usage, control=False) for usage in USAGES),
        *(arm(f"alternate {usage}", "alternate", usage, control=False) for usage in (0.125, 0.25)),
        arm("dense", "dense"),
        arm(EVERYWHERE, "always"),
        arm("window", "window"),
        *(arm(f"static {usage}", "static", usage) for usage in (0.083, 0.25, 0.5)),
        *(arm(f"random {usage}", "random", usage) for usage in USAGES),
    ]


def _numbers(trainer: Any) -> dict[str, Any]:
    """What a table of language models wants beside the summary: pace, memory, losses by domain."""
    import torch

    tokens = trainer.batch_size() * trainer.task.length
    on_gpu = trainer.device.type == "cuda"
    domains = trainer.last_eval["slices"].get("domain", [])
    return {
        "tokens": tokens * trainer.step_count, "tokens_per_s": 1e3 * tokens / trainer.last_ms,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "domains": {row["value"]: row["loss"] for row in domains},
        "bytes_per_token": trainer.task.bytes_per_token,
    }  # fmt: skip


def spread(mean: float, half: float, number: str = ".3f") -> str:
    """A mean with its interval, which one seed does not have."""
    return f"{mean:{number}}" + (f" ± {half:{number.strip('+')}}" if math.isfinite(half) else "")


def _words(records: Sequence[dict[str, Any]]) -> str:
    found = spread(*mean_interval([r["loss"] for r in records]))
    routed = any(r["usage"] is not None for r in records)
    return found + (f" at {100 * usage_of(records):.1f} %" if routed else "")


def _gap(control: Sequence[dict[str, Any]], learned: Sequence[dict[str, Any]]) -> tuple[float, float, int]:
    """How much lower the learned loss is at the same seeds (the same order of data), half its interval, and seeds."""
    by_seed = {r["seed"]: r["loss"] for r in control}
    gaps = [by_seed[r["seed"]] - r["loss"] for r in learned if r["seed"] in by_seed]
    return (*(mean_interval(gaps) if gaps else (0.0, float("inf"))), len(gaps))


def _judge(seen: Summaries) -> list[Finding]:
    found = _front(seen)
    for kind, words in LEARNED.items():
        for usage in USAGES:
            learned = seen.get(f"{kind} {usage}", [])
            equal = {name: seen[name] for name in (f"static {usage}", f"random {usage}") if name in seen}
            if learned and equal:
                found.append(_beside(seen, f"usage {100 * usage:g} %{words}", learned, equal))
            if learned and EVERYWHERE in seen and kind == "routed":
                found.append(_price(seen, usage, learned))
    return found


def usage_of(records: Sequence[dict[str, Any]]) -> float:
    """Share of the (token, layer) slots that attend to everything; a layer without a router is all or nothing."""
    layout = records[0]["layout"]
    # What is measured is the share in layers with a router.
    measured = [r["usage"] for r in records if r["usage"] is not None]
    routed = layout.count("R") * sum(measured) / len(measured) if measured else 0.0
    return (layout.count("A") + routed) / len(layout)


def _front(seen: Summaries) -> list[Finding]:
    """Whether a learned arm is on the Pareto front: whatever attends as little or less has a higher mean loss."""
    arms = {name: records for name, records in seen.items() if len(records) >= SEEDS}
    learned = [name for name in arms if name.split()[0] in LEARNED]
    if not learned or len(arms) == len(learned):
        return []
    usage = {name: usage_of(records) for name, records in arms.items()}
    loss = {name: mean_interval([r["loss"] for r in records])[0] for name, records in arms.items()}
    front = [
        name
        for name in sorted(arms, key=usage.__getitem__)
        # A budget is met to a few per cent of itself: that much less is not less.
        if all(loss[name] <= loss[other] for other in arms if usage[other] <= (1 + NEAR) * usage[name])
    ]
    few = [f"{name} {_words(records)}" for name, records in seen.items() if name not in arms]
    return [
        Finding(
            statement="124M weights, 20M tokens: a learned arm is on the Pareto front of usage and loss",
            quoted="(ours) which loses how much at which usage",
            measured="on it: " + ", ".join(front),
            n=min(len(records) for records in arms.values()),
            interval="means of the seeds",
            control="; ".join(f"{name} {_words(records)}" for name, records in arms.items()),
            verdict="holds" if set(front) & set(learned) else "does not hold",
            detail=f"fewer seeds, not counted: {', '.join(few)}" if few else "",
        )
    ]


def _beside(
    seen: Summaries, what: str, learned: list[dict[str, Any]], equal: dict[str, list[dict[str, Any]]]
) -> Finding:
    gaps = {name: _gap(records, learned) for name, records in equal.items()}
    verdict = "does not hold"
    if all(gap > half for gap, half, _ in gaps.values()):
        verdict = "holds"
    return Finding(
        statement=f"124M weights, 20M tokens, {what}: learned routing beats "
        + " and ".join(name.split()[0] for name in equal),
        quoted="learned routing hurts language models (23.83 -> 31.63 perplexity; HRS)",
        measured=f"{_words(learned)} nats/token",
        n=min(n for _, _, n in gaps.values()),
        interval=spread(*mean_interval([r["loss"] for r in learned])) + " nats/token",
        control="; ".join(
            f"{name} {_words(records)}" for name, records in seen.items() if name.split()[0] not in LEARNED
        ),
        verdict=verdict,
        detail="; ".join(f"{spread(gap, half, '+.4f')} against {name}" for name, (gap, half, _) in gaps.items()),
    )


def _price(seen: Summaries, usage: float, learned: list[dict[str, Any]]) -> Finding:
    gap, half, n = _gap(seen[EVERYWHERE], learned)
    dense, dense_half, _ = _gap(seen.get("dense", []), learned)
    # Some seeds shared their GPU with other work; the fastest of them did so least.
    pace = {name: max(r["tokens_per_s"] for r in records) for name, records in seen.items()}
    return Finding(
        statement=f"124M weights, 20M tokens: routed at {100 * usage:g} % loses less than {MARGIN} nats to every slot",
        quoted="(ours) the Pareto curve of loss against usage",
        measured=f"{spread(-gap, half, '+.4f')} nats/token beside {_words(seen[EVERYWHERE])}",
        n=n,
        interval="t interval of the differences by seed" if math.isfinite(half) else "one seed has none",
        control=f"dense without a convolution {_words(seen['dense'])}, {spread(-dense, dense_half, '+.4f')} against it"
        if "dense" in seen
        else "",
        verdict="holds" if gap - half > -MARGIN else "does not hold",
        detail="training tokens/s: " + ", ".join(f"{name} {value:,.0f}" for name, value in pace.items()),
    )


claim(
    Claim(
        id="LM1", source=SOURCE, title="a language model of 124M weights: loss against usage", arms=_arms,
        judge=_judge, seeds=SEEDS,
    )
)  # fmt: skip
