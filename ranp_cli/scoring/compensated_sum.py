"""Sums over mini-batches that are the same in any order and with any number of processes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
