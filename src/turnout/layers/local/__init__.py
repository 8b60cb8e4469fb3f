"""Local tracks: what every token gets, at a cost linear in the length."""

from turnout.layers.local.base import LOCAL_TRACKS, LocalTrack

__all__ = ["LOCAL_TRACKS", "LocalTrack"]
