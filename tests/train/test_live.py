from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from turnout.train import live
from turnout.train.live import LiveView, duration, layer_bars, percent, progress

TRAIN = {
    "kind": "train",
    "step": 120,
    "phase": "ramp",
    "lambda": 0.0012,
    "loss": 1.25,
    "task_loss": 1.2,
    "penalty": 0.05,
    "accuracy": 0.4,
    "usage": 0.31,
    "usage_layers": [0.0, 0.003, 1.0],
    "gates_per_seq": 12.0,
    "skipping": False,
    "length": 128,
    "ms": 41.2,
    "tokens_per_s": 2.0e5,
}
EVAL = {"kind": "eval", "step": 120, "n": 1024, "accuracy": 0.98, "loss": 0.1, "usage": 0.3, "usage_layers": [0.3, 0.3]}
EVENT = {"kind": "event", "step": 120, "event": "phase", "detail": "explore -> ramp: solved at 0.995"}
RECORDS = [TRAIN, EVAL, EVENT]


def terminal(width: int = 80, height: int = 25) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None, _environ={})


def paper() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, _environ={})


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_panel_shows_what_the_record_holds() -> None:
    console = terminal()
    with LiveView(4000, console) as view:
        for record in RECORDS:
            view.update(record)
    text = shown(console)
    for part in ("ramp", "120/4000 (3 %)", "λ", "0.0012", "1.25 = 1.2 + 0.05", "0.4000 train, 0.9800 evaluation"):
        assert part in text
    for part in ("31%, 12 gates", "·▁█  0% 0.3% 100%", "no, length 128", "200,000 tokens/s, 41.2 ms", "at 0.995"):
        assert part in text


def test_plain_lines_are_short_ascii_and_one_a_record() -> None:
    console = paper()
    with LiveView(4000, console) as view:
        for record in RECORDS:
            view.update(record)
    lines = shown(console).splitlines()
    assert len(lines) == 3 and all(line.isascii() and len(line) < 200 for line in lines)
    assert lines[0].startswith("step 120/4000 (3 %) ramp: lambda 0.0012, loss 1.25, accuracy 0.4000, usage 31%")
    assert "accuracy 0.9800" in lines[1] and "(layers 30% 30%)" in lines[1] and "n 1,024" in lines[1]
    assert lines[2] == "step 120 phase: explore -> ramp: solved at 0.995"


@pytest.mark.parametrize("console", [terminal(), paper(), None])
def test_json_mode_prints_nothing(console: Console | None, capsys) -> None:
    with LiveView(10, console, enabled=False) as view:
        for record in RECORDS:
            view.update(record)
    assert capsys.readouterr().out == "" and (console is None or shown(console) == "")


def test_without_a_terminal_rich_is_never_imported() -> None:
    code = (
        "import sys\n"
        "from turnout.train.live import LiveView\n"
        "with LiveView(10) as view: view.update({'kind': 'train', 'step': 1, 'loss': 0.5})\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('rich', 'torch')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("step 1/10 (10 %) -: lambda -, loss 0.5")


def test_lines_are_throttled_except_evaluations_and_events_and_the_last_is_never_lost() -> None:
    clock, console = Clock(), paper()
    with LiveView(100, console, line_s=5.0, clock=clock) as view:
        for step in range(1, 13):
            clock.now = float(step)
            view.update({"kind": "train", "step": step})
            if step == 3:
                view.update({"kind": "event", "step": 3, "event": "phase"})
    starts = [line.split(",")[0].split(" (")[0] for line in shown(console).splitlines()]
    assert starts == ["step 1/100", "step 3 phase: -", "step 6/100", "step 11/100", "step 12/100"]


def test_the_panel_is_redrawn_at_most_every_fifth_of_a_second(monkeypatch) -> None:
    clock = Clock()
    drawn = []
    monkeypatch.setattr(live, "panel_rows", lambda *_, **__: drawn.append(clock.now) or [])
    with LiveView(1000, terminal(), redraw_s=0.2, clock=clock) as view:
        for step in range(1000):
            clock.now = step / 1000
            view.update({"kind": "train", "step": step})
    assert len(drawn) <= 8


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**15),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=70),
)


@settings(max_examples=60, deadline=None)
@given(
    record=st.dictionaries(st.sampled_from([*TRAIN, "n", "event", "detail"]), VALUES | st.just([None, "x", math.nan])),
    kind=st.sampled_from(["train", "eval", "event", "surprise", None]),
    width=st.integers(1, 200),
    height=st.integers(1, 40),
    total=st.none() | st.integers(0, 10),
)
def test_no_record_and_no_terminal_size_breaks_the_view(record, kind, width, height, total) -> None:
    for console in (terminal(width, height), paper()):
        with LiveView(total, console) as view:
            view.update({**record, "kind": kind})
            view.update(record)


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 40])
def test_a_narrow_terminal_gets_a_panel_no_wider_than_it_is(width: int) -> None:
    console = terminal(width)
    with LiveView(4000, console) as view:
        view.update(TRAIN)
    with console.capture() as capture:
        console.print(view._panel())
    assert all(len(line) <= width for line in capture.get().splitlines())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_by_an_error_gives_the_terminal_back_and_lets_the_error_pass(error: type[BaseException]) -> None:
    console, stdout = terminal(), sys.stdout
    with pytest.raises(error), LiveView(10, console, redraw_s=1e9) as view:
        view.update(TRAIN)
        view.update({**TRAIN, "step": 7})
        raise error
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert shown(console).rindex(show) > shown(console).rindex(hide)
    assert sys.stdout is stdout
    # The last state stays on the screen.
    assert "7/10 (70 %)" in shown(console)
    console.print("free again")
    assert shown(console).endswith("free again\n")


@pytest.mark.parametrize("force", [True, False])
def test_a_reader_that_went_away_does_not_stop_the_run(force: bool) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    console = Console(file=Closed(), force_terminal=force, _environ={})
    with LiveView(10, console) as view:
        for record in RECORDS:
            view.update(record)


def test_an_ascii_terminal_gets_ascii_only() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=file, force_terminal=True, width=80, height=25, color_system=None, _environ={})
    with LiveView(10, console) as view:
        view.update({**TRAIN, "phase": "λ"})
        view.update({**EVENT, "detail": "λ"})
    file.flush()
    assert "lambda" in raw.getvalue().decode("ascii") and ".18  0% 0.3% 100%" in raw.getvalue().decode("ascii")


def test_a_dumb_terminal_gets_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with LiveView(10, console) as view:
        view.update(TRAIN)
    assert shown(console).startswith("step 120/10")


def test_time_left_follows_the_recent_pace_and_not_steps_before_a_resume() -> None:
    clock = Clock()
    with LiveView(2000, paper(), clock=clock) as view:
        view.update({"kind": "train", "step": 1000})
        assert view.eta_s() is None
        for step in range(1001, 1101):
            clock.now += 0.5
            view.update({"kind": "train", "step": step})
    assert view.eta_s() == pytest.approx(450.0)
    with LiveView(None, paper(), clock=clock) as view:
        for step in (1, 2):
            view.update({"kind": "train", "step": step})
        assert view.eta_s() is None


def test_numbers_are_written_for_people() -> None:
    assert [duration(s) for s in (7, 750, 11100, None, math.nan)] == ["0:07", "12:30", "3:05:00", "-", "-"]
    assert [percent(u) for u in (0.0, 0.00049, 0.31, 1, None, True)] == ["0%", "0.049%", "31%", "100%", "-", "-"]
    cases = [(5, 10), (5, None), (None, 10), (3, 0)]
    assert [progress(*case) for case in cases] == ["5/10 (50 %)", "5", "-", "3/0 (300 %)"]


def test_bars_grow_with_usage_and_any_usage_shows() -> None:
    bars = layer_bars([0, 1e-6, 0.25, 0.5, 1.0, 2.0, -1.0, None])
    assert bars.split("  ")[0] == "·▁▂▄██··"
    assert layer_bars([]) == layer_bars(None) == layer_bars("0.5") == "-"
    assert layer_bars([0.5] * 9).endswith(" ...")
