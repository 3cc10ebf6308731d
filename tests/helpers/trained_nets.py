"""A small network, its mini-batches and its training loop, for the tests of `Pruner`."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ranp_cli.api.pruner import Pruner


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU(inplace=True), nn.Conv3d(8, 2, 1)
    )


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 1, 7, 7, 7, generator=generator), torch.randint(2, (2, 3, 3, 3), generator=generator))
        for _ in range(count)
    ]


def train(net, optimizer, pruner, updates, data=None, after=lambda: None):
    for x, y in itertools.islice(itertools.cycle(data or batches()), updates):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        after()
        pruner.step(loss)


def made(net=None, optimizer=None, **options):
    net = network() if net is None else net
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=1e-3)
    given = {"example": batches()[0][0], "every": 2, "units": 1, "until": 0.5, "min_neurons": 1, **options}
    return net, optimizer, Pruner(net, optimizer, **given)
