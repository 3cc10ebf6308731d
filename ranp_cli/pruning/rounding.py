"""Round the neurons of each layer to a multiple, and raise layers to the least number that they keep."""

from __future__ import annotations

import numpy as np

from ..graph.graph import Graph


def _layer_units(graph: Graph) -> list[np.ndarray]:
    return graph.by_layer(graph.unit)


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


def raise_parts(graph: Graph, value: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """`keep` with the best unit of each part that would be left without any (`Graph.parts`)."""
    keep = keep.copy()
    for units in graph.parts:
        if not keep[units].any():
            keep[units[np.argmax(value[units])]] = True
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
