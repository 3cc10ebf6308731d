"""`--round-to auto`: the network cut to its goal with each rounding, raced turn by turn where it will run, and the best one taken.

Which widths are fast differs from one runtime to the next. A table of good widths would be wrong somewhere; a race of these
very networks is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.errors import Infeasible
from ..core.numbers import MEASURED
from ..core.progress import Progress
from ..costs.timing import Benchmark, Timings
from ..graph.graph import Graph
from .budget_search import Races
from .costing import Costing
from .goal import Goal, reach
from .ranking import Ranking
from .select_and_refine import Refined, with_the_same_units
from .session import Session

MULTIPLES = (1, 4, 8, 16)  # the first is no rounding


@dataclass(frozen=True)
class Candidate:
    """The network of one rounding, and the races that show that it meets limits of time."""

    ranking: Ranking
    refined: Refined
    races: Races

    @property
    def keep(self) -> np.ndarray:
        return self.refined.selection.keep


def reach_rounded(
    goal: Goal,
    session: Session,
    graph: Graph,
    ranking: Ranking,
    scores: Sequence[np.ndarray],
    costing: Costing,
    stand: Benchmark | None,
    progress: Progress,
) -> tuple[Refined, Races, Ranking]:
    """`reach` with the rounding of the ranking or, where that is to be found, with the best one; and the ranking that has it.

    The best one is the fastest, and none where its gain over no rounding is within the noise. Under a limit of time, which
    all of them meet, it is the one that keeps the most importance. What was raced goes into the report.

    Raises: Infeasible, when the goal cannot be reached without rounding.
    """

    def at(multiple: int) -> Candidate:
        one = replace(ranking, round_to=multiple, finds_rounding=False)
        return Candidate(one, *reach(goal, session, graph, one, scores, costing, stand, progress))

    if stand is None or not ranking.finds_rounding:
        return *reach(goal, session, graph, ranking, scores, costing, stand, progress), ranking
    found = with_the_same_units(graph, lambda: different(at, graph))
    kind = next((limit.kind for limit in goal.limits if limit.kind in MEASURED), "latency")
    with session.report.timing("time"):
        timings = stand.race(kind, *(candidate.refined.model for candidate in found))
    importances = [ranking.share_kept(graph, scores, candidate.keep) for candidate in found]
    best = int(np.argmax(importances)) if goal.is_timed else fastest(timings)
    if best:
        session.report.parts.pop("time_search", None)  # of the network without rounding
    rows = [
        {
            "round_to": candidate.ranking.round_to,
            "kept": int(candidate.keep[graph.unit].sum()),
            "macs": sum(layer.macs for layer in candidate.refined.trace.layers.values()),
            "importance": importances[k],
            "seconds": timings.seconds[k],
            "gain": timings.gain(0, k)[0],
        }
        for k, candidate in enumerate(found)
    ]
    session.report.parts["rounding"] = {
        "chosen": found[best].ranking.round_to,
        "by": "importance" if goal.is_timed else "time",
        "of": "training step" if kind == "step-time" else "forward pass",
        "runtime": stand.way.name if kind == "step-time" else stand.ground.runtime.name,
        "repeats": timings.repeats,
        "raced": rows,
    }
    return found[best].refined, found[best].races, found[best].ranking


def different(at: Callable[[int], Candidate], graph: Graph) -> list[Candidate]:
    """The networks without rounding and of each multiple, those that are equal to an earlier one left out."""
    found = [at(1)]
    for multiple in fitting(graph):
        try:
            candidate = at(multiple)
        except Infeasible:  # the smallest network of these multiples is too large
            continue
        if not any(np.array_equal(candidate.keep, other.keep) for other in found):
            found.append(candidate)
    return found


def fitting(graph: Graph) -> list[int]:
    """The multiples that some layer can be rounded to: it has as many neurons, and may lose some."""
    free = ~graph.fixed_units
    widest = max((len(units) for units in graph.by_layer(graph.unit) if free[units].any()), default=0)
    return [multiple for multiple in MULTIPLES[1:] if multiple <= widest]


def fastest(timings: Timings) -> int:
    """The network with the least time; the first one, unless chance cannot explain the gain over it."""
    best = int(np.argmin(timings.seconds))
    return best if timings.gain(0, best)[1] > 1 else 0
