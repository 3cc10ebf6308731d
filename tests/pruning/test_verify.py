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
