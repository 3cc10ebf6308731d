"""`--keep` and `--only`: the sparsity that is asked for is taken from what they leave."""

import numpy as np
import pytest
import torch
from torch import nn

import ranp_cli as ranp


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 32, 3, padding=1), nn.ReLU(),
                         nn.Conv3d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv3d(32, 2, 1))  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 1, 6, 6, 6, generator=generator), torch.randint(0, 2, (2, 6, 6, 6), generator=generator))]


@pytest.mark.parametrize("method", ["ranp", "weighted", "vanilla", "random", "layerwise", "flat"])
@pytest.mark.parametrize("how", [{"keep": ["4"]}, {"only": ["0", "2"]}, {"keep": ["4"], "min_neurons": 1}])
def test_the_share_is_taken_from_what_is_left(batch, method, how):
    """49 of 98 neurons are to go, 62 of the 64 in layers 0 and 2 can."""
    report = ranp.prune(net(), batch, sparsity=0.5, method=method, **how).report.to_dict()
    kept = {layer["name"]: layer["kept"] for layer in report["layers"]}
    assert kept["4"] == 32
    assert kept["0"] + kept["2"] == pytest.approx(15, abs=3)
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.035)


def test_snip_masks_the_share_of_the_other_layers_weights(batch):
    report = ranp.prune(net(), batch, sparsity=0.99, method="snip", keep=["4"], min_neurons=1).report.to_dict()
    kept = {layer["name"]: layer["kept"] for layer in report["layers"]}
    assert kept["4"] == 32
    assert kept["0"] + kept["2"] < 64


def test_nothing_that_may_go_is_more_than_is_asked(batch):
    """All that is asked lies in one small layer: it goes to its floor, and the report says what is in the way."""
    result = ranp.prune(net(), batch, sparsity=0.5, only=["0"], allow_less=True)
    kept = {layer["name"]: layer["kept"] for layer in result.report.to_dict()["layers"]}
    assert kept["0"] == 1
    assert np.sum(list(kept.values())) == 1 + 32 + 32 + 2
