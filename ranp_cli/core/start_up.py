"""The import of torch, and of what needs it: how long it took, which the first report of a process says, and how to shorten it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_seconds: list[float] = []  # of the imports that no report has named yet
_is_ours: list[bool] = []  # not empty: this process runs a command of ours, and has not imported torch yet


def own_process() -> None:
    """This process does nothing but run a command of ours, so its garbage collection is ours to arrange."""
    _is_ours.append(True)


def timed_import(load: Callable[[], T]) -> T:
    """What `load` imports; its time is kept for the next report.

    In a process of our own what has been imported is then left out of garbage collection, at the end of the process too: of 1.6 s
    of a process that does `import torch`, 0.45 s go to looking through objects that stay. What is made later is collected as ever.
    """
    start = time.perf_counter()
    with uncollected():
        found = load()
    if _is_ours:
        _is_ours.clear()
        gc.freeze()
    _seconds.append(time.perf_counter() - start)
    return found


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside, where what is made stays, as modules do."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def import_seconds() -> float:
    """The time of the imports since the last call; 0 where there were none."""
    total = sum(_seconds)
    _seconds.clear()
    return total
