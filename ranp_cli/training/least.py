"""Which units go next: the least important ones, as many as are asked for, and none that a layer cannot spare."""

from __future__ import annotations

import numpy as np

from ..graph.graph import Graph


def without_least(graph: Graph, values: np.ndarray, least: np.ndarray, units: int, neurons: int) -> np.ndarray:
    """One flag per unit: does it stay? The units of the lowest value go, one after the other.

    Args:
        values: importance of each unit, of shape (units,).
        least: the fewest neurons that each layer keeps, of shape (layers,).
        units, neurons: at most so many go, of either.
    """
    keep = np.ones(len(graph.unit_roots), dtype=bool)
    stays = graph.fixed_units | graph.unranked_units | graph.left_out_units
    left = np.array(graph.sizes)
    layer_of = np.repeat(np.arange(len(graph.layers)), graph.sizes)
    members = np.split(layer_of[np.argsort(graph.unit, kind="stable")], np.cumsum(np.bincount(graph.unit))[:-1])
    for unit in np.argsort(values, kind="stable"):
        if units <= 0 or neurons <= 0:
            break
        layers = np.bincount(members[unit], minlength=len(left))
        if stays[unit] or layers.sum() > neurons or (left - layers < least)[layers > 0].any():
            continue
        keep[unit] = False
        left = left - layers
        units, neurons = units - 1, neurons - int(layers.sum())
    return keep
