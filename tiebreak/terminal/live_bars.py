"""Progress bars in a terminal, drawn by rich: see tiebreak.terminal.progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from tiebreak.terminal.bars import Bar, duration

_NAME_COLUMNS, _BAR_COLUMNS = 22, 24
_DRAWN_A_SECOND = 4


def in_columns(name: str) -> str:
    """A bar's name in its columns, so that the bars of several tasks begin in line.

    >>> in_columns("training"), in_columns("answers of a-policy-with-a-long-name")
    ('training              ', 'answers of a-policy-w…')
    """
    return f"{name:<{_NAME_COLUMNS}}" if len(name) <= _NAME_COLUMNS else f"{name[: _NAME_COLUMNS - 1]}…"


@contextmanager
def live_bars(stream: TextIO) -> Iterator[LiveBars]:
    """Bars on a terminal. Other output appears above them."""
    columns = (
        _Words(lambda bar: in_columns(bar.what)),
        BarColumn(_BAR_COLUMNS, style="bright_black", complete_style="cyan", finished_style="green"),
        _Words(lambda bar: f"{bar.done}/{bar.total}"),
        _Time(),
        _Words(lambda bar: bar.figures, "dim"),
    )
    console = Console(file=stream, force_terminal=True, highlight=False)
    with Progress(*columns, console=console, refresh_per_second=_DRAWN_A_SECOND) as shown:
        yield LiveBars(shown)


class LiveBars:
    """The bars of one `Progress`."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._tasks: dict[int, TaskID] = {}

    def began(self, bar: Bar) -> None:
        """Add a bar."""
        self._tasks[id(bar)] = self._shown.add_task("", total=bar.total, completed=bar.done, bar=bar)

    def changed(self, bar: Bar) -> None:
        """Redraw a bar."""
        self._shown.update(self._tasks[id(bar)], completed=bar.done)

    def ended(self, bar: Bar) -> None:
        """Redraw a bar for the last time; a task within another leaves no bar behind."""
        task = self._tasks.pop(id(bar))
        self._shown.update(task, completed=bar.done)
        if self._tasks:
            self._shown.remove_task(task)


class _Time(ProgressColumn):
    """The time left; at the end, the time taken."""

    def render(self, task: Task) -> Text:
        bar: Bar = task.fields["bar"]
        if task.finished:
            return Text(duration(task.finished_time or 0.0), style="dim")
        left = bar.seconds_left
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


class _Words(ProgressColumn):
    """Text computed from a bar."""

    def __init__(self, words: Callable[[Bar], str], style: str = "") -> None:
        self._words, self._style = words, style
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(self._words(task.fields["bar"]), style=self._style, no_wrap=True, overflow="ellipsis")
