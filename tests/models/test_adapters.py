"""Adapters on linear layers (LoRA and its kin) take part everywhere: as if their change were in the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.routers.mode import SKIP, RoutingMode

ADAPTED = ("q", "kv", "out", "proj", "up", "down")


class Adapter(nn.Linear):
    """Wraps a layer as adapters do: another class, with the weights of the layer and a change beside them."""

    def __init__(self, layer: nn.Linear, change: Tensor) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.change = nn.Parameter(change)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.functional.linear(x, self.change)


def changed(model: CausalLM, change: Callable[[nn.Module, str, nn.Linear, Tensor], None]) -> CausalLM:
    """The model with the same random change of every layer in `ADAPTED`."""
    generator = torch.Generator().manual_seed(1)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if name in ADAPTED and isinstance(layer, nn.Linear):
                change(parent, name, layer, 0.05 * torch.randn(layer.weight.shape, generator=generator).double())
    return model


def assert_rounded(have: Tensor, want: Tensor) -> None:
    """Two sums instead of one in some sixteen products, one behind the other, of at most 86 terms each."""
    error, size = (have - want).detach().abs().max(), want.detach().abs().max()
    assert error <= torch.finfo(want.dtype).eps * 16 * 86**0.5 * max(1, size)


@pytest.mark.parametrize("form", ["gpt", "llama"])
@pytest.mark.parametrize(("granularity", "positions"), [("token", "none"), ("token", "rope"), ("group", "rope")])
def test_an_adapter_is_what_its_change_would_be_in_the_weights(form: str, granularity: str, positions: str) -> None:
    config = ModelConfig(
        layers=2, width=32, heads=4, layout="RA", form=form, positions=positions, local="conv:kernel=3",
        routing=RoutingConfig(router="linear:bias=0.2", granularity=granularity, mix="add"),
    )  # fmt: skip

    def beside(parent: nn.Module, name: str, layer: nn.Linear, change: Tensor) -> None:
        setattr(parent, name, Adapter(layer, change).double())

    def inside(parent: nn.Module, name: str, layer: nn.Linear, change: Tensor) -> None:
        layer.weight.data += change

    adapted, merged = (changed(CausalLM(config, vocab=20).double().eval(), way) for way in (beside, inside))
    tokens = torch.randint(20, (2, 11), generator=torch.Generator().manual_seed(0))
    for mode in (SKIP, RoutingMode(skip=False)):
        have, want = adapted(tokens, mode=mode), merged(tokens, mode=mode)
        assert all(torch.equal(a.taken, b.taken) for a, b in zip(have.routes, want.routes, strict=True) if a and b)
        assert_rounded(have.logits, want.logits)
    have.logits.sum().backward()
    silent = [name for name, p in adapted.named_parameters() if name.endswith("change") and p.grad is None]
    assert not [name for name in silent if ".router." not in name]
    states = [model.init_state(2, 12, dtype=torch.float64) for model in (adapted, merged)]
    with torch.no_grad():
        for part in (tokens[:, :10], tokens[:, 10:]):
            have, want = (model(part, state=state) for model, state in zip((adapted, merged), states, strict=True))
            assert_rounded(have.logits, want.logits)
