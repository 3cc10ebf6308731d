"""How the importance of a neuron comes from g = w * dL/dw (RANP, eq. 6-8), one row a criterion.

MPMG ("mean of pruned mask gradients") takes |g| in each mini-batch; MNMG keeps the sign until all mini-batches are
averaged. `neuron` and `taylor` do not look at weights: a mask multiplies the post-activation (eq. 4, 7; Molchanov et al.,
"Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017). `obd` is the second-order term of the
same mask (LeCun et al., "Optimal Brain Damage", 1990). `activation-mean|std|zeros` are of the post-activations alone (Hu et
al., "Network Trimming", 2016, for the share of zeros). `snip` keeps |g| of every weight (Lee et al., "SNIP", ICLR 2019).
`l1` and `l2` are norms of the weights and need no mini-batches. `oracle` is what the others estimate: the change of the loss with a
unit removed (Molchanov et al.).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import BadInput, nearest

if TYPE_CHECKING:
    from torch import Tensor

OF_VALUES = ("mean size", "deviation", "share of others than zero")


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
    def of_masks(self) -> bool:
        """Uses gradients of masks on post-activations, once or twice."""
        return self.reduce in ("batch", "example", "curvature")

    @property
    def of_values(self) -> bool:
        """Uses post-activations alone."""
        return self.reduce in OF_VALUES

    @property
    def of_activations(self) -> bool:
        return self.of_masks or self.of_values

    @property
    def needs_gradients(self) -> bool:
        return self.of_weights or self.of_masks

    @property
    def of_units(self) -> bool:
        """Removes each unit and looks at the loss."""
        return self.reduce == "removal"

    @property
    def needs_batches(self) -> bool:
        return self.needs_gradients or self.of_values or self.of_units

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
        Criterion("obd", True, "curvature"),
        *(
            Criterion(f"activation-{name}", False, reduce)
            for name, reduce in zip(("mean", "std", "zeros"), OF_VALUES, strict=True)
        ),
        Criterion("oracle", True, "removal"),
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
