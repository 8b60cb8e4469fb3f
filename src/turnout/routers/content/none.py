"""No selector: every unit scores the same, so that what is answered comes from the query's own row."""

from __future__ import annotations

from torch import Tensor

from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector


@CONTENT_SELECTORS.register("none")
class NoSelector(ContentSelector):
    """s_ij = 0: exact chance, the control in which a flow has to do all of the retrieval itself."""

    learned = False

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        return x.new_zeros(*at.shape, self.units)
