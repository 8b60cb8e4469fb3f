"""The toy proof that a router leaks: tokens whose best causal loss is known, and a model that beats it.

Tokens are drawn independently and uniformly from V symbols, so that no causal model can expect less than ln V nats,
whatever it is and however long it trains. Only a model that reads later tokens can.

B batch, T tokens, V symbols.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turnout.models.causal_lm import CausalLM
from turnout.models.config import ModelConfig
from turnout.probe.anatomy import Anatomy
from turnout.probe.honest import position_losses
from turnout.routers.mode import RoutingMode


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakProof:
    """What a trained model scores on fresh sequences, in nats a token.

    Attributes:
        optimum: ln V, the least expected loss of any causal model.
        teacher_forced, honest: mean losses; `stderr` and `honest_stderr` over sequences.
    """

    optimum: float
    teacher_forced: float
    stderr: float
    honest: float
    honest_stderr: float

    @property
    def leaks(self) -> bool:
        """Below the optimum by more than four standard errors (one causal model in 30,000 would be)."""
        return self.teacher_forced + 4 * self.stderr < self.optimum


def prove_leak(
    config: ModelConfig, *, symbols: int = 4, length: int = 6, steps: int = 200, lr: float = 5e-3, seed: int = 0,
    n_eval: int = 4000,
) -> LeakProof:  # fmt: skip
    """Train `config` on independent tokens and compare its loss with the causal optimum.

    Args:
        config: any model; routers of directions learn at half the learning rate, as published.
        symbols: V >= 2; length: T.
        steps: of AdamW with 64 fresh sequences each, linear decay to a tenth.
        n_eval: fresh sequences that are scored, teacher-forced and prefix-honest.
    Cost: two seconds on one CPU core for one layer of width 32.
    """
    model = CausalLM(config, vocab=symbols, seed=seed)
    draw = torch.Generator().manual_seed(seed + 1)
    own = [p for name, p in model.named_parameters() if ".directions." in name and p.requires_grad]
    rest = [p for name, p in model.named_parameters() if ".directions." not in name]
    groups = [{"params": rest, "factor": 1.0}] + ([{"params": own, "factor": 0.5}] if own else [])
    optimizer = torch.optim.AdamW(groups, lr=lr)
    for step in range(steps):
        tokens = torch.randint(symbols, (64, length + 1), generator=draw)
        rate = lr * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = _losses(model, tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens = torch.randint(symbols, (n_eval, length + 1), generator=draw)
    with torch.no_grad():
        forced = _losses(model.eval(), tokens)
    honest = position_losses(Anatomy(model), tokens[:, :-1], tokens[:, 1:], list(range(length)), honest=True)
    (mean, error), (honest_mean, honest_error) = _mean(forced.double()), _mean(honest)
    return LeakProof(
        optimum=math.log(symbols), teacher_forced=mean, stderr=error, honest=honest_mean, honest_stderr=honest_error
    )


def _losses(model: CausalLM, tokens: Tensor) -> Tensor:
    mode = RoutingMode(skip=False, sample=False)
    logits = model(tokens[:, :-1], mode=mode).logits
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def _mean(losses: Tensor) -> tuple[float, float]:
    each = losses.mean(1)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))
