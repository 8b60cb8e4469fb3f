"""Turnout: routed attention. Which tokens attend, what they attend to, and what that really saves, measured.

The public names load on first use, so that `import turnout` (and the command line) never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "attend": "turnout.ops.attend",
    "CausalLM": "turnout.models.causal_lm",
    "ModelConfig": "turnout.models.config",
    "RoutedMixer": "turnout.layers.mixer",
    "RoutingMode": "turnout.routers.mode",
    "certify": "turnout.probe.causality",
}

__all__ = ["CausalLM", "ModelConfig", "RoutedMixer", "RoutingMode", "__version__", "attend", "certify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
