"""The largest network within a budget, from one scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..costs.budget import Limit, infeasible, met, used
from ..costs.timing import CLOSE, SECOND_LOOKS, STEPS, Benchmark, T, Timings
from ..graph.graph import Graph
from ..pruning.methods import METHODS
from ..pruning.rounding import lacking, raised
from ..pruning.select import Selection
from .costing import Costing
from .ranking import Ranking
from .session import Progress, Session
from .settle import Settled, settle

FULL = 0.995  # of a budget: nothing more is looked for
TRIES = 100  # networks that are looked at to fill it


def fit_budget(session: Session, graph: Graph, ranking: Ranking, scores: Sequence[np.ndarray], limits: Sequence[Limit],
               costing: Costing, stand: Benchmark | None, progress: Progress) -> tuple[Settled, Timings | None]:  # fmt: skip
    """The largest network that meets all limits, by bisection over the sparsity: no gradient is taken again.

    One neuron may cost so much that it ends the search while others would still fit: these are added then, best first.
    What can be counted is met exactly; a latency in the race of the dense and the slim network that is returned.
    Raises Infeasible, naming the closest, when the smallest network does not meet them.
    """

    def at(kept: int) -> tuple[Settled, dict[str, float]]:
        level = max(0.0, 1 - (kept + 0.5) / cells)  # such that just `kept` are ranked in
        found = settle(session, graph, lambda: ranking.select(graph, scores, level))
        return found, cost(found)

    def cost(found: Settled) -> dict[str, float]:
        return costing.under(limits, found.model, found.trace)

    cells = (
        2**16 if ranking.method == "snip" else graph.n
    )  # search steps: neurons, or levels of the weight sparsity for SNIP
    counted, timed = ([each for each in limits if (each.kind == "latency") == is_time] for is_time in (False, True))
    before = costing.under(limits, session.model, None)
    low, high = 0, cells  # the least, which must do, and too many
    with progress("fitting", None) as advance:
        best, least = at(low)
        if not met(counted, before, least):
            raise infeasible(counted, before, least, costliest(best, counted, before, least))
        found, after = at(cells)
        if met(counted, before, after):
            low, high, best = cells, cells, found
        while high - low > 1:
            middle = (low + high) // 2
            found, after = at(middle)
            advance()
            if met(counted, before, after):
                low, best = middle, found
            else:
                high = middle
        if not timed or stand is None:
            full = used(counted, before, cost(best))
            fill = GreedyFill(graph, ranking.values(graph, scores), ranking)
            while (
                full < FULL
                and not METHODS[ranking.method].by_layer
                and (more := fill.candidate(best.selection)) is not None
            ):
                found = settle(session, graph, partial(fill.kept, more))
                after = cost(found)
                advance()
                if fill.tried(met(counted, before, after)):
                    best, full = found, used(counted, before, after)
            return best, None

        def allowed(kept: int) -> Settled | None:
            found, after = at(kept)
            if kept == 0 and not met(counted, before, after):
                raise infeasible(counted, before, after)
            return found if met(counted, before, after) else None

        def times(found: Settled, sure: bool) -> Timings:
            with session.report.timing("time"):
                if found.selection.keep.all():  # nothing went: it is the dense network
                    alone = stand.forward(session.model, sure=sure)
                    return Timings(alone.seconds * 2, alone.repeats)
                return stand.forward(session.model, found.model, sure=sure)

        return largest_within(timed[0], low, allowed, times, advance)


def costliest(found: Settled, limits: Sequence[Limit], before: Mapping[str, float], least: Mapping[str, float]) -> str:
    """Which layers of the smallest network take the most of the first limit that it exceeds: `; the most of it in a, b, c`."""
    over = next((each.kind for each in limits if least[each.kind] > each.of(before[each.kind])), None)
    cost = {"params": lambda layer: layer.weights, "macs": lambda layer: layer.macs, "flops": lambda layer: layer.macs}
    layers = sorted(
        found.trace.layers.values(), key=cost.get(str(over), lambda layer: layer.output_elements), reverse=True
    )
    return f"; the most of it in {', '.join(layer.name for layer in layers[:3])}" if layers else ""


@dataclass
class GreedyFill:
    """Proposes networks that keep more than one that fits, until nothing more does.

    Units are added best first, as many at once as fit. One that alone is too much stays out, and so do all that belong
    to the same layers: they cost as much.
    """

    graph: Graph
    value: np.ndarray  # of each unit
    ranking: Ranking
    closed: np.ndarray = field(init=False)  # units that do not fit
    many: int = 1
    tries: int = 0
    _block: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        units = len(self.value)
        member = np.zeros((units, len(self.graph.layers)), dtype=bool)
        for k, own in enumerate(self.graph.by_layer(self.graph.unit)):
            member[own, k] = True
        self.kind = np.unique(member, axis=0, return_inverse=True)[1].reshape(-1)  # units of the same layers
        self.closed = self.graph.fixed_units.copy()

    def candidate(self, kept: Selection) -> Selection | None:
        """What is to be tried next, in place of `kept`; None when all was tried."""
        while self.tries < TRIES:
            free = np.flatnonzero(~(kept.keep | self.closed))
            if not len(free):
                return None
            self._block = free[np.lexsort((free, -self.value[free]))][: self.many if self.ranking.round_to == 1 else 1]
            keep = kept.keep.copy()
            if self.ranking.round_to == 1:
                keep[self._block] = True
            else:
                keep = raised(self.graph, self.value, keep, int(self._block[0]), self.ranking.round_to)
            if (keep & ~kept.keep).any() and not (kept.keep & ~keep).any():
                self.tries += 1
                least = self.ranking.floors(self.graph, keep)
                few = lacking(self.graph, keep, least + 1)  # these have no neuron beyond their floor
                return replace(kept, keep=keep, floored=[name for name in kept.floored if name in few])
            self._close()
        return None

    def kept(self, chosen: Selection) -> Selection:
        """The selection, with the units that an earlier run showed to be fixed."""
        return replace(chosen, keep=chosen.keep | self.graph.fixed_units)

    def tried(self, fits: bool) -> bool:
        if fits:
            self.many *= 2
        elif len(self._block) > 1:
            self.many = len(self._block) // 2
        else:
            self._close()
        return fits

    def _close(self) -> None:
        self.closed = self.closed | np.isin(self.kind, self.kind[self._block])
        self.many = 1


# -- the largest network that is fast enough


def largest_within(limit: Limit, top: int, at: Callable[[int], T | None], timed: Callable[[T, bool], Timings],
                   advance: Callable[[], Any]) -> tuple[T, Timings]:  # fmt: skip
    """Bisect for the largest network that meets a limit of time, and make sure of it: it is timed again, and while it is
    over, a smaller one is taken.

    Args:
        top: the largest number to try; how large a network `at` of a number is grows with it.
        at: gives a network; None for one that is out of the question.
        timed: a race of the dense network and that one; with True, a longer one.

    Returns: the network and its last race, in which it meets the limit.

    Raises: Infeasible, when the network at 0 does not meet the limit.
    """

    def share(race: Timings) -> float:
        return race.seconds[-1] / limit.of(race.seconds[0])

    def within(race: Timings) -> bool:
        return race.seconds[-1] <= limit.of(race.seconds[0])

    def looks_right(kept: int) -> bool:
        found = at(kept)
        if found is None:
            return False
        race = timed(found, False)
        if abs(share(race) - 1) < CLOSE:
            race = timed(found, True)
        advance()
        return within(race)

    kept = top
    if not looks_right(top):
        kept, over = 0, top
        for _ in range(STEPS):
            middle = (kept + over) // 2
            if over - kept > 1:
                kept, over = (middle, over) if looks_right(middle) else (kept, middle)
    back = max(1, top // 100)
    while True:
        found = at(kept)
        if found is not None:
            race = timed(found, True)
            advance()
            if within(race):
                break
            if kept == 0:
                before, least = ({"latency": race.seconds[k]} for k in (0, -1))
                raise infeasible([limit], before, least)
        kept, back = max(0, kept - back), 2 * back
    over = top + 1
    for _ in range(SECOND_LOOKS):  # a slow moment may have turned down what is fast enough
        middle = (kept + over) // 2
        if over - kept <= 1 or share(race) > 1 - CLOSE:
            break
        larger = at(middle)
        again = None if larger is None else timed(larger, True)
        advance()
        if larger is not None and again is not None and within(again):
            kept, found, race = middle, larger, again
        else:
            over = middle
    return found, race
