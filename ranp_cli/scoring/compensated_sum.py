"""Sums over mini-batches that are the same in any order and with any number of processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@contextmanager
def undivided() -> Iterator[None]:
    """Ctrl-C (and SIGTERM, where it has a handler) waits until the block is done: a sum is not left half added."""
    handlers: dict[int, Any] = {}
    came: list[tuple[int, Any]] = []
    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if callable(old := signal.getsignal(number)):
                handlers[number] = old
                signal.signal(number, lambda *given: came.append(given))
    try:
        yield
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
    for given in came[:1]:
        handlers[given[0]](*given)


@dataclass
class CompensatedSum:
    """`high` + `low`: a sum and what rounding left of it, so that it has twice the digits of its dtype.

    The value is then that of the exact sum, rounded once, but for a case in 2^50: the order of the terms does not show.
    Source: Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B (the error of one addition, exactly).
    """

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, term: Tensor) -> CompensatedSum:
        return cls(term.clone(), term.new_zeros(term.shape))

    def add(self, term: Tensor) -> None:
        total = self.high + term
        back = total - self.high
        self.low += (self.high - (total - back)) + (term - back)
        self.high = total

    def merge(self, other: CompensatedSum) -> None:
        self.add(other.high)
        self.low += other.low

    @property
    def value(self) -> Tensor:
        return self.high + self.low
