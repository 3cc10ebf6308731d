"""Complex parameters (Fourier neural operators) and complex inputs (k-space) are scored, pruned and verified."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ranp_cli as ranp

TARGET = torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))
REAL = [(torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)), TARGET)]
COMPLEX = [(torch.randn(2, 1, 6, 6, 6, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)), TARGET)]


class Spectral(nn.Module):
    def __init__(self, c, d=None):
        super().__init__()
        self.w = nn.Parameter(torch.randn(c, c, 3, 3, 2, dtype=torch.cfloat) * 0.2)

    def forward(self, x):
        f = torch.fft.rfftn(x, dim=(-3, -2, -1))
        o = torch.zeros_like(f)
        o[:, :, :3, :3, :2] = torch.einsum("bixyz,ioxyz->boxyz", f[:, :, :3, :3, :2], self.w)
        return torch.fft.irfftn(o, s=x.shape[-3:])


class Spectral4(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w = nn.ParameterList(
            [nn.Parameter(torch.randn(c, c, 2, 2, 2, dtype=torch.cfloat) * 0.2) for _ in range(2)]
        )

    def forward(self, x):
        B = x.shape[0]
        f = torch.fft.rfftn(x, dim=(-3, -2, -1))
        o = torch.zeros(B, self.w[0].shape[1], *f.shape[2:], dtype=torch.cfloat)
        o[:, :, :2, :2, :2] = torch.einsum("bixyz,ioxyz->boxyz", f[:, :, :2, :2, :2], self.w[0])
        o[:, :, -2:, :2, :2] = torch.einsum("bixyz,ioxyz->boxyz", f[:, :, -2:, :2, :2], self.w[1])
        return torch.fft.irfftn(o, s=x.shape[-3:])


class RealParts(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w = nn.Parameter(torch.randn(c, c, 2) * 0.2)

    def forward(self, x):
        f = torch.fft.rfftn(x, dim=(-3, -2, -1))
        w = torch.view_as_complex(self.w)
        return torch.fft.irfftn(torch.einsum("bixyz,io->boxyz", f, w), s=x.shape[-3:])


class CIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv3d(1, 8, 3, padding=1, dtype=torch.cfloat)
        self.b = nn.Conv3d(8, 8, 3, padding=1, dtype=torch.cfloat)
        self.h = nn.Conv3d(8, 1, 1, dtype=torch.cfloat)

    def forward(self, x):
        x = self.a(x)
        x = torch.complex(x.real.relu(), x.imag.relu())
        x = self.b(x)
        x = torch.complex(x.real.relu(), x.imag.relu())
        return self.h(x).abs()


class CIn2(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv3d(2, 8, 3, padding=1)
        self.b = nn.Conv3d(8, 8, 3, padding=1)
        self.h = nn.Conv3d(8, 1, 1)

    def forward(self, x):
        x = torch.view_as_real(x[:, 0]).movedim(-1, 1)
        return self.h(self.b(self.a(x).relu()).relu())


def between(part):
    return nn.Sequential(nn.Conv3d(1, 8, 1), part(8), nn.ReLU(), nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 1, 1))


NETS = {
    "one complex weight": (lambda: between(Spectral), REAL),
    "one for each corner": (lambda: between(Spectral4), REAL),
    "real and imaginary parts": (lambda: between(RealParts), REAL),
    "complex convolutions": (CIn, COMPLEX),
    "complex input": (CIn2, COMPLEX),
}
WAYS = [{}, {"method": "taylor"}, {"method": "magnitude"}, {"low_memory": True}]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("error")
def test_pruned_and_proven_in_fp64(name, how, tmp_path):
    make, batch = NETS[name]
    torch.manual_seed(0)
    net = make()
    result = ranp.prune(net, batch, loss="mse", sparsity=0.4, **how)
    report = result.report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.35
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    result.save(tmp_path / "slim.safetensors")
    assert torch.equal(ranp.load(tmp_path / "slim.safetensors", net)(batch[0][0]), result.model(batch[0][0]))


def test_the_score_of_a_complex_weight_is_the_derivative_by_a_real_mask():
    torch.manual_seed(0)
    net = between(Spectral)
    x, y = REAL[0]
    got = ranp.score(net, REAL, loss="mse", criterion="mpmg-sum").layers["1"]
    mask = torch.ones(net[1].w.shape, requires_grad=True)
    plain = net[1].w
    del net[1].w
    net[1].w = plain * mask
    torch.nn.functional.mse_loss(net(x), y).backward()
    want = mask.grad.abs().sum((0, 2, 3, 4))
    assert torch.allclose(torch.from_numpy(got), want.double(), rtol=1e-4)
