"""Units exchanged by importance per cost: against all possibilities, and what it never does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.graph.graph import Graph
from ranp_cli.pruning.exchange import Exchange
from ranp_cli.pruning.unit_costs import Term, terms_of


def graph_of(*widths: int) -> Graph:
    """Of a chain of convolutions, the last one of 2 neurons, which stay."""
    sizes = [1, *widths, 2]
    layers = [nn.Conv3d(a, b, 1) for a, b in itertools.pairwise(sizes)]
    graph = analyse(nn.Sequential(*layers), Example((torch.empty(1, 1, 2, 2, 2, device="meta"),)))
    graph.settle()
    return graph


def stairs(graph: Graph, step: int) -> list[Term]:
    """The cost of each layer: 1 for each `step` neurons that are begun, times those of the layer before."""
    found = []
    for term in terms_of(graph, "flops"):
        sizes = term.sizes

        def cost(at, full=sizes):
            return float(np.prod([-(-n // step) for n, whole in zip(at, full, strict=True) if n > 1 or whole > 1]))

        found.append(Term(sizes, term.axes, cost))
    return [term for term in found if term.axes]


def exchange_of(graph: Graph, importance: np.ndarray, terms: list[Term], least: int = 1) -> Exchange:
    floors = np.minimum(least, graph.sizes)
    return Exchange(graph, importance, terms, lambda keep: floors, lambda width: list(range(1, width + 1)))


def importance_of(graph: Graph, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(graph.unit_roots))


def best_of_all(exchange: Exchange, limit: float, least: int) -> float:
    """The most importance of any choice of units within the limit."""
    graph = exchange.graph
    free = np.flatnonzero(~graph.fixed_units)
    most = 0.0
    for flags in itertools.product([False, True], repeat=len(free)):
        keep = graph.fixed_units.copy()
        keep[free] = flags
        if (
            all(keep[units].sum() >= min(least, len(units)) for units in graph.by_layer(graph.unit))
            and exchange.cost(keep) <= limit
        ):
            most = max(most, exchange.kept(keep))
    return most


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_it_comes_close_to_the_best_of_all(step, seed, share):
    graph = graph_of(5, 6)
    exchange = exchange_of(graph, importance_of(graph, seed), stairs(graph, step))
    whole = np.ones(len(exchange.importance), dtype=bool)
    limit = max(share * exchange.cost(whole), best_floor(exchange))
    found = exchange.best(whole, limit)
    assert exchange.cost(found) <= limit
    assert exchange.kept(found) >= 0.9 * best_of_all(exchange, limit, 1)


def best_floor(exchange: Exchange) -> float:
    """The cost of one neuron a layer."""
    keep = exchange.graph.fixed_units.copy()
    for units in exchange.graph.by_layer(exchange.graph.unit):
        keep[units[0]] = True
    return exchange.cost(keep)


def test_what_costs_nothing_is_taken():
    """Where three neurons cost what four do, the fourth comes for nothing."""
    graph = graph_of(8, 8)
    exchange = exchange_of(graph, importance_of(graph, 0), stairs(graph, 4))
    found = exchange.best(
        np.ones(len(exchange.importance), dtype=bool),
        0.5 * exchange.cost(np.ones(len(exchange.importance), dtype=bool)),
    )
    sizes = [int(found[units].sum()) for units in graph.by_layer(graph.unit)]
    assert all(n % 4 == 0 for n in sizes[:-1])


def test_no_layer_goes_below_its_floor_and_the_best_of_it_stay():
    graph = graph_of(8, 8)
    importance = importance_of(graph, 1)
    exchange = exchange_of(graph, importance, stairs(graph, 1), least=3)
    found = exchange.best(np.ones(len(importance), dtype=bool), 1.0)
    for units, layer in zip(graph.by_layer(graph.unit), graph.layers, strict=True):
        kept = np.flatnonzero(found[units])
        assert len(kept) == min(3, len(units)), layer.name
        if not graph.fixed_units[units].any():
            assert set(kept) == set(np.argsort(-importance[units])[:3])


def test_a_limit_that_all_meet_keeps_all():
    graph = graph_of(4, 4)
    exchange = exchange_of(graph, importance_of(graph, 0), stairs(graph, 1))
    start = graph.fixed_units.copy()
    start[graph.by_layer(graph.unit)[0][0]] = start[graph.by_layer(graph.unit)[1][0]] = True
    assert exchange.best(start, 1e9).all()


def test_fixed_units_stay():
    graph = graph_of(6, 6)
    graph.fix_layers(["0"], [])
    exchange = exchange_of(graph, importance_of(graph, 0), stairs(graph, 1))
    found = exchange.best(np.ones(len(exchange.importance), dtype=bool), 0.0)
    assert found[graph.by_layer(graph.unit)[0]].all()
    assert not found.all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_floors_that_rise_with_the_network_hold_in_what_is_found(seed, share):
    """As those of `auto` do. One layer costs nothing and is worth much: it alone would grow."""
    graph = graph_of(6, 6, 24)
    terms = stairs(graph, 2)[:2]
    sizes = np.array(graph.sizes)

    def floors(keep: np.ndarray) -> np.ndarray:
        return np.minimum(np.ceil(0.6 * keep[graph.unit].sum() / len(sizes)).astype(int), sizes)

    exchange = Exchange(graph, importance_of(graph, seed), terms, floors, lambda width: list(range(1, width + 1)))
    start = graph.fixed_units.copy()
    start[[units[0] for units in graph.by_layer(graph.unit)]] = True
    limit = max(share * exchange.cost(np.ones(len(start), dtype=bool)), exchange.cost(start))
    found = exchange.best(start, limit)
    assert exchange.cost(found) <= limit
    assert (found @ exchange.holds >= floors(found)).all()
    assert found.sum() > start.sum()
