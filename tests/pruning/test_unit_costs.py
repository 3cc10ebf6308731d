"""What the removal of a unit saves, against cutting it for real; and the ranking that takes it from the scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.core.tensors import tensors_in
from ranp_cli.graph.analyse import analyse, trace_costs
from ranp_cli.graph.graph import Graph
from ranp_cli.pruning.removal_order import removal_order
from ranp_cli.pruning.slim import slim_model
from ranp_cli.pruning.unit_costs import UnitCosts, unit_costs

NAMES = ("residual", "grouped", "grouped_transposed", "depthwise_multiplier", "squeeze_excite", "chunk_gate",
         "channel_shuffle", "unet_skip", "weight_norm", "linear_to_volume", "auxiliary_head", "cost_volume", "siamese")  # fmt: skip
CASES = [case for case in zoo.CASES if case.name in NAMES]


def graph_of(case: zoo.Case) -> tuple[nn.Module, Graph]:
    model, (x, _) = zoo.build(case), zoo.batches(case)[0]
    example = Example((), x) if isinstance(x, dict) else Example(x if isinstance(x, tuple) else (x,))
    return model, analyse(model, example)


def counts(model: nn.Module, graph: Graph, keep: np.ndarray) -> dict[str, float]:
    """The costs of the network that is cut to these units for real."""
    slim, _ = slim_model(model, graph, graph.flags(keep))
    traced = trace_costs(slim, graph.example.with_batch(1), both_modes=True)
    elements = sum(layer.output_elements for layer in traced.layers.values())
    return {"flops": traced.costs["flops"], "params": traced.costs["params"], "mem": elements}


def test_enough_networks_are_named():
    assert len(CASES) == len(NAMES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_unit_costs_what_cutting_it_saves(case):
    """Of the whole network, and of one that has lost a third of its units already."""
    model, graph = graph_of(case)
    free = np.flatnonzero(~graph.fixed_units)
    keep = np.ones(len(graph.unit_roots), dtype=bool)
    for part in (np.empty(0, int), np.random.default_rng(0).choice(free, len(free) // 3, replace=False)):
        keep[part] = False
        whole = counts(model, graph, keep)
        costs = {resource: unit_costs(graph, keep, resource) for resource in whole}
        assert not any(values[~keep].any() for values in costs.values())
        compared = 0
        for unit in free[keep[free]]:
            without = keep.copy()
            without[unit] = False
            if any(not without[units].any() for units in graph.by_layer(graph.unit)):  # no network
                continue
            saved = counts(model, graph, without)
            compared += 1
            for resource in whole:
                assert costs[resource][unit] == whole[resource] - saved[resource], (resource, unit)
        assert compared


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
@pytest.mark.parametrize("resource", ["flops", "params", "mem", "latency"])
def test_costs_stay_true_while_units_go(case, resource):
    _, graph = graph_of(case)
    for k, layer in enumerate(graph.layers):
        layer.seconds = 1e-3 * (k + 1)
    kept = UnitCosts(graph, np.ones(len(graph.unit_roots), dtype=bool), resource)
    for unit in np.random.default_rng(0).permutation(len(graph.unit_roots))[: len(graph.unit_roots) // 2]:
        before, changed = kept.costs.copy(), kept.remove(int(unit))
        assert set(np.flatnonzero(~np.isclose(before, kept.costs, rtol=1e-9))) <= set(changed.tolist())
        np.testing.assert_allclose(kept.costs, unit_costs(graph, kept.there, resource), rtol=1e-9, atol=1e-15)


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))


def test_by_hand():
    """Layers of 4, 2 and 3 neurons on 4 x 4: a neuron of the first costs 9 + 2 multiply-adds a position, of the second 4 + 3."""
    graph = analyse(chain(), Example((torch.zeros(1, 1, 4, 4),)))
    everything = np.ones(len(graph.unit_roots), dtype=bool)
    first, second = (graph.by_layer(graph.unit)[k] for k in (0, 1))
    for resource, wanted in (
        ("flops", (2 * 16 * 11, 2 * 16 * 7)),
        ("params", (9 + 1 + 2, 4 + 1 + 3)),
        ("mem", (16, 16)),
    ):
        costs = unit_costs(graph, everything, resource)
        assert (set(costs[first]), set(costs[second])) == ({wanted[0]}, {wanted[1]}), resource
    everything[second[0]] = False
    assert set(unit_costs(graph, everything, "flops")[first]) == {2 * 16 * 10}  # one consumer less
    for layer, seconds in zip(graph.layers, (9.0, 8.0, 6.0), strict=True):
        layer.seconds = seconds  # for 36, 8 and 6 multiply-adds a position
    costs = unit_costs(graph, np.ones(len(graph.unit_roots), dtype=bool), "latency")
    np.testing.assert_allclose(costs[first], 9 / 4 + 8 / 4)
    np.testing.assert_allclose(costs[second], 8 / 2 + 6 / 2)
    with pytest.raises(ranp.BadInput, match="unknown resource 'flop'"):
        unit_costs(graph, everything, "flop")


# -- score - lambda * cost


def test_the_order_is_that_of_removing_the_least_again_and_again():
    """By brute force, with all costs taken anew after each removal; without lambda it is the order of the scores."""
    case = next(c for c in CASES if c.name == "residual")
    _, graph = graph_of(case)
    values = np.random.default_rng(1).random(len(graph.unit_roots))
    free = ~graph.fixed_units
    whole = unit_costs(graph, np.ones(len(values), dtype=bool), "flops")
    for lam in (0.0, 0.5, 3.0):
        there, order = np.ones(len(values), dtype=bool), []
        while len(order) < len(values):
            worth = values / values[free].mean() - lam * unit_costs(graph, there, "flops") / whole[free].mean()
            order.append(min((u for u in range(len(values)) if u not in order), key=lambda u: worth[u]))
            there[order[-1]] = False
            last = any(not there[units].any() for units in graph.by_layer(graph.unit))
            there[order[-1]] = bool(last or not free[order[-1]])
        found = removal_order(graph, values, "flops", lam)
        assert np.argsort(found).tolist() == order
        assert lam or order == np.argsort(values).tolist()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=g), torch.randint(3, (4, 8, 8), generator=g)


@pytest.mark.parametrize("method", ["ranp", "taylor", "weight", "vanilla"])
def test_the_larger_lambda_the_cheaper_the_network(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 8, 1),
                        nn.ReLU(), nn.Conv2d(8, 3, 1))  # fmt: skip
    macs = []
    for lam in (0.0, 1.0, 30.0):
        how = {"resource_term": "unit", "lambda_": lam, "min_neurons": 1}
        result = ranp.prune(net, batch(), sparsity=0.4, method=method, **how)
        assert result.mask.method["resource_term"] == "unit"
        assert result.mask.method["lambda"] == lam
        macs.append(result.report.to_dict()["after"]["macs"])
    plain = ranp.prune(net, batch(), sparsity=0.4, method=method, resource="none", min_neurons=1)
    assert macs[0] == plain.report.to_dict()["after"]["macs"]
    assert macs[2] < macs[0]
    assert sorted(macs, reverse=True) == macs


def test_its_defaults_and_its_place_in_compare():
    net = chain()
    how = {"resource_term": "unit", "min_neurons": 1}
    mask = ranp.prune(net, batch(), sparsity=0.3, **how).mask
    assert (mask.method["resource"], mask.method["lambda"]) == ("flops", 1.0)
    assert ranp.prune(net, batch(), sparsity=0.3, min_neurons=1).mask.method["lambda"] == 11.0
    row, other = ranp.compare(net, batch(), sparsity=0.3, methods=["ranp-f", "random"], **how).rows
    assert (row["resource_term"], row["lambda"]) == ("unit", 1.0)
    assert "resource_term" not in other
    assert row["layers_kept"] == [len(layer["kept"]) for layer in mask.layers.values()]
    fitted = ranp.prune(net, batch(), budget="macs=60%", **how)
    assert fitted.report.to_dict()["budget"][0]["after"] <= fitted.report.to_dict()["budget"][0]["bound"]


@pytest.mark.parametrize(
    "options",
    [{"method": "random"}, {"method": "snip"}, {"method": "flat"}, {"resource": "none"}, {"resource_term": "units"}],
)
def test_where_it_has_no_meaning(options):
    with pytest.raises(ranp.BadInput, match="resource_term"):
        ranp.prune(chain(), batch(), sparsity=0.3, **{"resource_term": "unit", **options})


def test_shapes_of_inputs_are_known():
    """`Example` holds what `zoo.batches` gives: this file relies on it."""
    assert all(list(tensors_in(zoo.batches(case)[0][0])) for case in CASES)
