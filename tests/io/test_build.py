"""`ranp.build`: an empty slim module from a header, of the user's own class."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import ranp_cli as ranp


class Net(nn.Module):
    """Two norms, a tie, a constant, a count in an attribute."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 12, 3, padding=1)
        self.norm = nn.BatchNorm3d(12)
        self.again = self.norm
        self.second = nn.Conv3d(12, 12, 3, padding=1)
        self.head = nn.Conv3d(12, classes, 1)
        self.register_buffer("shift", torch.full((classes,), 0.25))

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x))) + self.shift[None, :, None, None, None]


def pruned(model: nn.Module) -> ranp.Pruned:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, 8, 8, generator=generator)
    return ranp.prune(model, (x, torch.randint(2, (2, 8, 8, 8), generator=generator)), sparsity=0.5, min_neurons=1)


@pytest.fixture(scope="module")
def result():
    return pruned(Net())


def test_weights_from_elsewhere_make_it_the_slim_network(result):
    empty = ranp.build(json.loads(json.dumps(result.header)), Net())
    assert type(empty) is Net
    assert empty.norm is empty.again
    assert empty.first.out_channels == result.model.first.out_channels < 12
    empty.load_state_dict(result.model.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(empty.eval()(x), result.model.eval()(x))


def test_a_file_is_a_header_too(result, tmp_path):
    result.save(tmp_path / "slim.safetensors")
    from_file = ranp.build(tmp_path / "slim.safetensors", Net()).state_dict()
    from_header = ranp.build(result.header, Net()).state_dict()
    assert all(torch.equal(t, from_header[name]) for name, t in from_file.items())


def test_it_trains_as_it_is_and_holds_no_weight_of_the_dense_one(result):
    dense = Net()
    before = torch.get_rng_state()
    empty = ranp.build(result.header, dense)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(empty.shift, dense.shift)  # a constant stays
    assert torch.equal(empty.norm.weight, torch.ones_like(empty.norm.weight))
    assert float(empty.first.weight.detach().std()) > 0
    empty(torch.randn(2, 1, 8, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in empty.parameters())


def test_a_dense_network_on_meta_costs_nothing():
    def net():
        return nn.Sequential(nn.Conv3d(1, 12, 3), nn.BatchNorm3d(12), nn.ReLU(), nn.Conv3d(12, 2, 1))

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 1, 8, 8, 8, generator=generator), torch.randint(2, (2, 6, 6, 6), generator=generator)
    header = ranp.prune(net(), batch, sparsity=0.5, min_neurons=1).header
    with torch.device("meta"):
        dense = net()
    empty = ranp.build(header, dense)
    assert {t.device.type for t in empty.state_dict().values()} == {"cpu"}
    assert torch.equal(empty[1].running_var, torch.ones(empty[1].num_features))


def test_a_constant_on_meta_is_not_made_up(result):
    with torch.device("meta"):
        dense = Net()
    with pytest.raises(
        ranp.BadInput, match=r"buffer shift of the dense model is on meta.*make the dense model on the CPU"
    ):
        ranp.build(result.header, dense)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda h: {**h, "version": 2}, "version 2, not 1"),
        (lambda h: {k: v for k, v in h.items() if k != "shapes"}, "'shapes' is missing"),
        (lambda h: {**h, "shapes": {**h["shapes"], "first.weight": [99, 1, 3, 3, 3]}}, "no part of the dense"),
        (lambda h: {**h, "shapes": {**h["shapes"], "first.weight": [0, 1, 3, 3, 3]}}, "which is empty"),
        (lambda h: {**h, "shapes": {**h["shapes"], "first.weight": [-1, 1, 3, 3, 3]}}, "wants a whole number"),
        (lambda h: {**h, "shapes": {**h["shapes"], "first.weight": [6]}}, "no part of the dense"),
        (lambda h: {**h, "shapes": {**h["shapes"], "evil": [1]}}, "holds tensors that the model has not"),
        (lambda h: {**h, "shapes": {k: v for k, v in h["shapes"].items() if k != "shift"}}, "lacks the tensors: shift"),
        (lambda h: {**h, "attributes": {"first": {"forward": 3}}}, "is not one that refining sets"),
        (lambda h: {**h, "attributes": {"first": {"out_channels": 5}}, "fingerprint": h["fingerprint"]}, "is not one that"),
        (lambda h: {**h, "fingerprint": "0" * 64}, "of another network"),
        (lambda h: [h], "is a list; give"),
    ],
)  # fmt: skip
def test_a_damaged_header_is_one_line(result, damage, says):
    with pytest.raises(ranp.BadInput, match=says):
        ranp.build(damage(result.header), Net())


def test_another_network_is_named(result):
    with pytest.raises(ranp.BadInput, match=r"head.weight is|its parameters are of other shapes"):
        ranp.build(result.header, Net(classes=3))
    with pytest.raises(ranp.BadInput, match=r"give the dense nn.Module"):
        ranp.build(result.header, 3)
