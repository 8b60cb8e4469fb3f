"""Print the table of src/turnout/ops/attend/README.md: routed against dense attention, on this machine.

python tests/ops/attend/measure.py [--device cuda] [--dtype bfloat16] [--tokens 2048] [--batch 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from turnout.bench.timing import Timing, time_interleaved
from turnout.ops import attend

FRACTIONS = (64, 16, 4, 1)


def with_backward(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    cotangent = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)


def without_backward(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return function(*inputs)

    return call


def calls(options: argparse.Namespace, build: Callable[..., Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Dense attention, and routed attention with p = 1/64 … 1 of the rows at random places."""
    batch, tokens, heads, width = options.batch, options.tokens, options.heads, options.width
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    generator = torch.Generator(device).manual_seed(0)

    def randn(n_rows: int) -> Tensor:
        return torch.randn(batch, n_rows, heads, width, device=device, dtype=dtype, generator=generator)

    q, k, v = randn(tokens), randn(tokens), randn(tokens)
    found = {"dense": build(attend, (q, k, v))}
    for fraction in FRACTIONS:
        n_rows = tokens // fraction
        rows = torch.rand(batch, tokens, device=device, generator=generator).topk(n_rows, 1).indices.sort(1).values

        def routed(q: Tensor, k: Tensor, v: Tensor, rows: Tensor = rows) -> Tensor:
            return attend(q, k, v, rows=rows)

        found[f"1/{fraction}"] = build(routed, (randn(n_rows), k, v))
    return found


def cell(timing: Timing, dense: Timing) -> str:
    return f"{timing.ms:.2f} ({timing.ms_p20:.2f}–{timing.ms_p80:.2f}) ms, {dense.ms / timing.ms:.1f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    for name, default in (("tokens", 2048), ("batch", 1), ("heads", 4), ("width", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    device = torch.device(options.device)
    forward = time_interleaved(calls(options, without_backward), device=device, seconds=6.0, most=100)
    both = time_interleaved(calls(options, with_backward), device=device, seconds=12.0, most=100)
    print(f"torch {torch.__version__}, {options}, {torch.get_num_threads()} threads\n")
    print("| rows taken | forward | forward + backward |\n|---|---|---|")
    for name in forward:
        print(f"| {name} | {cell(forward[name], forward['dense'])} | {cell(both[name], both['dense'])} |")


if __name__ == "__main__":
    main()
