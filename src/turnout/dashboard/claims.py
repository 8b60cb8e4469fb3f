"""The claims pages: every published number with its verdict, one page a claim, and the committed runs behind it."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from turnout.claims import table
from turnout.claims.registry import VERDICTS, load_claims
from turnout.claims.store import summaries
from turnout.dashboard.folder import NotThere
from turnout.dashboard.views import Query, Site, View
from turnout.errors import DataError, nearest
from turnout.report.figure import Cell, Data
from turnout.report.run import flatten, number

_COLUMNS = (
    "id",
    "source",
    "statement",
    "quoted",
    "measured",
    "n",
    "interval",
    "control",
    "verdict",
    "device",
    "commit",
)
_HEX = re.compile(r"\b([0-9a-f]{10})[0-9a-f]{30}\b")
CSS = {"holds": "good", "holds with changes": "even", "does not hold": "bad"}


def claims_view(site: Site, query: Query) -> View:
    """All claims, filtered by verdict, source and words."""
    rows, problem = _rows(site)
    words = query.get("q", "").lower().split()
    verdict, source = query.get("verdict", ""), query.get("source", "")
    counts = Counter(str(row["verdict"]) for row in rows if not source or row["source"] == source)
    shown = [
        row
        for row in rows
        if (not verdict or row["verdict"] == verdict)
        and (not source or row["source"] == source)
        and all(word in " ".join(str(row[key]) for key in _COLUMNS).lower() for word in words)
    ]
    cells: list[list[Cell]] = [[row[key] for key in _COLUMNS] for row in shown]
    values = {
        "rows": shown, "every": counts.total(), "counts": [(name, counts[name]) for name in VERDICTS if counts[name]],
        "sources": list(dict.fromkeys(row["source"] for row in rows)), "css": CSS, "problem": problem,
        "titles": {claim_id: entry.title for claim_id, entry in load_claims().items()},
    }  # fmt: skip
    return View(template="claims.html.j2", title="Claims", values=values,
                tables=[Data(name="claims", columns=list(_COLUMNS), rows=cells)])  # fmt: skip


def claim_view(site: Site, claim_id: str, query: Query) -> View:
    """One claim: its findings and every committed run behind it.

    Raises:
        NotThere: there is no such claim.
    """
    known = load_claims()
    if claim_id not in known:
        raise NotThere(f"there is no claim {claim_id!r}{nearest(claim_id, known)}")
    entry = known[claim_id]
    rows, problem = _rows(site)
    owners = [claim_id, *sorted({arm.owner for arm in entry.arms() if arm.owner})]
    runs: list[list[Cell]] = []
    for owner in owners:
        try:
            found = summaries(owner, site.results)
        except (DataError, KeyError, TypeError) as error:
            problem = f"runs of {owner} cannot be read: {error}"
            continue
        for arm, records in found.items():
            for record in records:
                runs.append(
                    [f"{arm}-{record.get('seed')}", owner, arm, record.get("seed"), number(record, "accuracy"),
                     number(record, "loss"), number(record, "usage"), number(record, "gates_per_seq"),
                     number(record, "steps"), number(record, "train_s"),
                     str(record.get("device_name") or record.get("device") or ""), str(record.get("commit", ""))[:10]]
                )  # fmt: skip
    columns = ["record", "owner", "arm", "seed", "accuracy", "loss", "usage", "gates_per_seq", "steps", "train_s",
               "device", "commit"]  # fmt: skip
    values = {
        "entry": entry, "rows": [row for row in rows if row["id"] == claim_id], "runs": runs, "css": CSS,
        "problem": problem, "short": shorten, "nan": math.nan,
    }  # fmt: skip
    return View(template="claim.html.j2", title=f"Claim {claim_id}", values=values,
                tables=[Data(name=f"claim_{claim_id}", columns=columns, rows=runs)])  # fmt: skip


def record_view(site: Site, claim_id: str, record: str, query: Query) -> View:
    """One committed record, key by key.

    Raises:
        NotThere: no such claim or record.
    """
    if claim_id not in load_claims():
        raise NotThere(f"there is no claim {claim_id!r}{nearest(claim_id, load_claims())}")
    records = {
        f"{arm}-{item.get('seed')}": item for arm, items in summaries(claim_id, site.results).items() for item in items
    }
    if record not in records:
        raise NotThere(f"claim {claim_id} has no committed run {record!r}{nearest(record, records)}")
    flat = flatten(records[record])
    rows: list[list[Cell]] = [[key, value if isinstance(value, str) else str(value)] for key, value in flat.items()]
    values = {"claim": claim_id, "record": record, "rows": rows}
    return View(template="record.html.j2", title=f"{claim_id}: {record}", values=values,
                tables=[Data(name="record", columns=["key", "value"], rows=rows)])  # fmt: skip


def shorten(words: Any) -> str:
    """Commits by ten digits: forty of them push everything else off the page."""
    return _HEX.sub(r"\1", str(words))


def _rows(site: Site) -> tuple[list[dict[str, Any]], str]:
    try:
        return table(site.results), ""
    except DataError as error:
        return [], str(error)
