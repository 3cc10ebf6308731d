"""Slices with a literal size: that equal parts lose the same is only suggested by them, and undone where the code does not follow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import ranp_cli as ranp

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
