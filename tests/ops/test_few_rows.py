"""Products of few rows: where there is no kernel they are torch's, and whoever changed a layer is not passed by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from turnout.ops.few_rows import few_rows
from turnout.ops.untouched import plain


@pytest.mark.parametrize("tokens", [1, 3])
def test_without_a_kernel_they_are_linear_layers(tokens: int) -> None:
    x, first, second = torch.randn(2, tokens, 8), torch.randn(6, 8), torch.randn(4, 8)
    made = few_rows(x, first, second, taken=torch.zeros(2, 1) > 0, scale=torch.tensor([2.0, 0.0]))
    assert torch.equal(made[0], nn.functional.linear(x * torch.tensor([2.0, 0.0])[:, None, None], first))
    assert torch.equal(made[1], nn.functional.linear(x, second))
    (alone,) = few_rows(x, first)
    assert torch.equal(alone, nn.functional.linear(x, first))


def test_a_layer_that_somebody_changed_is_called_itself() -> None:
    class Adapter(nn.Linear):
        pass

    layer = nn.Linear(8, 6, bias=False)
    assert plain(layer, nn.Linear(8, 4, bias=False))
    assert not plain(layer, nn.Linear(8, 6)) and not plain(Adapter(8, 6, bias=False))
    handle = layer.register_forward_hook(lambda module, args, out: out * 2)
    assert not plain(layer)
    handle.remove()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert not plain(layer)
