"""The claims table: every claim with its committed measurement, or "not measured"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnout.claims.registry import load_claims
from turnout.claims.store import claim_rows

COLUMNS = (
    "id", "source", "statement", "quoted", "measured", "n", "interval", "control", "verdict", "device", "commit",
    "command", "detail",
)  # fmt: skip


def table(root: Path | None = None) -> list[dict[str, Any]]:
    """One dictionary a row with the keys of `COLUMNS`, ordered by id."""
    rows: list[dict[str, Any]] = []
    for claim_id, entry in sorted(load_claims().items()):
        measured = claim_rows(claim_id, root)
        blank = dict.fromkeys(COLUMNS, "") | {
            "id": claim_id, "source": entry.source, "statement": entry.title, "n": 0, "verdict": "not measured",
            "command": f"turnout reproduce {claim_id}",
        }  # fmt: skip
        rows += measured or [blank]
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as README shows it."""
    shown = ("id", "statement", "quoted", "measured", "n", "verdict")
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        lines.append("| " + " | ".join(str(row[key]).replace("|", "/").replace("\n", " ") for key in shown) + " |")
    return "\n".join(lines)
