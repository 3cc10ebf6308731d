"""What the paper says of its method, on small versions of its networks and seeded data."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

import ranp_cli as ranp
from ranp_cli import samples
from ranp_cli.models.unet3d import unet3d


def shapenet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(15, 16), list(islice(samples.voxel_shapes(size=32), 2))


def brats():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(15, 16, 4, 5), list(islice(samples.brain_volumes(size=32), 2))


@pytest.fixture(scope="module", params=[shapenet, brats], ids=lambda f: f.__name__)
def rows(request):
    """Method -> its row, at the largest sparsity that each can have, and at 0.6."""
    model, batches = request.param()
    methods = ["vanilla", "weighted", "ranp-m", "ranp-f"]
    table = ranp.compare(model, batches, sparsity=["max", 0.6], methods=methods, min_neurons=1)
    return {(row["method"], row["sparsity"]["requested"]): row for row in table.rows}


def test_weighting_raises_the_maximum_sparsity(rows):
    """Table 1: balancing the layers lets more neurons go before a layer is empty."""
    most = {m: rows[m, "max"]["sparsity"]["achieved"] for m in ("vanilla", "weighted", "ranp-mem", "ranp-flops")}
    assert most["vanilla"] < most["weighted"]
    assert most["vanilla"] < min(most["ranp-mem"], most["ranp-flops"])


def test_reweighting_goes_where_the_cost_is(rows):
    """Table 2: RANP-m leaves less memory than RANP-f, RANP-f fewer multiply-adds than Weighted, that fewer than vanilla."""
    after = {m: rows[m, 0.6]["after"] for m in ("vanilla", "weighted", "ranp-mem", "ranp-flops")}
    assert after["ranp-mem"]["activation_bytes"] < after["ranp-flops"]["activation_bytes"]
    assert after["ranp-flops"]["macs"] < after["weighted"]["macs"] < after["vanilla"]["macs"]
    assert after["ranp-flops"]["activation_bytes"] < after["weighted"]["activation_bytes"]


@pytest.mark.parametrize("init", ["glorot", "orthogonal"])
def test_no_initialisation_balances_the_layers(init):
    """Appendix: with orthogonal weights as with Glorot's the mean importance of layers differs many times over."""
    model, batches = shapenet()
    report = ranp.score(model, batches, score_init=init, sparsity=0.6).report.to_dict()
    means = np.array([row["importance_mean"] for row in report["layers"]])
    kept = np.array([row["kept"] / row["neurons"] for row in report["layers"][:-1]])  # the last one is the output
    assert means.max() > 5 * means.min()
    assert kept.max() - kept.min() > 0.8
