"""The most importance within a cost that has steps: units are exchanged, group by group, by importance per cost.

A knapsack, as in HALP (Shen et al., NeurIPS 2022): what a unit costs depends on how many of its group, and of the groups before and
after it, are there. So a group grows or shrinks by a whole step at once, and what a step is worth is its importance over its
cost. A network grows by the best steps beyond the limit and shrinks by the worst ones back to it, as long as that gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..graph.graph import Graph
from .rounding import raise_to
from .unit_costs import Term

LOOK = 2  # steps of a group that are looked at: one alone may save nothing
BEYOND = (1.5, 1.2, 1.05)  # how far a network grows over the limit before it shrinks
TURNS = 20
GAIN = 1e-6  # a share of the importance that counts as more


@dataclass(frozen=True)
class Group:
    """Units that may go, of the same layers and the same terms; `layer` is one of them, and `per` a unit's neurons in it."""

    units: np.ndarray
    layer: int
    per: int
    layers: np.ndarray
    terms: frozenset[int]


@dataclass(frozen=True)
class Step:
    """Units to add or to remove, their importance, and the cost that this adds or saves."""

    group: int
    units: np.ndarray
    importance: float
    cost: float

    @property
    def worth(self) -> float:
        """Importance per cost; one that costs nothing is worth more than any."""
        return self.importance / self.cost if self.cost > 0 else np.inf


@dataclass
class Exchange:
    """Looks for the units with the most importance within a cost.

    Args:
        importance: of each unit, 0 or more, of shape (units,).
        terms: the parts of the cost.
        floors: the fewest neurons of each layer in a network of these units, of shape (layers,).
        widths: the widths at which a layer's cost may have a step, for a dense width, in ascending order.
    """

    graph: Graph
    importance: np.ndarray
    terms: Sequence[Term]
    floors: Callable[[np.ndarray], np.ndarray]
    widths: Callable[[int], Sequence[int]]
    _steps: dict[tuple[int, bool, int], list[Step]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        self.holds = np.zeros(
            (len(self.importance), len(graph.layers)), dtype=np.int64
        )  # neurons of a unit in each layer
        np.add.at(self.holds, (graph.unit, np.repeat(np.arange(len(graph.layers)), graph.sizes)), 1)
        touched = np.zeros((len(self.importance), len(self.terms)), dtype=bool)
        for k, term in enumerate(self.terms):
            touched[term.touches, k] = True
        free = np.flatnonzero(~(graph.fixed_units | graph.unranked_units | graph.left_out_units))
        kinds = np.unique(np.hstack([self.holds, touched])[free], axis=0, return_inverse=True)[1].reshape(-1)
        self.groups = [self._group(free[kinds == kind], touched) for kind in range(kinds.max(initial=-1) + 1)]

    def _group(self, units: np.ndarray, touched: np.ndarray) -> Group:
        layers = np.flatnonzero(self.holds[units[0]])
        terms = frozenset(np.flatnonzero(touched[units[0]]).tolist())
        return Group(units, int(layers[0]), int(self.holds[units[0], layers[0]]), layers, terms)

    def cost(self, keep: np.ndarray) -> float:
        return sum(term.at(keep) for term in self.terms)

    def kept(self, keep: np.ndarray) -> float:
        """The importance of these units."""
        return float(self.importance[keep].sum())

    def best(self, start: np.ndarray, limit: float) -> np.ndarray:
        """The units with the most importance that were found within the limit, from those of `start` on.

        Returns: one flag a unit; the cost is above the limit only where even the floors are.
        """
        best = self.filled(self.shrunk(start, limit), limit)
        for beyond in BEYOND:
            for _ in range(TURNS):
                found = self.filled(self.shrunk(self.grown(best, beyond * limit), limit), limit)
                if self.cost(found) > limit or self.kept(found) <= self.kept(best) * (1 + GAIN):
                    break
                best = found
        return best

    def grown(self, keep: np.ndarray, limit: float) -> np.ndarray:
        """With the steps that are worth the most, up to a cost or beyond it by one."""
        self._steps.clear()
        while self.cost(keep) < limit:
            step = max(self.steps(keep, grows=True), key=lambda step: step.worth, default=None)
            if step is None:
                break
            keep = self.with_floors(self.taken(keep, step, True))
        return keep

    def with_floors(self, keep: np.ndarray) -> np.ndarray:
        """With the best units of each layer that is below the floor of a network of so many units, which rises as that grows."""
        while (keep @ self.holds < (least := self.floors(keep))).any():
            keep = raise_to(self.graph, self.importance, keep, least)
            self._steps.clear()
        return keep

    def shrunk(self, keep: np.ndarray, limit: float) -> np.ndarray:
        """Without the steps that are worth the least, down to the limit, and no layer below its floor."""
        self._steps.clear()
        while self.cost(keep) > limit:
            step = self._least(keep, single=False) or self._least(
                keep, single=True
            )  # a whole step may go below a floor
            if step is None:
                break
            keep = self.taken(keep, step, False)
        return keep

    def _least(self, keep: np.ndarray, single: bool) -> Step | None:
        """The step that is worth the least, of those that leave all layers their floors."""
        spare = keep @ self.holds - self.floors(keep)
        allowed = (
            step
            for step in self.steps(keep, False, single)
            if step.cost > 0
            and (spare >= self.holds[step.units].sum(0))[self.groups[step.group].layers].all()
            and not (
                self.graph.parts and self.graph.empties(np.where(np.isin(range(len(keep)), step.units), False, keep))
            )
        )
        return min(allowed, key=lambda step: step.worth, default=None)

    def filled(self, keep: np.ndarray, limit: float) -> np.ndarray:
        """With single units that still fit, with what they raise floors to, those of the most importance per cost first."""
        self._steps.clear()
        room = limit - self.cost(keep)
        while True:
            fitting = [step for step in self.steps(keep, grows=True, single=True) if step.cost <= room]
            for step in sorted(fitting, key=lambda step: -step.worth):
                more = self.taken(keep, step, True)
                if (more @ self.holds < self.floors(more)).any():
                    more = self.with_floors(more)
                    if self.cost(more) > limit:
                        continue
                    keep, room = more, limit - self.cost(more)
                else:
                    keep, room = more, room - step.cost
                break
            else:
                return keep

    def steps(self, keep: np.ndarray, grows: bool, single: bool = False) -> Iterator[Step]:
        for k in range(len(self.groups)):
            key = (k, grows, int(single))
            if key not in self._steps:
                self._steps[key] = list(self._of_group(k, keep, grows, single))
            yield from self._steps[key]

    def _of_group(self, k: int, keep: np.ndarray, grows: bool, single: bool) -> Iterator[Step]:
        group = self.groups[k]
        own = group.units[keep[group.units] != grows]  # those that are not there, or that are
        order = own[np.lexsort((own, -self.importance[own] if grows else self.importance[own]))]
        terms = [self.terms[t] for t in group.terms]
        now = sum(term.at(keep) for term in terms)
        for count in [1] if single else self._counts(group, keep, grows):
            units = order[:count]
            if len(units):
                changed = keep.copy()
                changed[units] = grows
                cost = sum(term.at(changed) for term in terms) - now
                yield Step(k, units, float(self.importance[units].sum()), cost if grows else -cost)

    def _counts(self, group: Group, keep: np.ndarray, grows: bool) -> list[int]:
        """How many units lead to the next steps of the group's layer."""
        width = int(keep @ self.holds[:, group.layer])
        known = list(self.widths(int(self.holds[:, group.layer].sum())))
        ahead = [w for w in known if w > width] if grows else [w for w in known if w < width][::-1]
        counts = [-(-abs(w - width) // group.per) for w in ahead[:LOOK]]
        return list(dict.fromkeys(counts))

    def taken(self, keep: np.ndarray, step: Step, grows: bool) -> np.ndarray:
        """`keep` after the step; what is known of steps that it does not touch stays known."""
        keep = keep.copy()
        keep[step.units] = grows
        mine = self.groups[step.group]
        for key in list(self._steps):
            other = self.groups[key[0]]
            if other.terms & mine.terms or np.intersect1d(other.layers, mine.layers).size:
                del self._steps[key]
        return keep
