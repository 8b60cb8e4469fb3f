"""`turnout report`: one self-contained HTML page about one run, or about several compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from turnout.cli.find import find_run, is_run
from turnout.cli.flags import Call, Flags
from turnout.cli.result import Result
from turnout.errors import UnsupportedError

STUDY = "routing-paradox"
BILL = "inference"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(Flags):
    """Write a report: accuracy, usage and cost over steps, the gate map, measured savings.

    `turnout report routing-paradox` writes the page of that study from the committed results; `turnout report
    inference` that of the inference bill and of the trained language models.

    Args:
        run: names or paths of runs; several are compared on one page.
        out: file to write; without it report.html in the (first) run's folder, or the study's name here.
        runs: folder of all runs.
    """

    positional: ClassVar[tuple[str, ...]] = ("run",)
    run: tuple[str, ...]
    out: str | None = None
    runs: str = "runs"


def run(call: Call[Options]) -> Result:
    """Write the page and print its path."""
    if call.options.run == (STUDY,) and not is_run(STUDY, call.options.runs):
        from turnout.report.study import write_study

        page = write_study(Path(call.options.out or f"{STUDY}.html"))
        return Result({"report": page, "runs": []}, [f"report  {page}"])
    if call.options.run == (BILL,) and not is_run(BILL, call.options.runs):
        from turnout.report.bill import write_bill

        page = write_bill(Path(call.options.out or f"{BILL}.html"))
        return Result({"report": page, "runs": []}, [f"report  {page}"])
    folders = [find_run(word, call.options.runs).path for word in call.options.run]
    page = report_writer()(folders, Path(call.options.out) if call.options.out else None)
    return Result({"report": page, "runs": folders}, [f"report  {page}"])


def report_writer() -> Callable[..., Any]:
    """`turnout.report.write_report`.

    Raises:
        UnsupportedError: its extra is not installed.
    """
    try:
        from turnout.report import write_report
    except ImportError as error:
        raise UnsupportedError(f"reports need {error.name}; install it with: pip install 'turnout[report]'") from error
    return write_report
