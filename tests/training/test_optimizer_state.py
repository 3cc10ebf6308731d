"""An optimiser goes on with the state of what is left, as if the removed slices had been held at zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ranp_cli.api.pruner import Pruner
from ranp_cli.core.errors import BadInput
from ranp_cli.graph.analyse import analyse, named_tensors
from ranp_cli.pruning.verify import masked_model

OPTIMIZERS = {
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=2**-12, momentum=0.5, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=2**-12, momentum=0.5, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=2**-6),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=2**-6, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=2**-6, amsgrad=True, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=2**-6, momentum=0.5, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=2**-6),
}


def network():
    """Weights are small whole numbers, and norms run in eval mode: every sum is exact, in any order."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6, eps=0.25), nn.ReLU(), nn.Conv3d(6, 5, 3), nn.ReLU(), nn.Conv3d(5, 2, 1)
    ).double()
    net[1].running_var.fill_(0.75)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randint(-2, 3, p.shape))
    return net.train().requires_grad_(True)


def batch():
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 1, 7, 7, 7), (2, 2, 3, 3, 3)
    return tuple(torch.randint(-2, 3, shape, generator=generator).double() for shape in shapes)


def gradients(net, x, y):
    net.zero_grad()
    net[1].eval()
    loss = (net(x) * y).sum()  # linear, so that gradients are whole numbers too
    loss.backward()
    return loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_that_of_the_masked_dense_network_to_the_byte(name):
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    x, y = batch()
    pruner = Pruner(net, optimizer, example=x, method="weighted", every=100, units=4, until=0.9, min_neurons=1)
    for _ in range(3):
        gradients(net, x, y)
        optimizer.step()
        pruner.step()
    with torch.no_grad():  # whole numbers again; the state of the optimiser is what the steps made of it
        for p in net.parameters():
            p.round_()
    dense = copy.deepcopy(net)
    others = OPTIMIZERS[name](dense.parameters())
    for p, q in zip(net.parameters(), dense.parameters(), strict=True):
        others.state[q] = copy.deepcopy(optimizer.state[p])
    before = {k: v.copy() for k, v in pruner.shrinking.kept.items()}
    graph = analyse(dense, pruner.shrinking.example)
    assert pruner.remove().removed == 4
    keep = torch.zeros(graph.n, dtype=torch.bool)
    at = 0
    for layer in graph.layers:
        keep[at + torch.from_numpy(pruner.shrinking.kept[layer.name])] = True
        at += len(before[layer.name])
    stays = graph.flags(keep.numpy()[graph.unit.argsort()])  # every unit is a neuron here
    assert len(graph.unit_roots) == graph.n

    masked = masked_model(dense, graph, stays)
    gradients(net, x, y)
    gradients(masked, x, y)
    optimizer.step()
    for p, m in zip(dense.parameters(), masked.parameters(), strict=True):
        p.grad = m.grad
        p.data = m.data.clone()
    others.step()
    slots = graph.slots
    for (key, p), q in zip(named_tensors(net), dict(named_tensors(dense)).values(), strict=True):
        want = q.detach()
        for axis, index in enumerate(graph.kept_indices(slots[key], stays)):
            want = want if index is None else want.index_select(axis, index)
        if (
            name == "adam-fused"
        ):  # whose vectors and their rest are rounded differently, so that an element's place shows
            assert torch.allclose(p.detach(), want, rtol=1e-15, atol=1e-17), key
        else:
            assert torch.equal(p.detach(), want), key
    assert {type(p) for p in optimizer.state} == {nn.Parameter}


def test_a_state_that_is_not_cut_is_noticed(monkeypatch):
    """Negative control: momenta of other neurons."""
    from ranp_cli.training import optimizer_state

    monkeypatch.setattr(
        optimizer_state,
        "cut_tensor",
        lambda t, indices: t[tuple(slice(0, len(i)) if i is not None else slice(None) for i in indices)],
    )
    with pytest.raises(AssertionError):
        test_the_next_step_is_that_of_the_masked_dense_network_to_the_byte("sgd-momentum")


def test_factors_along_an_axis_are_cut_and_a_state_of_another_form_is_an_error_that_changes_nothing():
    net = network().float()
    x, y = (t.float() for t in batch())
    optimizer = torch.optim.Adafactor(net.parameters(), lr=0.01)
    pruner = Pruner(net, optimizer, example=x, method="weighted", every=1, units=2, until=0.5, min_neurons=1)
    gradients(net, x, y)
    optimizer.step()
    assert pruner.step() is not None
    gradients(net, x, y)
    optimizer.step()
    pruner.step()
    gradients(net, x, y)
    optimizer.step()
    for p in net.parameters():
        optimizer.state[p]["history"] = torch.zeros(7, 11)
    before = {name: (t.clone(), t.grad) for name, t in net.named_parameters()}
    with pytest.raises(BadInput, match=r"Adafactor keeps 'history' of \d\.\w+ in a form"):
        pruner.remove()
    assert all(torch.equal(t, before[name][0]) and t.grad is before[name][1] for name, t in net.named_parameters())


def test_lbfgs_is_refused():
    net = network()
    with pytest.raises(BadInput, match="LBFGS keeps one history"):
        Pruner(net, torch.optim.LBFGS(net.parameters()), example=batch()[0])
