"""SNIP NP: weights are masked one by one, and a neuron dies with all its incoming or all its outgoing weights.

Source: the mask of parameters is that of Lee et al. (SNIP, ICLR 2019), eq. 2 of RANP; "SNIP NP" is the paper's row for
what it removes of neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph.graph import Graph
from .min_neurons import Floor, floors
from .rounding import lacking, raise_to
from .select import Selection, check


@dataclass(frozen=True)
class Links:
    """The largest |g| between what enters a layer and its neurons, of shape (N, M), and the units of both sides.

    `entering[m]` is -1 for what belongs to no unit: the network's input, and the one column of a depthwise layer.
    """

    strength: np.ndarray
    neurons: np.ndarray
    entering: np.ndarray


def select_snip(graph: Graph, scores: Sequence[np.ndarray], sparsity: float | str, floor: Floor = 1) -> Selection:
    """Mask the share `sparsity` of all weights, those of least |g|; keep the units that still have live weights.

    `scores`: |g| of every weight, one array a layer of its parameter's shape; a layer without scores has all its weights
    alive, as one that `--keep` or `--only` leaves out, and the share is of the others'. Ties at the threshold live. "max": the largest share at which every layer keeps
    its floor (see `floors`; for `auto` by the neurons that are alive).
    """
    whole = graph.unranked | graph.left_out
    ranked = [g.reshape(-1) for layer, g in zip(graph.layers, scores, strict=True) if layer.name not in whole]
    every = np.sort(np.concatenate(ranked or [g.reshape(-1) for g in scores]))
    alive = graph.unranked_units | graph.left_out_units
    links = [links_of(graph, k, g) for k, g in enumerate(scores)]
    links = [replace(each, strength=np.where(alive[each.neurons][:, None], np.inf, each.strength)) for each in links]
    if sparsity == "max":
        keep = _largest(graph, links, every, floor)
    else:
        masked = len(every) - int(len(every) * (1 - check(sparsity)))
        keep = live_units(graph, links, every[min(masked, len(every) - 1)])
    keep = keep | graph.fixed_units
    least = floors(graph, floor, int(keep[graph.unit].sum()))
    if floored := lacking(graph, keep, least):
        strength = strength_of(graph, links)
        by_score = raise_to(graph, strength, keep, floors(graph, 1, graph.n))
        return Selection(raise_to(graph, strength, keep, least), floored, sparsity, by_score)
    return Selection(keep, [], sparsity)


def links_of(graph: Graph, k: int, g: np.ndarray) -> Links:
    """From |g| of a layer's weight, of its parameter's shape."""
    layer = graph.layers[k]
    slot = graph.slots[layer.slot]
    other = next((a for a, ids in enumerate(slot.ids) if ids is not None and a != layer.axis), None)
    keep = [layer.axis] if other is None else [layer.axis, other]
    flat = g.max(axis=tuple(a for a in range(g.ndim) if a not in keep))
    flat = flat.T if other is not None and other < layer.axis else flat
    flat = flat.reshape(g.shape[layer.axis], -1)
    ids = None if other is None else slot.ids[other]
    if layer.transposed and layer.groups > 1:  # (O/groups, I) -> (O, I/groups): the lanes of all groups are tied
        flat = flat.reshape(len(flat), layer.groups, -1).swapaxes(0, 1).reshape(len(layer.neurons), -1)
        ids = None if ids is None or flat.shape[1] == 1 else ids[: flat.shape[1]]
    entering = np.full(flat.shape[1], -1)
    if ids is not None:
        entering = graph.units_of(ids.numpy())
    return Links(flat, graph.by_layer(graph.unit)[k], entering)


def live_units(graph: Graph, links: Sequence[Links], threshold: float) -> np.ndarray:
    """One flag per unit: some weight of at least `threshold` comes in from, and some goes out to, what lives itself."""
    units = len(graph.unit_roots)
    read = np.zeros(units, dtype=bool)  # by some layer; an output is read by none
    for link in links:
        read[link.entering[link.entering >= 0]] = True
    alive = np.ones(units, dtype=bool)
    while True:
        fed, heard = np.zeros(units, dtype=bool), ~read
        for link in links:
            source = np.where(link.entering >= 0, alive[link.entering], True)
            live = (link.strength >= threshold) & alive[link.neurons][:, None] & source[None, :]
            fed[link.neurons[live.any(1)]] = True
            heard[link.entering[live.any(0) & (link.entering >= 0)]] = True
        after = alive & fed & heard
        if (after == alive).all():
            return alive
        alive = after


def strength_of(graph: Graph, links: Sequence[Links]) -> np.ndarray:
    """The largest |g| of each unit's incoming weights: what the floor goes by."""
    value = np.zeros(len(graph.unit_roots))
    for link in links:
        np.maximum.at(value, link.neurons, link.strength.max(1))
    return value


def _largest(graph: Graph, links: Sequence[Links], every: np.ndarray, floor: Floor) -> np.ndarray:
    """By bisection over the sorted |g|: the higher the threshold, the fewer live."""
    low, high = 0, len(every) - 1
    least = floors(graph, floor, graph.n)
    while low < high:
        middle = (low + high + 1) // 2
        keep = live_units(graph, links, every[middle]) | graph.fixed_units
        low, high = (low, middle - 1) if lacking(graph, keep, least) else (middle, high)
    return live_units(graph, links, every[low])
