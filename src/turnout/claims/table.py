"""The claims table: every claim with its committed measurement, or "not measured"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turnout.claims.registry import VERDICTS, load_claims
from turnout.claims.store import claim_rows

COLUMNS = (
    "id", "source", "statement", "quoted", "measured", "n", "interval", "control", "verdict", "device", "commit",
    "command", "detail",
)  # fmt: skip
ROWS = ("id", "statement", "quoted", "measured", "n", "verdict")
HEADLINES = ("id", "claim", "first row", "measured", "n", "all rows")
SIGNS = {"holds": "✅", "holds with changes": "🟡", "does not hold": "❌"}
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


def headlines(root: Path | None = None) -> list[dict[str, Any]]:
    """What README shows: one row a claim (its first finding beside how all of them ended), one row a group.

    Returns:
        Rows with the keys of `HEADLINES`; a group shows its ends alone and links its page under docs/findings.
    """
    claims, rows = load_claims(), table(root)
    alone = [claim_id for claim_id in dict.fromkeys(row["id"] for row in rows) if not claims[claim_id].group]
    lines = []
    for claim_id in alone:
        own = [row for row in rows if row["id"] == claim_id]
        first = own[0]
        lines.append({"id": claim_id, "claim": claims[claim_id].title, "first row": first["statement"],
                      "measured": first["measured"], "n": first["n"], "all rows": _ends(own)})  # fmt: skip
    for group in sorted({claims[row["id"]].group for row in rows} - {""}):
        own = [row for row in rows if claims[row["id"]].group == group]
        ids = list(dict.fromkeys(row["id"] for row in own))
        page = f"docs/findings/{group}.md"
        lines.append({"id": f"{len(ids)} claims", "claim": group.replace("-", " "),
                      "first row": f"{ids[0]} to {ids[-1]}",
                      "measured": f"[{page}]({page})", "n": "", "all rows": _ends(own)})  # fmt: skip
    return lines


def _ends(rows: list[dict[str, Any]]) -> str:
    """How many rows ended with which verdict, as README prints it."""
    counts = {name: sum(row["verdict"] == name for row in rows) for name in VERDICTS}
    return ", ".join(f"{SIGNS.get(name, '')} {n} {name}".strip() for name, n in counts.items() if n)


def _by_number(claim_id: str) -> tuple[str, int]:
    letters = claim_id.rstrip("0123456789")
    return letters, int(claim_id[len(letters) :] or 0)


def markdown(rows: list[dict[str, Any]], shown: tuple[str, ...] = ROWS) -> str:
    """Rows as a Markdown table: long cells are cut, `turnout claims --json` has them whole.

    Args:
        rows: of `table` or of `headlines`.
        shown: their keys, one a column.
    """
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        cells = (str(row[key]).replace("|", "/").replace("\n", " ") for key in shown)
        lines.append("| " + " | ".join(cell if len(cell) <= CELL else f"{cell[: CELL - 2]} …" for cell in cells) + " |")
    return "\n".join(lines)
