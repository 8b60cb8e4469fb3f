"""The dashboard: a local web application over run folders, live while a run trains.

turnout dashboard runs            # http://127.0.0.1:8350

The server only reads. Pages are made on it: figures are the report's inline SVG, so there is one palette and one code
for a figure in a report, in the dashboard and in a paper; the browser needs one small script for being live, and
nothing from any network. `folder` decides what may be read, `metrics` reads files of any size, `policy` says what a
browser may do.
"""

from __future__ import annotations

from turnout.dashboard.app import create_app
from turnout.dashboard.serve import serve

__all__ = ["create_app", "serve"]
