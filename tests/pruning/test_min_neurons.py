"""What keeps a slim network able to learn: the floor `auto` by hand, the narrowest cut against networkx, what the report says."""

from __future__ import annotations

import random

import networkx
import numpy as np
import pytest
import torch
import zoo
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.models.unet3d import unet3d
from ranp_cli.pruning.min_neurons import check_floor, floors, level
from ranp_cli.pruning.narrowest_cut import maximum_flow, narrowest_cuts
from ranp_cli.pruning.select import select


def chain(*widths: int) -> nn.Module:
    """1x1x1 convolutions of these widths, a ReLU between any two; the last one is the output."""
    layers: list[nn.Module] = []
    for entering, width in zip((1, *widths), widths, strict=False):
        layers += [nn.Conv3d(entering, width, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def graph_of(model: nn.Module, channels: int = 1):
    return analyse(model, Example((torch.zeros(1, channels, 4, 4, 4),)))


# -- the floor


def test_level_by_hand():
    """4 + 5.5 + 5.5 = 15; below the narrowest layer all are equal; more than there is has no level."""
    sizes = np.array([8, 16, 4])
    assert [level(sizes, kappa) for kappa in (15, 12, 3, 28)] == [5.5, 4.0, 1.0, 16.0]
    assert level(sizes, 29) == np.inf


@pytest.mark.parametrize(
    ("kappa", "wanted"),
    [
        (35, [9, 9, 3, 2]),  # level 14.5: 0.6 of it is 8.7; 0.6 * 4 = 2.4
        (47, [10, 12, 3, 2]),  # level 25: 0.6 * 16 = 9.6; 0.6 of the level is 15, of which 12 are needed
        (16, [3, 3, 3, 2]),  # level 5
        (4, [1, 1, 1, 1]),
    ],
)
def test_auto_follows_the_width_and_what_stays(kappa, wanted):
    graph = graph_of(chain(16, 32, 4, 2))
    assert floors(graph, "auto", kappa).tolist() == wanted


def test_a_number_is_at_most_the_layer_itself():
    assert floors(graph_of(chain(16, 4, 2)), 6, 5).tolist() == [6, 4, 2]


def uneven(floor):
    """Scores that want nothing of the first layer; 30 of 60 neurons are to stay, two of them the fixed output."""
    graph = graph_of(chain(16, 42, 2))
    scores = [np.linspace(0.01, 0.02, 16), np.linspace(1, 2, 42), np.ones(2)]
    chosen = select(graph, scores, 0.5, floor=floor)
    return chosen, [int(k.sum()) for k in graph.by_layer(chosen.keep[graph.unit])]


def test_the_places_of_auto_count_within_the_sparsity():
    chosen, kept = uneven("auto")
    assert kept == [9, 19, 2]  # level 14: 0.6 of it is 8.4, and the best fill the rest
    assert chosen.floored == ["0"]
    assert chosen.keep[:16].tolist() == [False] * 7 + [True] * 9  # the best of the layer


def test_a_number_is_kept_beyond_the_sparsity():
    chosen, kept = uneven(1)
    assert kept == [1, 30, 2]  # the 30 best of all are of the second layer
    assert chosen.floored == ["0"]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_one_is_the_rule_of_the_paper(sparsity):
    """The kappa best of all, by sorting; then one neuron for a layer that has none."""
    graph = graph_of(chain(12, 10, 3))
    rng = np.random.default_rng(0)
    scores = [rng.random(12), rng.random(10) * 0.05, rng.random(3)]
    flat = np.concatenate(scores)
    kappa = int(25 * (1 - sparsity))
    keep = flat >= np.sort(flat)[-kappa]
    keep[22:] = True  # the output
    for layer in (slice(0, 12), slice(12, 22)):
        if not keep[layer].any():
            keep[layer.start + int(np.argmax(flat[layer]))] = True
    assert select(graph, scores, sparsity).keep[graph.unit].tolist() == keep.tolist()


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "two", "0", None])
def test_what_is_no_floor(given):
    with pytest.raises(ranp.BadInput, match="give 1 or more, or auto"):
        check_floor(given)


@pytest.mark.parametrize(("given", "floor"), [(1, 1), ("3", 3), ("auto", "auto")])
def test_what_is_a_floor(given, floor):
    assert check_floor(given) == floor


# -- the narrowest cut


@pytest.mark.parametrize("seed", range(20))
def test_maximum_flow_is_that_of_networkx(seed):
    rng = random.Random(seed)
    arcs, known = {}, networkx.DiGraph()
    known.add_nodes_from(["s", "t"])
    for _ in range(30):
        a, b = rng.sample(["s", "t", *range(8)], 2)
        capacity = rng.randint(1, 9)
        arcs.setdefault(a, {})[b] = float(capacity)
        arcs.setdefault(b, {}).setdefault(a, 0.0)
        known.add_edge(a, b, capacity=capacity)
    flow, reached = maximum_flow(arcs, "s", "t")
    value, (side, _) = networkx.minimum_cut(known, "s", "t")
    assert flow == value
    cut = sum(known[a][b]["capacity"] for a, b in known.edges if a in reached and b not in reached)
    assert cut == value
    assert "s" in side


def cut_of(model: nn.Module, channels: int = 1):
    graph = graph_of(model, channels)
    return narrowest_cuts(graph, np.ones(len(graph.unit_roots), dtype=bool))


def test_the_narrowest_layer_of_a_chain():
    (cut,) = cut_of(chain(8, 3, 8, 6))
    assert (cut.outputs, cut.channels, cut.layers) == (6, 3, ["2"])


class Skip(nn.Module):
    """A narrow way of 2 channels beside one of 5; without the skip the narrow one is all there is."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.a, self.b = nn.Conv3d(1, 5, 1), nn.Conv3d(5, 2, 1)
        self.head = nn.Conv3d(7 if skips else 2, 6, 1)

    def forward(self, x):
        x = self.a(x).relu()
        y = self.b(x).relu()
        return self.head(torch.cat([x, y], 1) if self.skips else y)


def test_a_concatenation_widens_the_cut():
    (with_skip,), (without,) = cut_of(Skip(True)), cut_of(Skip(False))
    assert (with_skip.channels, with_skip.layers) == (5, ["a"])
    assert (without.channels, without.layers) == (2, ["b"])


@pytest.mark.parametrize("case", zoo.CASES, ids=lambda c: c.name)
def test_no_cut_of_a_network_is_empty_or_narrow(case):
    """A dense network is never narrower than itself, and something reaches every output."""
    model = zoo.build(case)
    inputs = zoo.batches(case)[0][0]
    graph = analyse(model, Example(inputs if isinstance(inputs, tuple) else (inputs,)))
    for cut in narrowest_cuts(graph, np.ones(len(graph.unit_roots), dtype=bool)):
        assert cut.channels == cut.dense > 0
        assert cut.layers
        assert not cut.is_narrow


# -- what the report says


def unet_batches(classes: int = 6):
    g = torch.Generator().manual_seed(0)
    shape = (2, 8, 8, 8)
    return [(torch.randn(2, 1, 8, 8, 8, generator=g), torch.randint(classes, shape, generator=g)) for _ in range(2)]


def pruned(floor):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = unet3d(layers=7, width=16, num_classes=6)
    return ranp.prune(model, unet_batches(), sparsity=0.8, resource="mem", min_neurons=floor)


def test_the_floor_and_its_cost_are_in_the_report():
    with_floor, by_score = pruned("auto").report.to_dict(), pruned(1).report.to_dict()
    rows = {row["layer"]: row for row in with_floor["floor"]["layers"]}
    kept = {row["name"]: row["kept"] for row in by_score["layers"]}
    assert rows
    assert list(rows) == with_floor["floored"]
    for name, row in rows.items():
        assert row["by_score"] == kept[name] < row["kept"]
    for key, more in with_floor["floor"]["cost"].items():
        assert more == with_floor["after"][key] - by_score["after"][key]
    assert with_floor["sparsity"]["achieved"] == pytest.approx(0.8, abs=0.01)
    assert "floor" not in by_score


def test_a_narrow_cut_is_named():
    """With a floor of one neuron six classes come through less; the layers are those that hold so few."""
    report = pruned(1).report.to_dict()
    (cut,) = report["narrowest"]
    kept = {row["name"]: row["kept"] for row in report["layers"]}
    assert cut["channels"] < 6 == cut["output_channels"]
    assert cut["channels"] == sum(kept[name] for name in cut["layers"])
    assert "narrowest" not in ranp.prune(unet3d(7, 16, 1, 6), unet_batches(), sparsity=0.2).report.to_dict()


def test_a_budget_below_the_floor_names_the_layers_that_are_in_the_way():
    """Four neurons in each layer: those at full resolution, where a convolution of 8 channels enters, cost the most."""
    with pytest.raises(
        ranp.Infeasible, match=r"at its floor, has macs .*; the most of it in decoders\.0\.conv1, "
    ) as error:
        ranp.prune(unet3d(7, 16, 1, 6), unet_batches(), budget="macs=0.1%", min_neurons=4)
    assert "lower `min_neurons`" in str(error.value)
