"""The gate's logit is a linear layer's, however it is computed."""

from __future__ import annotations

import pytest
import torch

from oracles import assert_as_exact_as_eager
from turnout.ops.gate import linear_gate


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_compiled_step_decides_as_a_linear_layer_does(tokens: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, tokens, 300), (groups, 300), (groups,))
    ]
    graphs: list[torch.fx.GraphModule] = []

    def look(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.no_grad()(torch.compile(linear_gate, backend=look, fullgraph=True, dynamic=False))
    for dtype in (torch.float32, torch.bfloat16):
        assert_as_exact_as_eager(
            compiled, torch.nn.functional.linear, inputs, reduction=300, dtype=dtype, exact=torch.nn.functional.linear,
            grads=False,
        )  # fmt: skip
    # A step of one gate is a sum, which a compiler can join to what stands before it.
    names = {node.name for node in graphs[0].graph.nodes}
    assert ("linear" in names) == (tokens > 1 or groups > 1)
