"""Functions on tensors, without parameters; the reference of each is its specification."""

from __future__ import annotations

from turnout.ops.attend import attend, explain
from turnout.ops.compact import Compacted, compact
from turnout.ops.conv import causal_conv
from turnout.ops.ema import causal_ema

__all__ = ["Compacted", "attend", "causal_conv", "causal_ema", "compact", "explain"]
