"""The floor: how many neurons a layer keeps, whatever their scores.

A number N is the paper's rule: the best N neurons of every layer (1: no layer is emptied). `auto` keeps a network able to
learn: a layer keeps SHARE of what it would have if all layers were cut to the same width, and never needs more than MOST.
So the floor follows the width of the network and what is asked for, and fits every sparsity and budget: the places that it
takes are fewer than those there are. tests/benchmarks/accuracy.py measures it.
"""

from __future__ import annotations

import math

import numpy as np

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..graph.graph import Graph

AUTO = "auto"
MOST = 12
SHARE = 0.6

Floor = int | str


def check_floor(given: object) -> Floor:
    """A floor as a number of neurons, 1 or more, or `auto`; BadInput otherwise."""
    if given == AUTO:
        return AUTO
    try:
        number = int(str(given))
    except ValueError:
        number = 0
    if isinstance(given, (bool, float)) or number < 1:
        raise BadInput(
            f"{spelled('min_neurons', given)}: give 1 or more, or auto; a layer without neurons is no network, and 1 is the paper's rule"
        )
    return number


def floors(graph: Graph, floor: Floor, kappa: int) -> np.ndarray:
    """The fewest neurons of each layer, of shape (layers,), when `kappa` neurons are to stay in all.

    What `--keep` and `--only` leave out of pruning stays; with `auto`, the level is that of the rest.
    """
    sizes = np.array(graph.sizes)
    if floor != AUTO:
        least: np.ndarray = np.minimum(int(floor), sizes)
        return least
    stay = graph.left_out_units
    left_out = np.array([int(stay[units].sum()) for units in graph.by_layer(graph.unit)])
    free = sizes - left_out
    share = np.ceil(np.minimum(level(free, max(0, kappa - int(left_out.sum()))), free) * SHARE - 1e-9).astype(int)
    most: np.ndarray = np.maximum(np.clip(share, 1, MOST), left_out)
    return most


def level(sizes: np.ndarray, kappa: int) -> float:
    """The width W, a real number, at which layers of min(W, N_l) neurons have `kappa` in all."""
    left, ordered = float(kappa), np.sort(sizes)
    for k, size in enumerate(ordered):
        layers = len(ordered) - k
        if left <= size * layers:
            return left / layers
        left -= size
    return math.inf
