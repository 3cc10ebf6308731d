"""Which units stay (RANP, eq. 9-11). Pure functions of scores, units and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import BadInput
from .floors import AUTO, Floor, floors
from .resources import reweighting
from .units import Graph


@dataclass(frozen=True)
class Method:
    """A way to rank: its default criterion, the others that it may go by (none: any of neurons), whether it knows a resource.

    `by_layer`: how many neurons a layer keeps follows from its size, not from the scores.
    """

    name: str
    criterion: str | None = "mpmg-sum"
    criteria: tuple[str, ...] = ()
    resource: bool = False
    by_layer: bool = False


METHODS = {
    m.name: m
    for m in (
        Method("ranp", resource=True),
        Method("weighted"),
        Method("vanilla"),
        Method("random", criterion=None),
        Method("layerwise", by_layer=True),
        Method("flat", by_layer=True),
        Method("snip", "snip", ("snip",)),
        Method("taylor", "taylor", ("taylor",)),
        Method("magnitude", "l1", ("l1", "l2")),
    )
}


@dataclass(frozen=True)
class Selection:
    """One flag per unit, the layers that the floor raised, and the sparsity that was asked for.

    `by_score`: the flags with a floor of one neuron, where the floor raised a layer.
    """

    keep: np.ndarray
    floored: list[str]
    requested: float | str
    by_score: np.ndarray | None = None


def weigh(scores: Sequence[np.ndarray], method: str, tau: np.ndarray | None, lam: float, seed: int) -> list[np.ndarray]:
    """Scores of the neurons as the method ranks them.

    `vanilla` and `layerwise` as they are; `weighted` and `magnitude` with layers of equal mean (eq. 9), `ranp` by the
    resource as well (eq. 10); `taylor` with layers of equal l2 norm (Molchanov et al., 2017, section 2.2).
    """
    if method == "random":
        rng = np.random.default_rng(seed)
        return [rng.random(len(s)) for s in scores]
    if method in ("vanilla", "layerwise"):
        return list(scores)
    sizes = np.array([np.linalg.norm(s) if method == "taylor" else s.mean() for s in scores])
    factor = np.divide(sizes.max(), sizes, out=np.zeros_like(sizes), where=sizes > 0)
    if method == "ranp" and tau is not None:
        factor = factor * reweighting(tau, lam)
    return [s * f for s, f in zip(scores, factor, strict=True)]


def select(
    graph: Graph, scores: Sequence[np.ndarray], sparsity: float | str, *, method: str = "", floor: Floor = 1
) -> Selection:
    """Keep the best units until kappa = int(n * (1 - sparsity)) neurons stay.

    Ties at the threshold stay. Fixed units stay in any case. Where layers have no scores, n and kappa are of the others:
    what cannot be ranked neither takes their places nor costs them theirs. `floor`: a number of neurons that every layer keeps, beyond
    kappa (the paper's rule), or `auto` (see `floors`), which counts within kappa. `sparsity` "max": the largest at which no
    layer needs its floor. The method `layerwise` keeps the best share of every layer, `flat` the same number of neurons in
    every layer; of these `auto` raises none.
    """
    unranked = graph.unranked_units
    value = np.where(unranked, math.inf, unit_values(graph, scores))
    if sparsity == "max":
        keep = value >= _lowest_needed(graph, value, floors(graph, floor, graph.n))
        return Selection(keep | graph.fixed_units, [], sparsity)
    outside = int(unranked[graph.unit].sum())
    kappa = outside + int((graph.n - outside) * (1 - check(sparsity)))
    if method in ("layerwise", "flat"):
        keep = _layerwise(graph, value, check(sparsity)) if method == "layerwise" else _flat(graph, value, kappa)
        keep, floor = keep | graph.fixed_units, 1 if floor == AUTO else floor
    else:
        keep = _best(graph, value, kappa) | graph.fixed_units
    least = floors(graph, floor, kappa)
    floored = lacking(graph, keep, least)
    if not floored:
        return Selection(keep, [], sparsity)
    by_score = raise_to(graph, value, keep, floors(graph, 1, kappa))
    if floor == AUTO:
        raised = _fill_up_to(graph, value, raise_to(graph, value, graph.fixed_units, least), kappa)
    else:
        raised = raise_to(graph, value, keep, least)
    return Selection(raised, floored, sparsity, by_score)


def _best(graph: Graph, value: np.ndarray, kappa: int) -> np.ndarray:
    """The best units until `kappa` neurons stay; ties at the threshold stay (eq. 11)."""
    if kappa <= 0:
        return np.zeros(len(value), dtype=bool)
    order = np.lexsort((np.arange(len(value)), -value))  # best first, the earlier unit first among equals
    total = np.cumsum(np.bincount(graph.unit, minlength=len(value))[order])
    last = min(int(np.searchsorted(total, kappa)), len(value) - 1)
    return value >= value[order[last]]


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
        raise BadInput(f"sparsity {sparsity}: give a number in [0, 1), the fraction of neurons to remove, or 'max'")
    return value


def _layer_units(graph: Graph) -> list[np.ndarray]:
    return graph.by_layer(graph.unit)


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
        return keep

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


def lacking(graph: Graph, keep: np.ndarray, least: np.ndarray) -> list[str]:
    """The names of the layers that have fewer neurons than `least`."""
    pairs = zip(graph.layers, _layer_units(graph), least, strict=True)
    return [layer.name for layer, units, wanted in pairs if keep[units].sum() < wanted]


def raise_to(graph: Graph, value: np.ndarray, keep: np.ndarray, least: np.ndarray) -> np.ndarray:
    """`keep` with the best units of each layer that has fewer neurons than `least`."""
    keep = keep.copy()
    for units, wanted in zip(_layer_units(graph), least.tolist(), strict=True):
        _fill(units, value, keep, wanted)
    return keep


def rounded(
    graph: Graph, value: np.ndarray, keep: np.ndarray, multiple: int, least: np.ndarray | None = None
) -> np.ndarray:
    """Flags with which each layer keeps a multiple of `multiple` neurons, where its units allow: the nearest one.

    No layer is rounded down below its `least`. The best dropped units are added, the worst kept ones dropped; where units tie layers, later passes only add.
    A layer of fewer neurons than `multiple`, and what is fixed, stays as it is.
    """
    keep = keep.copy()
    for turn in range(8):
        before = keep.copy()
        for k, units in enumerate(_layer_units(graph)):
            own, size = np.unique(units, return_counts=True)
            have, whole = int(keep[units].sum()), len(units)
            if have % multiple == 0 or whole < multiple:
                continue
            up = min(-(-have // multiple) * multiple, whole // multiple * multiple)
            down = have // multiple * multiple
            lowest = 1 if least is None else int(least[k])
            wanted = down if (turn == 0 and down >= lowest and have - down < up - have) or up < have else up
            for i in np.lexsort((own, -value[own])) if wanted > have else ():
                if not keep[own[i]] and have + size[i] <= wanted:
                    keep[own[i]], have = True, have + int(size[i])
            for i in np.lexsort((own, -value[own]))[::-1] if wanted < have else ():
                if keep[own[i]] and not graph.fixed_units[own[i]] and have - size[i] >= wanted:
                    keep[own[i]], have = False, have - int(size[i])
        if (keep == before).all():
            break
    return keep


def raised(graph: Graph, value: np.ndarray, keep: np.ndarray, unit: int, multiple: int) -> np.ndarray:
    """Flags with which the layers of a unit keep a multiple of `multiple` neurons more, the best dropped ones."""
    keep = keep.copy()
    for units in _layer_units(graph):
        if unit in units:
            _fill(units, value, keep, min(int(keep[units].sum()) // multiple * multiple + multiple, len(units)))
    return rounded(graph, value, keep, multiple)


def unit_values(graph: Graph, scores: Sequence[np.ndarray]) -> np.ndarray:
    """The mean score of the neurons of each unit, those of layers without scores left out; 0 where there are no others."""
    units, ranked = len(graph.unit_roots), graph.ranked
    count = np.bincount(graph.unit[ranked], minlength=units)
    total = np.bincount(graph.unit[ranked], weights=np.concatenate(scores)[ranked], minlength=units)
    return total / np.maximum(count, 1)


def _fill(units: np.ndarray, value: np.ndarray, keep: np.ndarray, wanted: int) -> None:
    """Flag the best units of one layer, in place, until `wanted` of its neurons stay."""
    have = int(keep[units].sum())
    own, size = np.unique(units, return_counts=True)
    for i in np.lexsort((own, -value[own])):
        if have >= wanted:
            return
        if not keep[own[i]]:
            keep[own[i]] = True
            have += int(size[i])
