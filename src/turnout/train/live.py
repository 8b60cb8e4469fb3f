"""What a person sees while a run trains: a panel that redraws itself on a terminal, short plain lines elsewhere.

It is fed the records that go to metrics.jsonl and shows what they hold: a missing or strange value is a dash, never an
error. Nothing here changes the run. rich is imported when the panel is first drawn.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeGuard

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

DASH = "-"
_BARS = "·▁▂▃▄▅▆▇█"
_ASCII_BARS = ".12345678"
_PACE_POINTS = 64


class LiveView:
    """Context manager: `with LiveView(steps) as view: view.update(record)`.

    The panel needs no thread: it is drawn from `update`; leaving the block, also by an exception or Ctrl-C, draws
    it once more and gives the cursor back.

    Args:
        total_steps: optimizer steps of the whole run; None when open-ended (no bar, no time left).
        console: where to draw; None is standard output.
        enabled: False prints nothing (`--json`); None draws a panel on a terminal and prints lines elsewhere; True
            draws the panel anywhere.
        redraw_s: least seconds between two drawings of the panel.
        line_s: least seconds between two plain lines of training records; evaluations and events always print.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int | None,
        console: Console | None = None,
        enabled: bool | None = None,
        *,
        redraw_s: float = 0.2,
        line_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self._console = console
        self._enabled = enabled
        self._every_s = {"panel": redraw_s, "lines": line_s, "nothing": math.inf}
        self._clock = clock
        self._mode: Literal["panel", "lines", "nothing"] = "nothing"
        self._train: dict[str, Any] = {}
        self._eval: dict[str, Any] = {}
        self._pace: deque[tuple[float, int]] = deque(maxlen=_PACE_POINTS)
        self._shown_at = -math.inf
        self._waiting = False
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._mode = self._choose_mode()
        if self._mode == "panel":
            from rich.live import Live

            live = Live(self._panel(), console=self._console, auto_refresh=False)
            self._attempt(live.start)
            self._live = live if self._mode == "panel" else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._waiting:
            self._show_train()
        if self._live is not None:
            self._attempt(self._live.stop)
        self._mode = "nothing"

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one record of metrics.jsonl: kind "train" (throttled), "eval" or "event" (always)."""
        if self._mode == "nothing":
            return
        kind = record.get("kind", "train")
        if kind == "event":
            self._print(event_line(record))
            return
        if kind == "eval":
            self._eval = dict(record)
            self._print(eval_line(record))
            # The panel has a place for it; the next drawing fills it in.
            self._waiting = self._waiting or self._mode == "panel"
            return
        self._train = dict(record)
        self._note_pace(record.get("step"))
        self._waiting = True
        if self._clock() - self._shown_at >= self._every_s[self._mode]:
            self._show_train()

    def eta_s(self) -> float | None:
        """Seconds left at the pace of the last records; None when it cannot be told."""
        if self.total_steps is None or len(self._pace) < 2:
            return None
        (t0, first), (t1, last) = self._pace[0], self._pace[-1]
        return max(self.total_steps - last, 0) * (t1 - t0) / (last - first)

    def _choose_mode(self) -> Literal["panel", "lines", "nothing"]:
        if self._enabled is False:
            return "nothing"
        if self._enabled is None and self._console is None and not sys.stdout.isatty():
            return "lines"
        if self._console is None:
            from rich.console import Console

            self._console = Console()
        drawable = self._console.is_terminal and not self._console.is_dumb_terminal
        return "panel" if self._enabled or drawable else "lines"

    def _note_pace(self, step: Any) -> None:
        if isinstance(step, int) and (not self._pace or step > self._pace[-1][1]):
            self._pace.append((self._clock(), step))

    def _show_train(self) -> None:
        self._waiting = False
        self._shown_at = self._clock()
        if self._mode == "lines":
            self._print(train_line(self._train, self.total_steps, self.eta_s()))
        elif self._live is not None:
            live = self._live
            self._attempt(lambda: live.update(self._panel(), refresh=True))

    def _print(self, line: str) -> None:
        if self._live is not None:
            live = self._live
            # Printed above the panel, where it stays.
            self._attempt(lambda: live.console.print(self._printable(line), markup=False, highlight=False))
            return
        stream = sys.stdout if self._console is None else self._console.file
        self._attempt(lambda: print(self._printable(line), file=stream, flush=True))

    def _printable(self, text: str) -> str:
        """`text` with a question mark for each character that the stream cannot write."""
        encoding = getattr(sys.stdout, "encoding", None) if self._console is None else self._console.encoding
        return text.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")

    def _attempt(self, draw: Callable[[], None]) -> None:
        """Draw; when the reader is gone (closed pipe or terminal) the run goes on unwatched, and is logged as ever."""
        try:
            draw()
        except OSError:
            self._mode = "nothing"

    def _panel(self) -> RenderableType:
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        ascii_only = self._console is not None and self._console.options.ascii_only
        grid = Table.grid(padding=(0, 1))
        for label, text in panel_rows(self._train, self._eval, self.total_steps, self.eta_s(), ascii_only=ascii_only):
            cell = Text(self._printable(text), no_wrap=True, overflow="crop")
            grid.add_row(Text(label, style="dim", no_wrap=True, overflow="crop"), cell)
        title = Text(self._printable(words(self._train.get("phase"))))
        return Panel(grid, title=title, title_align="left", expand=False)


def panel_rows(
    train: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    total_steps: int | None,
    eta_s: float | None,
    *,
    ascii_only: bool = False,
) -> list[tuple[str, str]]:
    """Rows `(label, text)` of the panel from the last training record and the last evaluation."""
    pace = f"{number(train.get('tokens_per_s'), ',.0f')} tokens/s, {number(train.get('ms'), '.1f')} ms a step"
    pace += f", {number(train.get('tflops'), '.3g')} TFLOP/s"
    if _is_number(train.get("mfu")):
        pace += f", MFU {percent(train['mfu'])} (as dense {percent(train.get('mfu_dense_equivalent'))})"
    accuracy = f"{number(train.get('accuracy'), '.4f')} train, {number(evaluation.get('accuracy'), '.4f')} evaluation"
    loss = f"{number(train.get('loss'))} = {number(train.get('task_loss'))} + {number(train.get('penalty'))} penalty"
    return [
        ("step", f"{progress(train.get('step'), total_steps)}, {duration(eta_s)} left"),
        ("lambda" if ascii_only else "λ", number(train.get("lambda"))),
        ("loss", loss),
        ("accuracy", accuracy),
        ("usage", f"{percent(train.get('usage'))}, {number(train.get('gates_per_seq'))} gates a sequence"),
        ("layers", layer_bars(train.get("usage_layers"), ascii_only=ascii_only)),
        ("skipping", f"{words(train.get('skipping'))}, length {number(train.get('length'), ',.0f')}"),
        ("speed", pace),
    ]


def train_line(record: Mapping[str, Any], total_steps: int | None, eta_s: float | None) -> str:
    """One short ASCII line of a training record."""
    return (
        f"step {progress(record.get('step'), total_steps)} {words(record.get('phase'))}: "
        f"lambda {number(record.get('lambda'))}, loss {number(record.get('loss'))}, "
        f"accuracy {number(record.get('accuracy'), '.4f')}, usage {percent(record.get('usage'))}, "
        f"{number(record.get('gates_per_seq'))} gates a sequence, skipping {words(record.get('skipping'))}, "
        f"{number(record.get('tokens_per_s'), ',.0f')} tokens/s, {duration(eta_s)} left"
    )


def eval_line(record: Mapping[str, Any]) -> str:
    """One short ASCII line of an evaluation, with the usage of each layer."""
    layers = record.get("usage_layers")
    shares = " ".join(percent(share) for share in layers) if isinstance(layers, Sequence) else DASH
    return (
        f"step {progress(record.get('step'), None)} evaluation: accuracy {number(record.get('accuracy'), '.4f')}, "
        f"loss {number(record.get('loss'))}, usage {percent(record.get('usage'))} (layers {shares}), "
        f"n {number(record.get('n'), ',.0f')}"
    )


def event_line(record: Mapping[str, Any]) -> str:
    return f"step {progress(record.get('step'), None)} {words(record.get('event'))}: {words(record.get('detail'))}"


def layer_bars(shares: Any, *, ascii_only: bool = False) -> str:
    """One character a layer, higher for more usage (a dot is none), then the percentages of the first 8 layers."""
    if not isinstance(shares, Sequence) or isinstance(shares, str) or not shares:
        return DASH
    characters = _ASCII_BARS if ascii_only else _BARS
    top = len(characters) - 1
    heights = [math.ceil(min(max(share, 0.0), 1.0) * top) if _is_number(share) else 0 for share in shares]
    bars = "".join(characters[height] for height in heights)
    return f"{bars}  {' '.join(percent(share) for share in shares[:8])}{' ...' if len(shares) > 8 else ''}"


def progress(step: Any, total_steps: int | None) -> str:
    """`120/4000 (3 %)`, or `120` alone when the end is not known."""
    done = number(step, ".0f")
    if total_steps is None or not _is_number(step):
        return done
    return f"{done}/{total_steps} ({math.floor(100 * step / max(total_steps, 1))} %)"


def duration(seconds: float | None) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    if not _is_number(seconds):
        return DASH
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(share: Any) -> str:
    return f"{100 * share:.3g}%" if _is_number(share) else DASH


def number(value: Any, form: str = ".4g") -> str:
    return format(value, form) if _is_number(value) else DASH


def words(value: Any) -> str:
    """Text of one line: yes and no for booleans, a dash for nothing."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(value).split())


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
