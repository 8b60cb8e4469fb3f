"""Where committed results live: `results/` of a checkout, or the copy inside an installed wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turnout.errors import DataError


def results_dir() -> Path:
    """The results that ship with this version of the library."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "results"
    return checkout if checkout.is_dir() else package / "_results"


def read_json(path: Path) -> Any:
    """Parsed JSON; None when there is no such file; DataError when it is damaged."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); restore it from version control or measure again") from error


def claim_rows(claim_id: str, root: Path | None = None) -> list[dict[str, Any]]:
    """Committed rows of one claim, [] when it was never measured."""
    return read_json((root or results_dir()) / "claims" / f"{claim_id}.json") or []


def summaries(claim_id: str, root: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Committed records of the runs that one claim owns, by arm, in order of seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(((root or results_dir()) / "runs" / claim_id).glob("*.json")):
        record = read_json(path)
        found.setdefault(record["arm_name"], []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record["seed"])
    return found


def from_here(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config with its text's path as seen from the working directory: a record is read on other machines."""
    path = Path(str(config["task"].get("path", "")))
    if not path.is_absolute() or not path.is_relative_to(Path.cwd()):
        return config
    return config | {"task": config["task"] | {"path": str(path.relative_to(Path.cwd()))}}
