"""The claims written down where people read them: the table in README, the page of verdicts that links the runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from turnout.claims.registry import VERDICTS, load_claims
from turnout.claims.table import HEADLINES, SIGNS, headlines, markdown, table
from turnout.train.atomic import write_file

START, END = "<!-- claims -->\n", "\n<!-- /claims -->"
COMMAND = "turnout reproduce"


def update_readme(readme: Path, root: Path | None = None) -> bool:
    """Write the table between the markers of README.

    Returns:
        False when there is no such file or it has no markers; nothing is changed then.
    """
    if not readme.is_file():
        return False
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        return False
    fresh = before + start + markdown(headlines(root), HEADLINES) + end + after
    if fresh != text:
        write_file(readme, fresh.encode())
    return True


def write_page(path: Path, root: Path) -> Path:
    """Write the page of verdicts.

    Args:
        path: of the page; links to runs are relative to it.
        root: folder of results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, verdicts(root, os.path.relpath(root, path.parent)).encode())
    return path


def write_down(root: Path) -> list[Path]:
    """Bring README and the page of verdicts of a checkout up to date; an installed package writes a page here.

    Args:
        root: folder of the committed results.
    Returns:
        What was written.
    """
    checkout = root.parent
    if not (checkout / "pyproject.toml").is_file():
        return [write_page(Path("claims.md"), root)]
    written = [write_page(checkout / "docs" / "claims.md", root)]
    return [*written, checkout / "README.md"] if update_readme(checkout / "README.md", root) else written


def verdicts(root: Path, link: str) -> str:
    """The page: how many hold, then every claim by source.

    Args:
        root: folder of results.
        link: how to get from the page to that folder.
    """
    rows = table(root)
    counts = {name: sum(row["verdict"] == name for row in rows) for name in VERDICTS}
    told = ", ".join(f"{SIGNS.get(name, '')} {n} {name}".strip() for name, n in counts.items() if n)
    lines = [
        "# Does it hold?",
        "",
        f"Every published number that was measured again, written by `{COMMAND}` from the committed runs: {told}.",
        f"`{COMMAND} --check` repeats a part of them and fails when one falls outside its interval;",
        "`turnout dashboard` shows the same with every run behind a row.",
    ]
    for source in dict.fromkeys(row["source"] for row in rows):
        lines += ["", f"## {source}", ""]
        lines += ["| claim | quoted | measured | 95 % interval | control | seeds | verdict | runs |", "|---" * 8 + "|"]
        lines += [_row(row, root, link) for row in rows if row["source"] == source]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any], root: Path, link: str) -> str:
    sign = SIGNS.get(row["verdict"], "")
    owners = [row["id"], *sorted({arm.owner for arm in load_claims()[row["id"]].arms() if arm.owner})]
    there = [owner for owner in owners if (root / "runs" / owner).is_dir()]
    runs = " ".join(f"[{owner}]({quote(f'{link}/runs/{owner}')})" for owner in there)
    cells = (f"**{row['id']}** {row['statement']}", row["quoted"], row["measured"], row["interval"], row["control"],
             row["n"] or "", f"{sign} {row['verdict']}".strip(), runs)  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"
