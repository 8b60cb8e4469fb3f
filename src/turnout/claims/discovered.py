"""The pattern that the searches of TH5 found, and the uniform one that it is held against: arms of other claims."""

from __future__ import annotations

from typing import Any

from turnout.claims.store import summaries

# Searches that arms of other claims come from: more of them change no arm.
SEARCHES = 3
DISCOVERED, UNIFORM = "discovered", "uniform at the cost of discovered"


def rival(record: dict[str, Any], cost: float) -> tuple[str, dict[str, float]]:
    """The uniform pattern with the lowest loss among those that cost no more."""
    cheap = {spec: one for spec, one in record["uniform"].items() if one["cost"] <= cost * 1.001}
    # The cheapest of all where even that costs more than what was found.
    pool = cheap or dict([min(record["uniform"].items(), key=lambda pair: pair[1]["cost"])])
    return min(pool.items(), key=lambda pair: pair[1]["held_loss"])


def discovered() -> dict[str, str]:
    """Arm -> pattern: the best that any method found on the first seeds, and its rival; nothing before TH5 has run."""
    records = [record for record in summaries("TH5").get("search", []) if record["seed"] < SEARCHES]
    pairs = [(row, record) for record in records for row in record["rows"]]
    if not pairs:
        return {}
    row, record = max(pairs, key=lambda pair: pair[0]["held_reward"])
    return {DISCOVERED: row["pattern"], UNIFORM: rival(record, row["cost"])[0]}
