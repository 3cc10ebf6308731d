"""The order in which units go when each is worth its score less lambda times what its removal saves now."""

from __future__ import annotations

import math

import numpy as np

from ..graph.graph import Graph
from .unit_costs import UnitCosts


def removal_order(graph: Graph, values: np.ndarray, resource: str, lam: float) -> np.ndarray:
    """The place of each unit in that order, of shape (units,): from 1, for the first that goes, on.

    The unit of the lowest score - lambda * cost goes, the costs of what it touched are taken anew, and so on. Scores and
    costs are divided by their means over the units that may go, in the whole network; so with lambda 1 a unit of average score
    and average cost is worth nothing, whatever the network. A fixed unit, and the last one of a layer, has its place in the order
    but stays, so that no cost changes: what a selection does with it is its own matter. With lambda 0 the order is that of the
    scores.

    Args:
        values: the score of each unit.

    Source: "Pruning with objective" in Molchanov's talk, and section 2.4 of Molchanov et al., ICLR 2017.
    """
    ranked = ~(graph.unranked_units | graph.left_out_units)
    fixed = graph.fixed_units
    free = ranked & ~fixed
    costs = UnitCosts(graph, np.ones(len(values), dtype=bool), resource)
    score = values / _mean(values[free])
    weight = lam / _mean(costs.costs[free])
    worth = np.where(ranked, score - weight * costs.costs, math.inf)
    holds = np.zeros((len(values), len(graph.layers)), dtype=np.int64)  # neurons of a unit in each layer
    np.add.at(holds, (graph.unit, np.repeat(np.arange(len(graph.layers)), graph.sizes)), 1)
    left = holds.sum(0)
    order: list[int] = []
    while np.isfinite(worth[unit := int(worth.argmin())]):
        worth[unit] = math.inf
        order.append(unit)
        if fixed[unit] or (holds[unit] == left)[left > 0].any():
            continue
        left -= holds[unit]
        changed = costs.remove(unit)
        changed = changed[np.isfinite(worth[changed])]
        worth[changed] = score[changed] - weight * costs.costs[changed]
    place = np.full(len(values), len(values) + 1.0)
    place[order] = np.arange(1.0, len(order) + 1)
    return place


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) or 1.0 if len(values) else 1.0
