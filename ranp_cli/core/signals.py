"""Ctrl-C and SIGTERM at work: blocks that they do not divide."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def undivided() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (and SIGTERM, where it has a handler) waits until the block is done: a sum is not left half added.

    Gives a function that tells whether one is waiting.
    """
    handlers: dict[int, Any] = {}
    came: list[tuple[int, Any]] = []
    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if callable(old := signal.getsignal(number)):
                handlers[number] = old
                signal.signal(number, lambda *given: came.append(given))
    try:
        yield lambda: bool(came)
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
    for given in came[:1]:
        handlers[given[0]](*given)
