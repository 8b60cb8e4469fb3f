from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from turnout.errors import CheckpointError, UnsupportedError
from turnout.train import checkpoint
from turnout.train.resume_state import (
    flatten_generators,
    flatten_optimizer,
    restore_generators,
    restore_optimizer,
    section,
    with_prefix,
)


class Tied(nn.Module):
    """Embedding tied to the head, a normal layer and one that never gets a gradient."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        for param in self.parameters():
            nn.init.normal_(param, generator=generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(self.embed(tokens))))


def setup(seed: int, **options) -> tuple[Tied, torch.optim.AdamW, dict[str, torch.Generator]]:
    model = Tied(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1, **options)
    return model, optimizer, {"data": torch.Generator().manual_seed(seed), "gates": torch.Generator().manual_seed(9)}


def train(model: Tied, optimizer: torch.optim.Optimizer, generators: dict[str, torch.Generator], steps: int) -> None:
    for _ in range(steps):
        tokens = torch.randint(11, (4, 5), generator=generators["data"])
        noise = torch.rand((4, 5, 11), generator=generators["gates"])
        optimizer.zero_grad()
        nn.functional.cross_entropy((model(tokens) + noise).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"foreach": False}, {"fused": True}])
def test_a_run_resumed_from_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path, options: dict[str, bool]) -> None:
    model, optimizer, generators = setup(1, **options)
    train(model, optimizer, generators, 3)
    tensors = (
        with_prefix("model", model.state_dict())
        | flatten_optimizer(optimizer, model.named_parameters())
        | flatten_generators(generators)
    )
    checkpoint.save(tmp_path, 3, tensors, {})
    train(model, optimizer, generators, 4)

    other, other_optimizer, other_generators = setup(2, **options)
    train(other, other_optimizer, other_generators, 1)
    _, loaded, _ = checkpoint.load(tmp_path)
    other.load_state_dict(section("model", loaded))
    restore_optimizer(other_optimizer, other.named_parameters(), loaded)
    restore_generators(other_generators, loaded)
    train(other, other_optimizer, other_generators, 4)

    for name, param in model.named_parameters():
        assert torch.equal(param, dict(other.named_parameters())[name]), name
    resumed = flatten_optimizer(other_optimizer, other.named_parameters())
    expected = flatten_optimizer(optimizer, model.named_parameters())
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())


def test_restored_state_shares_no_memory_with_the_checkpoint() -> None:
    model, optimizer, generators = setup(1)
    train(model, optimizer, generators, 1)
    tensors = {name: tensor.clone() for name, tensor in flatten_optimizer(optimizer, model.named_parameters()).items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    restore_optimizer(optimizer, model.named_parameters(), tensors)
    train(model, optimizer, generators, 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())


def test_a_parameter_without_gradient_has_no_entry_and_loses_older_state() -> None:
    model, optimizer, generators = setup(1)
    train(model, optimizer, generators, 1)
    flat = flatten_optimizer(optimizer, model.named_parameters())
    assert {name.split(".")[1] for name in flat} == {"embed", "inner"}
    restore_optimizer(optimizer, model.named_parameters(), {})
    assert not optimizer.state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flat: flat.pop("optimizer.inner.weight.exp_avg"), "inner.weight.*expected"),
        (lambda flat: flat.update({"optimizer.inner.weight.exp_avg": torch.zeros(5)}), r"\[5\], expected"),
        (lambda flat: flat.update({"optimizer.inner.bias.exp_avg_sq": torch.zeros(6).double()}), "float64"),
        (lambda flat: flat.update({"optimizer.other.exp_avg": torch.zeros(5)}), "'other'.*another config"),
    ],
)
def test_state_that_does_not_fit_is_refused_and_nothing_is_changed(change, words: str) -> None:
    model, optimizer, generators = setup(1)
    train(model, optimizer, generators, 1)
    flat = flatten_optimizer(optimizer, model.named_parameters())
    before = dict(flat)
    change(flat)
    with pytest.raises(CheckpointError, match=words):
        restore_optimizer(optimizer, model.named_parameters(), flat)
    after = flatten_optimizer(optimizer, model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


def test_another_optimizer_and_unnamed_parameters_are_refused() -> None:
    model, optimizer, _ = setup(1)
    with pytest.raises(UnsupportedError, match=r"SGD; use torch.optim.AdamW"):
        flatten_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    with pytest.raises(CheckpointError, match="trains 5 parameters, and 2"):
        flatten_optimizer(optimizer, model.inner.named_parameters())


def test_generators_continue_their_streams() -> None:
    generators = {"data": torch.Generator().manual_seed(3), "gates": torch.Generator().manual_seed(4)}
    torch.rand(5, generator=generators["data"])
    states = flatten_generators(generators)
    expected = {name: torch.rand(7, generator=generator) for name, generator in generators.items()}
    restore_generators(generators, states)
    assert all(torch.equal(torch.rand(7, generator=generators[name]), value) for name, value in expected.items())


def test_missing_surplus_and_foreign_generator_states_are_refused() -> None:
    generators = {"data": torch.Generator()}
    with pytest.raises(CheckpointError, match=r"\[\], expected \['data'\]"):
        restore_generators(generators, {})
    with pytest.raises(CheckpointError, match="'data' does not fit"):
        restore_generators(generators, {"generator.data": torch.zeros(16, dtype=torch.uint8)})


def test_sections_undo_prefixes_and_do_not_mix() -> None:
    tensors = with_prefix("model", {"a": torch.ones(1)}) | with_prefix("modeling", {"b": torch.ones(1)})
    assert list(section("model", tensors)) == ["a"]
