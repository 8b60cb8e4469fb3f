"""Hugging Face: config, model and cache, entered under the Auto classes when this package is imported.

import turnout.models.hf
model = AutoModelForCausalLM.from_pretrained("folder")

The only package that imports `transformers` (extra `hf`).
"""

from __future__ import annotations

from turnout.errors import UnsupportedError

try:
    import transformers
except ImportError as error:
    raise UnsupportedError(
        "turnout.models.hf needs the package transformers, which is not installed; pip install 'turnout[hf]'"
    ) from error

from transformers import AutoConfig, AutoModelForCausalLM

from turnout.models.hf.cache import TurnoutCache
from turnout.models.hf.configuration import TurnoutConfig
from turnout.models.hf.modeling import TurnoutForCausalLM, TurnoutOutput

__all__ = ["TurnoutCache", "TurnoutConfig", "TurnoutForCausalLM", "TurnoutOutput"]

_OLDEST = (5, 17)
if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < _OLDEST:
    raise UnsupportedError(
        f"transformers {transformers.__version__} is too old; expected {'.'.join(map(str, _OLDEST))} or newer: "
        "pip install -U 'turnout[hf]'"
    )

AutoConfig.register(TurnoutConfig.model_type, TurnoutConfig, exist_ok=True)
AutoModelForCausalLM.register(TurnoutConfig, TurnoutForCausalLM, exist_ok=True)
