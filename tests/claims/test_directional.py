"""The claims on directional routing: a real record of every arm, judged by every claim; judgements of made-up ones."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from turnout.claims import directional_rows as rows
from turnout.claims.directional import GROUP, SCALES, TITLES, arms, record_run
from turnout.claims.directional_perplexity import perplexity
from turnout.claims.registry import VERDICTS, find_claims, get_claim
from turnout.claims.reproduce import judge, reproduce, run_arm
from turnout.errors import ConfigError
from turnout.probe import directional as study
from turnout.recipes import directional as recipes
from turnout.train.jsonfile import to_json
from turnout.train.loop import train

WORDS = "the cat sat on the mat and saw the other cat that sat on the mat . "


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """One seed of each arm, trained for two steps on three domains of a few kilobytes."""
    root = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNOUT_CACHE", str(root / "cache"))
        patch.setenv("TURNOUT_TEXT", str(root / "mixture"))
        for i, name in enumerate(("books", "code", "talk")):
            (root / "mixture" / name).mkdir(parents=True)
            for part in range(2):
                text = (WORDS[i * 7 :] + f"{name} {part} ") * 40
                (root / "mixture" / name / f"{part}.txt").write_text(text)
        small = replace(recipes.SIZES["cpu"], layers=2, width=16, length=16, batch=4, steps=2, warmup=1, hidden=8)
        patch.setitem(recipes.SIZES, "cpu", small)
        sizes = study.StudySize(honest=8, positions=4, sequences=8, batch=8, texts=48, copies=4, draws=1)
        patch.setattr(study, "StudySize", lambda **_: sizes)
        out = root / "results"
        found: dict[str, list[dict[str, Any]]] = {}
        for arm in arms():
            if arm.name.endswith(", cpu"):
                run_arm("DR1", arm.name, 0, device="cpu", out=out)
                path = out / "runs" / "DR1" / f"{arm.name}-0.json"
                found[arm.name] = [json.loads(path.read_text())]
        assert run_arm("DR1", "prefix, cpu", 0, device="cpu", out=out) == "there already"
        table = judge(get_claim("DR8"), out, "cpu")
        assert {row["verdict"] for row in table} == {"too few seeds"}
    return found


def test_every_number_of_the_study_has_a_claim_and_its_arms() -> None:
    assert [entry.id for entry in find_claims([GROUP])] == list(TITLES) == [f"DR{i}" for i in range(1, 13)]
    names = {arm.name for arm in get_claim("DR1").arms()}
    assert names == {f"{arm}, {scale}" for arm in recipes.ARMS for scale in SCALES}
    assert all(arm.owner == "DR1" for arm in get_claim("DR5").arms())
    assert get_claim("DR12").bench is not None


def test_the_published_size_is_run_by_name_alone(tmp_path: Path) -> None:
    from turnout.claims.reproduce import _jobs

    for quick, size in ((True, "cpu"), (False, "gpu")):
        jobs = _jobs(get_claim("DR1"), 1, "cpu", tmp_path, quick)
        assert {job[1] for job in jobs} == {f"{arm}, {size}" for arm in recipes.ARMS}


@pytest.mark.parametrize("claim_id", list(TITLES))
def test_every_claim_reads_real_records_and_says_what_it_compared_with(
    claim_id: str, records: dict[str, list[dict[str, Any]]]
) -> None:
    found = get_claim(claim_id).judge(records)
    assert len(found) >= 2
    for finding in found:
        assert finding.verdict in VERDICTS and finding.n == 1
        assert finding.statement.endswith("(cpu)") and finding.quoted and finding.measured and finding.control
        assert "nan" not in finding.measured


def test_a_study_is_plain_json_with_the_same_keys_for_each_routed_arm(records: dict[str, list[dict[str, Any]]]) -> None:
    studies = {name: found[0]["study"] for name, found in records.items()}
    routed = {name for name in studies if "routing" in studies[name]}
    assert routed == {f"{arm}, cpu" for arm in recipes.ROUTERS}
    assert len({tuple(studies[name]) for name in routed}) == 1
    assert json.loads(to_json(studies["prefix, cpu"])) == studies["prefix, cpu"]
    assert len(studies["baseline, cpu"]["honest"]["by_domain"]) == 3


def test_reading_runs_that_do_not_exist_gives_no_rows() -> None:
    assert get_claim("DR1").judge({}) == []
    with pytest.raises(ConfigError, match="unknown claim"):
        reproduce(["DR99"])


def seeds(record: dict[str, Any], count: int = 3) -> list[dict[str, Any]]:
    return [copy.deepcopy(record) | {"seed": i} for i in range(count)]


def verdicts(found: list[Any]) -> list[str]:
    return [finding.verdict for finding in found]


def test_a_gain_that_only_teacher_forcing_shows_does_not_hold(records: dict[str, list[dict[str, Any]]]) -> None:
    seen = {name: seeds(records[f"{name}, cpu"][0]) for name in ("baseline", "matched", "sequence", "prefix")}
    for found in seen.values():
        for i, record in enumerate(found):
            record["study"]["honest"] |= {"teacher_forced": 2.0, "honest": 2.0 + 0.001 * i, "gap": 0.0, "last": 2.0}
    leaky = seen["sequence"]
    for record in leaky:
        record["study"]["honest"] |= {"teacher_forced": 1.5, "honest": 2.1, "gap": 0.6, "gap_stderr": 0.01}
    by_name = {finding.statement: finding.verdict for finding in perplexity(seen)}
    assert by_name["directional routing (sequence) lowers perplexity by 31 % or more"] == "does not hold"
    reads = "the published router reads the future: prefix-honest loss is above teacher-forced loss"
    assert by_name[reads] == "holds"
    for record in leaky:
        record["study"]["honest"]["honest"] = 1.5
    by_name = {finding.statement: finding.verdict for finding in perplexity(seen)}
    assert by_name["directional routing (sequence) lowers perplexity by 31 % or more"] == "holds"


def test_multiple_choice_shows_no_gain_unless_it_is_larger_than_chance_allows(
    records: dict[str, list[dict[str, Any]]],
) -> None:
    seen = {name: seeds(records[f"{name}, cpu"][0]) for name in ("baseline", "sequence")}
    for gain, want in ((0.02, "holds"), (0.5, "does not hold")):
        for name, right in (("baseline", 0.3), ("sequence", 0.3 + gain)):
            for record in seen[name]:
                record["study"]["choice"] |= {"n": 64, "honest": {"accuracy": right}}
        found = next(f for f in perplexity(seen) if f.statement == "no gain on multiple choice (sequence)")
        assert found.verdict == want and "chance 25 %" in found.control
        assert f"{100 * gain:+.1f} points" in found.measured


def test_a_leak_that_grows_as_windows_shrink_is_said_with_its_gain(records: dict[str, list[dict[str, Any]]]) -> None:
    seen = {name: seeds(records[f"{name}, cpu"][0]) for name in ("baseline", "sequence", "prefix")}
    for name, gap in (("baseline", 0.0), ("sequence", 0.5), ("prefix", 0.0)):
        for record in seen[name]:
            record["study"]["honest"]["gap"] = gap / 4
            row = {"length": 64, "gap": gap, "teacher_forced": 2.0 - gap, "honest": 2.0}
            record["study"]["lengths"] = [row]
    found = next(f for f in perplexity(seen) if f.statement.startswith("the shorter the window"))
    assert found.verdict == "holds" and "64 tokens 0.5000" in found.measured and "arms 0.0e+00" in found.control
    assert "39.3 ± 0.0 % below the baseline teacher-forced, 0.0 ± 0.0 % honest" in found.detail


def test_a_study_that_was_cut_short_is_judged_on_what_it_has(records: dict[str, list[dict[str, Any]]]) -> None:
    cut = {name: [dict(found[0], study={"honest": found[0]["study"]["honest"]})] for name, found in records.items()}
    assert len(get_claim("DR1").judge(cut)) >= 2
    assert all(get_claim(entry).judge(cut) == [] for entry in TITLES if entry != "DR1")


@pytest.mark.parametrize(
    ("zero", "mean", "want"),
    [(2.0 + 5.0, 2.0 + 4.0, ["holds", "holds"]), (2.0 + 1.0, 2.1, ["holds with changes", "does not hold"]),
     (2.1, 2.0, ["does not hold", "does not hold"])],
)  # fmt: skip
def test_routing_off_is_judged_by_its_factor_and_the_share_that_the_mean_destroys_too(
    zero: float, mean: float, want: list[str], records: dict[str, list[dict[str, Any]]]
) -> None:
    found = seeds(records["prefix, cpu"][0])
    for record in found:
        record["study"]["routing"] |= {"plain": 2.0, "zero": zero, "mean": mean}
    assert verdicts(rows.routing_off({"prefix": found})) == want


def test_what_the_intact_model_cannot_do_cannot_be_tested(records: dict[str, list[dict[str, Any]]]) -> None:
    found = seeds(records["prefix, cpu"][0])
    assert verdicts(rows.induction({"prefix": found})) == ["cannot be tested as published"]
    assert verdicts(rows.recall({"prefix": found})) == ["cannot be tested as published"]
    for record in found:
        record["study"]["copying"] |= {"plain": 0.9, "r, zero": 0.0}
        record["study"]["facts"] |= {"plain": 0.5, "zero": 0.001}
    assert verdicts(rows.induction({"prefix": found})) == ["holds"]
    assert verdicts(rows.recall({"prefix": found})) == ["holds"]


def test_one_seed_still_has_the_interval_of_its_windows(records: dict[str, list[dict[str, Any]]]) -> None:
    seen = {name: seeds(records[f"{name}, cpu"][0], 1) for name in ("baseline", "sequence")}
    seen["baseline"][0]["study"]["honest"]["windows"] = [[2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]
    seen["sequence"][0]["study"]["honest"]["windows"] = [[1.9, 2.1], [2.9, 3.1], [3.9, 4.1]]
    said = perplexity(seen)[0].interval
    # The same difference in every window leaves no doubt: 1 - exp(-0.1) and 1 - exp(0.1).
    assert said.endswith("; over windows 9.5 to 9.5 % teacher-forced and -10.5 to -10.5 % honest")
    assert len(records["baseline, cpu"][0]["study"]["honest"]["windows"]) == 8


def test_the_cost_of_training_is_counted_by_gpu(records: dict[str, list[dict[str, Any]]]) -> None:
    seen = {name: seeds(records[f"{name}, cpu"][0]) for name in ("baseline", "prefix")}
    assert rows.training_cost(seen) == []
    for name, pace, gpus in (("baseline", 400.0, 4), ("prefix", 190.0, 2)):
        for record in seen[name]:
            record |= {"tokens_per_s": pace, "gpus": gpus}
    (found,) = rows.training_cost(seen)
    assert found.measured == "+5.3 % time a token" and found.verdict == "does not hold"


def test_costs_are_judged_by_the_fastest_way_and_by_what_the_epilogue_adds_to_its_kernel() -> None:
    profile = {
        "kernel": [{"name": "a", "us": 5.0}, {"name": "b", "us": 3.0}],
        "kernel + epilogue": [{"name": "a", "us": 5.1}, {"name": "c", "us": 4.0}],
    }
    row = {"size": "433m", "what": "forward", "shape": [1, 2, 3, 4], "ms": {"attention": 1.0}, "n": 9}
    record: dict[str, Any] = {"device_name": "some GPU", "models": [], "attention": [row | {"best": 1.02}]}
    assert verdicts(rows.costs([record])) == ["holds"]
    record["attention"] = [row | {"best": 1.02, "epilogue": 1.04, "profile": profile}]
    (inside, behind) = rows.costs([record])
    assert (inside.verdict, behind.verdict) == ("does not hold", "holds")
    assert inside.detail == "us by kernel: b 3.0 -> 0.0, c 0.0 -> 4.0"


def test_models_are_judged_by_the_causal_router_and_every_arm_is_named() -> None:
    models = [
        {"arm": arm, "size": "gpu", "train": t, "forward": t, "decode": 2 * t, "cache": f"{arm} keeps nothing"}
        for arm, t in (("baseline", 1.0), ("prefix", 1.05), ("gated", 1.5))
    ]
    found = rows.costs([{"device_name": "some GPU", "models": models, "attention": []}])
    assert [row.measured for row in found] == ["+5.0 % time a token"] * 3
    assert all("gated" in row.control for row in found) and "gated keeps nothing" in found[2].detail
    models[1] |= {"train": 1.03}
    assert verdicts(rows.costs([{"device_name": "some GPU", "models": models, "attention": []}]))[0] == "holds"


def test_a_run_folder_becomes_the_record_of_its_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def studied(model: Any, task: Any, size: Any, *, seed: int, parts: Any) -> dict[str, Any]:
        seen.update(size=size, seed=seed)
        return {part: 1 for part in parts or ("a",)}

    monkeypatch.setattr(study, "study", studied)
    monkeypatch.setenv("TURNOUT_CACHE", str(tmp_path / "cache"))
    small = replace(recipes.SIZES["cpu"], layers=1, width=16, length=8, batch=2, steps=2, warmup=1, hidden=4)
    monkeypatch.setitem(recipes.SIZES, "433m", small)
    (tmp_path / "text").mkdir()
    for i in range(4):
        (tmp_path / "text" / f"{i}.txt").write_text(WORDS * 30)
    config = recipes.directional_run("433m", "prefix", str(tmp_path / "text"), seed=5)
    folder, _ = train(replace(config, device="cpu"), root=tmp_path)
    monkeypatch.chdir(tmp_path)
    path = record_run(folder.path, "prefix, 433m", out=tmp_path / "results", device="cpu")
    record = json.loads(path.read_text())
    assert record["config"]["task"]["path"] == "text"
    assert (record["tokens"], record["gpus"]) == (2 * 2 * 8, 1) and record["tokens_per_s"] > 0
    assert record["curve"][-1] == [2, pytest.approx(record["loss"], rel=0.5)]
    assert path.name == "prefix, 433m-5.json" and record["study"] == {"a": 1} and record["seed"] == 5
    assert seen["seed"] == 5 and seen["size"].positions == 16
    record_run(folder.path, "prefix, 433m", out=tmp_path / "results", device="cpu", parts=["b"])
    assert json.loads(path.read_text())["study"] == {"a": 1, "b": 1}
    with pytest.raises(ConfigError, match="is another model than arm 'token, 433m'"):
        record_run(folder.path, "token, 433m")
    with pytest.raises(ConfigError, match="did you mean 'prefix, 433m'"):
        record_run(folder.path, "prefix, 433")
