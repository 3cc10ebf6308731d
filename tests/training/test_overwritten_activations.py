"""Activations that the network changes in place later: a `Pruner` scores them as they were."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from trained_nets import train

import ranp_cli as ranp
from ranp_cli import Pruner


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(6, 6, 3, padding=1), nn.Conv3d(6, 2, 1)

    def forward(self, x):
        first = self.a(x)
        second = self.b(first.relu())
        second += first  # what b gave is overwritten
        return self.c(second.relu())


def test_an_activation_that_is_changed_in_place_later_is_scored_as_it_was():
    torch.manual_seed(0)
    net, x = Overwriting(), torch.randn(2, 1, 5, 5, 5)
    data = [(x, torch.randint(2, (2, 5, 5, 5)))] * 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = Pruner(net, optimizer, example=x, every=100)
    want = ranp.score(copy.deepcopy(net), data[:1], criterion="taylor").layers
    train(net, optimizer, pruner, 4, data)
    for layer, got in zip(pruner.shrinking.graph.layers, pruner.seen.values(net), strict=True):
        np.testing.assert_allclose(got / got.max(), want[layer.name] / want[layer.name].max(), rtol=1e-4)


def test_it_is_scored_too_where_every_mini_batch_ends_in_a_removal():
    """What was seen to be overwritten in one network is known of the next, and of a resumed run."""
    torch.manual_seed(0)
    net, x = Overwriting(), torch.randn(2, 1, 5, 5, 5)
    data = [(x, torch.randint(2, (2, 5, 5, 5)))] * 6
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = Pruner(net, optimizer, example=x, every=1, units=1, until=0.6, min_neurons=1)
    train(net, optimizer, pruner, 2, data)
    state = pruner.state_dict()
    assert state["overwritten"] == {"b": [1]}
    fresh = Overwriting()
    resumed = Pruner(
        fresh, torch.optim.SGD(fresh.parameters(), lr=0.0), example=x, every=1, units=1, until=0.6, min_neurons=1
    )
    resumed.load_state_dict(state)
    assert resumed.seen.overwritten == {"b": [1]}
    seen = []
    real = resumed.seen.values
    resumed.seen.values = lambda wrapped: seen.append(real(wrapped)) or seen[-1]
    train(fresh, resumed.optimizers[0], resumed, 1, data)
    (values,) = seen
    assert values[1].any()
