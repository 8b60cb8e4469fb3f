"""What routing saves is measured for every arm, counted with the router's own cost, and disturbs nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from routing_laws import wake
from turnout.bench import savings
from turnout.bench.power import NOT_REPORTED, PowerMeter
from turnout.bench.savings import _decode, _joules, build_arms, count_flops, count_kv_bytes, measure_run
from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.tasks import RecallConfig
from turnout.train.config import RunConfig
from turnout.train.evaluate import evaluate

WHATS = ("prefill", "decode", "train_step")


def run(router: str = "linear", *, length: int = 24, **model: Any) -> tuple[CausalLM, RunConfig, Any]:
    """A tiny model with gates both ways, its config and its task."""
    config = RunConfig(
        device="cpu",
        task=RecallConfig(length=length),
        model=ModelConfig(
            layers=2, width=16, heads=2, local="conv:kernel=4", routing=RoutingConfig(router=router), **model
        ),
    )
    task = config.task.build(0)
    made = CausalLM(config.model, vocab=task.vocab)
    for block in made.blocks:
        wake(getattr(block.mixer, "router", None))
    return made, config, task


def measure(model: CausalLM, config: RunConfig, task: Any) -> dict[str, Any]:
    summary = evaluate(model, task, sequences=4, batch=4)
    return measure_run(model, config, task, summary, batch=2, seconds=0.0)


def at(rows: list[dict[str, Any]], what: str, arm: str) -> dict[str, Any]:
    (row,) = [row for row in rows if row["what"] == what and row["arm"] == arm]
    return row


@pytest.mark.parametrize("router", ["linear", "ema", "threshold", "random:p=0.2", "shuffled"])
def test_every_arm_and_call_has_one_row_with_positive_ordered_times_and_operations(router: str) -> None:
    model, config, task = run(router)
    result = measure(model, config, task)
    assert {(row["what"], row["arm"]) for row in result["rows"]} == {
        ("train_step", "dense_phase"),
        *((what, arm) for what in WHATS for arm in ("routed", "dense", "static_hybrid", "local")),
    }
    assert len(result["rows"]) == 13
    assert result["threads"] == torch.get_num_threads() and result["device"]
    for row in result["rows"]:
        assert 0 < row["ms_p20"] <= row["ms"] <= row["ms_p80"]
        assert row["flops"] > 0 and row["length"] == 24 and row["n"] >= 5
        assert (row["usage"] is not None) is (row["arm"] == "routed")
        assert (row["kv_bytes"] is not None) is (row["what"] == "decode")
        tokens = row["batch"] * (1 if row["what"] == "decode" else 24)
        assert row["tokens_per_s"] * row["ms"] / 1e3 == pytest.approx(tokens)


def test_at_usage_zero_the_router_costs_less_than_the_attention_it_saves_once_the_sequence_is_long() -> None:
    model, config, task = run("never", length=200)
    rows = measure(model, config, task)["rows"]
    for what in WHATS:
        routed, dense, local = (at(rows, what, arm)["flops"] for arm in ("routed", "dense", "local"))
        assert local < routed < dense
        assert local < at(rows, what, "static_hybrid")["flops"] < dense


@pytest.mark.parametrize("what", WHATS)
def test_counted_operations_rise_linearly_with_usage(what: str) -> None:
    model, _, task = run("linear")
    batch = next(iter(task.eval_batches(1, 2)))
    flops = [count_flops(model, what, batch, [u, u]) for u in (0.0, 0.5, 1.0)]
    assert flops[0] < flops[1] < flops[2]
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0])


def test_decode_steps_add_up_to_a_prefill_without_the_other_heads() -> None:
    model, _, task = run("linear")
    whole = next(iter(task.eval_batches(1, 1)))
    head = 2.0 * model.head.weight.numel()
    steps = 0.0
    for n in range(1, 25):
        part = replace(whole, tokens=whole.tokens[:, :n])
        steps += count_flops(model, "decode", part, [0.3, 0.3]) - head
    assert steps == pytest.approx(count_flops(model, "prefill", whole, [0.3, 0.3]) - head)


def test_the_static_hybrid_attends_in_the_layer_that_the_router_uses_most() -> None:
    model, config, task = run("linear")
    arms = build_arms(model, config, task.vocab, [0.1, 0.7])
    assert {name: arm.config.layer_kinds for name, arm in arms.items()} == {
        "routed": "RR", "dense": "AA", "static_hybrid": "LA", "local": "LL",
    }  # fmt: skip
    assert arms["routed"] is model


def test_usage_belongs_to_the_routed_layers_of_a_mixed_layout() -> None:
    model, config, task = run("linear", layout="LR")
    arms = build_arms(model, config, task.vocab, [0.7])
    assert arms["static_hybrid"].config.layer_kinds == "LA"
    batch = next(iter(task.eval_batches(1, 2)))
    low, high = (count_flops(model, "prefill", batch, [u]) for u in (0.1, 0.9))
    assert low < high


def test_a_model_without_a_router_is_measured_beside_the_same_arms() -> None:
    model, config, task = run(layout="A")
    rows = measure(model, config, task)["rows"]
    assert {row["arm"] for row in rows} == {"this", "dense", "static_hybrid", "local"}
    assert at(rows, "prefill", "this")["flops"] == at(rows, "prefill", "dense")["flops"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("router", ["threshold", "linear"])
def test_measuring_trains_nothing_and_leaves_modes_and_generators_alone(router: str, training: bool) -> None:
    model, config, task = run(router)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    measure(model, config, task)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training is training and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("router", ["ema", "periodic:period=5", "random:p=0.4"])
@pytest.mark.parametrize("length", [3, 10, 40])
def test_every_timed_decode_call_takes_the_decisions_of_the_whole_sequence(router: str, length: int) -> None:
    model, config, task = run(router, length=length)
    batch = next(iter(task.eval_batches(1, 1)))
    with torch.no_grad():
        whole = [route.taken for route in model.eval()(batch.tokens).routes]
    call = _decode(model, batch, config, None)
    seen: list[torch.Tensor] = []
    hook = model.blocks[1].mixer.router.register_forward_hook(lambda m, i, out: seen.append(out[0].taken))
    for _ in range(3):
        seen.clear()
        call()
        n = min(16, length - 1)
        assert torch.equal(torch.cat(seen, 1), whole[1][:, -n:])
    hook.remove()


def test_a_decoded_token_of_dense_attention_reads_all_keys_and_values_of_all_layers() -> None:
    model, _, task = run(layout="A", kv_heads=1, length=100)
    batch = next(iter(task.eval_batches(1, 3)))
    # 3 sequences, 2 layers, keys and values, 100 positions, 1 kv head of 8 dimensions, 4 bytes.
    assert count_kv_bytes(model, batch, None) == 3 * 2 * 2 * 100 * 1 * 8 * 4
    assert count_kv_bytes(model.bfloat16(), batch, None) == 3 * 2 * 2 * 100 * 1 * 8 * 2


@pytest.mark.parametrize("usage", [0.0, 0.25, 1.0])
def test_routing_reads_its_usage_of_the_keys_and_a_local_track_none(usage: float) -> None:
    model, config, task = run("linear")
    batch = next(iter(task.eval_batches(1, 2)))
    arms = build_arms(model, config, task.vocab, [0.1, 0.7])
    dense = count_kv_bytes(arms["dense"], batch, None)
    assert count_kv_bytes(model, batch, [usage, usage]) == usage * dense
    assert count_kv_bytes(arms["static_hybrid"], batch, None) == dense / 2
    assert count_kv_bytes(arms["local"], batch, None) == 0


def test_a_window_is_all_that_a_decoded_token_reads() -> None:
    model, _, task = run(layout="A", pattern="window:size=5", length=40)
    batch = next(iter(task.eval_batches(1, 1)))
    assert count_kv_bytes(model, batch, None) == pytest.approx(2 * 2 * 5 * 16 * 4)


def test_energy_is_shared_by_calls_and_tokens_and_missing_where_nothing_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config, task = run(length=3)
    without = measure(model, config, task)
    assert without["energy"] == NOT_REPORTED and all(row["joules"] is None for row in without["rows"])
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "name").write_text("package-0")
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.write_text("0")
    monkeypatch.setattr(savings, "PowerMeter", partial(PowerMeter, powercap=tmp_path))

    def call() -> None:
        counter.write_text(str(int(counter.read_text()) + 6_000_000))

    assert _joules(call, torch.device("cpu"), 0.0, 1) == 6.0 and _joules(call, torch.device("cpu"), 0.0, 4) == 1.5
