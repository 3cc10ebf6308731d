"""Grouped transposed convolutions, whose weight is (I, O / groups, *window): their layers, neurons, costs and scores by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import ranp_cli as ranp
from ranp_cli.core.example import as_example
from ranp_cli.graph.analyse import analyse

ONE_OUTPUT = "a single output a group"
SHAPES = [  # inputs, outputs, groups, and whether its neurons are fixed
    (4, 2, 2, True),
    (6, 2, 2, True),
    (6, 3, 3, True),
    (8, 4, 4, True),
    (4, 4, 2, False),
    (6, 12, 3, False),
    (4, 4, 4, False),
    (4, 8, 4, False),
]


def net(shape: tuple[int, int, int], dims: int, bias: bool = True, normed: bool = False) -> nn.Sequential:
    inputs, outputs, groups = shape
    conv, up = (getattr(nn, f"Conv{kind}{dims}d") for kind in ("", "Transpose"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = up(inputs, outputs, 3, groups=groups, bias=bias)
        return nn.Sequential(
            *(conv(1, inputs, 3), nn.Tanh(), weight_norm(layer) if normed else layer, nn.Tanh()),
            *(conv(outputs, 6, 1), nn.Tanh(), conv(6, 2, 1)),
        )


def batch(dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, *[6] * dims, generator=g), torch.randint(2, (2, *[6] * dims), generator=g)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "fixed"), SHAPES)
def test_each_is_a_layer_with_all_its_neurons(inputs, outputs, groups, fixed, dims):
    graph = analyse(net((inputs, outputs, groups), dims), as_example(batch(dims)[0]))
    assert {layer.name: n for layer, n in zip(graph.layers, graph.sizes, strict=True)} == {
        "0": inputs, "2": outputs, "4": 6, "6": 2
    }  # fmt: skip
    units = graph.by_layer(graph.unit)[1]
    assert graph.fixed_units[units].all() == fixed
    assert fixed == (len(np.unique(units)) == 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [shape[:3] for shape in SHAPES])
def test_scores_by_hand(inputs, outputs, groups, bias):
    """Neuron l of group k is what its group's inputs give to output l."""
    model, (x, y) = net((inputs, outputs, groups), 2, bias), batch(2)
    found = ranp.score(model, [(x, y)], criterion="mpmg-sum").layers["2"]
    nn.functional.cross_entropy(model(x), y).backward()
    g = (model[2].weight * model[2].weight.grad).abs().flatten(2).sum(2)
    by_hand = g.view(groups, inputs // groups, outputs // groups).sum(1).flatten()
    assert found == pytest.approx(by_hand.detach().double().numpy(), rel=1e-4)


@pytest.mark.parametrize("shape", [(4, 2, 2), (8, 4, 4), (4, 4, 2)])
def test_behind_weight_norm_too(shape):
    graph = analyse(net(shape, 2, normed=True), as_example(batch(2)[0]))
    assert graph.sizes[1] == shape[1]
    assert graph.layers[1].macs == shape[0] * shape[1] // shape[2] * 9 * 4 * 4


@pytest.mark.parametrize("method", ["ranp", "taylor", "snip", "magnitude"])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "fixed"), SHAPES[:5])
def test_pruned_with_its_inputs_cut_and_its_costs_counted(inputs, outputs, groups, fixed, method):
    report = ranp.prune(
        net((inputs, outputs, groups), 2), batch(2), sparsity=0.3, method=method, min_neurons=1, allow_less=True
    ).report.to_dict()
    rows = {row["name"]: row for row in report["layers"]}
    assert sum(row["macs"] for row in rows.values()) == report["before"]["macs"]
    assert sum(row["macs_after"] for row in rows.values()) == report["after"]["macs"]
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    reasons = {row["layer"]: row["reason"] for row in report["not_pruned"]}
    assert (reasons.get("2") == ONE_OUTPUT) is fixed
    assert rows["2"]["kept"] == outputs or not fixed


@pytest.mark.parametrize("shape", [(4, 2, 2), (4, 4, 2), (6, 3, 3)])
def test_left_with_one_input_a_group_it_is_depthwise_and_its_file_is_sound(shape, tmp_path):
    """Its costs stand in its own row, so that what the file records adds up when it is read back."""
    model, groups = net(shape, 2), shape[2]
    slim = ranp.prune(model, batch(2), sparsity=0.9, method="layerwise", min_neurons=1, allow_less=True)
    assert slim.model[2].weight.shape[0] == groups
    slim.save(tmp_path / "slim.safetensors")
    assert ranp.profile(tmp_path / "slim.safetensors").to_dict()["after"] == slim.report.to_dict()["after"]
    loaded = ranp.load(tmp_path / "slim.safetensors", net(shape, 2))
    assert torch.equal(loaded(batch(2)[0]), slim.model(batch(2)[0]))
