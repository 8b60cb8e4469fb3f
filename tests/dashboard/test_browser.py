"""The dashboard in a real browser: every view, live updates, comparing, exports, slider, keyboard, accessibility."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboard.served import Served, eval_line, event_line, serving, train_line
from report.fake_run import Fake, write_fake_run
from turnout.claims.store import results_dir
from turnout.report.theme import AIR

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
HOSTILE = "<script>document.title='owned'<"
VIEWS = {
    "runs": "/", "run": "/run/linear-0", "gates": "/run/linear-0/gates", "sequences": "/run/linear-0/sequences",
    "savings": "/run/linear-0/savings", "config": "/run/linear-0/config",
    "compare": "/compare?run=linear-0&run=linear-1&run=random-0", "pareto": "/pareto", "kernels": "/kernels",
    "inference": "/inference", "claims": "/claims?verdict=holds", "claim": "/claims/RA1",
    "record": "/claims/RA1/runs/demo-0", "missing": "/run/nope",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        write_fake_run(root / f"linear-{seed}", Fake(name=f"linear-{seed}", seed=seed, layers=2, steps=400))
    write_fake_run(
        root / "random-0", Fake(name="random-0", router="random:p=0.004", layers=2, steps=400, final_quality=0.02)
    )
    write_fake_run(root / HOSTILE, Fake(name=HOSTILE, layers=2, steps=400))
    return root


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the committed results: the checks grow with the page, and a few rows have everything that many have."""
    root, small = results_dir(), tmp_path_factory.mktemp("results")
    for folder in ("claims", "runs/RA1", "bench"):
        (small / folder).mkdir(parents=True)
    for file in ("claims/RA1.json", "claims/RA4.json", "runs/RA1/demo-0.json", "runs/RA1/demo-1.json"):
        shutil.copy(root / file, small / file)
    for path in (root / "bench").glob("*.jsonl"):
        (small / "bench" / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    return small


@pytest.fixture(scope="module")
def served(runs: Path, results: Path) -> Iterator[Served]:
    with serving(runs, results=results) as found:
        yield found


class Problems(list[str]):
    """What the browser complained about: errors of scripts and of the content security policy."""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    found = context.new_page()
    problems = Problems()
    found.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.problems = problems
    found.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
    yield found
    context.close()


AXE = Path(axe.__file__).parent / "axe.min.js"


def violations(page: Any, scheme: str) -> list[str]:
    """What axe finds, as words; a second colour scheme can only differ in its contrasts."""
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
    wanted = {"type": "tag", "values": rules} if scheme == "light" else {"type": "rule", "values": ["color-contrast"]}
    # The policy of the page refuses inline scripts; evaluating through the protocol is not one.
    page.evaluate(AXE.read_text())
    options = {"runOnly": wanted, "resultTypes": ["violations"], "preload": False}
    result = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{item['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for item in result["violations"]
        for node in item["nodes"][:3]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_accessible_and_breaks_no_rule(browser: Any, served: Served, name: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(served.address + VIEWS[name])
    if folder := os.environ.get("TURNOUT_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}-{scheme}.png", full_page=True)
    found = violations(page, scheme)
    context.close()
    assert not found
    assert [words for words in problems if "404" not in words] == []


def test_figures_have_their_colours_although_inline_styles_are_refused(page: Any, served: Served) -> None:
    page.goto(served.address + "/run/linear-0")
    strokes = page.eval_on_selector_all(".desk path.line", "marks => marks.map(m => getComputedStyle(m).stroke)")
    assert strokes and "none" not in strokes and len(set(strokes)) > 2
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.select_option("#theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark", "the choice is kept"


def test_a_hostile_name_runs_nothing(page: Any, served: Served) -> None:
    page.goto(served.address)
    page.get_by_role("link", name=HOSTILE, exact=True).click()
    assert wait_for(lambda: page.title().startswith(HOSTILE)) and page.inner_text("h1") == HOSTILE
    page.wait_for_timeout(50)
    assert page.problems == [] and page.title() != "owned"


def wait_for(check: Callable[[], bool], seconds: float = 8.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return True
        time.sleep(0.05)
    return False


def test_a_run_appears_grows_finishes_and_is_deleted_while_it_is_looked_at(browser: Any, tmp_path: Path) -> None:
    context = browser.new_context()
    table, run = context.new_page(), context.new_page()
    with serving(tmp_path) as live:
        table.goto(live.address)
        assert "No runs in" in table.inner_text("main")
        folder = write_fake_run(tmp_path / "live")
        (folder / "summary.json").rename(tmp_path / "later.json")
        (folder / "metrics.jsonl").write_text(train_line(10))
        table.bring_to_front()
        table.wait_for_selector("text=running", timeout=8000)
        run.goto(live.address + "/run/live")
        run.evaluate("document.querySelector('[data-keep=\"table-training\"]').open = true")
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(
                train_line(20) + eval_line(20, accuracy=0.625) + event_line(20, "something new") + '{"kind": "tr'
            )
        run.wait_for_selector("#event-list >> text=something new", timeout=8000)
        assert "62.5" in run.inner_text("#head")
        assert run.evaluate("document.querySelector('[data-keep=\"table-training\"]').open"), (
            "what was opened stays open"
        )
        assert run.inner_text("#live-words") == "live"
        (tmp_path / "later.json").rename(folder / "summary.json")
        run.wait_for_selector("#state >> text=finished", timeout=8000)
        shutil.rmtree(folder)
        run.wait_for_selector("#banner:has-text(\"there is no run 'live'\")", timeout=8000)
        assert "something new" in run.inner_text("#event-list"), "the last state stays on the page"
    run.wait_for_selector("#banner:has-text('does not answer')", timeout=12000)
    context.close()


def test_runs_are_picked_compared_and_the_address_is_the_comparison(page: Any, served: Served) -> None:
    page.goto(served.address + "/?sort=name")
    assert page.is_disabled("#compare-button")
    page.check('input[value="linear-0"]')
    page.check('input[value="random-0"]')
    assert page.inner_text("#compare-count") == "2 selected"
    page.wait_for_timeout(1300)
    assert page.is_checked('input[value="linear-0"]'), "a look at the server does not undo the choice"
    page.click("#compare-button")
    page.wait_for_selector("h1:has-text('2 runs compared')")
    assert page.url.endswith("/compare?run=linear-0&run=random-0")
    assert page.locator("figure").count() >= 2


def test_filters_and_sorting_are_in_the_address(page: Any, served: Served) -> None:
    page.goto(served.address)
    page.fill('input[name="q"]', "linear seed=1")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=linear+seed%3D1")
    assert wait_for(lambda: page.locator("tbody tr").count() == 1)
    page.get_by_role("link", name="loss").click()
    page.wait_for_url("**sort=-loss**")
    assert wait_for(lambda: page.get_attribute("th[aria-sort]", "aria-sort") == "descending")
    page.get_by_role("link", name="Clear").click()
    # A click does not wait for the page it leads to.
    assert wait_for(lambda: page.locator("tbody tr").count() == 4)


def test_the_slider_walks_through_the_maps_by_mouse_and_keyboard(page: Any, served: Served) -> None:
    page.goto(served.address + "/run/linear-0/gates")
    first = page.inner_html("#figure-gates_mean .desk")
    page.focus("#step-slider")
    page.keyboard.press("Home")
    page.wait_for_url("**step=40")
    assert wait_for(lambda: page.inner_html("#figure-gates_mean .desk") != first)
    assert page.get_attribute("#step-slider", "aria-valuetext") == "step 40"
    assert page.evaluate("document.activeElement.id") == "step-slider", "the keyboard stays on the slider"
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**step=120")
    assert wait_for(lambda: "map 2 of 6" in page.inner_text("#step-words"))
    page.reload()
    assert "map 2 of 6" in page.inner_text("#step-words"), "the link is permanent"
    page.get_by_role("link", name="Follow the latest").click()
    assert wait_for(lambda: "follows the run" in page.inner_text("#step-words"))


def test_a_sequence_is_read_token_by_token_with_the_keyboard(page: Any, served: Served) -> None:
    page.goto(served.address + "/run/linear-0/sequences")
    assert page.locator(".tokens .t").count() == 128 and page.locator(".tokens .t.open").count() >= 1
    page.focus(".tokens")
    page.keyboard.press("n")
    page.wait_for_selector(".tip:not([hidden])")
    assert "position" in page.inner_text(".tip") and "open in layer" in page.inner_text('[data-part="live"]')
    page.select_option('select[name="step"]', "40")
    page.wait_for_url("**step=40")
    assert page.locator(".tokens .t.open").count() > 20, "early in training most gates are open"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_saved_as_svg_png_and_csv(browser: Any, served: Served, tmp_path: Path, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.goto(served.address + "/run/linear-0")
    figure = page.locator("#figure-training")
    for label, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("CSV", b"run,seed")):
        with page.expect_download() as waiting:
            figure.get_by_text(label, exact=True).click()
        saved = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved)
        assert saved.name == f"training.{label.lower()}" and saved.read_bytes().startswith(start)
    size = int.from_bytes((tmp_path / "training.png").read_bytes()[16:20], "big")
    assert size == 2 * (980 + 2 * AIR)
    context.close()


def test_everything_is_reached_by_the_keyboard_in_the_order_of_the_page(page: Any, served: Served) -> None:
    page.goto(served.address)
    order = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "[document.activeElement.textContent.trim().slice(0, 20), document.activeElement.name || ''].join('|')"
            )
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"the focus is invisible on {order[-1]}"
    assert order[0].startswith("Skip to the content")
    names = [item.split("|")[1] for item in order]
    assert names.index("q") < names.index("task") < names.index("mechanism") < names.index("state")
    page.goto(served.address)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_the_pages_work_without_javascript(browser: Any, served: Served) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(served.address + "/run/linear-0/gates")
    assert page.locator("figure svg").count() >= 2
    page.select_option("#step-select", "120")
    page.click("text=Show")
    page.wait_for_url("**step=120")
    page.goto(served.address)
    page.check('input[value="linear-0"]')
    page.click("#compare-button")
    assert page.inner_text("h1") == "1 run compared"
    context.close()


def test_a_phone_scrolls_the_page_only_down(browser: Any, served: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    for path in VIEWS.values():
        page.goto(served.address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    context.close()


def test_nothing_is_asked_of_any_other_machine(page: Any, served: Served) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in VIEWS.values():
        page.goto(served.address + path)
    assert asked and all(url.startswith((served.address, "blob:", "data:")) for url in asked)


def test_a_page_that_is_read_while_the_run_writes_never_shows_a_broken_state(browser: Any, tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "live")
    (folder / "summary.json").unlink()
    stop = threading.Event()

    def write() -> None:
        step = 5000
        while not stop.is_set():
            with (folder / "metrics.jsonl").open("a") as stream:
                stream.write(train_line(step)[:50])
                stream.flush()
                time.sleep(0.01)
                stream.write(train_line(step)[50:])
            step += 10

    writer = threading.Thread(target=write)
    context = browser.new_context()
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    with serving(tmp_path) as live:
        writer.start()
        page.goto(live.address + "/run/live")
        first = page.inner_html("#figures")
        assert wait_for(lambda: page.inner_html("#figures") != first)
        assert "Missing or damaged" not in page.inner_text("main").replace("summary.json", "")
        stop.set()
        writer.join()
    context.close()
    assert problems == []
