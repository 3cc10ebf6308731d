"""Read this first: every public feature once, in its smallest form."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli import rules


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1)
    )


@pytest.fixture
def batches():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 1, 8, 8, 8, generator=g), torch.randint(2, (2, 4, 4, 4), generator=g)) for _ in range(2)]


def test_score(model, batches):
    scores = ranp.score(model, batches, criterion="mpmg-sum")
    assert {name: values.shape for name, values in scores.layers.items()} == {"0": (8,), "3": (4,), "5": (2,)}


def test_prune(model, batches):
    result = ranp.prune(model, batches, sparsity=0.5, resource="mem")
    assert type(result.model) is nn.Sequential
    assert result.model[0].out_channels == result.model[1].num_features == result.model[3].in_channels < 8
    assert result.model(batches[0][0]).shape == (2, 2, 4, 4, 4)
    assert result.mask.kept == sum(len(layer["kept"]) for layer in result.mask.to_dict()["layers"].values())
    assert result.report.to_dict()["verified"]["max_rel_error_fp64"] < 1e-10


def test_prune_from_scores(model, batches):
    scores = ranp.score(model, batches)
    assert (
        ranp.prune(model, scores=scores, sparsity=0.5).mask.layers
        == ranp.prune(model, batches, sparsity=0.5).mask.layers
    )


def test_refine(model, batches):
    result = ranp.prune(model, batches, sparsity=0.5)
    x = batches[0][0]
    for mask in (result.mask, json.loads(json.dumps(result.mask.to_dict()))):
        assert torch.equal(ranp.refine(model, mask).eval()(x), result.model.eval()(x))


def test_save_and_load(model, batches, tmp_path):
    result = ranp.prune(model, batches, sparsity=0.5)
    result.save(tmp_path / "slim.safetensors")
    slim = ranp.load(tmp_path / "slim.safetensors", model)
    assert torch.equal(slim.eval()(batches[0][0]), result.model.eval()(batches[0][0]))


def test_profile(model):
    report = ranp.profile(model, (1, 1, 8, 8, 8)).to_dict()
    macs = 27 * 8 * 6**3 + 27 * 8 * 4 * 4**3 + 4 * 2 * 4**3
    assert (report["before"]["macs"], report["before"]["flops"]) == (macs, 2 * macs)
    assert report["before"]["params"] == sum(p.numel() for p in model.parameters())


def test_every_rule_names_an_op_that_exists():
    known = [op for op, _, _ in rules.table() if op.startswith("aten.")]
    assert len(known) > 300
    assert [op for op in known if not hasattr(torch.ops.aten, op.partition(".")[2])] == []


def test_own_rule():
    from ranp_cli import rules

    with pytest.raises(ValueError, match="has a rule already"):
        rules.rule("aten.relu")(lambda ties, x, *, out: x.planes)


def test_every_op_of_the_table_says_its_law():
    from ranp_cli import rules

    assert all(law for _, _, law in rules.table())
