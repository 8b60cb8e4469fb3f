"""Claims: one entry per published number; `reproduce` measures it, `table` shows what is committed."""

from turnout.claims.registry import CLAIMS, Arm, Claim, Finding, get_claim
from turnout.claims.reproduce import reproduce
from turnout.claims.table import markdown, table

__all__ = ["CLAIMS", "Arm", "Claim", "Finding", "get_claim", "markdown", "reproduce", "table"]
