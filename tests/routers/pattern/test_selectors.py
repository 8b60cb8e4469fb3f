"""What the selectors of language models choose, one row at a time, from their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracles import assert_as_exact_as_eager
from pattern_laws import HEADS, IDS, KV_HEADS, WIDTH, build
from routing_laws import VOCAB, assert_same, awake, tiny
from turnout.errors import ConfigError, UnsupportedError
from turnout.layers.reading import read
from turnout.models import CausalLM, ModelConfig
from turnout.probe.causality import certify
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import PATTERNS, Pattern
from turnout.routers.pattern.reach import BlockLists, Reach


def decide(spec: str, tokens: Tensor, x: Tensor | None = None) -> Reach:
    length = tokens.shape[1]
    x = torch.zeros(*tokens.shape, WIDTH, dtype=torch.float64) if x is None else x
    mode = replace(SKIP, tokens=tokens)
    return build(spec).reach(x, at=torch.arange(length), length=length, state=None, mode=mode)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 3),
)  # fmt: skip
def test_a_row_reads_what_followed_its_last_tokens_before(
    text: list[int], size: int, ngram: int, matches: int, follow: int
) -> None:
    chosen = decide(
        f"last_match:size={size},ngram={ngram},matches={matches},follow={follow}", torch.tensor([text])
    ).chosen
    assert isinstance(chosen, Tensor)
    for t in range(len(text)):
        gram = text[max(0, t - ngram + 1) : t + 1]
        ends = [j for j in range(t) if len(gram) == ngram and text[max(0, j - ngram + 1) : j + 1] == gram]
        ends = [j for j in ends if j + 1 >= ngram and j + 1 <= t - size][-matches:]
        want = {s for j in ends for s in range(j + 1, j + 1 + follow) if s <= t - size}
        found = [s for s in chosen[0, t, 0].tolist() if s >= 0]
        assert set(found) == want and len(found) == len(want)


def test_two_n_grams_of_one_code_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.routers.pattern.last_match.CODE_BITS", 0)
    chosen = decide("last_match:size=1,ngram=1,matches=1", torch.tensor([[5, 6, 7, 6, 6]])).chosen
    assert isinstance(chosen, Tensor)
    # With one code for all, each row finds the latest place; it is read only where the token before it is the same.
    assert chosen[0, :, 0, 0].tolist() == [-1, -1, -1, 2, -1]


def test_a_pass_without_tokens_is_refused() -> None:
    pattern = build("last_match")
    with pytest.raises(UnsupportedError, match="looks token ids up and this pass has none"):
        pattern.reach(torch.zeros(1, 4, WIDTH), at=torch.arange(4), length=4, state=None, mode=SKIP)


def test_lots_are_blocks_before_the_near_ones_each_once_and_fall_everywhere() -> None:
    blocks = decide("random_blocks:block=2,keep=3,near=1", torch.zeros(1, 400, dtype=torch.int64)).blocks
    assert isinstance(blocks, BlockLists)
    seen: set[int] = set()
    for t in range(400):
        for head in range(KV_HEADS):
            drawn = [n for n in blocks.lists[0, t, head].tolist() if n >= 0]
            assert len(drawn) == len(set(drawn)) == min(3, max(0, t // 2 - 1))
            assert all(n < t // 2 - 1 for n in drawn)
            seen |= set(drawn)
    # Each is open to a hundred rows or more.
    assert set(range(150)) <= seen


def test_the_bound_of_an_index_reaches_its_best_key_and_chooses_by_it() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 23, WIDTH, generator=source, dtype=torch.float64)
    reach = decide("low_rank:block=4,keep=2,near=1,rank=3", torch.zeros(2, 23, dtype=torch.int64), x)
    assert isinstance(reach.blocks, BlockLists) and reach.index is not None
    asks, holds = (part.detach() for part in reach.index)
    pattern = build("low_rank:block=4,keep=2,near=1,rank=3")
    here, after = (x @ part.T for part in pattern.get_parameter("holds.weight").chunk(2))
    assert_same(holds[:, 1:], here[:, 1:] + after[:, :-1], terms=2 * WIDTH)
    for b in range(2):
        for t in range(23):
            bound = []
            for n in range(t // 4 - 1):
                c = holds[b, 4 * n : 4 * n + 4]
                top, low = asks[b, t] * c.amax(0), asks[b, t] * c.amin(0)
                bound.append(float(torch.maximum(top, low).sum()))
                # To the rounding of three products.
                best = float((c @ asks[b, t]).max())
                assert bound[-1] >= best - 6 * torch.finfo(torch.float64).eps * max(1.0, abs(best))
            want = sorted(range(len(bound)), key=lambda n: -bound[n])[:2]
            assert [n for n in reach.blocks.lists[b, t, 0].tolist() if n >= 0] == want


class MostWanted(Pattern):
    """Every row reads the block that the inputs of the whole sequence point at."""

    causal = False

    def reach(self, x: Tensor, *, at: Tensor, length: int, state: Any, mode: RoutingMode) -> Reach:
        best = (1000 * x.abs().sum((1, 2))).long() % 3
        lists = torch.where(best[:, None] < at // 2, best[:, None], -1)[..., None, None]
        return Reach(blocks=BlockLists(size=2, near=0, lists=lists))


def test_a_choice_over_the_whole_sequence_is_refused_and_the_certificate_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PATTERNS.names()
    monkeypatch.setitem(PATTERNS._entries, "most_wanted", MostWanted)
    config = tiny(layout="A", pattern="most_wanted")
    with pytest.raises(ConfigError, match="'most_wanted' is not causal: what a row reads hangs on later tokens"):
        CausalLM(config, vocab=VOCAB)
    monkeypatch.setattr(MostWanted, "causal", True)
    certificate = certify(awake(config), length=23, positions=4)
    assert not certificate.causal and "mixer" in str(certificate)


def test_both_sides_of_an_index_learn() -> None:
    model = awake(tiny(layout="A", pattern="low_rank:block=2,keep=1,rank=3"))
    model(torch.randint(VOCAB, (2, 13), generator=torch.Generator().manual_seed(0))).logits.square().sum().backward()
    weights = [p for name, p in model.named_parameters() if ".pattern." in name]
    assert len(weights) == 4 and all(p.grad is not None and bool((p.grad != 0).any()) for p in weights)


def test_a_small_model_learns_to_recall_through_the_index() -> None:
    """Random tokens, then the same once more: what follows a token can be read only far beyond the window."""
    torch.manual_seed(0)
    spec = "last_match:size=4,ngram=1,matches=1"
    config = ModelConfig(
        layers=1, width=32, heads=2, layout="A", pattern=spec, positions="none", form="llama", tie=True
    )
    model, source = CausalLM(config, vocab=32), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(75):
        half = torch.rand(16, 32, generator=source).argsort(1)
        tokens = torch.cat([half, half], 1)
        logits = model(tokens[:, :-1], mode=RoutingMode(skip=False)).logits[:, 32:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 33:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Dense attention, which has to find out by itself, is at ln 32 = 3.47 after twice as many steps.
    assert float(loss) < 0.5


ON_A_GPU = (
    "random_blocks:block=16,keep=2,near=1",
    "top_blocks:block=16,keep=2,near=1",
    "low_rank:block=16,keep=2,near=1,rank=3",
    "last_match:size=20,ngram=1,matches=3,follow=2",
    "buckets:size=20,keep=3,tables=2,buckets=4",
)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ON_A_GPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_reads_the_same_keys_to_the_same_gradients(spec: str, dtype: torch.dtype) -> None:
    length, dim = 200, WIDTH // HEADS
    source = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, length, n, dim, generator=source, dtype=torch.float64) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    x = torch.randn(2, length, WIDTH, generator=source, dtype=torch.float64)
    tokens = torch.randint(IDS, (2, length), generator=source)

    def run(device: str) -> Any:
        def call(*given: Tensor) -> Tensor:
            at = torch.arange(length, device=device)
            # The index decides in float64, so that both choose alike.
            pattern = build(spec).to(device)
            mode = replace(SKIP, tokens=tokens.to(device))
            reach = pattern.reach(x.to(device), at=at, length=length, state=None, mode=mode)
            moved = [tensor.to(device) for tensor in given]
            return read(moved[0], moved[1], moved[2], reach).to("cpu")

        return call

    assert_as_exact_as_eager(run("cuda"), run("cpu"), [q, k, v], reduction=2 * length * dim, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("spec", ON_A_GPU)
def test_a_compiled_block_trains_and_a_graph_of_the_model_never_looks_at_the_host(spec: str) -> None:
    config = ModelConfig(layers=1, width=64, heads=2, layout="A", pattern=spec, positions="rope", form="llama")
    model = CausalLM(config, vocab=64).cuda()
    tokens = torch.randint(64, (2, 256), generator=torch.Generator().manual_seed(0)).cuda()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        want = model(tokens).logits
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model(tokens)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            out = model(tokens).logits
        graph.replay()
    assert torch.equal(out, want)
    block = torch.compile(model.blocks[0], fullgraph=True)
    y = block(model.embed(tokens), mode=RoutingMode(skip=False, tokens=tokens))[0]
    y.square().sum().backward()
    assert bool(torch.isfinite(y).all()) and all(p.grad is not None for p in model.blocks[0].parameters())
