"""Models that went through `torch.compile`, whole or in part: the same result as before it, and Dynamo is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import Net, conv

import ranp_cli as ranp
from ranp_cli.io.model import load_model, load_weights

X = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = X, torch.randint(3, (2, 8, 8, 8), generator=torch.Generator().manual_seed(1))


def plain() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        part = nn.Sequential(conv(2, 8), nn.BatchNorm3d(8), nn.ReLU())
        return Net(lambda m, x: m.head(m.part(x)), part=part, head=conv(8, 3))


def refused(graph, inputs):
    raise AssertionError("Dynamo was run")


def whole() -> nn.Module:
    return torch.compile(plain(), backend=refused)


def partly() -> nn.Module:
    model = plain()
    model.part = torch.compile(model.part, backend=refused)
    return model


def in_place() -> nn.Module:
    model = plain()
    model.compile(backend=refused)
    return model


@pytest.mark.parametrize("make", [whole, partly, in_place])
def test_a_compiled_model_is_the_one_that_was_compiled(make, tmp_path):
    model, dense = make(), plain()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    got, want = (ranp.prune(m, BATCH, sparsity=0.5) for m in (model, dense))
    assert got.mask.to_dict() == want.mask.to_dict()
    assert type(got.model) is Net
    got.save(tmp_path / "slim.safetensors")
    slims = [got.model, ranp.refine(model, want.mask), ranp.load(tmp_path / "slim.safetensors", model)]
    for slim in slims:
        assert slim.state_dict().keys() == dense.state_dict().keys()
        assert torch.equal(slim.eval()(X), want.model.eval()(X))
    scores = [ranp.score(m, BATCH).layers for m in (model, dense)]
    assert all((scores[0][name] == values).all() for name, values in scores[1].items())
    told = [ranp.profile(m, X).parts for m in (model, dense)]
    assert told[0] == told[1]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    with pytest.raises(Exception, match="Dynamo was run"):  # it is still compiled
        model(X)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("make", ["plain", "whole", "partly"])
def test_a_compiled_factory_takes_the_weights_of_a_plain_one(make, prefix, tmp_path):
    dense = plain()
    nn.init.ones_(dense.head.weight)
    given = dense if prefix else partly()
    given.load_state_dict(dict(zip(given.state_dict(), dense.state_dict().values(), strict=True)))
    torch.save({prefix + name: t for name, t in given.state_dict().items()}, tmp_path / "weights.pt")
    model = load_model(f"{__name__}:{make}").module
    load_weights(model, str(tmp_path / "weights.pt"))
    assert torch.equal(model.head.weight, dense.head.weight)
    assert torch.equal(model.part[0].weight, dense.part[0].weight)
