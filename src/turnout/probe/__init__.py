"""Probes: questions asked of a trained or untrained model."""
