"""Norms written by hand, expanded constants and fixed windows: what meets them can go as beside torch's own norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ranp_cli as ranp

BATCH = [
    (torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 6, 6, 6, dtype=torch.long))
]


class Wrapped(nn.Module):
    def __init__(self, mid):
        super().__init__()
        self.a = nn.Conv3d(1, 16, 3, padding=1)
        self.m = mid
        self.b = nn.Conv3d(16, 16, 3, padding=1)
        self.m2 = mid
        self.h = nn.Conv3d(16, 2, 1)

    def forward(self, x):
        return self.h(self.m2(self.b(self.m(self.a(x)).relu())).relu())


class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("k", torch.ones(1, 1, 3, 3, 3) / 27)

    def forward(self, x):
        return F.conv3d(x, self.k.expand(x.shape[1], -1, -1, -1, -1), padding=1, groups=x.shape[1])


class BlurRepeat(Blur):
    def forward(self, x):
        return F.conv3d(x, self.k.repeat(x.shape[1], 1, 1, 1, 1), padding=1, groups=x.shape[1])


class BlurParam(nn.Module):
    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.ones(1, 1, 3, 3, 3) / 27)

    def forward(self, x):
        return F.conv3d(x, self.k.expand(x.shape[1], -1, -1, -1, -1), padding=1, groups=x.shape[1])


class BlurConst(nn.Module):
    def forward(self, x):
        return F.conv3d(x, torch.ones(16, 1, 3, 3, 3) / 27, padding=1, groups=16)


class BlurBuf(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("k", torch.rand(16, 1, 3, 3, 3))

    def forward(self, x):
        return F.conv3d(x, self.k, padding=1, groups=16)


class BlurBufX(BlurBuf):
    def forward(self, x):
        return F.conv3d(x, self.k, padding=1, groups=x.shape[1])


class SumConv(nn.Module):
    def forward(self, x):
        return x + F.conv3d(x, torch.ones(1, x.shape[1], 1, 1, 1))


class RMSHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, 16, 1, 1, 1))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-05) * self.g


class L2(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(16, 1, 1, 1))

    def forward(self, x):
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class LNHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(16))
        self.b = nn.Parameter(torch.zeros(16))

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        v = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(v + 1e-06)
        return self.g[:, None, None, None] * x + self.b[:, None, None, None]


class GRN(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1, 16, 1, 1, 1) + 0.1)

    def forward(self, x):
        gx = torch.norm(x, p=2, dim=(2, 3, 4), keepdim=True)
        nx = gx / (gx.mean(1, keepdim=True) + 1e-06)
        return self.g * (x * nx) + x


class CBAM(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv3d(2, 1, 3, padding=1)

    def forward(self, x):
        return x * torch.sigmoid(self.c(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)))


class SumSq(nn.Module):
    def forward(self, x):
        return x / (x * x).sum(1, keepdim=True).sqrt().clamp_min(1e-06)


class VarMean(nn.Module):
    def forward(self, x):
        v, m = torch.var_mean(x, 1, keepdim=True)
        return (x - m) / (v + 1e-05).sqrt()


class GNHand(nn.Module):
    def forward(self, x):
        y = x.reshape(len(x), 4, -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-05).sqrt()
        return y.view(x.shape)


class StandardisedByExpand(nn.Conv3d):
    """Weights standardised with `expand_as`, as the authors of weight standardisation write it."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        std = torch.sqrt(torch.var(w.view(w.size(0), -1), dim=1) + 1e-12).view(-1, 1, 1, 1, 1)
        return F.conv3d(x, w / std.expand_as(w), self.bias, self.stride, self.padding)


class LastAxis(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm(16)

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def made(part):
    torch.manual_seed(0)
    return Wrapped(part())


WIRED = (RMSHand, LNHand, GRN, CBAM, SumSq, VarMean, GNHand)  # whose wiring can be proven without their statistics
EXACT = (Blur, BlurRepeat, BlurParam, BlurBufX)


@pytest.mark.parametrize("part", [*WIRED, L2], ids=lambda part: part.__name__)
def test_a_statistic_over_channels_is_not_comparable_and_fixes_nothing(part):
    report = ranp.prune(made(part), BATCH, sparsity=0.5).report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.45
    assert report["verified"]["not_comparable"]
    if part in WIRED:
        assert report["verified"]["max_rel_error_fp64"] < 1e-10


@pytest.mark.parametrize("part", EXACT, ids=lambda part: part.__name__)
def test_one_window_for_all_channels_goes_with_them(part):
    report = ranp.prune(made(part), BATCH, sparsity=0.5).report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.45
    assert report["verified"]["max_rel_error_fp64"] < 1e-10


@pytest.mark.parametrize("part", [BlurConst, BlurBuf, SumConv], ids=lambda part: part.__name__)
def test_what_the_code_writes_as_a_number_stays(part):
    report = ranp.prune(made(part), BATCH, sparsity=0.5, allow_less=True).report.to_dict()
    assert set(report["fixed"]) >= {"a", "b"}
    assert report["verified"]["max_rel_error_fp64"] < 1e-10


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_torchs_norms_over_the_last_axis(norm):
    report = ranp.prune(made(lambda: LastAxis(norm)), BATCH, sparsity=0.5).report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.45


def test_standardised_weights():
    torch.manual_seed(0)
    net = nn.Sequential(
        StandardisedByExpand(1, 8, 3, padding=1),
        nn.ReLU(),
        StandardisedByExpand(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(16, 2, 1),
    )
    assert ranp.prune(net, BATCH, sparsity=0.5).report.to_dict()["sparsity"]["achieved"] >= 0.45


def test_a_wiring_that_is_wrong_is_still_seen(monkeypatch):
    """The control: with statistics left out, a slim network of other channels is not taken for the masked one."""
    from ranp_cli.core.example import Example
    from ranp_cli.graph.analyse import analyse
    from ranp_cli.pruning.slim import slim_model
    from ranp_cli.pruning.verify import verify

    net = made(RMSHand)
    graph = analyse(net, Example((BATCH[0][0],)))
    keep = torch.ones(len(graph.unit_roots), dtype=torch.bool).numpy()
    keep[graph.unit[:3]] = False
    stays = graph.flags(keep)
    slim, _ = slim_model(net, graph, stays)
    assert verify(net, slim, graph, stays)["max_rel_error_fp64"] < 1e-10
    with torch.no_grad():
        slim.a.weight[0] += 1
    assert "max_rel_error_fp64" not in verify(net, slim, graph, stays)
