"""Under a limit of time: a network that keeps more importance than the best sparsity does, in no more time.

The search over the sparsity takes units by their rank alone. Here they are exchanged by importance per millisecond, with a
table of measured times of each layer's op, and a race of whole networks has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import BadInput
from ..core.numbers import MEASURED
from ..costs.budget import Limit, met
from ..costs.latency_table import LatencyTable, OpTime, knots
from ..costs.timing import Benchmark, Timings
from ..graph.graph import Graph
from ..pruning.exchange import Exchange
from ..pruning.methods import METHODS
from ..pruning.rounding import lacking
from ..pruning.select import Selection
from ..pruning.unit_costs import Term, layer_ops, op_term, terms_of
from .budget_search import BudgetSearch, Races
from .ranking import Ranking
from .select_and_refine import Refined

TRIES = 6  # networks that are raced
NEAR = 0.97  # of the limit: no other is tried
CLOSE = 1.02  # two aims so near to each other have nothing between them
MARGIN = 0.99  # of what a race shows to be wanted, is aimed at
LEAST_GAIN = 1e-3  # of the importance: less is none


def applies(ranking: Ranking, limits: Sequence[Limit]) -> bool:
    """Whether there is one limit of time, and units are ranked by an importance that can be summed up."""
    sums = not METHODS[ranking.method].by_layer and ranking.method not in ("snip", "random") and ranking.term == "layer"
    return sum(limit.kind in MEASURED for limit in limits) == 1 and sums and ranking.round_to == 1


def with_more_importance(search: BudgetSearch, stand: Benchmark, found: Refined, races: Races) -> tuple[Refined, Races]:
    """A network that keeps more importance than `found`, within the same limits; `found` itself where there is none.

    What was tried goes into the report. Raises BadInput when an op of a layer cannot be timed.
    """
    if not applies(search.ranking, search.limits) or found.selection.keep.all():
        return found, races
    (limit,) = search.timed
    with search.session.report.timing("time"):
        table = search.costing.table_for(stand, limit.kind)
        exchanged = TimeSearch(search, table, stand, limit, found, races[limit.kind])
        best = exchanged.best()
    try:
        table.write()
    except BadInput as error:
        table.notes.append(f"the table of latencies is not kept for the next run: {error}")
    search.session.note(*table.notes)
    search.session.report.parts["time_search"] = exchanged.report(best)
    return best.refined, {limit.kind: best.race}


@dataclass(frozen=True, eq=False)
class Tried:
    """A network, the race that it was in, and the share of all importance that it keeps."""

    refined: Refined
    race: Timings
    importance: float


@dataclass
class TimeSearch:
    """Exchanges units from the network `found` on, whose measured time, with the dense one's, calibrates the table."""

    search: BudgetSearch
    table: LatencyTable
    stand: Benchmark
    limit: Limit
    found: Refined
    race: Timings

    def __post_init__(self) -> None:
        search, keep = self.search, self.found.selection.keep
        self.graph: Graph = search.graph
        values = search.ranking.values(self.graph, search.scores)
        self.ops: list[OpTime] = []
        terms = list(measured_terms(self.graph, self.table, self.ops))
        outputs = list(terms_of(self.graph, "mem"))  # what else is done to each layer's output
        ops_dense, ops, outs_dense, outs = (
            sum(term.at(kept) for term in part) for part in (terms, outputs) for kept in (np.ones_like(keep), keep)
        )
        a, b, constant = fitted((ops_dense, ops), (outs_dense, outs), (self.race.seconds[0], self.race.seconds[-1]))
        parts = [scaled_by(a, term) for term in terms] + [scaled_by(b, term) for term in outputs]
        self.exchange = Exchange(
            self.graph,
            np.bincount(self.graph.unit, minlength=len(values)) * values,
            [*parts, Term((), [], lambda sizes: constant)],
            lambda keep: search.ranking.floors(self.graph, keep),
            knots,
        )
        self.tried = [Tried(self.found, self.race, self.share(keep))]

    def best(self) -> Tried:
        """The network with the most importance of those that meet the limits; that of the best sparsity where none keeps more."""
        best, aim = self.tried[0], self.limit.of(self.race.seconds[0])
        low, high = 0.0, math.inf  # aims that gave a network within the limit, or of no use, and one over it
        for _ in range(TRIES):
            keep = self.exchange.best(self.found.selection.keep, aim)
            if self.share(keep) < best.importance * (1 + LEAST_GAIN) or self.exchange.cost(keep) > aim:
                low = max(low, aim)  # less time than this is of no use
            else:
                tried = self.raced(keep)
                if tried is None:
                    break
                part = tried.race.seconds[-1] / self.limit.of(tried.race.seconds[0])
                best, low, high = (tried, aim, high) if part <= 1 else (best, low, aim)
                if NEAR < part <= 1:
                    break
                aim *= MARGIN / part
            if (high == math.inf and aim <= low) or high < CLOSE * low:
                break
            if not low < aim < high:  # of no use, or the machine was faster or slower in one of the races
                aim = (low + high) / 2
        return best

    def raced(self, keep: np.ndarray) -> Tried | None:
        """The network of these units and its race; None unless it meets what can be counted."""
        search = self.search
        refined, after = search.refined(lambda: self.selection(keep | self.graph.fixed_units))
        if not met(search.limited, search.before, after):
            return None
        race = search.race(self.stand, self.limit.kind, refined, True)
        self.tried.append(Tried(refined, race, self.share(refined.selection.keep)))
        search.advance()
        return self.tried[-1]

    def selection(self, keep: np.ndarray) -> Selection:
        """These units, which no ranking chose, with the layers that have lost all that is above their floor."""
        graph = self.graph
        least = self.search.ranking.floors(graph, keep)
        at_floor = lacking(graph, keep, np.minimum(least + 1, graph.sizes))
        return Selection(keep, at_floor, float(1 - keep[graph.unit].mean()))

    def share(self, keep: np.ndarray) -> float:
        return self.search.ranking.share_kept(self.graph, self.search.scores, keep)

    def report(self, best: Tried) -> dict[str, Any]:
        return {
            "tried": [
                {
                    "by": "exchange" if k else "sparsity",
                    "kept": int(each.refined.selection.keep[self.graph.unit].sum()),
                    "macs": sum(layer.macs for layer in each.refined.trace.layers.values()),
                    "importance": each.importance,
                    "seconds": each.race.seconds[-1],
                }
                for k, each in enumerate(self.tried)
            ],
            "taken": self.tried.index(best),
            "table": {
                "times": len(self.table.used),
                "measured": len(self.table.used & self.table.fresh),
                "by_macs": sum(op.by_macs for op in self.ops),
            },
        }


def measured_terms(graph: Graph, table: LatencyTable, ops: list[OpTime]) -> Iterator[Term]:
    """The time of each op that layers call, as a function of the units that are there; each goes into `ops`, too."""
    for layer, op, share in layer_ops(graph):
        term = op_term(graph, op, 1.0)
        cost = OpTime(table, layer.name, op.call, term.sizes, together(term), share, term.cost)
        ops.append(cost)
        yield replace(term, cost=cost, known={})


def together(term: Term) -> list[list[int]]:
    """The axes of a term that shrink together, since the same units lie along them."""
    groups: dict[tuple[bytes, int], list[int]] = {}
    for axis in term.axes:
        groups.setdefault((np.ascontiguousarray(axis.units).tobytes(), axis.units.shape[1]), []).append(axis.place)
    return list(groups.values())


def fitted(
    ops: tuple[float, float], outputs: tuple[float, float], seconds: tuple[float, float]
) -> tuple[float, float, float]:
    """What the seconds of the dense and the slim network are made of: a factor of the time of ops, seconds for each element of
    outputs, and seconds that are there in any case.

    Elements where that gives no number below zero; else what is there in any case, as in a network so small that calling
    its ops is most of the work; else ops alone, which then meet the slim network's seconds.
    """
    (ops_dense, ops_slim), (outs_dense, outs) = ops, outputs
    whole = ops_dense * outs - ops_slim * outs_dense
    if whole and outs:
        a = (seconds[0] * outs - seconds[1] * outs_dense) / whole
        b = (seconds[1] - a * ops_slim) / outs
        if a > 0 and b >= 0:
            return a, b, 0.0
    if ops_dense > ops_slim:
        a = (seconds[0] - seconds[1]) / (ops_dense - ops_slim)
        constant = seconds[1] - a * ops_slim
        if a > 0 and constant >= 0:
            return a, 0.0, constant
    return seconds[1] / ops_slim, 0.0, 0.0


def scaled_by(factor: float, term: Term) -> Term:
    """The same term, `factor` times as costly."""
    cost = term.cost
    return replace(term, cost=lambda sizes: factor * cost(sizes), known={})
