"""Under a limit of time: a network that keeps more importance than the best sparsity does, in no more time.

The search over the sparsity takes units by their rank alone. Here they are exchanged by importance per millisecond, with a
table of measured times of each layer's op, and a race of whole networks has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.contexts import labels_on_cpu
from ..core.errors import BadInput
from ..costs.budget import Limit, met
from ..costs.latency_table import LatencyTable, OpTime, knots
from ..costs.timing import Benchmark, Timings
from ..graph.graph import Graph
from ..pruning.exchange import Exchange
from ..pruning.methods import METHODS
from ..pruning.unit_costs import Term, layer_ops, op_term, terms_of
from .budget_search import BudgetSearch, Races
from .settle import Settled

TRIES = 6  # networks that are raced
NEAR = 0.97  # of the limit: no other is tried
MARGIN = 0.99  # of what a race shows to be wanted, is aimed at
LEAST_GAIN = 1e-3  # of the importance: less is none


def applies(search: BudgetSearch) -> bool:
    """Whether there is one limit of time, and units are ranked by an importance that can be summed up."""
    ranking = search.ranking
    sums = not METHODS[ranking.method].by_layer and ranking.method not in ("snip", "random") and ranking.term == "layer"
    return len(search.timed) == 1 and sums and ranking.round_to == 1


@labels_on_cpu
def with_more_importance(search: BudgetSearch, stand: Benchmark, found: Settled, races: Races) -> tuple[Settled, Races]:
    """A network that keeps more importance than `found`, within the same limits; `found` itself where there is none.

    What was tried goes into the report. Raises BadInput when an op of a layer cannot be timed.
    """
    if not applies(search) or found.selection.keep.all():
        return found, races
    (limit,) = search.timed
    with search.session.report.timing("time"):
        table = search.costing.table_for(stand, limit.kind)
        exchanged = TimeSearch(search, table, stand, limit, found, races[limit.kind])
        best = exchanged.best()
    keep_table(search, table)
    search.session.report.parts["time_search"] = exchanged.report(best)
    if best is None:
        return found, races
    return best.settled, {limit.kind: best.race}


@dataclass(frozen=True)
class Tried:
    """A network, the race that it was in, and the share of all importance that it keeps."""

    settled: Settled
    race: Timings
    importance: float


@dataclass
class TimeSearch:
    """Exchanges units from the network `found` on, whose measured time calibrates the table."""

    search: BudgetSearch
    table: LatencyTable
    stand: Benchmark
    limit: Limit
    found: Settled
    race: Timings

    def __post_init__(self) -> None:
        self.graph: Graph = self.search.graph
        values = self.search.ranking.values(self.graph, self.search.scores)
        self.importance = np.bincount(self.graph.unit, minlength=len(values)) * values
        self.ops: list[OpTime] = []
        terms, keep = list(measured_terms(self.graph, self.table, self.ops)), self.found.selection.keep
        rest = [term for term in terms_of(self.graph, "mem") if term.axes]  # what else is done to each layer's output
        self.fixed_cost = sum(term.at(keep) for term in terms if not term.axes)
        terms = [term for term in terms if term.axes]
        ops = self.fixed_cost + sum(term.at(keep) for term in terms)
        outputs = sum(term.at(keep) for term in rest)
        measured = self.race.seconds[-1]
        if measured > ops and outputs:  # beyond its layers a network takes time for each element of their outputs
            terms += [scaled(term, (measured - ops) / outputs) for term in rest]
        else:
            terms = [scaled(term, measured / ops) for term in terms]
            self.fixed_cost *= measured / ops
        self.exchange = Exchange(
            self.graph, self.importance, terms, lambda keep: self.search.ranking.floors(self.graph, keep), knots
        )
        self.rows = [self.row("sparsity", Tried(self.found, self.race, self.share(keep)))]

    def best(self) -> Tried | None:
        """The network with the most importance of those that meet the limits, where that is more than `found` keeps."""
        best, aim = (
            Tried(self.found, self.race, self.share(self.found.selection.keep)),
            self.limit.of(self.race.seconds[0]),
        )
        for _ in range(TRIES):
            tried = self.at(aim, best)
            if tried is None:
                break
            self.rows.append(self.row("exchange", tried))
            self.search.advance()
            seconds, limit = tried.race.seconds[-1], self.limit.of(tried.race.seconds[0])
            if seconds <= limit:
                best = tried
                if seconds > NEAR * limit:
                    break
            aim *= MARGIN * limit / seconds
        return best if best.settled is not self.found else None

    def at(self, aim: float, best: Tried) -> Tried | None:
        """The network for an estimated time, raced; None unless it keeps more than the best one so far and meets what can be counted."""
        graph, start = self.graph, self.found.selection.keep
        keep = self.exchange.best(start, aim - self.fixed_cost)
        share = self.share(keep)
        if share < best.importance * (1 + LEAST_GAIN):
            return None
        search = self.search
        selection = replace(self.found.selection, keep=keep, floored=[])
        settled, after = search.settled(lambda: replace(selection, keep=keep | graph.fixed_units))
        if not met(search.limited, search.before, after):
            return None
        race = search.race(self.stand, self.limit.kind, settled, True)
        return Tried(settled, race, share)

    def share(self, keep: np.ndarray) -> float:
        total = float(self.importance.sum())
        return float(self.importance[keep].sum()) / total if total else 1.0

    def row(self, by: str, tried: Tried) -> dict[str, Any]:
        return {
            "by": by,
            "kept": int(tried.settled.selection.keep[self.graph.unit].sum()),
            "macs": sum(layer.macs for layer in tried.settled.trace.layers.values()),
            "importance": tried.importance,
            "seconds": tried.race.seconds[-1],
        }

    def report(self, best: Tried | None) -> dict[str, Any]:
        return {
            "tried": self.rows,
            "taken": 0 if best is None else self.rows.index(self.row("exchange", best)),
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


def scaled(term: Term, factor: float) -> Term:
    """The same term, `factor` times as costly."""
    cost = term.cost
    return replace(term, cost=lambda sizes: factor * cost(sizes), known={})


def keep_table(search: BudgetSearch, table: LatencyTable) -> None:
    """Write what was measured to the cache folder; a note in the report where that cannot be."""
    try:
        table.write()
    except BadInput as error:
        search.session.note(f"the table of latencies is not kept for the next run: {error}")
