"""How many directions carry the energy of a matrix, and what an untrained matrix of the same shape gives."""

from __future__ import annotations

import torch
from torch import Tensor

from turnout.errors import ConfigError


def energy_rank(matrix: Tensor, share: float = 0.9) -> int:
    """Smallest k with Σ_{i<=k} σ_i² >= share · Σ σ².

    Args:
        matrix: float [M, N].
        share: of the energy, in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share}; expected 0 < share <= 1")
    matrix = matrix.double()
    if matrix.shape[0] > 4 * matrix.shape[1]:
        # Tall (activations): the squares of the singular values are the eigenvalues of a small matrix.
        energy = torch.linalg.eigvalsh((matrix.T @ matrix).cpu()).flip(0).clamp(min=0).cumsum(0)
    else:
        energy = torch.linalg.svdvals(matrix).square().cumsum(0)
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1


def spectrum(matrix: Tensor) -> list[float]:
    """Share of the energy in each direction, falling."""
    energy = torch.linalg.svdvals(matrix.double()).square()
    return (energy / energy.sum()).tolist()


def untrained_energy_ranks(
    width: int, *, heads: int = 1, average: str = "form", draws: int = 20, share: float = 0.9, seed: int = 0
) -> list[int]:
    """Energy ranks of W_qᵀ W_k for weights as `nn.Linear` draws them: the null of a "low-dimensional subspace".

    Args:
        width: E.
        heads: H.
        average: "form" averages the score forms of the heads, (1/H) Σ_h W_q^hᵀ W_k^h, which is what a head-averaged
            score uses; "weights" averages W_q^h and W_k^h over heads first, which leaves a matrix of rank E/H.
        draws: random pairs.
    """
    if average not in ("form", "weights") or width % heads:
        raise ConfigError(f"average={average!r}, width={width}, heads={heads}; expected form or weights, heads | width")
    source = torch.Generator().manual_seed(seed)
    bound = width**-0.5
    ranks = []
    for _ in range(draws):
        q, k = ((2 * torch.rand(width, width, generator=source, dtype=torch.float64) - 1) * bound for _ in range(2))
        if average == "weights":
            q, k = (w.unflatten(0, (heads, -1)).mean(0) for w in (q, k))
        ranks.append(energy_rank(q.T @ k, share))
    return ranks


def projected(q: Tensor, k: Tensor, rank: int, *, random: torch.Generator | None = None) -> Tensor:
    """The bilinear form qᵀ k kept on its top `rank` right directions, or on as many random ones.

    Args:
        q, k: weights [E', E].
        rank: directions kept.
        random: draw the directions from this generator instead.
    """
    form = q.T @ k
    if random is None:
        basis = torch.linalg.svd(form)[2][:rank]
    else:
        basis = torch.linalg.qr(torch.randn(form.shape[1], rank, generator=random, dtype=form.dtype))[0].T
    return form @ basis.T @ basis
