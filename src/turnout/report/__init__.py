"""Reports: one self-contained HTML page for one run or several, and the plain-text table at the end of a run.

from turnout.report import write_report
write_report([Path("runs/demo")])           # → runs/demo/report.html and runs/demo/report_data/*.csv
"""

from __future__ import annotations

from turnout.report.page import write_report
from turnout.report.run import Run, load_run
from turnout.report.table import Column, print_table, result_table

__all__ = ["Column", "Run", "load_run", "print_table", "result_table", "write_report"]
