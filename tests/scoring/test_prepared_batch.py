"""A mini-batch is sent, cast and counted once, however many passes it serves; one that was written into is prepared anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.io.batches import Batch
from ranp_cli.scoring import prepared_batch, scorer
from ranp_cli.scoring.criteria import criterion
from ranp_cli.scoring.prepared_batch import PreparedBatch

CPU = torch.device("cpu")


class Net(nn.Module):
    """Two layers; `writes`: the forward pass doubles its input in place."""

    def __init__(self, writes=False):
        super().__init__()
        self.writes = writes
        self.body, self.head = nn.Conv3d(1, 4, 3, bias=False), nn.Conv3d(4, 2, 1, bias=False)

    def forward(self, x):
        x = x.mul_(2) if self.writes else x * 2
        return self.head(torch.relu(self.body(x)))


def at_work(net, precision="fp64"):
    graph = analyse(net, Example((torch.empty(2, 1, 5, 5, 5),)))
    mean = nn.functional.mse_loss
    return scorer.Scorer(net, graph, mean, [criterion("mpmg-sum")], CPU, 0, scorer.GradientSetup(precision))


def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch((torch.randn(2, 1, 5, 5, 5, generator=generator),), {}, torch.zeros(2, 2, 3, 3, 3))


@pytest.fixture
def sent(monkeypatch):
    """The tensors that were sent."""
    seen, plain = [], prepared_batch._send
    monkeypatch.setattr(prepared_batch, "_send", lambda t, device: seen.append(t) or plain(t, device))
    return seen


def twice(net, layout=True):
    """The scores of two passes over one mini-batch, as `--precision auto` and a proof take them."""
    work = at_work(net)
    work.layout = layout
    prepared = PreparedBatch.of(0, batch(), net, CPU, "fp64")
    (collector,) = work.collectors
    found = []
    with collector.watching():
        for _ in range(2):
            work._pass(prepared)
            found.append([part.numpy().copy() for part in collector.parts["mpmg-sum"]])
            collector.drop_batch()
    return found


def test_two_passes_take_one_preparation(sent):
    first, second = twice(Net())
    assert len(sent) == 2  # the input and the target
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_a_pass_has_written_into_is_prepared_again(sent):
    torch.manual_seed(0)
    plain = Net()
    writing = Net(writes=True)
    writing.load_state_dict(plain.state_dict())
    first, second = twice(writing, layout=False)  # in the other layout each pass has a copy of its own
    assert len(sent) == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.allclose(a, b) for a, b in zip(first, twice(plain, layout=False)[0], strict=True))


def test_numbers_are_counted_in_the_inputs_alone():
    prepared = PreparedBatch.of(3, batch(), Net(), CPU, "fp64")
    assert (prepared.index, prepared.elements) == (3, 2 * 5**3)
    assert prepared.args[0].dtype == prepared.target.dtype == torch.float64
    assert PreparedBatch.of(0, batch(), Net(), CPU, "model").args[0].dtype == torch.float32
