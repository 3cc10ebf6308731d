"""How long the import of torch, and of what needs it, took: the first report of a process says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_seconds: list[float] = []  # of the imports that no report has named yet


def timed_import(load: Callable[[], T]) -> T:
    """What `load` imports; its time is kept for the next report."""
    start = time.perf_counter()
    found = load()
    _seconds.append(time.perf_counter() - start)
    return found


def import_seconds() -> float:
    """The time of the imports since the last call; 0 where there were none."""
    total = sum(_seconds)
    _seconds.clear()
    return total
