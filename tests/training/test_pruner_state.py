"""What a `Pruner` writes: slim files, and its state, from which a later run goes on to the same bytes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from trained_nets import batches, made, network, train

import ranp_cli as ranp
from ranp_cli.core.errors import BadInput


def test_the_slim_file_loads_into_the_dense_network(tmp_path):
    dense = network()
    net, optimizer, pruner = made(copy.deepcopy(dense))
    train(net, optimizer, pruner, 30)
    pruner.save(tmp_path / "slim.safetensors")
    slim = ranp.load(tmp_path / "slim.safetensors", dense).eval()
    x = batches()[0][0]
    assert torch.equal(slim(x), net.eval()(x))
    assert pruner.mask.achieved == 0.5
    report = pruner.report.to_dict()
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    assert len(report["rounds"]) == 9
    assert report["loop"]["updates"] == 30
    assert report["loop"]["dense_updates"] < 30
    assert ranp.refine(dense, pruner.mask)[0].weight.shape == net[0].weight.shape


@pytest.mark.parametrize("method", ["taylor", "weighted", "random"])
@pytest.mark.parametrize("at", [3, 7, 20])
def test_a_later_run_goes_on_to_the_same_bytes(method, at):
    """Also with mini-batches that have been seen since the last removal, and once it is finished."""
    data = batches(4)
    net, optimizer, pruner = made(method=method, every=2 + (at == 7))
    train(net, optimizer, pruner, at, data)
    assert pruner.finished == (at == 20)
    file = io.BytesIO()
    torch.save({"pruner": pruner.state_dict(), "net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = [data[k % 4] for k in range(at, at + 12)]
    train(net, optimizer, pruner, 12, rest)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, second, resumed = made(network(5), method=method, every=2 + (at == 7))
    resumed.load_state_dict(state["pruner"])
    again.load_state_dict(state["net"])
    second.load_state_dict(state["optimizer"])
    train(again, second, resumed, 12, rest)
    assert resumed.removals == pruner.removals
    assert resumed.finished == pruner.finished
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_state_of_another_network_method_or_form_is_refused_and_changes_nothing():
    net, optimizer, pruner = made()
    train(net, optimizer, pruner, 8)
    state = pruner.state_dict()
    for change, message in (
        ({"format": "other"}, "no state of a Pruner"),
        ({"fingerprint": "0"}, "another network"),
        ({"method": {**state["method"], "name": "ranp"}}, "with the method"),
        ({"updates": -1}, "'updates' of the Pruner's state is -1"),
        ({"kept": {**state["kept"], "0": torch.tensor([0.5])}}, "no indices of 0"),
        ({"kept": {**state["kept"], "0": torch.tensor([99])}}, "different indices below"),
        ({"attributes": {"0": {"out_channels": 99}}}, "not one that refining sets"),
        (
            {"sums": {**state["sums"], "0": {"high": torch.zeros(99), "low": torch.zeros(99)}}},
            "no scores of the . neurons of 0",
        ),
        ({"sums": {"0": {"high": 1, "low": 2}}}, "no scores of the . neurons of 0"),
        ({"removals": [{"updates": 1}]}, "removals"),
        ({"removals": [{**state["removals"][0], "code": "x"}]}, "a removal of the Pruner's state has 'code'"),
        ({"finished": "no"}, "finished"),
        ({"spent": "much"}, "spent"),
        ({"losses": ["x"]}, "losses"),
    ):
        other, _, fresh = made(network(3))
        with pytest.raises(BadInput, match=message):
            fresh.load_state_dict({**state, **change})
        assert other[0].weight.shape[0] == 8
    with pytest.raises(BadInput, match="before those of model and optimiser"):
        pruner.load_state_dict(state)
