"""Counts that modules keep in attributes of their own follow the channels; what only looks like a count does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from counting_nets import LABELS, NETS, made
from torch import nn

import ranp_cli as ranp

SLOW = ("HighResNet", "FasterNet", "Res2Net", "shortcut of zeros")  # larger, and of the same kinds as others


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETS])
def test_half_of_the_neurons_go(name, tmp_path):
    make, batch = NETS[name]
    result = ranp.prune(made(make), batch, sparsity=0.5)
    report = result.report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.45
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    assert set(report["fixed"].values()) <= {"network output"}
    result.save(tmp_path / "slim.safetensors")
    again = ranp.load(tmp_path / "slim.safetensors", made(make)).eval()
    x = batch[0][0]
    assert torch.equal(again(x), result.model.eval()(x))
    assert torch.equal(ranp.refine(made(make), result.mask).eval()(x), again(x))


class LooksLikeACount(nn.Module):
    """8 channels, and a pool of 8 that has nothing to do with them; the true count is written as a number."""

    def __init__(self):
        super().__init__()
        self.pool, self.a, self.b = 8, nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 2, 1)

    def forward(self, x):
        y = self.a(x).relu().view(len(x), 8, -1)
        return self.b(y.view(len(x), 8, *x.shape[2:])) + F.avg_pool3d(x, self.pool)


def test_what_only_looks_like_a_count_stays():
    net = made(LooksLikeACount)
    result = ranp.prune(net, LABELS, sparsity=0.5, allow_less=True)
    assert (result.model.pool, net.pool) == (8, 8)
    assert "fixed in the code" in result.report.to_dict()["fixed"]["a"]


class RunsButIsWrong(nn.Module):
    """The count chooses a part of the channels by a remainder: set to another number it runs, and is another network."""

    def __init__(self):
        super().__init__()
        self.n, self.a, self.b, self.c = 8, nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        scale = 1.0 if self.n == 8 else 2.0
        return self.c(torch.cat([y[:, : self.n // 2], y[:, self.n // 2 :]], 1)) * scale


def test_a_count_that_changes_what_is_computed_is_not_followed():
    net = made(RunsButIsWrong)
    result = ranp.prune(net, LABELS, sparsity=0.5, allow_less=True)
    assert result.model.n == 8
    assert result.report.to_dict()["verified"]["max_rel_error_fp64"] < 1e-10


class OnlyWhatMust(nn.Module):
    """The first 5 of 12 are written as a number: they stay, and the other 7 may go."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 12, 3, padding=1), nn.Conv3d(12, 12, 3, padding=1), nn.Conv3d(12, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        return self.c(torch.cat([y[:, :5], y[:, 5:].tanh()], 1))


def test_only_the_units_that_must_stay_do():
    result = ranp.prune(made(OnlyWhatMust), LABELS, sparsity=0.5, min_neurons=1)
    kept = result.mask.layers["b"]["kept"]
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert len(kept) < 12


class Stages(nn.Module):
    """The code splits by `hidden`; `stages` and `width` hold the same numbers, and no run reads them."""

    def __init__(self):
        super().__init__()
        self.width, self.hidden, self.stages = 24, 48, (24, 48)
        self.stem, self.up = nn.Conv3d(1, 24, 3, padding=1), nn.Conv3d(24, 96, 1)
        self.mix, self.out = nn.Conv3d(48, 48, 3, padding=1), nn.Conv3d(48, 3, 1)

    def forward(self, x):
        a, b = self.up(self.stem(x).relu()).split(self.hidden, 1)
        return self.out(self.mix(a * b.sigmoid()).relu())


def test_an_attribute_that_no_run_needs_is_not_half_followed():
    torch.manual_seed(0)
    batch = [(torch.randn(2, 1, 6, 6, 6), torch.randint(3, (2, 6, 6, 6)))]
    result = ranp.prune(Stages(), batch, sparsity=0.5, min_neurons=1)
    report, slim = result.report.to_dict(), result.model
    assert [row["attribute"] for row in report["followed"]] == ["hidden"]
    assert slim.hidden == slim.mix.in_channels < 48
    assert slim.stages == (24, 48)  # not (24, 30), of which half is true
    assert slim.width == slim.stem.out_channels
