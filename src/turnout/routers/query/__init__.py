"""Query routing: per token (and kv group), does this query row take the attention track?"""

from turnout.routers.query.base import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.gating import Gating, Route

__all__ = ["QUERY_ROUTERS", "Gating", "QueryRouter", "Route", "RouterContext"]
