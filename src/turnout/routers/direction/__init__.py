"""Directional routing: per head, which learned directions of its output are removed, and how much of each?"""

from turnout.routers.direction.base import DIRECTION_ROUTERS, Cut, DirectionContext, DirectionRouter
from turnout.routers.direction.build import build_directions

__all__ = ["DIRECTION_ROUTERS", "Cut", "DirectionContext", "DirectionRouter", "build_directions"]
