"""What code says of channels without saying it: slices of a literal size, parts that are read alone, weights that are used in two ways."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.pruning.slim import slim_model
from ranp_cli.pruning.slim_trace import HardCoded, check_runs

X, Y = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 8, 8, 8, dtype=torch.long)


class Literal(nn.Module):
    """The first four channels go one way, all of them another."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv3d(1, 16, 3, padding=1),
            nn.Conv3d(4, 8, 3, padding=1),
            nn.Conv3d(16, 8, 3, padding=1),
        )
        self.d = nn.Conv3d(8, classes, 1)

    def some(self, h: torch.Tensor) -> torch.Tensor:
        return h[:, :4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        return self.d(torch.relu(self.b(self.some(h))) + torch.relu(self.c(h)))


class LiteralWhenWide(Literal):
    """The smallest network follows, one of a middle size does not."""

    def some(self, h: torch.Tensor) -> torch.Tensor:
        return h[:, : 4 if h.shape[1] > 8 else h.shape[1] // 4]


def network(kind: type[Literal], **arguments: int) -> Literal:
    torch.manual_seed(0)
    return kind(**arguments)


def kept(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(t.shape) for name, t in network.named_parameters()}


@pytest.mark.parametrize("kind", [Literal, LiteralWhenWide])
def test_refine_takes_the_mask(kind):
    net = network(kind)
    found = ranp.prune(net, [(X, Y)], sparsity=0.4, min_neurons=1)
    assert found.model.a.weight.shape[0] % 4  # what the slice suggests was undone, or this test says nothing
    again = ranp.refine(net, found.mask)
    assert all(torch.equal(p, q) for p, q in zip(found.model.parameters(), again.parameters(), strict=True))


def test_a_mask_goes_over_to_other_classes():
    found = ranp.prune(network(Literal), [(X, Y)], sparsity=0.4, min_neurons=1)
    other = ranp.refine(network(Literal, classes=5), found.mask, transfer=True)
    assert other.d.weight.shape[0] == 5
    assert kept(other)["a.weight"] == kept(found.model)["a.weight"]


@pytest.mark.parametrize("budget", [{"macs": "60%"}, {"macs": "37%", "params": "50%"}])
@pytest.mark.parametrize("kind", [Literal, LiteralWhenWide])
def test_a_budget_is_met_where_units_are_taken_apart_on_the_way(kind, budget):
    report = ranp.prune(network(kind), [(X, Y)], budget=budget, min_neurons=1).report.to_dict()
    assert all(each["after"] <= each["before"] * int(each["limit"][:-1]) / 100 for each in report["budget"])


def test_a_budget_that_cannot_be_met_once_they_are_is_said():
    with pytest.raises(ranp.Infeasible, match="no network meets macs=30%"):
        ranp.prune(network(LiteralWhenWide), [(X, Y)], budget={"macs": "30%"}, min_neurons=2)


def test_neurons_that_are_tied_in_any_case_stay_tied():
    net = network(Literal)
    mask = ranp.prune(net, [(X, Y)], sparsity=0.4, min_neurons=1).mask
    layers = {name: dict(layer) for name, layer in mask.layers.items()}
    layers["b"]["kept"] = layers["b"]["kept"][1:]  # `c` is added to `b`
    with pytest.raises(ranp.BadInput, match="only some of the neurons that are tied in b, c"):
        ranp.refine(net, replace(mask, layers=layers))


# -- slices that nothing else reads


class Tail(nn.Module):
    """Only the channels behind the first eight are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 24, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x))[:, 8:])))


FLAT = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2)), torch.zeros(2, 6, 6, dtype=torch.long)


@pytest.mark.parametrize("floor", [1, "auto"])
@pytest.mark.parametrize("goal", [{"sparsity": 0.7}, {"sparsity": 0.9}, {"budget": {"macs": "10%"}}])
def test_a_slice_that_is_read_alone_keeps_a_channel(goal, floor):
    torch.manual_seed(0)
    slim = ranp.prune(Tail(), [FLAT], min_neurons=floor, **goal).model
    assert slim.b.weight.shape[1] >= 1
    assert slim(FLAT[0]).shape == (2, 2, 6, 6)


def test_a_mask_that_empties_it_is_refused():
    torch.manual_seed(0)
    mask = ranp.prune(Tail(), [FLAT], sparsity=0.3, min_neurons=1, allow_less=True).mask
    layers = {**mask.layers, "a": {**mask.layers["a"], "kept": list(range(8))}}
    with pytest.raises(ranp.BadInput, match="removes all neurons of a that some op reads"):
        ranp.refine(Tail(), replace(mask, layers=layers))


def test_where_no_selection_sees_to_it_the_part_is_what_the_code_insists_on():
    graph = analyse(Tail(), Example((FLAT[0],)))
    assert graph.parts == []  # as long as the slice suggests lanes, a channel of each is read
    assert graph.take_apart(np.arange(len(graph.unit_roots)))
    keep = np.ones(len(graph.unit_roots), dtype=bool)
    (part,) = graph.parts
    keep[part] = False
    assert graph.empties(keep)
    stays = graph.flags(keep)
    found = check_runs(slim_model(Tail(), graph, stays)[0], graph, stays)
    assert isinstance(found, HardCoded)
    assert set(graph.units_of(found.ids)) == set(part)


def test_what_a_pruner_leaves_is_what_its_mask_and_its_file_say(tmp_path):
    torch.manual_seed(5)
    net = Tail()
    dense, optimizer = copy.deepcopy(net), torch.optim.SGD(net.parameters(), 1e-2)
    pruner = ranp.Pruner(net, optimizer, example=FLAT[0], every=1, units=3, until=0.6, min_neurons=1, method="taylor")
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(FLAT[0]), FLAT[1])
        loss.backward()
        optimizer.step()
        pruner.step(loss)
    assert net.a.weight.shape[0] < 24
    again = ranp.refine(dense, pruner.mask)
    assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]
    pruner.save(tmp_path / "slim.safetensors")
    assert torch.equal(ranp.load(tmp_path / "slim.safetensors", dense)(FLAT[0]), net(FLAT[0]))


# -- weights that are used in two ways


class TiedAutoencoder(nn.Module):
    """Its decoder uses the encoder's weights, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.line = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 32, 2, stride=2), nn.Linear(32, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x)))).movedim(1, -1)
        h = nn.functional.linear(torch.relu(self.line(h)), self.line.weight.t()).movedim(-1, 1)
        h = torch.relu(nn.functional.conv_transpose2d(h, self.b.weight, stride=2))
        return nn.functional.conv_transpose2d(h, self.a.weight, padding=1)


def test_modules_say_what_they_are_whatever_else_uses_their_weights(tmp_path):
    torch.manual_seed(0)
    net, x = TiedAutoencoder(), FLAT[0]
    found = ranp.prune(net, [(x, x)], loss="mse", sparsity=0.5, min_neurons=1)
    a, b, line = found.model.a, found.model.b, found.model.line
    assert [(m.in_channels, m.out_channels) for m in (a, b)] == [tuple(m.weight.shape[1::-1]) for m in (a, b)]
    assert (line.in_features, line.out_features) == tuple(line.weight.shape[::-1])
    assert a.out_channels < 16
    found.save(tmp_path / "slim.safetensors")
    assert torch.equal(ranp.load(tmp_path / "slim.safetensors", net)(x), found.model(x))
