"""Measured rows: one JSON object a line under results/bench, with the device, the versions and the commit in each."""

from __future__ import annotations

import datetime
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import turnout
from turnout.errors import DataError
from turnout.train.manifest import device_name, git_commit

Row = dict[str, Any]
# Every row has these; `ms` and what follows from it are null where nothing was measured, and `status` says why.
FIELDS = ("kind", "case", "arm", "status", "ms", "ms_p20", "ms_p80", "n_calls", "device", "device_kind", "commit")


def bench_dir() -> Path:
    """Where committed rows live: results/bench of a checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "results"
    return (checkout if checkout.is_dir() else package / "_results") / "bench"


def provenance(device: Any) -> Row:
    """Where, when and from which code a row comes."""
    import torch

    versions = {"turnout": turnout.__version__, "torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        versions["triton"] = "not installed"
    return {
        "device": device_name(device),
        "device_kind": str(device).partition(":")[0],
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": git_commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def append_rows(folder: Path, rows: Iterable[Row]) -> list[Path]:
    """Append each row to `<kind>-<device>.jsonl` in `folder`; the files written.

    Raises:
        DataError: the folder or a file cannot be written.
    """
    from turnout.train.jsonfile import to_json

    texts: dict[Path, list[str]] = {}
    for row in rows:
        slug = re.sub(r"[^a-z0-9]+", "-", str(row["device"]).lower()).strip("-")
        texts.setdefault(folder / f"{row['kind']}-{slug}.jsonl", []).append(to_json(row) + "\n")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, lines in texts.items():
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
    except OSError as error:
        raise DataError(
            f"cannot write rows to {folder}: {error.strerror}; pass --out FOLDER that you may write"
        ) from error
    return list(texts)


def read_rows(folder: Path | None = None) -> list[Row]:
    """All rows of a folder, oldest first.

    Raises:
        DataError: a line is not a row; names the file and the line.
    """
    found = [row for path in sorted((folder or bench_dir()).glob("*.jsonl")) for row in _read(path)]
    return sorted(found, key=lambda row: str(row.get("created", "")))


def _read(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number} is not JSON ({error}); remove the line or restore the file"
            ) from error
        missing = [name for name in FIELDS if name not in row] if isinstance(row, dict) else list(FIELDS)
        if missing:
            raise DataError(f"{path}, line {number} has no {missing[0]!r}; it is no row of turnout bench")
        yield row


def machine(row: Mapping[str, Any]) -> str:
    """Name under which rows are comparable: on a CPU the number of threads belongs to it."""
    return str(row["device"]) if row["device_kind"] == "cuda" else f"{row['device']}, {row.get('threads')} threads"


def same_case(row: Mapping[str, Any], case: Mapping[str, Any]) -> bool:
    """Whether a row measured this case."""
    have = row["case"]
    return all(have.get(name) == value for name, value in case.items())
