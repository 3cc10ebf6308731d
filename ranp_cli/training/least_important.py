"""Which units go next: the least important ones, as many as are asked for, and none that a layer cannot spare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..graph.graph import Graph


@dataclass(frozen=True)
class Least:
    """One flag per unit: does it stay? And how many that might have gone did not: for a floor, and for their size."""

    keep: np.ndarray
    held_by_floors: int
    too_large: int


def without_least(
    graph: Graph, values: np.ndarray, least: np.ndarray, units: int, neurons: int, about: int | None = None
) -> Least:
    """Let the units of the lowest value go, one after the other.

    Args:
        values: importance of each unit, of shape (units,).
        least: the fewest neurons that each layer keeps, of shape (layers,).
        units, neurons: at most so many go, of either.
        about: no more units once so many neurons are gone; the last one may exceed it.
    """
    keep = np.ones(len(graph.unit_roots), dtype=bool)
    stays = graph.fixed_units | graph.unranked_units | graph.left_out_units
    left = np.array(graph.sizes)
    layer_of = np.repeat(np.arange(len(graph.layers)), graph.sizes)
    members = np.split(layer_of[np.argsort(graph.unit, kind="stable")], np.cumsum(np.bincount(graph.unit))[:-1])
    gone = held = large = 0
    for unit in np.argsort(values, kind="stable"):
        if units <= 0 or gone >= (neurons if about is None else min(about, neurons)):
            break
        if stays[unit]:
            continue
        layers = np.bincount(members[unit], minlength=len(left))
        last = any(unit in part and keep[part].sum() == 1 for part in graph.parts)
        if last or (left - layers < least)[layers > 0].any():
            held += 1
        elif gone + layers.sum() > neurons:
            large += 1
        else:
            keep[unit] = False
            left = left - layers
            units, gone = units - 1, gone + int(layers.sum())
    return Least(keep, held, large)
