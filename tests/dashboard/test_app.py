"""The application over HTTP: every address answers, nothing outside the runs folder does, damage becomes words."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from dashboard.served import Served, eval_line, event_line, serving, train_line
from report.fake_run import Fake, write_fake_run
from turnout.dashboard import metrics
from turnout.dashboard.serve import open_port, serve
from turnout.errors import ConfigError, TurnoutError

HOSTILE = "<script>alert(1)<"
AWKWARD = 'a b?c#d%41&e+"f;g'
TABS = ("", "/gates", "/sequences", "/savings", "/config")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        write_fake_run(root / f"linear-{seed}", Fake(name=f"linear-{seed}", seed=seed, layers=2, steps=400))
    random_arm = Fake(name="random-0", router="random:p=0.004", layers=2, steps=400, final_quality=0.02)
    write_fake_run(root / "random-0", random_arm)
    write_fake_run(root / "dense-0", Fake(name="dense-0", layout="A", layers=2, steps=400))
    text = Fake(name="text-0", task="text", schedule="budget", final_usage=0.1, final_quality=1.3, layers=2, steps=400)
    write_fake_run(root / "text-0", text)
    write_fake_run(root / HOSTILE, Fake(name='"><img src=x onerror=alert(1)> style="fill:red"', layers=2, steps=400))
    shutil.copytree(root / "linear-0", root / AWKWARD)
    (root / "notes.txt").write_text("not a run")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def served(runs: Path) -> Iterator[Served]:
    with serving(runs) as found:
        yield found


def words(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<main")[2]))


def attribute_names(page: str) -> set[str]:
    found: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.update(name for name, _ in attributes)

    Reader().feed(page)
    return found


PAGES = ["/", "/compare", "/compare?run=linear-0&run=linear-1&run=random-0&run=dense-0", "/pareto",
         "/pareto?quality=accuracy", "/kernels", "/inference", "/claims", "/claims/RA1", "/claims/RA1/runs/demo-0",
         "/claims?verdict=holds&q=recall", "/?q=linear&sort=-loss&state=finished"]  # fmt: skip
PAGES += [
    f"/run/{name}{tab}" for name in ("linear-0", "dense-0", "text-0", quote(HOSTILE), quote(AWKWARD)) for tab in TABS
]
PAGES += ["/run/linear-0/gates?step=120", "/run/linear-0/sequences?step=120"]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_without_inline_code(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status == 200
    assert "unsafe" not in answer.headers["content-security-policy"]
    names = attribute_names(answer.text)
    assert "style" not in names, "a style attribute would be refused by the policy"
    assert not [name for name in names if name.startswith("on")]
    assert len(re.findall(r"<h1[ >]", answer.text)) == 1
    scripts = re.findall(r"<script([^>]*)>([^<]*)", answer.text)
    assert all("src=" in head or "application/json" in head for head, _ in scripts)


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_a_page_offers_to_export_can_be_had(served: Served, path: str) -> None:
    page = served.get(path).text
    links = {html.unescape(link) for link in re.findall(r'href="([^"]*/export/[^"]*)"', page)}
    for link in links:
        answer = served.get(link)
        assert answer.status == 200, link
        if ".svg" in link:
            root = ElementTree.fromstring(answer.text)
            assert root.tag.endswith("svg") and "var(--" not in answer.text and "light-dark" not in answer.text
        else:
            rows = list(csv.reader(io.StringIO(answer.text)))
            assert len({len(row) for row in rows}) == 1 and (len(rows) > 1 or "slices" in link)


@pytest.mark.parametrize("theme", ["light", "dark", "auto", "nonsense"])
def test_a_figure_brings_its_own_colours_in_every_theme(served: Served, theme: str) -> None:
    svg = served.get(f"/run/linear-0/export/training.svg?theme={theme}").text
    ElementTree.fromstring(svg)
    used = set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert used <= set(re.findall(r"(--[\w-]+):", svg))
    assert ("prefers-color-scheme" in svg) == (theme == "auto")


def test_a_hostile_name_is_text_everywhere(served: Served) -> None:
    for path in ("/", f"/run/{quote(HOSTILE)}", f"/compare?run={quote(HOSTILE)}", "/pareto"):
        page = served.get(path).text
        assert "<script>alert" not in page and "<img" not in page
    assert HOSTILE in words(served.get("/").text)
    svg = served.get(f"/run/{quote(HOSTILE)}/export/training.svg").text
    ElementTree.fromstring(svg)
    assert "<img" not in svg


@pytest.mark.parametrize(
    "path",
    ["/run/..%2f..%2fetc", "/run/%2e%2e", "/run/..", "/run/%2fetc%2fpasswd", "/static/../app.py",
     "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/run/linear-0/export/..%2f..%2fmanifest.json", "/run/a%00b",
     "/claims/..%2fRA1",
     "/claims/RA1/runs/..%2f..%2fRA2", "/run/linear-0/manifest.json", "//etc/passwd", "/run/linear-0%0d%0aX:y"],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(served: Served, path: str) -> None:
    try:
        answer = served.get(path)
    except (ValueError, OSError):
        return
    assert answer.status in (400, 404)
    assert "root:" not in answer.text and "import " not in answer.text


def test_only_reading_is_possible(served: Served) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert served.get("/", method=method).status == 405
    assert served.get("/", method="HEAD").status == 200


def test_a_page_of_another_name_is_not_answered(served: Served) -> None:
    assert served.get("/", {"Host": "evil.example"}).status == 421


def test_a_token_is_asked_for_and_becomes_a_cookie(runs: Path) -> None:
    token = "a-long-enough-token"
    with serving(runs, token=token, hosts=frozenset({"*"})) as guarded:
        assert guarded.get("/").status == 401
        assert guarded.get("/run/linear-0/export/training.csv").status == 401
        assert guarded.get("/?token=wrong-wrong-wrong").status == 401
        moved = guarded.get(f"/?q=lin&token={token}")
        assert (moved.status, moved.headers["location"]) == (303, "/?q=lin")
        cookie = moved.headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        assert guarded.get("/", {"Cookie": cookie.partition(";")[0]}).status == 200
        assert guarded.get("/", {"Authorization": f"Bearer {token}"}).status == 200


def test_an_unchanged_page_is_not_made_again_and_a_changed_one_is(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "a")
    with serving(tmp_path) as live:
        for path in ("/run/a", "/run/a/gates", "/compare?run=a", "/pareto", "/claims", "/kernels"):
            mark = live.get(path).headers["etag"]
            assert live.get(path, {"If-None-Match": mark}).status == 304
            other = live.get(f"{path}{'&' if '?' in path else '?'}q=x", {"If-None-Match": mark})
            assert other.status == 200, "another query is another page"
        mark = live.get("/run/a").headers["etag"]
        with (tmp_path / "a" / "metrics.jsonl").open("a") as stream:
            stream.write(train_line(99_999))
        changed = live.get("/run/a", {"If-None-Match": mark})
        assert changed.status == 200 and changed.headers["etag"] != mark


def test_an_empty_a_missing_and_a_foreign_folder_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.pdf").write_bytes(b"%PDF")
    for folder, said in (("empty", "No runs in"), ("missing", "There is no folder"), ("foreign", "none of them a run")):
        with serving(tmp_path / folder, results=tmp_path / "none") as found:
            assert said in words(found.get("/").text)
            for path in ("/pareto", "/compare", "/kernels", "/inference", "/claims", "/claims/RA1"):
                assert found.get(path).status == 200


def test_damage_of_every_file_becomes_words(tmp_path: Path) -> None:
    for file in ("manifest.json", "summary.json", "savings.json", "metrics.jsonl", "gates/final.json"):
        for kind, content in (("cut", b'{"a": [1, 2'), ("bytes", b"\xff\x00\xfe"), ("list", b"[]"), ("void", b"")):
            folder = write_fake_run(tmp_path / f"{kind}-{file.replace('/', '-')}")
            (folder / file).write_bytes(content)
    with serving(tmp_path) as found:
        assert found.get("/").status == 200
        assert found.get("/pareto").status == 200
        for folder in sorted(tmp_path.iterdir()):
            for tab in TABS:
                answer = found.get(f"/run/{folder.name}{tab}")
                assert answer.status == 200, (folder.name, tab)
        assert "could not be read" in (said := words(found.get("/run/cut-manifest.json").text)) or "not JSON" in said
        assert "left out" in words(found.get("/run/bytes-metrics.jsonl").text)


def test_wrong_types_in_valid_json_never_break_a_view(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "odd")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"name": ["a"], "created": 5, "seed": {"x": 1}, "device": None, "commit": 7, "format": "one"}
    manifest["config"] |= {"task": "recall", "model": [1], "schedule": None, "optim": 3}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [train_line(1, loss="high", usage_layers="none", ms="3"), train_line(2, loss=None, phase=None),
             eval_line(3, accuracy=[1], slices=[1, 2]), event_line(4, "x"), '{"kind": 5}\n',
             '{"kind": "event"}\n']  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "savings.json").write_text(
        json.dumps({"rows": [1, {"what": 5, "arm": None}, {"what": "decode", "arm": "x"}]})
    )
    (folder / "summary.json").write_text(json.dumps({"accuracy": "x", "usage": None, "layout": 4, "stages": 1}))
    with serving(tmp_path) as found:
        for path in ("/", "/pareto", "/compare?run=odd", *(f"/run/odd{tab}" for tab in TABS)):
            assert found.get(path).status == 200, path


def test_a_run_of_a_newer_version_and_a_deleted_run_are_explained(tmp_path: Path) -> None:
    write_fake_run(tmp_path / "future")
    manifest = json.loads((tmp_path / "future" / "manifest.json").read_text())
    (tmp_path / "future" / "manifest.json").write_text(json.dumps(manifest | {"format": 7}))
    write_fake_run(tmp_path / "gone")
    with serving(tmp_path) as found:
        for tab in TABS:
            assert "written by a newer turnout" in words(found.get(f"/run/future{tab}").text)
        assert "written by a newer turnout" in words(found.get("/compare?run=future").text)
        mark = found.get("/run/gone").headers["etag"]
        shutil.rmtree(tmp_path / "gone")
        answer = found.get("/run/gone", {"If-None-Match": mark})
        assert answer.status == 404 and "there is no run 'gone'" in words(answer.text)
        assert "there is no run 'gone'" in words(found.get("/compare?run=gone&run=future").text)
        assert found.get("/run/gone/export/training.csv").status == 404


def test_a_run_without_a_result_is_not_judged(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "live")
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").write_text(eval_line(3, accuracy=0.125) + train_line(4, **{"lambda": 0.5}))
    with serving(tmp_path) as found:
        said = words(found.get("/run/live").text)
        assert "Step 4, explore; accuracy 12.5" in said and "λ 0.500" in said and "has not finished" in said
        assert "did not learn" not in said
        (folder / "metrics.jsonl").write_text("")
        assert "No training lines yet" in words(found.get("/run/live").text)


def test_the_drawn_sequence_is_that_of_the_address(served: Served) -> None:
    path = "/run/linear-0/sequences/export/sequence.csv"
    first, second = served.get(path), served.get(f"{path}?sequence=1")
    assert first.status == second.status == 200 and first.text != second.text
    assert served.get("/run/linear-0/sequences/export/sequence.svg?sequence=1").text.startswith("<svg")
    assert served.get("/run/linear-0/sequences?sequence=99").status == 200, "past the last one is the last one"


def test_queries_of_any_kind_are_answered(served: Served) -> None:
    for query in (
        "page=99",
        "page=-1",
        f"page={'9' * 5000}",
        "sort=%00",
        "step=x",
        "q=%ff%fe",
        "state=none",
        "page=%D9%A3",
    ):
        for path in ("/", "/run/linear-0/gates", "/pareto"):
            assert served.get(f"{path}?{query}").status == 200, (path, query)


def test_twenty_readers_see_a_run_grow_and_never_a_broken_page(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "live")
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").unlink()
    stop, failures, seen = threading.Event(), [], [0] * 20

    def write() -> None:
        step = 0
        while not stop.is_set():
            text = train_line(step) + (eval_line(step) if step % 5 == 0 else "")
            with (folder / "metrics.jsonl").open("a") as stream:
                # Readers meet half a line again and again.
                stream.write(text[: len(text) // 2])
                stream.flush()
                time.sleep(0.001)
                stream.write(text[len(text) // 2 :])
            step += 1

    def read(k: int, found: Served) -> None:
        paths = ["/run/live", "/", "/run/live/export/training.csv", "/pareto", "/compare?run=live"]
        for i in range(6):
            answer = found.get(paths[(k + i) % len(paths)])
            if answer.status != 200 or "unreadable" in answer.text:
                failures.append((paths[(k + i) % len(paths)], answer.status, words(answer.text)[:300]))
            seen[k] += 1

    with serving(tmp_path) as found:
        writer = threading.Thread(target=write)
        readers = [threading.Thread(target=read, args=(k, found)) for k in range(20)]
        writer.start()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        stop.set()
        writer.join(10)
    assert not failures and seen == [6] * 20


def test_a_large_run_says_how_far_it_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "WHOLE_BYTES", 2**16)
    folder = write_fake_run(tmp_path / "large")
    (folder / "metrics.jsonl").write_text("".join(train_line(step) for step in range(1000)))
    with serving(tmp_path) as found:
        said = words(found.get("/run/large").text)
        assert "the curves are a sample of" in said and "evaluations and events are complete" in said


def test_inference_rows_of_any_shape_are_shown(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir(parents=True)
    rows = [
        {
            "kind": "inference",
            "arm": arm,
            "case": {"n": n, "batch": 1, "<b>": "<i>"},
            "ms_per_token": n / 1e3,
            "joules": None,
        }
        for arm in ("dense", "routed")
        for n in (512, 2048)
    ]
    lines = [json.dumps(row) for row in rows] + [
        "{broken",
        json.dumps({"verb": "inference", "arm": "x", "cost": {"a": 1}}),
    ]
    (tmp_path / "bench" / "inference-test.jsonl").write_text("\n".join(lines))
    with serving(tmp_path / "runs", results=tmp_path) as found:
        page = found.get("/inference").text
        said = words(page)
        assert "cost.a" in said and "1 line(s) of inference-test.jsonl are no rows" in said and "<i>" not in page
        assert found.get("/export/inference.csv").status == 404
        assert found.get("/inference/export/inference_inference_.svg").status == 200


def test_a_port_in_use_names_another_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TurnoutError, match=f"port {port} is in use.*--port {port + 1}"):
            open_port("127.0.0.1", port)


def test_other_machines_need_a_token_that_cannot_be_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add --token"):
        serve(tmp_path, host="0.0.0.0")
    with pytest.raises(ConfigError, match="at least 16"):
        serve(tmp_path, host="0.0.0.0", token="short")


def test_the_verb_prints_its_address_serves_and_stops(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "turnout", "dashboard", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])  # type: ignore[index]
        assert Served(port).get("/").status == 200
    finally:
        process.terminate()
        process.wait(10)
