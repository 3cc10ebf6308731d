"""Every network of the zoo loses units in the middle of a training loop: what is left computes what masked computes."""

from __future__ import annotations

import copy

import laws
import numpy as np
import pytest
import torch
import zoo
from test_laws import ALL

from ranp_cli.api.pruner import Pruner
from ranp_cli.graph.analyse import analyse
from ranp_cli.training import cut as cutting


def step(model, optimizer, batches):
    optimizer.zero_grad()
    for x, target in batches:
        loss = zoo.loss(laws.call(model, x), target)
        loss.backward()
    optimizer.step()
    return loss


def trained(case, optimizer=torch.optim.AdamW, steps=3, **options):
    """A network of the zoo after some steps, and its Pruner."""
    model = zoo.build(case).train()
    batches = zoo.batches(case)
    own = optimizer(model.parameters(), lr=1e-3)
    pruner = Pruner(model, own, example=batches[0][0], every=1000, units=2, until=0.5, min_neurons=1, **options)
    for _ in range(steps):
        pruner.step(step(model, own, batches))
    return model, own, pruner, batches


def flags_of(graph, before, after):
    """One flag per unit of the graph of the network before a removal."""
    kept = [np.isin(before[layer.name], after[layer.name]) for layer in graph.layers]
    return np.bincount(graph.unit[np.concatenate(kept)], minlength=len(graph.unit_roots)) > 0


@ALL
def test_a_removal_in_place_in_the_middle_of_a_training_loop(case):
    model, optimizer, pruner, batches = trained(case, verify="never")
    parameters, before = list(model.parameters()), copy.deepcopy(model)
    kept = {name: indices.copy() for name, indices in pruner.shrinking.kept.items()}
    removal = pruner.remove()
    assert removal is not None
    assert removal.removed >= removal.units >= 1
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))

    graph = analyse(before, laws.example(batches[0][0]))
    stays = graph.flags(flags_of(graph, kept, pruner.shrinking.kept))
    x = zoo.inputs(case, torch.Generator().manual_seed(7))
    for training in (False, True):
        wide = laws.cast(before, torch.float64)
        masked = laws.masked_model(wide, graph, stays)
        slim = laws.cast(copy.deepcopy(model), torch.float64)
        outs = [
            laws.run(m, laws.map_tensors(x, torch.Tensor.double), training, not case.statistics) for m in (masked, slim)
        ]
        assert laws.distance(*outs) <= 1e-10
    laws.attributes_are_true(model)
    for p in model.parameters():
        assert p.grad is None or p.grad.shape == p.shape
        assert all(t.ndim == 0 or t.shape == p.shape for t in optimizer.state[p].values())
    model.train()
    pruner.step(step(model, optimizer, batches))
    assert pruner.seen.batches == 1


def test_a_removal_that_cuts_the_wrong_slices_is_noticed(monkeypatch):
    """Negative control of the test above."""
    case = next(c for c in zoo.CASES if c.name == "residual")

    def shifted(t, indices):
        for axis, index in enumerate(indices):
            if index is not None:
                t = t.roll(1, axis).index_select(axis, index)
        return t

    monkeypatch.setattr(cutting, "cut_tensor", shifted)
    with pytest.raises(AssertionError):
        test_a_removal_in_place_in_the_middle_of_a_training_loop(case)
