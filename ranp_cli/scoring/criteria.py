"""How the importance of a neuron comes from g = w * dL/dw (RANP, eq. 6-8), one row a criterion.

MPMG ("mean of pruned mask gradients") takes |g| in each mini-batch; MNMG keeps the sign until all mini-batches are
averaged. `neuron` and `taylor` do not look at weights: a mask multiplies the post-activation (eq. 4, 7; Molchanov et al.,
"Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017). `snip` keeps |g| of every weight
(Lee et al., "SNIP", ICLR 2019). `l1` and `l2` are norms of the weights and need no gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import BadInput, nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Criterion:
    """`signed`: |.| comes after the mean over mini-batches; `reduce`: over the weights of a neuron, or what else it does."""

    name: str
    signed: bool
    reduce: str

    @property
    def of_weights(self) -> bool:
        """Uses weight gradients."""
        return self.reduce in ("sum", "mean", "max", "nothing")

    @property
    def of_activations(self) -> bool:
        return self.reduce in ("batch", "example")

    @property
    def needs_gradients(self) -> bool:
        return self.of_weights or self.of_activations

    @property
    def is_linear(self) -> bool:
        """Reducing the mini-batches one by one gives the same as reducing their mean."""
        return self.reduce != "max"

    def over_weights(self, g: Tensor) -> Tensor:
        """g of shape (N, weights of a neuron) -> (N,)."""
        if self.reduce == "max":
            return g.amax(1)
        if self.reduce in ("l1", "l2"):
            return g.norm(1 if self.reduce == "l1" else 2, dim=1)
        return g.sum(1) if self.reduce == "sum" else g.mean(1)


CRITERIA = {
    c.name: c
    for c in (
        *(Criterion(f"mpmg-{reduce}", False, reduce) for reduce in ("sum", "mean", "max")),
        *(Criterion(f"mnmg-{reduce}", True, reduce) for reduce in ("sum", "mean", "max")),
        Criterion("neuron", False, "batch"),
        Criterion("taylor", False, "example"),
        Criterion("snip", False, "nothing"),
        Criterion("l1", False, "l1"),
        Criterion("l2", False, "l2"),
    )
}


def criterion(name: str) -> Criterion:
    """The criterion of that name; BadInput names the nearest."""
    if name not in CRITERIA:
        raise BadInput(f"unknown criterion '{name}'{nearest(name, CRITERIA)}")
    return CRITERIA[name]
