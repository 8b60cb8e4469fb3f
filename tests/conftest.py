"""Settings for the whole suite."""

from __future__ import annotations

import torch
from hypothesis import settings

# Tiny tensors on two busy cores: a second thread only waits for the first.
torch.set_num_threads(1)

# A busy machine must not turn a slow example into a failure; each property still draws a bounded number of examples.
settings.register_profile("turnout", deadline=None, max_examples=50)
settings.load_profile("turnout")
