"""What the code does differs with its mode, its batch size and its precision: the trace and the proof run as a user's do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.errors import BadInput, VerificationFailed
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.pruning.slim import slim_model
from ranp_cli.pruning.verify import verify

X = torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
BATCH = [(X, torch.zeros(2, 6, 6, 6, dtype=torch.long))]


class Supervised(nn.Module):
    """An auxiliary head that is only there while gradients are on, or in training mode."""

    def __init__(self, when):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1)
        self.out, self.aux, self.when = nn.Conv3d(8, 2, 1), nn.Conv3d(8, 2, 1), when

    def forward(self, x):
        a = self.a(x).relu()
        y = self.out(self.b(a).relu())
        return [y, self.aux(a)] if self.when(self) else y


WHENS = {
    "gradients on": lambda net: torch.is_grad_enabled(),
    "training mode": lambda net: net.training,
    "both": lambda net: net.training and torch.is_grad_enabled(),
    "gradients off": lambda net: not torch.is_grad_enabled(),
}


@pytest.mark.parametrize("name", WHENS)
def test_the_slim_network_trains_where_the_dense_one_does(name, tmp_path):
    torch.manual_seed(0)
    net = Supervised(WHENS[name])
    result = ranp.prune(
        net,
        BATCH,
        sparsity=0.5,
        loss=lambda out, y: nn.functional.cross_entropy(out[0] if isinstance(out, list) else out, y),
    )
    result.save(tmp_path / "slim.safetensors")
    slim = ranp.load(tmp_path / "slim.safetensors", net)
    for mode in (True, False):
        out = slim.train(mode)(X)
        sum(o.sum() for o in (out if isinstance(out, list) else [out])).backward()
        with torch.no_grad():
            slim(X)


def test_a_slim_network_that_cannot_train_is_not_verified():
    """The control: a part that only a training step reaches has another width than the rest."""
    torch.manual_seed(0)
    net = Supervised(WHENS["gradients on"])
    graph = analyse(net, Example((X,)))
    keep = torch.ones(len(graph.unit_roots), dtype=torch.bool).numpy()
    keep[graph.unit[:3]] = False
    stays = graph.flags(keep)
    slim, _ = slim_model(net, graph, stays)
    slim.aux = nn.Conv3d(8, 2, 1)
    with pytest.raises(VerificationFailed):
        verify(net, slim, graph, stays)


@pytest.mark.parametrize("samples", [1, 3])
def test_code_that_insists_on_its_batch_size(samples):
    class Insists(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 2, 1)

        def forward(self, x):
            y = self.a(x).relu()
            return self.b(y.view(samples, y.shape[1], *y.shape[2:]))

    x = torch.randn(samples, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    report = ranp.prune(
        Insists(), [(x, torch.zeros(samples, 6, 6, 6, dtype=torch.long))], sparsity=0.5
    ).report.to_dict()
    assert report["sparsity"]["achieved"] >= 0.45
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    with pytest.raises(BadInput, match="shape"):
        ranp.profile(Insists(), (samples + 1, 2, 6, 6, 6))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 2, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_inputs_take_the_precision_of_the_model(dtype):
    mask = ranp.prune(plain(), BATCH, sparsity=0.5).mask
    slim = ranp.refine(plain().to(dtype), mask)
    assert slim[0].weight.dtype == dtype
    assert slim[0].out_channels == len(mask.layers["0"]["kept"])
    assert ranp.prune(plain().to(dtype), BATCH, sparsity=0.5).mask.kept <= mask.total


class MadeInFp32(nn.Module):
    """Makes its tensors as old code does, in fp32 whatever the model is."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(16, 2, 1)
        self.constants = [torch.tensor(0.1), torch.full((1,), 0.3)]

    def forward(self, x):
        y = self.a(x).relu()
        volume = torch.FloatTensor(x.shape[0], 2 * y.shape[1], *x.shape[2:]).zero_()
        volume[:, : y.shape[1]] = y * self.constants[0]
        volume[:, y.shape[1] :] = y.float() * torch.ones(1, dtype=torch.float32) * self.constants[1]
        return self.b(volume.contiguous())


def test_tensors_that_the_code_makes_in_fp32_are_fp64_in_the_proof():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    report = ranp.prune(MadeInFp32(), BATCH, sparsity=0.5).report.to_dict()
    assert report["verified"]["max_rel_error_fp64"] < 1e-12
    assert torch.get_default_dtype() is before


class IllConditioned(nn.Module):
    """The difference of two nearly equal outputs: fp32 loses what fp64 does not."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1), nn.Conv3d(16, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return self.c(y) - self.c(y * 1.0001)


def test_conditioning_is_told_from_an_error():
    torch.manual_seed(0)
    verified = ranp.prune(IllConditioned(), BATCH, sparsity=0.5).report.to_dict()["verified"]
    assert verified["max_rel_error_fp64"] < 1e-10
    assert verified["max_rel_error_fp32"] > 1e-5
    assert verified["rounding_fp32"] > 1e-6
