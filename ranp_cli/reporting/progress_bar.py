"""A bar on a terminal while long work runs; nothing in a pipe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..core.threads import DrawsNothing
from .terminal import Terminal


@contextmanager
def progress(console: Console, description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left, gone at the end; gives `advance(n=1)`. Nothing is printed in a pipe."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda n=1: None
        return
    label = TextColumn("{task.description}", markup=False)
    parts = (label, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(compact=True))
    with Progress(*parts, console=console, transient=True, auto_refresh=False) as bar, _refreshing(bar):
        task = bar.add_task(Terminal(console).clean(description), total=total)
        yield lambda n=1: bar.advance(task, n)


@contextmanager
def _refreshing(bar: Progress, seconds: float = 0.1) -> Iterator[None]:
    """Draw the bar anew now and then, from a thread that is known to draw no random numbers, as rich's own is not."""
    done = threading.Event()

    def refresh() -> None:
        while not done.wait(seconds):
            bar.refresh()

    thread = DrawsNothing(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Rate(ProgressColumn):
    """How many a second, or how many seconds each."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text()
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")
