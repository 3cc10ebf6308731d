"""Each neuron that stays against the ranking is counted to a cause, and all causes are told."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.errors import Infeasible

BATCH = [
    (torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 6, 6, 6, dtype=torch.long))
]


class Net(nn.Module):
    """12 is written into the code for the second layer, softmax fixes the third."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv3d(1, 12, 3, padding=1),
            nn.Conv3d(12, 12, 3, padding=1),
            nn.Conv3d(12, 16, 3, padding=1),
        )
        self.d = nn.Conv3d(16, 2, 1)

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        y = y.view(len(y), 12, *x.shape[2:])
        return self.d(self.c(y).softmax(1))


def net():
    torch.manual_seed(0)
    return Net()


def test_the_causes_and_their_shares():
    report = ranp.prune(net(), BATCH, sparsity=0.5, min_neurons=1, allow_less=True).report.to_dict()
    kept = {layer["name"]: layer["kept"] for layer in report["layers"]}
    assert kept == {"a": kept["a"], "b": 12, "c": 16, "d": 2}
    by_layer = {row["layers"][0]: row for row in report["held_back"]}
    assert "fixed in the code" in by_layer["b"]["reason"]
    assert "test_held_back.py:" in by_layer["b"]["reason"]
    assert "softmax" in by_layer["c"]["reason"]
    asked = int(42 * 0.5)
    assert sum(row["neurons"] for row in report["held_back"]) >= sum(kept.values()) - asked
    (note,) = [note for note in report["notes"] if "was asked" in note]
    for layer in ("b", "c"):
        assert f"{by_layer[layer]['neurons']} neurons of {layer}" in note


def test_the_error_names_every_cause():
    with pytest.raises(Infeasible) as error:
        ranp.prune(net(), BATCH, sparsity=0.9, min_neurons=4)
    text = str(error.value)
    assert "of c: mixed with its neighbours along the axis (softmax)" in text
    assert "of b: fixed in the code: RuntimeError" in text
    assert "kept by the floor" in text


def test_the_error_that_the_code_raised_is_told():
    report = ranp.prune(net(), BATCH, sparsity=0.5, allow_less=True).report.to_dict()
    assert "RuntimeError: shape '[1, 12, 6, 6, 6]' is invalid" in report["fixed"]["b"]


def test_rounding_is_a_cause():
    plain = nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 2, 1)
    )
    report = ranp.prune(plain, BATCH, sparsity=0.6, round_to=8, min_neurons=1).report.to_dict()
    assert any("rounding" in row["reason"] for row in report["held_back"])


def test_nothing_is_said_where_what_was_asked_went():
    plain = nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 2, 1)
    )
    report = ranp.prune(plain, BATCH, sparsity=0.5).report.to_dict()
    assert not [note for note in report.get("notes", []) if "was asked" in note]
