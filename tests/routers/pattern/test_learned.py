"""Learned patterns against their equations, what pruning may lose, and that the learned parts learn."""

from __future__ import annotations

import math

import pytest
import torch

from pattern_laws import HEADS, KV_HEADS, WIDTH, build
from routing_laws import assert_same
from turnout.layers.reading import first_keys, read
from turnout.routers.mode import SKIP, RoutingMode
from turnout.routers.pattern import PATTERNS, Pattern, PatternContext, Prune, Reach
from turnout.routers.pattern.decay import MOST_KEYS

LENGTH = 19
DIM = WIDTH // HEADS


def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, LENGTH, HEADS, DIM, generator=generator, dtype=torch.float64) for _ in range(3))


def reach_of(pattern: Pattern, x: torch.Tensor | None = None, mode: RoutingMode = SKIP) -> Reach:
    if x is None:
        x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return pattern.reach(x, at=torch.arange(x.shape[1]), length=x.shape[1], state=None, mode=mode)


def softmax_reading(added: torch.Tensor) -> torch.Tensor:
    """Attention with `added` [B or 1, H, T, S] on the scores, causal."""
    q, k, v = tensors()
    score = torch.einsum("bthd,bshd->bhts", q, k) * DIM**-0.5 + added
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return torch.einsum("bhts,bshd->bthd", score.masked_fill(hidden, -math.inf).softmax(-1), v)


def distance() -> torch.Tensor:
    at = torch.arange(LENGTH, dtype=torch.float64)
    return (at[:, None] - at).clamp(min=0)


def test_forgetting_multiplies_the_forget_gates_between_key_and_row() -> None:
    pattern = build("forget:shortest=1,longest=8")
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f = torch.sigmoid(x @ pattern.weight.T + pattern.bias)
    added = torch.zeros(2, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    for t in range(LENGTH):
        for s in range(t):
            added[:, :, t, s] = f[:, s + 1 : t + 1].prod(1).log()
    assert_same(read(*tensors(), reach_of(pattern, x)), softmax_reading(added), terms=LENGTH * WIDTH)


def test_a_constant_forget_gate_starts_at_its_decay_times() -> None:
    context = PatternContext(width=WIDTH, heads=HEADS, kv_heads=HEADS, head_dim=DIM)
    for gate in ("bias", "fixed"):
        pattern = PATTERNS.build(f"forget:gate={gate},shortest=2,longest=128", context=context)
        assert pattern.decay_times() == pytest.approx([2, 8, 32, 128], rel=1e-4)
        log_f = reach_of(pattern).log_decay
        assert log_f is not None and log_f[1, 5].double().tolist() == pytest.approx(
            [-1 / 2, -1 / 8, -1 / 32, -1 / 128], rel=1e-4
        )
    assert list(PATTERNS.build("forget:gate=fixed", context=context).parameters()) == []
    assert reach_of(PATTERNS.build("forget:gate=none", context=context)) == Reach()


def test_kerple_falls_with_the_logarithm_of_the_distance() -> None:
    pattern = build("kerple")
    p, a = pattern.p.clamp(min=0.01)[:, None, None], pattern.a.clamp(min=0.01)[:, None, None]
    added = -p * torch.log(1 + a * distance())
    assert_same(read(*tensors(), reach_of(pattern)), softmax_reading(added), terms=LENGTH * WIDTH)


def test_fire_is_its_network_of_the_relative_distance() -> None:
    pattern = build("fire:threshold=4")
    least = (pattern.multiplier * 4).abs()
    row = torch.maximum(torch.arange(LENGTH, dtype=torch.float64), least)[:, None]
    share = torch.log(1 + (pattern.c * distance()).abs()) / (torch.log(1 + (pattern.c * row).abs()) + 1e-6)
    added = pattern.second(pattern.first(share[..., None]).relu()).permute(2, 0, 1)
    assert_same(read(*tensors(), reach_of(pattern)), softmax_reading(added), terms=40 * LENGTH * WIDTH)


def test_an_adaptive_span_multiplies_the_weights_by_its_ramp_and_renormalises() -> None:
    pattern = build("span:longest=8,ramp=3")
    q, k, v = tensors()
    # No distance lies on a corner of the ramp, where the slope is anybody's.
    pattern.z.data = torch.tensor([0.72, 0.93, 0.29, 0.11], dtype=torch.float64)
    z = pattern.z.clamp(0, 1)[:, None, None]
    ramp = ((3 + 8 * z - distance()) / 3).clamp(0, 1)
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    score = torch.einsum("bthd,bshd->bhts", q, k) * DIM**-0.5
    weight = score.masked_fill(hidden, -math.inf).exp() * ramp
    want = torch.einsum("bhts,bshd->bthd", weight / weight.sum(-1, keepdim=True), v)
    slope = torch.autograd.grad(want.square().sum(), pattern.z)[0]
    for training in (True, False):
        have = read(q, k, v, reach_of(pattern.train(training)))
        assert_same(have, want, terms=LENGTH * WIDTH)
        grad = torch.autograd.grad(have.square().sum(), pattern.z)[0]
        assert_same(grad, slope, terms=40 * LENGTH * WIDTH)


def test_contextual_positions_count_what_the_gates_let_count() -> None:
    pattern = build("cope:positions=4")
    q, k, _ = tensors()
    score = torch.einsum("bthd,bshd->bhts", q, k) * DIM**-0.5
    gate = score.sigmoid()
    added = torch.zeros_like(score)
    for t in range(LENGTH):
        for s in range(t + 1):
            place = gate[:, :, t, s : t + 1].sum(-1).clamp(max=3)
            known = torch.einsum("bhd,hpd->bhp", q[:, t], pattern.table)
            low, high = place.floor().long(), place.ceil().long()
            pick = [known.gather(-1, i[..., None])[..., 0] for i in (low, high)]
            added[:, :, t, s] = pick[0] * (1 - (place - low)) + pick[1] * (place - low)
    assert_same(read(*tensors(), reach_of(pattern)), softmax_reading(added), terms=4 * LENGTH * WIDTH)


@pytest.mark.parametrize("loss", [1e-3, 0.5])
def test_pruning_loses_no_more_than_its_share_even_where_far_keys_score_most(loss: float) -> None:
    """Far keys aligned with the query and its own key against it: as much weight as the caps allow is far away."""
    length, cap = 300, 1.5
    k = torch.ones(1, length, 1, DIM, dtype=torch.float64) * 9
    q = k.clone()
    log_decay = -torch.rand(1, length, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.arange(length)[None, None]
    starts = first_keys(log_decay, rows, 1, Prune(loss=loss, cap=cap), DIM)[0, 0]
    assert (starts > 0).sum() > length / 2, "something must be skipped"
    assert (starts.diff() >= 0).all()
    total = log_decay[0, :, 0].cumsum(0)
    worst = 2 * cap**2 * DIM**-0.5
    for t in range(0, length, 17):
        far = torch.exp(worst + total[t] - total[: starts[t]]).sum()
        assert float(far) <= loss, "of a row whose own key has the smallest weight that the caps allow"
        if starts[t]:
            kept = worst + float(total[t] - total[starts[t] - 1]) + math.log(MOST_KEYS)
            assert kept < math.log(loss), "what is skipped is below the threshold"
    whole = Reach(log_decay=log_decay)
    pruned = Reach(log_decay=log_decay, prune=Prune(loss=loss, cap=cap))
    v = torch.randn(1, length, 1, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    short = cap / q.norm(dim=-1, keepdim=True)
    difference = read(q, k, v, pruned) - read(q * short, k * short, v, whole)
    assert 0 < float(difference.abs().max()) <= 2 * loss * float(v.abs().max())


@pytest.mark.parametrize("loss", [0.3, 1e-2, 1e-6])
@pytest.mark.parametrize("spec", ["alibi:slope=40", "retnet:shift=0.5", "forget:gate=fixed,shortest=0.3,longest=2"])
def test_a_constant_decay_skips_what_is_negligible_for_every_input_and_not_a_key_less(spec: str, loss: float) -> None:
    context = PatternContext(width=WIDTH, heads=HEADS, kv_heads=HEADS, head_dim=DIM)
    length, cap = 400, 0.7
    pattern = PATTERNS.build(f"{spec},prune={loss},cap={cap}", context=context)
    reach = reach_of(pattern, torch.zeros(2, length, WIDTH, dtype=torch.float64))
    assert reach.prune is not None and reach.log_decay is not None
    rows = torch.arange(length)[None, None]
    starts = first_keys(reach.log_decay, rows, HEADS, reach.prune, DIM)
    assert starts.shape == (2, HEADS, length)
    # The worst case: all keys that are read score lowest and all that are skipped highest.
    worst, skipping = cap**2 * DIM**-0.5, 0
    assert pattern.mean_keys(length) == pytest.approx(float((rows[0] + 1 - starts[0]).double().mean()))
    for head, rate in enumerate((-reach.log_decay[0, 0]).tolist()):
        first = int(starts[0, head, -1])
        skipping += first > 0

        def share(first: int, rate: float = rate) -> float:
            weight = torch.exp(-rate * torch.arange(length - 1, -1, -1, dtype=torch.float64))
            far, near = weight[:first].sum() * math.exp(worst), weight[first:].sum() * math.exp(-worst)
            return float(far / (far + near))

        assert share(first) <= loss
        # Without end the bound is tight; here what lies before the first token is missing.
        if first > 0 and math.exp(-rate * (length - 1)) < 1e-9 * loss:
            assert share(first + 1) > loss * (1 - 1e-6), "one more key could be skipped"
    assert skipping


def test_heads_that_share_keys_read_as_far_as_the_farthest_of_them() -> None:
    context = PatternContext(width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM)
    reach = PATTERNS.build("alibi:slope=40,prune=0.01,cap=0.7", context=context).reach(
        torch.zeros(1, 90, WIDTH), at=torch.arange(90), length=90, state=None, mode=SKIP
    )
    assert reach.prune is not None and reach.prune.spans is not None and reach.log_decay is not None
    starts = first_keys(reach.log_decay, torch.arange(90)[None, None], KV_HEADS, reach.prune, DIM)
    farthest = reach.prune.spans.view(KV_HEADS, -1).amax(1)
    assert torch.equal(starts[0, :, -1], (89 - farthest).clamp(min=0)) and int(starts.max()) > 0


@pytest.mark.parametrize("spec", ["alibi:slope=40", "forget:gate=fixed,shortest=0.3,longest=2"])
def test_first_keys_that_a_pattern_keeps_are_those_of_the_call(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnout.routers.pattern.decay.may_keep", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    pattern = build(spec + (",prune=0.1,cap=0.7" if ":" in spec else ":prune=0.1,cap=0.7"))
    for batch, length in ((2, 19), (2, 19), (1, 19), (2, 11)):
        reach = reach_of(pattern, torch.zeros(batch, length, WIDTH, dtype=torch.float64))
        assert reach.prune is not None and reach.prune.starts is not None and reach.log_decay is not None
        rows = torch.arange(length)[None, None]
        want = first_keys(reach.log_decay, rows, KV_HEADS, reach.prune, DIM)
        assert torch.equal(reach.prune.starts, want) and int(want.max()) > 0
        q, k, v = (t[:batch, :length] for t in tensors())
        k, v = k[:, :, :KV_HEADS], v[:, :, :KV_HEADS]
        plain = Prune(loss=reach.prune.loss, cap=reach.prune.cap, spans=reach.prune.spans)
        have, other = (read(q, k, v, Reach(log_decay=reach.log_decay, prune=p)) for p in (reach.prune, plain))
        assert torch.equal(have, other)
    again = reach_of(pattern, torch.zeros(2, 11, WIDTH, dtype=torch.float64)).prune
    assert again is not None and again.starts is reach.prune.starts


def test_gated_windows_close_the_share_of_heads_that_is_asked_and_keep_the_useful_one() -> None:
    """Head 0 must copy a far value, head 1 a near one: the budget of one window goes to head 1."""
    torch.manual_seed(0)
    context = PatternContext(width=WIDTH, heads=2, kv_heads=2, head_dim=DIM)
    pattern = PATTERNS.build("gated_window:size=2,sinks=0,closed=0.5,steps=30,speed=50", context=context)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(pattern.parameters(), lr=2e-3)
    x = torch.zeros(4, 12, WIDTH)
    q = torch.zeros(4, 12, 2, DIM)
    q[..., 0] = 9.0
    k = torch.zeros(4, 12, 2, DIM)
    k[:, 0, 0, 0] = 9.0
    for _ in range(60):
        v = torch.randn(4, 12, 2, DIM, generator=generator)
        k[:, :, 1, 0] = torch.arange(12) * 3.0
        mode = RoutingMode(sample=True, generator=generator)
        out = read(q, k, v, pattern.train().reach(x, at=torch.arange(12), length=12, state=None, mode=mode))
        wanted = torch.stack([v[:, 0, 0].expand(12, 4, DIM).transpose(0, 1), v[:, :, 1]], 2)
        penalty = pattern.penalty()
        assert penalty is not None
        optimizer.zero_grad()
        ((out - wanted).square().mean() + penalty).backward()
        optimizer.step()
    assert pattern.eval().open_heads() == (True, False)


def test_the_price_of_a_span_shortens_it_and_a_need_for_distance_keeps_it() -> None:
    spans = []
    for cost in (0.0, 0.5):
        pattern = PATTERNS.build(
            f"span:longest=16,ramp=2,cost={cost}",
            context=PatternContext(width=WIDTH, heads=1, kv_heads=1, head_dim=DIM),
        )
        optimizer = torch.optim.Adam(pattern.parameters(), lr=0.02)
        for step in range(60):
            generator = torch.Generator().manual_seed(step)
            v = torch.randn(2, 18, 1, DIM, generator=generator)
            zero = torch.zeros(2, 18, 1, DIM)
            reach = pattern.reach(torch.zeros(2, 18, WIDTH), at=torch.arange(18), length=18, state=None, mode=SKIP)
            out = read(zero, zero, v, reach)
            mean = v.cumsum(1) / torch.arange(1, 19)[:, None, None]
            optimizer.zero_grad()
            price = pattern.penalty()
            ((out - mean).square().mean() + (0.0 if price is None else price)).backward()
            optimizer.step()
        spans.append(pattern.spans()[0])
    assert spans[0] > 14 and spans[1] < 4, spans
