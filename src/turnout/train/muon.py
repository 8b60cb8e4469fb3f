"""Muon whose matrices are sharded among processes (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedMuon(torch.optim.Muon):
    """`torch.optim.Muon` on shards: momentum and weights stay where they are, the update is made from whole matrices.

        B = mu B + (1 - mu) G;   O = NS((1 - mu) G + mu B);   W = (1 - lr decay) W - lr' O      (Jordan et al. 2024)

    An orthogonal update needs all rows of its matrix. One matrix at a time is gathered, every process computes the same
    update, as replicas do (DDP), and keeps its rows: one gathering a matrix and step, no other message, and memory of
    one matrix. Weights that are not sharded are stepped alike, to the bit as torch does.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_one(param, group)
        return loss

    def _step_one(self, param: Tensor, group: dict[str, Any]) -> None:
        grad, state, momentum = param.grad, self.state[param], group["momentum"]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"]
        buffer.lerp_(grad, 1 - momentum)
        update = grad.lerp(buffer, momentum) if group["nesterov"] else buffer
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        made = orthogonal(whole, group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"])
        if isinstance(param, DTensor):
            # Every process has the whole update: each takes its rows, nothing is sent.
            made = distribute_tensor(made.contiguous(), param.device_mesh, param.placements, src_data_rank=None)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        # Its update has the root mean square of AdamW's (Liu et al. 2025).
        param.add_(made, alpha=-group["lr"] * 0.2 * max(param.shape) ** 0.5)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrix, roughly: X = a X + (b X X^T + c (X X^T)^2) X, begun at X = G / |G|, in bfloat16.

    Singular values end between 0.5 and 1.5, which is what Muon asks for (Jordan et al. 2024, quintic Newton-Schulz).

    Args:
        matrix: [N, M].
    """
    a, b, c = coefficients
    x = matrix.bfloat16()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.shape[0] <= x.shape[1] else wide.T
