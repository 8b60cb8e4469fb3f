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
# Characters of a cell in README.
CELL = 110


def table(root: Path | None = None) -> list[dict[str, Any]]:
    """One dictionary a row with the keys of `COLUMNS`, ordered by id, RP9 before RP10."""
    rows: list[dict[str, Any]] = []
    for claim_id, entry in sorted(load_claims().items(), key=lambda item: _by_number(item[0])):
        measured = claim_rows(claim_id, root)
        blank = dict.fromkeys(COLUMNS, "") | {
            "id": claim_id, "source": entry.source, "statement": entry.title, "n": 0, "verdict": "not measured",
            "command": f"turnout reproduce {claim_id}",
        }  # fmt: skip
        rows += measured or [blank]
    return rows


def readme_rows(root: Path | None = None) -> list[dict[str, Any]]:
    """The rows that README shows: a group of claims has a page of its own under docs/findings."""
    claims = load_claims()
    return [row for row in table(root) if not claims[row["id"]].group]


def _by_number(claim_id: str) -> tuple[str, int]:
    letters = claim_id.rstrip("0123456789")
    return letters, int(claim_id[len(letters) :] or 0)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as README shows it: long cells are cut, `turnout claims --json` has them whole."""
    shown = ("id", "statement", "quoted", "measured", "n", "verdict")
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        cells = (str(row[key]).replace("|", "/").replace("\n", " ") for key in shown)
        lines.append("| " + " | ".join(cell if len(cell) <= CELL else f"{cell[: CELL - 2]} …" for cell in cells) + " |")
    return "\n".join(lines)
