"""Under a limit of time: a network that keeps more importance than the best sparsity does, in no more time.

The search over the sparsity takes units by their rank alone. Here they are exchanged by importance per millisecond, with a
table of measured times of each layer's op, and a race of whole networks has the last word.
"""

from __future__ import annotations

import math
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
CLOSE = 1.02  # two aims so near to each other have nothing between them
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
        outputs = list(terms_of(self.graph, "mem"))  # what else is done to each layer's output
        ops_dense, ops, outs_dense, outs = (
            sum(term.at(kept) for term in part) for part in (terms, outputs) for kept in (np.ones_like(keep), keep)
        )
        a, b, constant = fitted((ops_dense, ops), (outs_dense, outs), (self.race.seconds[0], self.race.seconds[-1]))
        scaled = [scaled_by(a, term) for term in terms] + [scaled_by(b, term) for term in outputs]
        self.fixed_cost = constant + sum(term.at(keep) for term in scaled if not term.axes)
        terms = [term for term in scaled if term.axes]
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
        low, high = 0.0, math.inf  # aims that gave a network within the limit, and one over it
        for _ in range(TRIES):
            keep = self.exchange.best(self.found.selection.keep, aim - self.fixed_cost)
            share = self.share(keep)
            if share < best.importance * (1 + LEAST_GAIN) or self.exchange.cost(keep) > aim - self.fixed_cost:
                low = max(low, aim)  # less time than this is of no use
            else:
                tried = self.raced(keep, share)
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
        return best if best.settled is not self.found else None

    def raced(self, keep: np.ndarray, share: float) -> Tried | None:
        """The network of these units and its race; None unless it meets what can be counted."""
        search, graph = self.search, self.graph
        selection = replace(self.found.selection, keep=keep, floored=[])
        settled, after = search.settled(lambda: replace(selection, keep=keep | graph.fixed_units))
        if not met(search.limited, search.before, after):
            return None
        tried = Tried(settled, search.race(self.stand, self.limit.kind, settled, True), share)
        self.rows.append(self.row("exchange", tried))
        search.advance()
        return tried

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


def keep_table(search: BudgetSearch, table: LatencyTable) -> None:
    """Write what was measured to the cache folder; a note in the report where that cannot be."""
    try:
        table.write()
    except BadInput as error:
        search.session.note(f"the table of latencies is not kept for the next run: {error}")
