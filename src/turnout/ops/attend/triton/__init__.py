"""Triton kernels of `attend`. Importing this package does not import Triton; `why_not` says if it can run a call."""
