"""Settings for the whole suite."""

from __future__ import annotations

from hypothesis import settings

# A busy machine must not turn a slow example into a failure; each property still draws a bounded number of examples.
settings.register_profile("turnout", deadline=None, max_examples=50)
settings.load_profile("turnout")
