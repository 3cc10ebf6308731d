"""On what input slim and masked are compared: a small one, if the network then takes the same way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ranp_cli as ranp


class Net(nn.Module):
    """With `branches` another convolution runs on large inputs only."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv3d(m, n, 3, padding=1) for m, n in ((1, 16), (16, 16), (16, 2)))
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if not self.branches or x.shape[2] > 32:
            x = self.b(x).relu()
        return self.c(x)


@pytest.mark.parametrize(("branches", "wanted"), [(False, "1x1x2x2x2"), (True, "1x1x40x40x40")])
def test_the_proof_runs_on_a_small_input_that_goes_the_same_way(branches: bool, wanted: str) -> None:
    torch.manual_seed(0)
    batch = [(torch.randn(1, 1, 40, 40, 40), torch.zeros(1, 40, 40, 40, dtype=torch.int64))]
    verified = ranp.prune(Net(branches), batch, sparsity=0.5, device="cpu").report.to_dict()["verified"]
    assert verified["max_rel_error_fp64"] < 1e-10
    assert verified["input"] == wanted


class Pooled(nn.Module):
    """Three poolings: 24 and 40 divide by eight, a half of them does not."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv3d(m, n, 3, padding=1) for m, n in ((1, 12), (12, 12), (12, 12)))
        self.up = nn.Conv3d(12, 12, 3, padding=1)
        self.head = nn.Conv3d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.down[0](x).relu()
        for conv in (*self.down[1:], self.up):
            x = conv(nn.functional.max_pool3d(x, 2)).relu()
        return self.head(torch.cat([first, nn.functional.interpolate(x, scale_factor=8)], 1))


@pytest.mark.parametrize(("size", "enough", "wanted"), [(16, 0, 8), (24, 0, 8), (40, 0, 8), (56, 0, 8), (24, 1e9, 24)])
def test_where_halves_will_not_do_thirds_fifths_and_sevenths_are_tried(
    size: int, enough: float, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ranp_cli.pruning.verify.SMALL_ENOUGH", enough)
    torch.manual_seed(0)
    batch = [(torch.randn(1, 1, size, size, size), torch.zeros(1, size, size, size, dtype=torch.int64))]
    verified = ranp.prune(Pooled(), batch, sparsity=0.5, device="cpu").report.to_dict()["verified"]
    assert verified["max_rel_error_fp64"] < 1e-10
    assert verified["input"] == f"1x1x{wanted}x{wanted}x{wanted}"
