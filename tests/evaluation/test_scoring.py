"""Likelihoods are those of one token after the other, whatever the batch, the padding and the window."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from routing_laws import awake, tiny
from turnout.errors import ConfigError, DataError, UnsupportedError
from turnout.evaluation.lambada import read_passages, score_lambada
from turnout.evaluation.lm_eval import Answers, run_lm_eval, task_of
from turnout.evaluation.losses import losses_by_route
from turnout.evaluation.scoring import Scorer
from turnout.models import CausalLM, ModelConfig, RoutingConfig
from turnout.stats import wilson
from turnout.tasks import RecallConfig
from turnout.tasks.tokenizer import ByteTokenizer

EPS = torch.finfo(torch.float32).eps


def one_by_one(model: CausalLM, whole: list[int], first: int, longest: int) -> tuple[float, bool]:
    total, greedy = 0.0, True
    for place in range(first, len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([whole[max(0, place - longest + 1) : place]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[whole[place]])
        greedy &= int(logits.argmax()) == whole[place]
    return total, greedy


def bytes_model() -> CausalLM:
    config = ModelConfig(
        layers=2, width=32, heads=2, local="conv:kernel=3", positions="rope", form="llama",
        routing=RoutingConfig(router="linear:bias=0.0,std=0.5"),
    )  # fmt: skip
    return CausalLM(config, vocab=256).eval()


def test_scores_are_those_of_one_token_after_the_other() -> None:
    model = awake(tiny("linear"))
    pairs = [([1, 2, 3], [4, 5]), ([], [3, 1]), ([6], [2]), ([1, 2, 3, 4, 5, 6, 7], [8, 1, 2])]
    scores = Scorer(model, start=0, longest=32, batch_tokens=20).score(pairs)
    for (context, continuation), score in zip(pairs, scores, strict=True):
        whole = (context or [0]) + continuation
        expected, greedy = one_by_one(model, whole, len(whole) - len(continuation), 32)
        assert score.log_prob == pytest.approx(expected, abs=256 * EPS * len(whole))
        assert score.tokens == len(continuation) and score.greedy == greedy


def test_a_long_text_is_scored_token_by_token_once_in_windows() -> None:
    scorer = Scorer(awake(tiny("linear")), start=0, longest=6)
    text = list(range(1, 16))
    windows = scorer._windows([], text)
    assert sum(count for _, count in windows) == 15
    assert all(len(window) <= 6 for window, _ in windows)
    assert [token for window, count in windows for token in window[-count:]] == text
    with pytest.raises(ConfigError, match="longest=1"):
        Scorer(awake(tiny("linear")), start=0, longest=1)


def test_greedy_continuations_score_as_greedy() -> None:
    model, tokenizer = bytes_model(), ByteTokenizer()
    answers = Answers(model, tokenizer, longest=32)
    request = SimpleNamespace(args=("say", {"until": ["\n\n"], "max_gen_toks": 5}))
    (text,) = answers.generate_until([request])
    scores = answers.loglikelihood([SimpleNamespace(args=("say ", "it")), SimpleNamespace(args=("", "it"))])
    expected, _ = one_by_one(model, list(b"say it"), 3, 32)
    assert scores[0][0] == pytest.approx(expected, abs=1024 * EPS)
    assert isinstance(text, str)
    (whole,) = answers.loglikelihood_rolling([SimpleNamespace(args=("say it",))])
    assert whole == pytest.approx(one_by_one(model, [0, *b"say it"], 1, 32)[0], abs=1024 * EPS)


def test_lambada_asks_for_the_last_word(tmp_path: Path) -> None:
    plain, lines = tmp_path / "l.txt", tmp_path / "l.jsonl"
    plain.write_text("he came in and sat down\nshe went out\n")
    lines.write_text('{"text": "he came in and sat down"}\n{"text": "she went out"}\n')
    assert read_passages(plain) == read_passages(lines) == [("he came in and sat", " down"), ("she went", " out")]
    model, tokenizer = bytes_model(), ByteTokenizer()
    found = score_lambada(Scorer(model, start=0, longest=64), tokenizer, plain)
    expected = [
        one_by_one(model, list(t), n, 64)[0] for t, n in ((b"he came in and sat down", 18), (b"she went out", 8))
    ]
    assert found["n"] == 2 and found["tokens_per_word"] == 4.5
    assert math.log(found["perplexity"]) == pytest.approx(-sum(expected) / 2, abs=2048 * EPS)
    assert found["accuracy_95"] == wilson(found["accuracy"], 2)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for name in ("bad.jsonl", "none.txt"):
        with pytest.raises(DataError, match=name):
            read_passages(tmp_path / name)


def test_losses_are_grouped_by_the_layers_that_attended() -> None:
    task = RecallConfig(length=16).build(0)
    config = ModelConfig(
        layers=3, width=16, heads=2, layout="RLR", local="conv:kernel=2",
        routing=RoutingConfig(router="linear:bias=0.0,std=2.0"),
    )  # fmt: skip
    model = CausalLM(config, vocab=task.vocab)
    rows = losses_by_route(model, task, sequences=64, batch=16)
    assert sum(row["n"] for row in rows) == 64 and sum(row["share"] for row in rows) == pytest.approx(1)
    everything = torch.tensor([row["loss"] * row["n"] for row in rows]).sum() / 64
    from turnout.train.evaluate import evaluate

    assert float(everything) == pytest.approx(
        evaluate(model, task, sequences=64, batch=16, seed_offset=1)["loss"], rel=1e-5
    )
    with pytest.raises(ConfigError, match="no router"):
        losses_by_route(
            CausalLM(ModelConfig(layers=1, width=16, heads=2, layout="A"), vocab=9), task, sequences=1, batch=1
        )


def test_a_task_in_a_file_has_the_name_that_the_file_gives_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: base.yaml\ntask: 'mine-1'  # first\ndoc_to_text: !function utils.text\n")
    assert task_of(path) == "mine-1"
    path.write_text("subtask: other\n")
    with pytest.raises(DataError, match="task: NAME"):
        task_of(path)
    with pytest.raises(DataError, match="cannot read the task"):
        run_lm_eval(bytes_model(), ByteTokenizer(), [str(tmp_path / "none.yaml")], longest=32)


def test_without_lm_eval_the_error_says_what_to_install() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(UnsupportedError, match=r"turnout\[eval\]"):
            run_lm_eval(bytes_model(), ByteTokenizer(), ["lambada_openai"], longest=32)
