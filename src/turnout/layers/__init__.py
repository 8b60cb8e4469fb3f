"""Layers: a router, the operator and projections, put together as modules with memory."""

from turnout.layers.mixer import AttentionMixer, LocalMixer, MixerState, RoutedMixer

__all__ = ["AttentionMixer", "LocalMixer", "MixerState", "RoutedMixer"]
