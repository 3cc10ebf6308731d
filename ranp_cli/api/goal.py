"""How far to prune: a sparsity, or the budgets that the slim network has to meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import BadInput, Infeasible
from ..core.numbers import MEASURED
from ..core.progress import Progress
from ..core.spelling import Word, spelled
from ..costs.budget import Limit, advised, limits
from ..costs.memory import STATES
from ..costs.timing import Benchmark
from ..graph.graph import Graph
from ..pruning.methods import METHODS
from ..pruning.min_neurons import AUTO
from ..pruning.select import check
from .budget_search import BudgetSearch, Races
from .costing import Costing
from .ranking import Ranking
from .select_and_refine import Refined, select_and_refine, with_the_same_units
from .session import Session
from .time_search import with_more_importance

if TYPE_CHECKING:
    from ..reporting.report_parts import BudgetRow


@dataclass(frozen=True)
class Goal:
    """Either a sparsity ("max", or a share of the neurons), or limits; the other is None or empty."""

    sparsity: float | str | None
    limits: Sequence[Limit]

    @classmethod
    def of(cls, sparsity: Any, budget: Any, method: str) -> Goal:
        """BadInput unless just one of them is given, and has a meaning for the method."""
        wanted = limits(budget)
        if (sparsity is None) == (not wanted):
            raise BadInput(
                f"give either {spelled('sparsity', Word('X'))} in [0, 1), or max, or {spelled('budget')}, such as {spelled('budget', 'macs=10%')}"
            )
        if sparsity not in (None, "max"):
            sparsity = check(sparsity)
        if sparsity == "max" and method in METHODS and METHODS[method].by_layer:
            raise BadInput(
                f"{spelled('sparsity', 'max')} has no meaning for {spelled('method', method)}, which never empties a layer; give a number"
            )
        return cls(sparsity, wanted)

    @property
    def is_timed(self) -> bool:
        return any(limit.kind in MEASURED for limit in self.limits)

    def rows(self, before: Mapping[str, float], after: Mapping[str, float]) -> list[BudgetRow]:
        """The report's part `budget`."""
        return [
            {
                "kind": limit.kind,
                "limit": limit.text,
                "bound": limit.of(before[limit.kind]),
                "before": before[limit.kind],
                "after": after[limit.kind],
            }
            for limit in self.limits
        ]


def reach(
    goal: Goal,
    session: Session,
    graph: Graph,
    ranking: Ranking,
    scores: Sequence[np.ndarray],
    costing: Costing,
    stand: Benchmark | None,
    progress: Progress,
) -> tuple[Refined, Races]:
    """The slim network that meets the goal, and under limits of time the races that show it.

    Raises: Infeasible, with what could be lowered, when the smallest network does not meet the limits.
    """
    if goal.sparsity is not None:
        sparsity = goal.sparsity
        return select_and_refine(session, graph, lambda: ranking.select(graph, scores, sparsity)), {}
    try:
        refined, races = fit_budget(session, graph, ranking, scores, goal.limits, costing, stand, progress)
    except Infeasible as error:
        lowered = [
            name
            for name, n in ((spelled("round_to"), ranking.round_to), (spelled("min_neurons"), ranking.min_neurons))
            if n not in (1, AUTO)
        ]
        dropped = [name for name, globs in ((spelled("keep"), ranking.keep), (spelled("only"), ranking.only)) if globs]
        raise advised(error, costing.sample.samples, STATES[costing.optimizer] > 0, lowered, dropped) from None
    selection = refined.selection
    return replace(refined, selection=replace(selection, requested=round(float(selection.requested), 6))), races


def fit_budget(
    session: Session,
    graph: Graph,
    ranking: Ranking,
    scores: Sequence[np.ndarray],
    limits: Sequence[Limit],
    costing: Costing,
    stand: Benchmark | None,
    progress: Progress,
) -> tuple[Refined, Races]:
    """The largest network that meets all limits, by bisection over the sparsity: no gradient is taken again.

    One neuron may cost so much that it ends the search while others would still fit: these are added then, best first.
    What can be counted is met exactly; times in the races of the dense and the slim network that are returned. Under a limit
    of time units are then exchanged by what they cost in time, where that keeps more importance.
    Raises Infeasible, naming the closest, when the smallest network does not meet them.
    """
    with progress("fitting", None) as advance:

        def searched() -> tuple[Refined, Races]:
            search = BudgetSearch(session, graph, ranking, scores, limits, costing, advance)
            best, kept = search.counted()
            if not search.timed or stand is None:
                return search.filled(best), {}
            found, races = search.in_time(kept, stand)
            return with_more_importance(search, stand, found, races)

        return with_the_same_units(graph, searched)
