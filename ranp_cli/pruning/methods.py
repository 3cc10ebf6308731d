"""The methods: what each of them ranks neurons by (RANP, eq. 9-10; Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..graph.graph import Graph
from .layer_costs import reweighting


@dataclass(frozen=True)
class Method:
    """A way to rank: its default criterion, the others that it may go by (none: any of neurons), whether it knows a resource.

    `by_layer`: how many neurons a layer keeps follows from its size, not from the scores. `equal`: what layers have equal,
    the mean of their scores (eq. 9) or their l2 norm (Molchanov et al., 2017, section 2.2); None: nothing.
    """

    name: str
    criterion: str | None = "mpmg-sum"
    criteria: tuple[str, ...] = ()
    resource: bool = False
    by_layer: bool = False
    equal: Literal["mean", "l2"] | None = "mean"


METHODS = {
    m.name: m
    for m in (
        Method("ranp", resource=True),
        Method("weighted"),
        Method("vanilla", equal=None),
        Method("random", criterion=None),
        Method("layerwise", by_layer=True, equal=None),
        Method("flat", by_layer=True),
        Method("snip", "snip", ("snip",)),
        Method("taylor", "taylor", ("taylor",), equal="l2"),
        Method("magnitude", "l1", ("l1", "l2")),
        Method("activation", "activation-mean", tuple(f"activation-{x}" for x in ("mean", "std", "zeros")), equal="l2"),
        Method("weight", "l2", ("l2",), equal="l2"),
        Method("obd", "obd", ("obd",), equal="l2"),
    )
}


def weigh(scores: Sequence[np.ndarray], method: str, tau: np.ndarray | None, lam: float, seed: int) -> list[np.ndarray]:
    """Scores of the neurons as the method ranks them.

    `vanilla` and `layerwise` as they are; `weighted` and `magnitude` with layers of equal mean (eq. 9), `ranp` by the
    resource as well (eq. 10); `taylor`, `activation`, `weight` and `obd` with layers of equal l2 norm.
    """
    if method == "random":
        rng = np.random.default_rng(seed)
        return [rng.random(len(s)) for s in scores]
    equal = METHODS[method].equal
    if equal is None:
        return list(scores)
    sizes = np.array([np.linalg.norm(s) if equal == "l2" else s.mean() for s in scores])
    factor = np.divide(sizes.max(), sizes, out=np.zeros_like(sizes), where=sizes > 0)
    if method == "ranp" and tau is not None:
        factor = factor * reweighting(tau, lam)
    return [s * f for s, f in zip(scores, factor, strict=True)]


def unit_values(graph: Graph, scores: Sequence[np.ndarray]) -> np.ndarray:
    """The mean score of the neurons of each unit, those of layers without scores left out; 0 where there are no others."""
    units, ranked = len(graph.unit_roots), graph.ranked
    count = np.bincount(graph.unit[ranked], minlength=units)
    total = np.bincount(graph.unit[ranked], weights=np.concatenate(scores)[ranked], minlength=units)
    return total / np.maximum(count, 1)
