"""The one attention operator: `attend`, and `explain`, which says which implementation runs."""

from __future__ import annotations

from turnout.ops.attend.api import IMPLS, attend, explain

__all__ = ["IMPLS", "attend", "explain"]
