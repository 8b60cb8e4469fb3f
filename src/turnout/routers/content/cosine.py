"""Cosine selector; with a temperature its training loss is InfoNCE with in-sequence negatives."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from turnout.errors import ConfigError
from turnout.routers.content.base import CONTENT_SELECTORS, ContentSelector, SelectorContext, rows_at


@CONTENT_SELECTORS.register("cosine")
class CosineSelector(ContentSelector):
    """s_ij = cos(W_q x_i, W_k x_j) / τ.

    Cross entropy of s over the sequence is the contrastive (InfoNCE) loss with the pair (query, evidence) as positive
    and every other token as negative: the study's "contrastive pretraining".

    Args:
        temperature: τ; 0.07 is the usual value.
        project: False compares x itself.
    """

    def __init__(self, context: SelectorContext, *, temperature: float = 0.07, project: bool = True) -> None:
        super().__init__(context)
        if not temperature > 0:
            raise ConfigError(f"selector cosine: temperature={temperature}; expected > 0")
        self.temperature = temperature
        width = context.width
        self.q: nn.Module = nn.Linear(width, width, bias=False) if project else nn.Identity()
        self.k: nn.Module = nn.Linear(width, width, bias=False) if project else nn.Identity()

    def score(self, x: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
        q, k = normalize(self.q(rows_at(x, at)), dim=-1), normalize(self.k(x), dim=-1)
        return q @ k.transpose(1, 2) / self.temperature
