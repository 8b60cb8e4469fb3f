"""Measurements: wall-clock and counted operations, always against what a user would otherwise run."""
