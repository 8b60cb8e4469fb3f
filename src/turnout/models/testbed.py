"""The content-routing test bed: Flow → Investigator → Council → head.

B batch, T tokens, Q queries, E width, U units, K positions read, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turnout.layers.flow import FLOWS, FlowContext
from turnout.models.testbed_config import TestBedConfig
from turnout.ops.attend.reference import suppress_directions
from turnout.routers.content import CONTENT_SELECTORS, SelectorContext, rows_at, top_positions
from turnout.routers.direction import DirectionContext, DirectionRouter, build_directions


class Council(nn.Module):
    """One pre-norm block whose query rows attend to the positions that were picked, and to themselves.

    Args:
        width: E; heads: H.
        directions: which directions of the heads' outputs are removed; None removes nothing.
    """

    def __init__(self, width: int, heads: int, directions: DirectionRouter | None = None) -> None:
        super().__init__()
        self.heads, self.directions = heads, directions
        self.norm = nn.LayerNorm(width)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, rows: Tensor, picked: Tensor, x: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """rows [B, Q, E] read picked [B, Q, K, E]; with directions, the rows are those of x [B, T, E] at [B, Q]."""
        inside = self.norm(torch.cat((picked, rows[:, :, None]), dim=2))
        q = self.q(inside[:, :, -1]).unflatten(-1, (self.heads, -1))
        k, v = self.kv(inside).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        score = torch.einsum("bqhd,bqkhd->bqhk", q * q.shape[-1] ** -0.5, k)
        o = torch.einsum("bqhk,bqkhd->bqhd", score.softmax(-1), v)
        if self.directions is not None and x is not None and at is not None:
            amount, _ = self.directions(x, rows=at[:, None])
            o = suppress_directions(o, self.directions.unit(), amount)
        rows = rows + self.out(o.flatten(-2))
        return rows + self.mlp(rows)


class TestBed(nn.Module):
    """Embeddings, a flow, a content selector, and a council that answers from what was selected.

    The choice of the selector carries no gradient into the council's loss: the selector learns from its own loss alone,
    the embeddings and the flow from both.

    Args:
        config: what each part is.
        vocab: V.
        length: T.
        seed: of the initial weights; the global generator is left alone.
    """

    __test__ = False

    def __init__(self, config: TestBedConfig, *, vocab: int, length: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = config.width
            self.embed = nn.Parameter(torch.randn(vocab, width) * config.init_std)
            self.frozen = _frozen(config, vocab)
            learned = config.positions == "learned"
            self.place = nn.Parameter(torch.randn(length, width) * config.init_std) if learned else None
            self.flow = FLOWS.build(config.flow, context=FlowContext(width=width, length=length, heads=config.heads))
            self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
            context = SelectorContext(width=width, length=length, vocab=vocab, heads=config.heads)
            self.selector = CONTENT_SELECTORS.build(config.selector, context=context)
            place = DirectionContext(width=width, heads=config.heads, head_dim=width // config.heads, seed=seed)
            self.council = Council(width, config.heads, build_directions(config.directions, place))
            self.head = nn.Linear(width, vocab, bias=False)

    def represent(self, tokens: Tensor) -> Tensor:
        """What the selector sees: [B, T] -> [B, T, E]."""
        if self.frozen is not None:
            x = self.frozen(tokens)
        else:
            # index_select and not nn.Embedding: its backward has a batching rule for stacked models.
            x = self.embed.index_select(0, tokens.flatten()).view(*tokens.shape, -1)
        if self.place is not None:
            x = x + self.place
        return self.norm(self.flow(x))

    def forward(self, tokens: Tensor, at: Tensor, evidence: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route and answer.

        Args:
            tokens: int64 [B, T].
            at: positions of the queries [B, Q].
            evidence: positions [B, Q] to read instead of the selector's (the oracle control).
        Returns:
            Selector scores [B, Q, U]; logits [B, Q, V].
        """
        x = self.represent(tokens)
        score = self.selector(x, tokens, at)
        if evidence is None:
            with torch.no_grad():
                picks = top_positions(score, self.config.k, unit=self.selector.unit, expand=self.config.expand)
        else:
            more = torch.arange(self.config.expand + 1, device=at.device)
            picks = (evidence[..., None] + more).clamp(max=tokens.shape[1] - 1)
        picked = rows_at(x, picks.flatten(1)).unflatten(1, picks.shape[1:])
        return score, self.head(self.council(rows_at(x, at), picked, x, at))


def _frozen(config: TestBedConfig, vocab: int) -> nn.Module | None:
    """The frozen language model instead of embeddings, where the config names one."""
    if not config.frozen:
        return None
    # Optional: only these beds need transformers.
    from turnout.models.hf.foreign import FrozenStates

    return FrozenStates(config.frozen, config.width, vocab=vocab, layer=config.frozen_layer, twin=config.frozen_twin)
