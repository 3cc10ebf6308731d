"""Which units stay (RANP, eq. 9-11). Pure functions of scores, units and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..graph.graph import Graph
from .methods import unit_values
from .min_neurons import AUTO, Floor, floors
from .rounding import _fill, _layer_units, lacking, raise_to


@dataclass(frozen=True)
class Selection:
    """One flag per unit, the layers that the floor raised, and the sparsity that was asked for.

    `by_score`: the flags with a floor of one neuron, where the floor raised a layer. `wanted`: those that the ranking alone
    would keep, no more than were asked for. `rounded`: what stayed before the layers were rounded.
    """

    keep: np.ndarray
    floored: list[str]
    requested: float | str
    by_score: np.ndarray | None = None
    wanted: np.ndarray | None = None
    rounded: np.ndarray | None = None


def select(
    graph: Graph, scores: Sequence[np.ndarray], sparsity: float | str, *, method: str = "", floor: Floor = 1
) -> Selection:
    """Keep the best units until kappa = int(n * (1 - sparsity)) neurons stay.

    Ties at the threshold stay. Fixed units stay in any case. Where layers have no scores, n and kappa are of the others:
    what cannot be ranked neither takes their places nor costs them theirs. What `--keep` and `--only` leave out is not ranked
    either: the share that is asked for is taken from the rest. `floor`: a number of neurons that every layer keeps, beyond
    kappa (the paper's rule), or `auto` (see `floors`), which counts within kappa. `sparsity` "max": the largest at which no
    layer needs its floor. The method `layerwise` keeps the best share of every layer, `flat` the same number of neurons in
    every layer; of these `auto` raises none.
    """
    unranked = graph.unranked_units
    value = np.where(unranked | graph.left_out_units, math.inf, unit_values(graph, scores))
    if sparsity == "max":
        keep = value >= _lowest_needed(graph, value, floors(graph, floor, graph.n))
        return Selection(keep | graph.fixed_units, [], sparsity)
    outside = int(unranked[graph.unit].sum())
    kappa = outside + int((graph.n - outside) * (1 - check(sparsity)))
    if method in ("layerwise", "flat"):
        keep = (
            _layerwise(graph, value, _rate(graph, check(sparsity)))
            if method == "layerwise"
            else _flat(graph, value, kappa)
        )
        wanted = keep & ~graph.fixed_units
        keep, floor = keep | graph.fixed_units, 1 if floor == AUTO else floor
    else:
        wanted = _first(graph, value, kappa)
        keep = _best(graph, value, kappa) | graph.fixed_units
    least = floors(graph, floor, kappa)
    floored = lacking(graph, keep, least)
    if not floored:
        return Selection(keep, [], sparsity, wanted=wanted)
    by_score = raise_to(graph, value, keep, floors(graph, 1, kappa))
    if floor == AUTO:
        raised = _fill_up_to(graph, value, raise_to(graph, value, graph.fixed_units, least), kappa)
    else:
        raised = raise_to(graph, value, keep, least)
    return Selection(raised, floored, sparsity, by_score, wanted)


def _best(graph: Graph, value: np.ndarray, kappa: int) -> np.ndarray:
    """The best units until `kappa` neurons stay; ties at the threshold stay (eq. 11)."""
    if kappa <= 0:
        return np.zeros(len(value), dtype=bool)
    order = np.lexsort((np.arange(len(value)), -value))  # best first, the earlier unit first among equals
    total = np.cumsum(np.bincount(graph.unit, minlength=len(value))[order])
    last = min(int(np.searchsorted(total, kappa)), len(value) - 1)
    result: np.ndarray = value >= value[order[last]]
    return result


def _first(graph: Graph, value: np.ndarray, kappa: int) -> np.ndarray:
    """The best units that have no more than `kappa` neurons in all."""
    order = np.lexsort((np.arange(len(value)), -value))
    total = np.cumsum(np.bincount(graph.unit, minlength=len(value))[order])
    result = np.zeros(len(value), dtype=bool)
    result[order[total <= kappa]] = True
    return result


def _fill_up_to(graph: Graph, value: np.ndarray, keep: np.ndarray, kappa: int) -> np.ndarray:
    """`keep` with the best of the other units until `kappa` neurons stay."""
    keep = keep.copy()
    count = np.bincount(graph.unit, minlength=len(value))
    have = int(count[keep].sum())
    for unit in np.lexsort((np.arange(len(value)), -value)):
        if have >= kappa:
            break
        if not keep[unit]:
            keep[unit], have = True, have + int(count[unit])
    return keep


def check(sparsity: float | str) -> float:
    """A sparsity as a number in [0, 1); BadInput otherwise."""
    try:
        value = float(sparsity)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < 1:
        raise BadInput(
            f"{spelled('sparsity', sparsity)}: give a number in [0, 1), the fraction of neurons to remove, or 'max'"
        )
    return value


def _rate(graph: Graph, sparsity: float) -> float:
    """The share that each layer loses where `sparsity` of all neurons is taken from what may be pruned."""
    may_go = graph.n - int(graph.left_out_units[graph.unit].sum())
    return min(1.0, sparsity * graph.n / may_go) if may_go else sparsity


def _layerwise(graph: Graph, value: np.ndarray, sparsity: float) -> np.ndarray:
    """The best ceil(N_l * (1 - sparsity)) neurons of each layer; units that span layers are shared out once."""
    keep = np.zeros(len(value), dtype=bool)
    for units in _layer_units(graph):
        wanted = math.ceil(round(len(units) * (1 - sparsity), 9))  # 10 * (1 - 0.7) is 3
        _fill(units, value, keep, wanted)
    return keep


def _flat(graph: Graph, value: np.ndarray, kappa: int) -> np.ndarray:
    """The best W neurons of each layer (all of a narrower one), with the largest W at which at most kappa stay.

    The places that are left go to the best neurons of all layers, one more in each layer at most.
    Source: Lean U-Net (arXiv 2512.03834), U-Nets of the same width at every level.
    """
    layers = _layer_units(graph)

    def level(width: int) -> np.ndarray:
        keep = graph.fixed_units.copy()
        for units in layers:
            _fill(units, value, keep, min(width, len(units)))
        result: np.ndarray = keep
        return result

    def size(keep: np.ndarray) -> int:
        return int(keep[graph.unit].sum())

    low, high = 0, max(graph.sizes)  # the widest level that fits, by bisection
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(level(middle)) <= kappa else (low, middle - 1)
    keep, wider = level(low), level(low + 1)
    count = np.bincount(graph.unit, minlength=len(value))
    left = kappa - size(keep)
    for unit in np.lexsort((np.arange(len(value)), -value)):
        if wider[unit] and not keep[unit] and count[unit] <= left:
            keep[unit], left = True, left - count[unit]
    return keep


def _lowest_needed(graph: Graph, value: np.ndarray, least: np.ndarray) -> float:
    """The value down to which units must stay so that each layer has its `least` neurons."""
    needed = math.inf
    for units, wanted in zip(_layer_units(graph), least.tolist(), strict=True):
        fixed = int(graph.fixed_units[units].sum())
        free = np.sort(value[units[~graph.fixed_units[units]]])[::-1]
        if wanted > fixed:
            needed = min(needed, float(free[wanted - fixed - 1]))
    return needed
