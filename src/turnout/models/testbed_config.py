"""Configuration of the content-routing test bed; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from turnout.errors import ConfigError, nearest

BED_POSITIONS = ("none", "learned")


@dataclass(frozen=True, kw_only=True, slots=True)
class TestBedConfig:
    """Flow -> Investigator -> Council -> head (arXiv 2603.20997, p. 5).

    Args:
        flow: spec of the preprocessing, "none", "attention:form=causal", "ssm:form=both", ...
        selector: spec of the content selector (the Investigator), "pairwise", "rank1", ...
        width: E.
        heads: of attention, and of the pairwise score, where they are a temperature.
        k: units picked.
        expand: following tokens read with each pick; the published "neighbor expansion" is 1.
        positions: "none" or "learned", added to the embeddings.
        init_std: standard deviation of the embeddings.
        norm: LayerNorm before the selector.
        directions: spec of the council's direction router, "token", "prefix", ...; "none" removes nothing.
        frozen: local folder of a Hugging Face causal language model that reads the token ids, frozen; the flow is then
            the trainable bridge behind it. "" = this bed's own embeddings.
        frozen_layer: 0 = its embeddings, -1 = its last block.
        frozen_twin: fresh weights of the same architecture instead, the control of a frozen model.
    """

    # pytest collects classes by this prefix.
    __test__ = False

    flow: str = "none"
    selector: str = "pairwise"
    width: int = 128
    heads: int = 4
    k: int = 4
    expand: int = 1
    positions: str = "learned"
    init_std: float = 0.02
    norm: bool = True
    directions: str = "none"
    frozen: str = ""
    frozen_layer: int = -1
    frozen_twin: bool = False

    def __post_init__(self) -> None:
        if self.positions not in BED_POSITIONS:
            raise ConfigError(f"positions={self.positions!r}{nearest(self.positions, BED_POSITIONS)}")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"width={self.width}, heads={self.heads}; expected heads to divide width")
        if self.k < 1 or self.expand < 0 or not self.init_std > 0:
            raise ConfigError(
                f"k={self.k}, expand={self.expand}, init_std={self.init_std}; expected k >= 1, the others >= 0"
            )
        if not self.frozen and (self.frozen_twin or self.frozen_layer != -1):
            raise ConfigError("frozen_layer and frozen_twin belong to a frozen model; set frozen to its folder")
