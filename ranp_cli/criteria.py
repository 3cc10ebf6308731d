"""How the importance of a neuron comes from g = w * dL/dw (RANP, eq. 6-8), one row a criterion.

MPMG ("mean of pruned mask gradients") takes |g| in each mini-batch; MNMG keeps the sign until all mini-batches are
averaged. `neuron` does not look at weights: its mask multiplies the post-activation (eq. 4, 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import BadInput, nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Criterion:
    """`signed`: |.| comes after the mean over mini-batches; `reduce`: over the weights of a neuron."""

    name: str
    signed: bool
    reduce: str

    @property
    def of_weights(self) -> bool:
        return self.reduce != "mask"

    @property
    def is_linear(self) -> bool:
        """Reducing the mini-batches one by one gives the same as reducing their mean."""
        return self.reduce != "max"

    def over_weights(self, g: Tensor) -> Tensor:
        """g of shape (N, weights of a neuron) -> (N,)."""
        if self.reduce == "max":
            return g.amax(1)
        return g.sum(1) if self.reduce == "sum" else g.mean(1)


CRITERIA = {
    c.name: c
    for c in (
        *(Criterion(f"mpmg-{reduce}", False, reduce) for reduce in ("sum", "mean", "max")),
        *(Criterion(f"mnmg-{reduce}", True, reduce) for reduce in ("sum", "mean", "max")),
        Criterion("neuron", False, "mask"),
    )
}


def criterion(name: str) -> Criterion:
    """The criterion of that name; BadInput names the nearest."""
    if name not in CRITERIA:
        raise BadInput(f"unknown criterion '{name}'{nearest(name, CRITERIA)}")
    return CRITERIA[name]
