"""Directional routing: per head, which learned directions of its output are removed, and how much of each?"""

from turnout.routers.direction.base import DIRECTION_ROUTERS, Cut, DirectionContext, DirectionRouter

__all__ = ["DIRECTION_ROUTERS", "Cut", "DirectionContext", "DirectionRouter"]
