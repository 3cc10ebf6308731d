"""Weights that are used through slices, views and mixtures before the convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ranp_cli as ranp

BATCH = [
    (torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 6, 6, 6, dtype=torch.long))
]


class ACS(nn.Module):
    def __init__(self, i, o, f=2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3) * 0.3)
        self.n = o // f

    def forward(self, x):
        a = F.conv3d(x, self.weight[: self.n].unsqueeze(2), padding=(0, 1, 1))
        b = F.conv3d(x, self.weight[self.n :].unsqueeze(3), padding=(1, 0, 1))
        return torch.cat([a, b], 1)


class ACS3(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3) * 0.3)
        self.a, self.b = (o // 3 + o % 3, o // 3)

    def forward(self, x):
        a = F.conv3d(x, self.weight[: self.a].unsqueeze(2), padding=(0, 1, 1))
        b = F.conv3d(x, self.weight[self.a : self.a + self.b].unsqueeze(3), padding=(1, 0, 1))
        c = F.conv3d(x, self.weight[self.a + self.b :].unsqueeze(4), padding=(1, 1, 0))
        return torch.cat([a, b, c], 1)


class Shape(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3) * 0.3)

    def forward(self, x):
        n = self.weight.shape[0] // 2
        return torch.cat(
            [
                F.conv3d(x, self.weight[:n].unsqueeze(2), padding=(0, 1, 1)),
                F.conv3d(x, self.weight[n:].unsqueeze(3), padding=(1, 0, 1)),
            ],
            1,
        )


class Slim(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3, 3) * 0.2)
        self.k = o // 2

    def forward(self, x):
        return F.conv3d(x, self.weight[: self.k, : x.shape[1]], padding=1)


class Dyn(nn.Module):
    def __init__(self, i, o, K=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, o, i, 3, 3, 3) * 0.2)
        self.fc = nn.Linear(i, K)

    def forward(self, x):
        B = x.shape[0]
        a = self.fc(x.mean((2, 3, 4))).softmax(1)
        K, o, i = self.weight.shape[:3]
        w = (a @ self.weight.view(K, -1)).view(B * o, i, 3, 3, 3)
        return F.conv3d(x.reshape(1, B * i, *x.shape[2:]), w, padding=1, groups=B).view(B, o, *x.shape[2:])


class Dyn1(nn.Module):
    def __init__(self, i, o, K=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, o, i, 3, 3, 3) * 0.2)
        self.mix = nn.Parameter(torch.randn(K))

    def forward(self, x):
        w = (self.mix.softmax(0).view(-1, 1, 1, 1, 1, 1) * self.weight).sum(0)
        return F.conv3d(x, w, padding=1)


class Pick(nn.Module):
    def __init__(self, i, o, K=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, o, i, 3, 3, 3) * 0.2)

    def forward(self, x):
        return F.conv3d(x, self.weight[1], padding=1)


class Chunk(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3, 3) * 0.2)

    def forward(self, x):
        return torch.cat([F.conv3d(x, w, padding=1) for w in self.weight.chunk(2)], 1)


class InSlices(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, 2 * i, 3, 3, 3) * 0.2)

    def forward(self, x):
        c = x.shape[1]
        return F.conv3d(x, self.weight[:, :c], padding=1) + F.conv3d(x.relu(), self.weight[:, c:], padding=1)


class Flip(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3, 3) * 0.2)

    def forward(self, x):
        return torch.cat([F.conv3d(x, self.weight, padding=1), F.conv3d(x, self.weight.flip(-1), padding=1)], 1)


class LinS(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i) * 0.2)
        self.n = o // 2

    def forward(self, x):
        x = x.movedim(1, -1)
        return torch.cat([x @ self.weight[: self.n].t(), F.linear(x, self.weight[self.n :])], -1).movedim(-1, 1)


class Diff(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3, 3) * 0.2)

    def forward(self, x):
        return F.conv3d(x, self.weight, padding=1) - 0.7 * F.conv3d(x, self.weight.sum((2, 3, 4), keepdim=True))


def made(part):
    torch.manual_seed(0)
    if part is Slim:
        return nn.Sequential(Slim(1, 32), nn.ReLU(), Slim(16, 32), nn.ReLU(), nn.Conv3d(16, 2, 1))
    more = 2 if part is Flip else 1
    return nn.Sequential(part(1, 16), nn.ReLU(), part(16 * more, 16), nn.ReLU(), nn.Conv3d(16 * more, 2, 1))


PARTS = (ACS, ACS3, Shape, Slim, Dyn1, Pick, Chunk, InSlices, Flip, LinS, Diff)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_half_of_the_neurons_go(part):
    result = ranp.prune(made(part), BATCH, sparsity=0.5)
    report = result.report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.45
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    result.model(BATCH[0][0]).sum().backward()


def test_a_weight_that_is_mixed_by_the_input_stays_with_its_reason():
    report = ranp.prune(made(Dyn), BATCH, sparsity=0.5, allow_less=True).report.to_dict()
    assert "computed weight" in report["fixed"]["0"]
    assert report["verified"]["max_rel_error_fp64"] < 1e-10


@pytest.mark.parametrize("part", [ACS, ACS3, Chunk, LinS], ids=lambda part: part.__name__)
@pytest.mark.parametrize("criterion", ["mpmg-sum", "taylor", "snip", "l1"])
def test_such_a_layer_has_a_score_for_each_neuron(part, criterion):
    scores = ranp.score(made(part), BATCH, criterion=criterion)
    assert [len(s) for s in scores.layers.values()] == [16, 16, 2]
    assert all((s > 0).any() for s in scores.layers.values())
