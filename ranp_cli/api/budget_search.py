"""The largest network within a budget, from one scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.numbers import MEASURED
from ..costs.budget import Limit, infeasible, met, used
from ..costs.timing import CLOSE, SECOND_LOOKS, STEPS, Benchmark, T, Timings
from ..graph.graph import Graph
from ..pruning.methods import METHODS
from ..pruning.rounding import lacking, raised
from ..pruning.select import Selection
from .costing import Costing
from .ranking import Ranking
from .select_and_refine import Refined, UnitsChanged, select_and_refine
from .session import Session

Races = Mapping[str, Timings]  # kind of budget -> the dense and a slim network, turn by turn
FULL = 0.995  # of a budget: nothing more is looked for
TRIES = 100  # networks that are looked at to fill it


@dataclass
class BudgetSearch:
    """The networks of one ranking, looked at for the largest within the limits."""

    session: Session
    graph: Graph
    ranking: Ranking
    scores: Sequence[np.ndarray]
    limits: Sequence[Limit]
    costing: Costing
    advance: Callable[[], Any]

    def __post_init__(self) -> None:
        self.steps = (
            2**16 if self.ranking.method == "snip" else self.graph.n
        )  # levels of the weights' sparsity, or neurons
        self.units = len(self.graph.unit_roots)
        self.limited = [each for each in self.limits if each.kind not in MEASURED]
        self.timed = [each for each in self.limits if each.kind in MEASURED]
        self.before = self.costing.under(self.limits, self.session.model, None)

    def at(self, kept: int) -> tuple[Refined, dict[str, float]]:
        """The network of which just `kept` steps are ranked in, and its costs."""
        level = max(0.0, 1 - (kept + 0.5) / self.steps)
        return self.refined(lambda: self.ranking.select(self.graph, self.scores, level))

    def refined(self, choose: Callable[[], Selection]) -> tuple[Refined, dict[str, float]]:
        def chosen() -> Selection:
            if len(self.graph.unit_roots) != self.units:
                raise UnitsChanged
            return choose()

        refined = select_and_refine(self.session, self.graph, chosen)
        return refined, self.costing.under(self.limits, refined.model, refined.trace)

    def counted(self) -> tuple[Refined, int]:
        """The network with the most ranked in that meets what can be counted, and how many steps are.

        Raises: Infeasible.
        """
        best, least = self.at(0)
        if not met(self.limited, self.before, least):
            raise infeasible(self.limited, self.before, least, costliest(best, self.limited, self.before, least))
        whole, after = self.at(self.steps)
        if met(self.limited, self.before, after):
            return whole, self.steps
        low, high = 0, self.steps  # the least, which does, and too many
        while high - low > 1:
            middle = (low + high) // 2
            refined, after = self.at(middle)
            self.advance()
            if met(self.limited, self.before, after):
                low, best = middle, refined
            else:
                high = middle
        return best, low

    def filled(self, best: Refined) -> Refined:
        """`best` with what else fits."""
        full = used(self.limited, self.before, self.costing.under(self.limits, best.model, best.trace))
        fill = GreedyFill(self.graph, self.ranking.values(self.graph, self.scores), self.ranking)
        while full < FULL and not METHODS[self.ranking.method].by_layer:
            more = fill.candidate(best.selection)
            if more is None:
                break
            refined, after = self.refined(partial(fill.kept, more))
            self.advance()
            if fill.tried(met(self.limited, self.before, after)):
                best, full = refined, used(self.limited, self.before, after)
        return best

    def in_time(self, kept: int, stand: Benchmark) -> tuple[Refined, Races]:
        """The largest network of at most `kept` steps that also keeps to the times, and the races that show it."""

        def allowed(kept: int) -> Refined | None:
            refined, after = self.at(kept)
            if kept == 0 and not met(self.limited, self.before, after):
                raise infeasible(self.limited, self.before, after)
            return refined if met(self.limited, self.before, after) else None

        def races(refined: Refined, sure: bool) -> Races:
            with self.session.report.timing("time"):
                return {limit.kind: self.race(stand, limit.kind, refined, sure) for limit in self.timed}

        return largest_within(self.timed, kept, allowed, races, self.advance)

    def race(self, stand: Benchmark, kind: str, refined: Refined, sure: bool) -> Timings:
        if refined.selection.keep.all():  # nothing went: it is the dense network
            alone = stand.race(kind, self.session.model, sure=sure)
            return Timings(alone.seconds * 2, alone.repeats)
        return stand.race(kind, self.session.model, refined.model, sure=sure)


def costliest(found: Refined, limits: Sequence[Limit], before: Mapping[str, float], least: Mapping[str, float]) -> str:
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


def largest_within(
    limits: Sequence[Limit],
    top: int,
    at: Callable[[int], T | None],
    timed: Callable[[T, bool], Races],
    advance: Callable[[], Any],
) -> tuple[T, Races]:
    """Bisect for the largest network that meets some limits of time, and make sure of it: it is timed again, and while it is
    over, a smaller one is taken.

    Args:
        top: the largest number to try; how large a network `at` of a number is grows with it.
        at: gives a network; None for one that is out of the question.
        timed: races of the dense network and that one, one for each limit; with True, longer ones.

    Returns: the network and its last races, in which it meets the limits.

    Raises: Infeasible, when the network at 0 does not meet them.
    """

    def side(races: Races, k: int) -> dict[str, float]:
        return {kind: race.seconds[k] for kind, race in races.items()}

    def share(races: Races) -> float:
        return used(limits, side(races, 0), side(races, -1))

    def within(races: Races) -> bool:
        return met(limits, side(races, 0), side(races, -1))

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
                raise infeasible(limits, side(race, 0), side(race, -1))
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
