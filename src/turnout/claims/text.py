"""TX1: routing on real text, learned against every control at equal usage.

The text is the folder that the variable TURNOUT_TEXT names (default `data/mixture`): any folder of text files.
"""

from __future__ import annotations

import os
from typing import Any

from turnout.claims.registry import Arm, Claim, Finding, Summaries, claim
from turnout.claims.statistics import mean_interval

USAGE = 0.1667


def _arms() -> list[Arm]:
    def arm(name: str, control: bool = True, **options: Any) -> Arm:
        def config(seed: int) -> Any:
            from turnout.recipes.text import text_gpu

            return text_gpu(os.environ.get("TURNOUT_TEXT", "data/mixture"), seed=seed, **options)

        return Arm(name=name, config=config, control=control)

    return [
        arm("learned", control=False),
        arm("dense", layout="A"),
        arm("dense + local", router="always"),
        arm("local only", layout="L"),
        arm("static hybrid", layout="LLALLL"),
        arm("random", router=f"random:p={USAGE}"),
        arm("frozen", router=f"frozen:usage={USAGE}"),
    ]


def _words(records: list[dict[str, Any]]) -> str:
    mean, half = mean_interval([r["loss"] for r in records])
    usage = [r["usage"] for r in records if r["usage"] is not None]
    return f"{mean:.3f} ± {half:.3f} nats/byte" + (f" at {100 * sum(usage) / len(usage):.1f} %" if usage else "")


def _judge(seen: Summaries) -> list[Finding]:
    if "learned" not in seen:
        return []
    learned = seen["learned"]
    loss, half = mean_interval([r["loss"] for r in learned])
    equal = {name: seen[name] for name in ("static hybrid", "random", "frozen") if name in seen}
    beaten = all(loss < mean_interval([r["loss"] for r in records])[0] for records in equal.values())
    usage = [r["usage"] for r in learned]
    return [
        Finding(
            statement="real text: learned routing at one sixth of the usage beats every control at that usage",
            quoted="language modelling: learned routing hurts (23.83 -> 31.63 perplexity; HRS)",
            measured=_words(learned),
            n=len(learned),
            interval=f"± {half:.3f} nats/byte; usage {min(usage):.4f}-{max(usage):.4f}, asked {1 / 6:.4f}",
            control="; ".join(f"{name} {_words(records)}" for name, records in seen.items() if name != "learned"),
            verdict="holds" if beaten else "does not hold",
        )
    ]


claim(
    Claim(
        id="TX1",
        source="this library",
        title="routing on real text against its controls",
        arms=_arms,
        judge=_judge,
        seeds=3,
    )
)
