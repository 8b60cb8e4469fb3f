"""Content routing: which keys may a query read? `CONTENT_SELECTORS.build("rank1", context=...)`."""

from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at, top_positions

__all__ = ["CONTENT_SELECTORS", "ContentSelector", "SelectorContext", "rows_at", "top_positions"]
