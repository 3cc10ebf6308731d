"""What a call must leave alone besides the model: `random`, the inputs' and the loss' gradients, autocast; and numpy's numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import batch, chain
from torch import nn

import ranp_cli as ranp


class Counting(nn.Module):
    """A loss with a parameter and a buffer of the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output, target):
        self.calls += 1
        return F.cross_entropy(output * self.scale, target)


WAYS = [{}, {"low_memory": True}, {"probe": 2}, {"rounds": 2, "updates": 2}, {"method": "taylor"}]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_gradients_stay_out_of_the_callers_input_and_loss(how):
    x, y = batch()
    x.requires_grad_()
    loss = Counting()
    ranp.prune(chain(), (x, y), sparsity=0.5, loss=loss, **how)
    assert x.grad is None
    assert loss.scale.grad is None
    assert loss.calls == 0


def test_the_first_call_of_a_process_draws_nothing_from_random():
    code = """if True:
        import random, torch, ranp_cli as ranp
        from torch import nn
        random.seed(0); before = random.getstate()
        net = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1))
        made = ranp.prune(net, (torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))), sparsity=0.5)
        ranp.profile(net, (1, 1, 8, 8, 8)), ranp.refine(net, made.mask)
        assert random.getstate() == before
        """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call", ["score", "prune"])
def test_the_callers_autocast_is_not_ours(call):
    def scored():
        how = {"sparsity": 0.5} if call == "prune" else {}
        found = getattr(ranp, call)(chain(), batch(), precision="fp32", **how)
        if call == "prune":
            assert found.report.to_dict()["verified"]["max_rel_error_fp32"] > 0
            return next(iter(found.rankings.values()))
        return list(found.layers.values())

    wanted = scored()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scored()
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_numpys_numbers_are_numbers():
    plain = ranp.prune(chain(), batch(), sparsity=0.5, seed=3, lambda_=2.0, min_neurons=1)
    found = ranp.prune(
        chain(), batch(), sparsity=np.float64(0.5), seed=np.int64(3), lambda_=np.float32(2), min_neurons=np.int32(1)
    )
    assert found.mask.to_dict() == plain.mask.to_dict()
    assert ranp.prune(chain(), batch(), sparsity=0.5, probe=np.int64(2)).report.to_dict()["probe"]["steps"] == 2


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"lambda_": "11"}, "lambda_='11': wants a number"),
        ({"seed": "1"}, "seed='1': wants a whole number"),
        ({"keep": [0]}, r"keep=\[0\]: give names of layers"),
        ({"only": 3}, "only=3: give names of layers"),
    ],
)
def test_arguments_of_another_kind(how, says):
    with pytest.raises(ranp.BadInput, match=says):
        ranp.prune(chain(), batch(), sparsity=0.5, **how)


@pytest.mark.parametrize("given", [nn.Sequential, chain])
def test_a_class_or_a_function_is_no_model(given, tmp_path):
    ranp.prune(chain(), batch(), sparsity=0.5).save(tmp_path / "slim.safetensors")
    optimizer = torch.optim.SGD(chain().parameters(), 0.1)
    for call in (
        lambda: ranp.load(tmp_path / "slim.safetensors", given),
        lambda: ranp.profile(given, (1, 1, 8, 8, 8)),
        lambda: ranp.Pruner(given, optimizer, example=batch()[0]),
    ):
        with pytest.raises(ranp.BadInput, match=r"the model is a (type|function); give"):
            call()


def test_an_optimizer_of_another_network():
    with pytest.raises(ranp.BadInput, match="the optimizer has none of the model's parameters"):
        ranp.Pruner(chain(), torch.optim.SGD(chain().parameters(), 0.1), example=batch()[0])


def test_layers_narrower_than_the_multiple_are_named():
    (note,) = ranp.prune(chain(), batch(), sparsity=0.5, round_to=500).report.to_dict()["notes"]
    assert note.startswith("round_to=500 does not round what has fewer neurons from the start: ")


def test_snip_says_when_no_neuron_loses_all_of_its_weights():
    with pytest.raises(ranp.Infeasible, match=r"^50.0% of the weights would go, and no neuron loses all of its own"):
        ranp.prune(chain(), batch(), sparsity=0.5, method="snip")
