"""The page: complete, self-contained, well formed, and never brought down by what a folder holds."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import subprocess
import sys
import urllib.parse
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from report.fake_run import Fake, fake_family, write_fake_run
from turnout.errors import DataError, UnsupportedError
from turnout.report import load_run, write_report
from turnout.report.page import render

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&"\'\u2028'


class Document(HTMLParser):
    """Checks that tags are balanced; collects elements and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes <{self.stack[-1:]}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\xa0", " ").split())


@pytest.fixture(scope="module")
def recall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([write_fake_run(tmp_path_factory.mktemp("runs") / "demo")])


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(fake_family(tmp_path_factory.mktemp("family")))


def test_a_run_gets_a_page_and_a_csv_for_every_figure(recall: Path) -> None:
    assert recall.name == "report.html"
    written = {path.name for path in (recall.parent / "report_data").iterdir()}
    expected = {"training", "gates_mean", "gates_training", "gates_sequences", "savings", "slices"}
    assert written == {f"{name}.csv" for name in expected}


def test_every_download_link_holds_the_same_csv_as_the_file_beside_the_page(recall: Path) -> None:
    links = [link for link in Document(recall.read_text()).all("a") if "download" in link]
    assert len(links) == 6
    for link in links:
        embedded = base64.b64decode(urllib.parse.unquote(link["href"].partition("base64,")[2])).decode()
        assert embedded == (recall.parent / "report_data" / link["download"]).read_bytes().decode()
        rows = list(csv.reader(io.StringIO(embedded)))
        assert len(rows) > 1 and len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("which", ["recall", "family"])
def test_the_page_loads_nothing_from_outside(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which).read_text()
    document = Document(page)
    for name, attributes in document.elements:
        for key in ("src", "href", "action", "data", "poster"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (name, attributes)
    assert "url(" not in page and "@import" not in page
    links = set(re.findall(r"https?://[^\"'<\s]*", page))
    assert links <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("which", ["recall", "family"])
def test_every_svg_is_well_formed_labelled_and_free_of_nan(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which).read_text()
    plots = re.findall(r"<svg[^>]*class=\"plot.*?</svg>", page, flags=re.S)
    assert len(plots) >= 6
    for plot in plots:
        assert ET.fromstring(plot).get("aria-label")
        assert "nan" not in re.sub(r"<text.*?</text>|<title>.*?</title>|aria-label=\"[^\"]*\"", "", plot).lower()


def test_the_script_is_the_one_that_the_content_policy_allows(recall: Path) -> None:
    page = recall.read_text()
    script = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_the_headline_says_what_was_learnt_with_its_numbers(recall: Path) -> None:
    words = Document(recall.read_text()).text
    assert (
        "learnt recall over a distance of 126 tokens: it answers 100 % of 1,024 held-out queries right (chance 1 %)"
        in words
    )
    assert "with attention open at 0.210 % of its slots (1.08 of 512 gates per sequence)" in words
    assert "n = 1,024 evaluated targets · seed 0 · cpu (Generic 2-core CPU) · commit 0123456789" in words


def test_a_run_at_chance_is_not_said_to_have_learnt(tmp_path: Path) -> None:
    page = write_report([write_fake_run(tmp_path / "run", Fake(final_quality=0.011))]).read_text()
    assert "did not learn recall" in Document(page).text


def test_where_routing_costs_more_than_dense_the_page_says_so_in_words(recall: Path) -> None:
    words = Document(recall.read_text()).text
    assert re.search(
        r"Decode, one token: At T=128 routing takes [\d.]+× the time of dense attention \(costs \d+ % more\)", words
    )


def test_a_text_run_is_judged_by_its_loss_and_can_be_read(tmp_path: Path) -> None:
    fake = Fake(name="novel", task="text", length=96, final_usage=0.06, final_quality=1.48, steps=200)
    page = write_report([write_fake_run(tmp_path / "novel", fake)]).read_text()
    document = Document(page)
    assert re.search(r"reaches 1\.\d{4} nats per token \([\d.]+ bits\) on held-out text at T=96", document.text)
    data = json.loads(re.findall(r'id="gate-data">(.*?)</script>', page, flags=re.S)[0])
    sequence = data[0]["sequences"][0]
    assert "".join(sequence["tokens"]).count(" ") > 5
    assert {len(row) for row in sequence["taken"]} == {96}
    assert {len(row) for row in sequence["gate"]} == {192}


def test_a_comparison_names_the_controls_at_equal_usage_with_intervals(family: Path) -> None:
    words = Document(family.read_text()).text
    assert re.search(
        r"At equal usage \(0\.410 %\) linear reaches 100 % \[.*?\]; random:p=0\.004 1\.20 % \[.*?\]", words
    )
    for label in ("joint (linear)", "static hybrid", "dense", "local", "oracle", "frozen"):
        assert label in words
    assert "24 runs" in words and "seeds 0, 1, 2" in words


def test_a_comparison_goes_to_the_common_parent_and_one_run_twice_is_one_run(tmp_path: Path) -> None:
    first, second = (write_fake_run(tmp_path / name, Fake(name=name, steps=100)) for name in ("a", "b"))
    assert write_report([first, second]) == tmp_path.resolve() / "report.html"
    assert write_report([first, first]) == first / "report.html"
    elsewhere = write_report([first], tmp_path / "pages" / "mine.html")
    assert elsewhere.exists() and (tmp_path / "pages" / "mine_data" / "training.csv").exists()


def test_runs_of_two_tasks_with_one_router_keep_their_own_gate_maps(tmp_path: Path) -> None:
    text = Fake(name="t", task="text", length=64, steps=100, final_usage=0.1, final_quality=1.5)
    folders = [write_fake_run(tmp_path / "r", Fake(name="r", steps=100)), write_fake_run(tmp_path / "t", text)]
    page = write_report(folders).read_text()
    data = json.loads(re.findall(r'id="gate-data">(.*?)</script>', page, flags=re.S)[0])
    assert [len(entry["sequences"][0]["tokens"]) for entry in data] == [128, 64]


def test_pages_stay_small(recall: Path, family: Path, tmp_path: Path) -> None:
    long = write_fake_run(tmp_path / "long", Fake(length=4096, layers=4, steps=200, final_usage=1 / 16384))
    for page in (recall, family, write_report([long])):
        assert page.stat().st_size < 2_000_000


def test_hostile_names_and_tokens_stay_text(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=100))
    edit(folder / "manifest.json", lambda raw: raw.update(name=EVIL, commit=EVIL, device_name=EVIL, extra={EVIL: EVIL}))
    edit(folder / "summary.json", lambda raw: raw.update(task=EVIL, router=EVIL, arm=EVIL, seed=EVIL))
    edit(folder / "savings.json", lambda raw: [row.update(what=EVIL) for row in raw["rows"]])
    for name in ("gates/final.json",):
        edit(folder / name, lambda raw: raw["sequences"][0].update(tokens=[EVIL] * 128, targets=[EVIL]))
    event = {"kind": "event", "step": 50, "event": EVIL, "detail": EVIL}
    evaluation = {"kind": "eval", "step": 99, "slices": {EVIL: [{"value": EVIL, "n": 3, "accuracy": 1}]}, "final": True}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n" + json.dumps(evaluation) + "\n")
    for out in (write_report([folder]), write_report([folder, write_fake_run(tmp_path / "other", Fake(steps=100))])):
        document = Document(out.read_text())
        assert [attributes.get("type") for attributes in document.all("script")] == ["application/json", None]
        assert not document.all("img")
        assert not [key for _, attributes in document.elements for key in attributes if key.startswith("on")]
        names = [path.name for path in (out.parent / "report_data").iterdir()]
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.csv", name) for name in names)


OPTIONAL = ["manifest.json", "summary.json", "metrics.jsonl", "savings.json", "gates"]


@pytest.mark.parametrize("kept", [*OPTIONAL[:3], ""])
def test_what_is_missing_is_said_and_nothing_crashes(tmp_path: Path, kept: str) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=100))
    for name in OPTIONAL:
        if name == "gates":
            for path in (folder / name).iterdir():
                path.unlink()
        elif kept and name != kept:
            (folder / name).unlink()
    words = Document(write_report([folder]).read_text()).text
    assert "No gate map" in words
    if kept:
        assert "Nothing was timed for this run" in words and "is missing" in words


def test_a_cut_last_line_and_nan_losses_are_noted_and_left_out(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=200))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train" and line["step"] > 150:
            line["loss"] = line["task_loss"] = math.nan
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"kind": "train", "st')
    words = Document(write_report([folder]).read_text()).text
    assert "The last line of metrics.jsonl is cut off" in words
    assert "not a number in 5 of 20 lines (steps 160 to 200)" in words


def test_a_run_with_one_metrics_line_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 4.6, "unheard_of": [1]}\n')
    assert "Training, step by step" in Document(write_report([tmp_path]).read_text()).text


def test_folders_that_are_no_runs_are_refused_with_what_to_do(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_fake_run(runs / "demo", Fake(steps=100))
    (tmp_path / "empty").mkdir()
    for path, words in (
        (runs / "dmeo", "did you mean 'demo'"),
        (runs, "holds 1 of them; name them: demo"),
        (tmp_path / "empty", "turnout train"),
        (runs / "demo" / "manifest.json", "expected a run folder"),
    ):
        with pytest.raises(DataError, match=re.escape(words)):
            write_report([path])
    with pytest.raises(DataError, match="no run folder given"):
        write_report([])


def test_a_page_that_cannot_be_written_is_a_clear_error_and_the_old_one_stays(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=100))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        write_report([folder], tmp_path / "file" / "page.html")
    page = write_report([folder])
    assert not [path for path in folder.rglob(".*")] and page.exists()


def test_without_jinja2_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_fake_run(tmp_path / "run", Fake(steps=100))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UnsupportedError, match=re.escape("turnout[report]")):
        write_report([folder])


def test_importing_the_report_loads_neither_torch_nor_the_template_engine() -> None:
    code = "import sys, turnout.report; print(sorted({'torch', 'jinja2', 'rich', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 10**7) | st.floats() | st.sampled_from(["", "ramp", "cpu", "R", "<b>"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["n", "value", "accuracy"]), SCALARS)
FILES = {
    "manifest.json": ["name", "config", "seed", "device", "commit"],
    "summary.json": [
        "task",
        "router",
        "arm",
        "accuracy",
        "loss",
        "usage",
        "usage_layers",
        "n_eval",
        "layout",
        "length",
    ],
    "savings.json": ["rows", "device", "threads"],
    "gates/final.json": ["step", "phase", "length", "layer_index", "mean", "bin", "groups", "n", "sequences"],
}
LINE_KEYS = [
    "step",
    "phase",
    "lambda",
    "loss",
    "accuracy",
    "usage",
    "usage_layers",
    "length",
    "ms",
    "slices",
    "n",
    "final",
]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_in_any_file_brings_the_page_down(fuzzed: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*FILES, "metrics.jsonl"]))
    original = (fuzzed / name).read_text()
    if name == "metrics.jsonl":
        lines = [json.loads(line) for line in original.splitlines()]
        for _ in range(4):
            line = data.draw(st.sampled_from(lines))
            line[data.draw(st.sampled_from(LINE_KEYS))] = data.draw(VALUES)
        changed = "\n".join(json.dumps(line) for line in lines)
    else:
        raw = json.loads(original)
        raw[data.draw(st.sampled_from(FILES[name]))] = data.draw(VALUES)
        if name == "savings.json" and isinstance(raw["rows"], list) and raw["rows"]:
            row = raw["rows"][0]
            if isinstance(row, dict):
                row[data.draw(st.sampled_from(sorted(row)))] = data.draw(VALUES)
        changed = json.dumps(raw)
    try:
        (fuzzed / name).write_text(changed)
        Document(render([load_run(fuzzed)])[0])
    finally:
        (fuzzed / name).write_text(original)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("fuzz") / "run", Fake(length=16, layers=2, steps=60))


def edit(path: Path, change: Any) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
