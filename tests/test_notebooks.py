"""Every notebook of docs/notebooks runs from its first cell to its last, in a plain namespace: no Jupyter is needed."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
MECHANISMS = ("routing", "content", "directional", "patterns")


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    book = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def test_there_is_one_notebook_a_mechanism() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(MECHANISMS)


@pytest.mark.notebook
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A cell sets the number of threads; the tests after it must not notice.
    threads = torch.get_num_threads()
    namespace: dict[str, Any] = {"__name__": "notebook"}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            for number, cell in enumerate(cells(name, "code")):
                source = "".join(cell["source"])
                exec(compile(source, f"{name}.ipynb, code cell {number}", "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
    assert printed.getvalue().strip()
    assert list(tmp_path.iterdir()) == [], "a notebook leaves nothing behind"


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_notebook_was_saved_with_its_results_and_without_an_error(name: str) -> None:
    code = cells(name, "code")
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert cells(name, "markdown"), "a notebook explains itself"
    for cell in code:
        ast.parse("".join(cell["source"]))
