"""The certificate finds every leak that is put in, names it, finds none elsewhere, and leaves the model as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import turnout
from routing_laws import VOCAB, awake, routers, tiny, wake
from turnout.errors import ConfigError
from turnout.layers import RoutedMixer
from turnout.layers.local import LocalTrack
from turnout.models import CausalLM, RoutingConfig
from turnout.probe.causality import Certificate, Leak, certify
from turnout.routers.mode import DENSE, RoutingMode
from turnout.routers.query import QUERY_ROUTERS, QueryRouter, RouterContext
from turnout.routers.query.linear import LinearRouter

LENGTH = 15


class SymmetricConv(LocalTrack):
    """A convolution padded on both sides: it sees one token ahead."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.conv(x.transpose(1, 2)).transpose(1, 2), state


class MeanPool(LocalTrack):
    """Adds the mean of the whole sequence."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x + x.mean(1, keepdim=True), state


class LookAhead(LinearRouter):
    """Decides from the next token."""

    def score(self, x: Tensor, state: Any, hint: Tensor | None) -> tuple[Tensor, Any]:
        return super().score(torch.cat((x[:, 1:], x[:, :1] * 0), 1), state, hint)


def look_ahead(model: CausalLM) -> None:
    ahead = LookAhead(RouterContext(width=16), bias=0.0)
    wake(ahead)
    model.blocks[1].mixer.router = ahead


LEAKS: list[tuple[str, Callable[[CausalLM], None], str]] = [
    ("conv", lambda m: setattr(m.blocks[1].mixer, "local", SymmetricConv(16)), "blocks.1.mixer.local"),
    ("mean", lambda m: setattr(m.blocks[0].mixer, "local", MeanPool()), "blocks.0.mixer.local"),
    ("router", look_ahead, "blocks.1.mixer.router"),
    ("norm", lambda m: setattr(m.blocks[1], "mlp_norm", nn.Softmax(dim=1)), "blocks.1.mlp_norm"),
]


@pytest.mark.parametrize(("leak", "where"), [(leak, where) for _, leak, where in LEAKS], ids=[n for n, *_ in LEAKS])
def test_a_leak_is_found_and_the_first_name_is_the_module_that_leaks(
    leak: Callable[[CausalLM], None], where: str
) -> None:
    model = awake(tiny())
    assert certify(model, length=LENGTH).causal
    leak(model)
    certificate = certify(model, length=LENGTH)
    assert not certificate.causal
    assert certificate.leaks[0].where.startswith(where)
    first = certificate.leaks[0]
    assert first.seen_at < first.changed_at and (first.size > 0)
    assert f"NOT causal: changing token {first.changed_at} moved {where}" in str(certificate)
    assert any(found.where == "logits" for found in certificate.leaks)


@pytest.mark.parametrize("name", routers(causal=False))
@pytest.mark.parametrize("granularity", ["token", "group"])
def test_a_router_that_is_not_causal_is_found_when_a_model_is_made_to_accept_it(
    name: str, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(routing=RoutingConfig(router=name, granularity=granularity))
    with pytest.raises(ConfigError, match="threshold"):
        CausalLM(config, vocab=VOCAB)
    monkeypatch.setattr(QUERY_ROUTERS.get(name), "causal", True)
    certificate = certify(awake(config), length=LENGTH)
    assert not certificate.causal
    assert certificate.leaks[0].where.startswith("blocks.0.mixer.router")


@pytest.mark.parametrize("name", routers(causal=False))
def test_a_mixer_built_directly_with_a_router_that_is_not_causal_leaks(name: str) -> None:
    with torch.random.fork_rng():
        # Drawn weights decide whether these three tokens change the choice of rows; fixed ones always do.
        torch.manual_seed(1)
        router: QueryRouter = QUERY_ROUTERS.build(name, context=RouterContext(width=16)).double()
    causal = awake(tiny()).blocks[0].mixer
    mixer = RoutedMixer(router, causal.local, causal.attention)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, LENGTH, 16, generator=generator, dtype=torch.float64)
    other = torch.cat((x[:, :-3], torch.randn(2, 3, 16, generator=generator, dtype=torch.float64)), 1)
    # Static shapes: with as many rows as are taken, the sums of another count of rows round differently.
    for mode in (RoutingMode(capacity=LENGTH), DENSE):
        leaky, clean = (
            not torch.equal(made(x, mode=mode)[0][:, :-3], made(other, mode=mode)[0][:, :-3])
            for made in (mixer, causal)
        )
        assert leaky and not clean


class Plain(nn.Module):
    """An ordinary module: embedding, a mixing part, a head."""

    def __init__(self, mix: nn.Module, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.embed, self.mix, self.head, self.wrap = nn.Embedding(VOCAB, 8), mix, nn.Linear(8, VOCAB), wrap

    def forward(self, tokens: Tensor) -> Any:
        x = self.mix(self.embed(tokens))
        return self.wrap(self.head(x[0] if isinstance(x, tuple) else x))


class Causal(nn.Module):
    """A running sum, with a buffer that counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.total += x.sum().to(self.total.dtype)
        return x.cumsum(1) + self.total * 0


class Ahead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(-1, 1)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, None), lambda x: OrderedDict(logits=x), lambda x: type("Out", (), {"logits": x})()],
    ids=["tensor", "tuple", "mapping", "attribute"],
)
def test_any_module_with_an_embedding_can_be_certified_whatever_it_returns(wrap: Callable[[Tensor], Any]) -> None:
    assert certify(Plain(Causal(), wrap), length=LENGTH).causal
    assert certify(Plain(nn.GRU(8, 8, batch_first=True), wrap), length=LENGTH).causal
    leaky = certify(Plain(Ahead(), wrap), length=LENGTH)
    assert leaky.leaks[0].where == "mix" and leaky.leaks[0].seen_at == leaky.leaks[0].changed_at - 1


def test_a_leak_in_the_last_step_alone_is_seen_in_the_logits() -> None:
    certificate = certify(Plain(Causal(), lambda x: x + x.flip(1)), length=LENGTH)
    assert {leak.where for leak in certificate.leaks} == {"logits"}


def test_values_of_shape_batch_by_length_are_compared_too() -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(-1).flip(1)

    class Model(Plain):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            return self.head(x * (1 + 0 * self.mix(x)[..., None]))

    assert certify(Model(Scores()), length=LENGTH).leaks[0].where == "mix"


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a check could disturb: values, types, identities, gradients, modes."""
    tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    return {
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "grads": {name: None if t.grad is None else t.grad.clone() for name, t in tensors.items()},
        "ids": {name: (id(t), t.data_ptr(), t.dtype, t.requires_grad) for name, t in tensors.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": sum(len(module._forward_hooks) for module in model.modules()),
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for key in ("ids", "training", "hooks"):
        assert after[key] == before[key], key
    for key in ("values", "grads"):
        for name, value in before[key].items():
            have = after[key][name]
            assert (have is None) == (value is None), name
            assert value is None or (have.dtype == value.dtype and torch.equal(have, value)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_exactly_as_it_was(dtype: torch.dtype, tie: bool, training: bool) -> None:
    model = CausalLM(tiny("threshold", tie=tie), vocab=VOCAB).to(dtype).train(training)
    model(torch.zeros(2, 5, dtype=torch.int64)).logits.float().square().mean().backward()
    # One part in the other mode than the rest.
    model.blocks[0].train(not training)
    before = snapshot(model)
    rng = torch.get_rng_state()
    assert certify(model, length=LENGTH).causal
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert (model.head.weight is model.embed.weight) is tie


def test_buffers_are_left_as_they_were_even_if_shared_or_written_to() -> None:
    model = Plain(Causal())
    model.also = nn.Module()
    model.also.register_buffer("total", model.mix.total)
    before = snapshot(model)
    assert certify(model, length=LENGTH).causal
    assert_untouched(model, before)
    assert model.also.total is model.mix.total and int(model.mix.calls) == 0


def test_a_model_that_fails_is_left_as_it_was() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    model = Plain(Fails()).train()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="broken"):
        certify(model)
    assert_untouched(model, before)


@pytest.mark.parametrize("router", routers())
def test_no_length_makes_a_causal_model_look_like_a_leak(router: str) -> None:
    """A memory [B, E] has the shape of one value a token when the length is E; so have other weights' dimensions."""
    model = awake(tiny(router, local="window"))
    for length in (5, 8, 16, 17, 32):
        certificate = certify(model, length=length, positions=2)
        assert certificate.causal, (length, certificate)


def test_a_length_that_is_a_dimension_of_the_model_is_lowered_and_the_certificate_says_so() -> None:
    certificate = certify(awake(tiny()), length=16)
    assert certificate.length == 15
    assert str(certificate) == (
        f"causal: {certificate.checks} perturbations of 15 tokens, nothing before them moved by a single bit"
    )


def test_two_equal_nans_are_no_leak() -> None:
    class Undefined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x[:, :1] * float("nan"), x[:, 1:]), 1)

    assert certify(Plain(Undefined()), length=LENGTH).causal


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: Plain(Causal()), {"length": 1}, r"length=1; expected >= 2"),
        (lambda: Plain(Causal()), {"batch": 0}, r"batch=0.*expected >= 1"),
        (lambda: Plain(Causal()), {"positions": 0}, r"positions=0; expected >= 1"),
        (lambda: nn.Linear(3, 3), {}, r"found vocabulary None; expected .*vocab >= 2 or an nn.Embedding"),
        (lambda: CausalLM(tiny(), vocab=1), {}, r"found vocabulary 1; expected"),
        (
            lambda: Plain(Causal(), lambda x: x[:, -1]),
            {},
            r"got a tensor of shape \[2, 23\] from Plain; expected logits",
        ),
        (lambda: Plain(Causal(), lambda x: "text"), {}, r"got a str from Plain; expected logits \[B, T, ...\]"),
        (lambda: nn.Sequential(nn.Embedding(2, 3)), {"length": 3}, r"length=3: every length up to it is a dimension"),
    ],
)
def test_what_cannot_be_certified_is_refused(
    model: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        certify(model(), **options)


def test_the_check_is_part_of_the_public_interface() -> None:
    assert turnout.certify is certify
    assert Certificate(checks=1).causal
    assert not Certificate(checks=1, leaks=[Leak("x", 1, 0, 0.5)]).causal
