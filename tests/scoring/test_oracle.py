"""The oracle against networks masked one unit at a time; what it leaves as it was; runs that are stopped go on to the same bytes."""

from __future__ import annotations

import contextlib
import os
import signal

import laws
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from processes import done, in_this_process, start
from scored_nets import batches, blocks, same
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.contexts import NoDropout, seeded
from ranp_cli.core.errors import Interrupted
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.io.slim_file import SCORES, read_document, read_tensors
from ranp_cli.pruning.verify import masked_model

NAMES = ("residual", "grouped", "grouped_transposed", "squeeze_excite", "chunk_gate", "channel_shuffle", "unet_skip",
         "weight_norm", "spectral_norm", "group_norm", "linear_to_volume", "auxiliary_head", "siamese")  # fmt: skip
CASES = [case for case in zoo.CASES if case.name in NAMES]


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """In training mode, without dropout."""
    with NoDropout(), seeded():
        return float(zoo.loss(model.train()(x), y).detach())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_unit_has_the_change_of_the_loss_without_it(case):
    """As law 1 masks it; all neurons of a unit have its value, fixed ones none."""
    model, data = zoo.build(case), zoo.batches(case)[:2]
    before = laws.snapshot(model)
    found = ranp.score(model, data, loss=zoo.loss, criterion="oracle", precision="fp64")
    laws.unchanged(model, before)
    graph = analyse(model, Example((data[0][0],)))
    keep = np.ones(len(graph.unit_roots), dtype=bool)
    data = [(x.double(), y.double() if y.is_floating_point() else y) for x, y in data]

    def losses(keep: np.ndarray) -> np.ndarray:
        """Each on a network of its own: some write to themselves."""
        return np.array([loss_of(masked_model(zoo.build(case), graph, graph.flags(keep), torch.float64), x, y)
                         for x, y in data])  # fmt: skip

    whole, want = losses(keep), np.zeros(len(keep))
    for unit in np.flatnonzero(~graph.fixed_units):
        keep[unit] = False
        want[unit] = abs((losses(keep) - whole).mean())
        keep[unit] = True
    assert want.any()
    for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True):
        np.testing.assert_allclose(found.layers[layer.name], want[units], rtol=1e-6, atol=1e-12)


def test_fixed_layers_are_named_and_stay_whole():
    net = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 3, 1))
    data = [(x, y[:, 1:-1, 1:-1, 1:-1]) for x, y in batches()]
    pruned = ranp.prune(net, data, sparsity=0.5, method="vanilla", criterion="oracle", min_neurons=1)
    assert pruned.report.parts["scoring"]["not_ranked"] == {
        "2": "all its units are fixed, and the oracle removes none of those"
    }
    scores = ranp.score(net, data, criterion="oracle").layers["0"]
    assert pruned.mask.layers["0"]["kept"] == sorted(np.argsort(scores)[-4:].tolist())


def test_it_stands_beside_others_in_one_pass():
    both = ranp.compare(
        blocks(), batches(2), sparsity=0.5, methods=["taylor", "vanilla:oracle", "vanilla"], min_neurons=1
    )
    alone = ranp.compare(blocks(), batches(2), sparsity=0.5, methods=["vanilla:oracle"], min_neurons=1)
    assert both.rows[1]["layers_kept"] == alone.rows[0]["layers_kept"]


def test_the_bar_goes_by_units():
    seen = []

    @contextlib.contextmanager
    def progress(what, total):
        count = [0]
        yield lambda: count.__setitem__(0, count[0] + 1)
        seen.append((what, total, count[0]))

    ranp.score(blocks(), batches(2), criterion="oracle", progress=progress)
    graph = analyse(blocks(), Example((batches(1)[0][0],)))
    units = int((~graph.fixed_units).sum())
    assert ("scoring", 2 * units, 2 * units) in seen


# -- stopped


def stopping(after: int):
    """A loss that is Ctrl-C at its call number `after`."""
    calls = []

    def loss(output, target):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)

    return loss


def cross_entropy(output, target):
    return F.cross_entropy(output, target)


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path):
    """Within the first mini-batch, at its end, within the second; what one goes on from may be stopped again."""
    whole = ranp.score(blocks(), batches(2), criterion="oracle")
    whole.save(tmp_path / "whole.safetensors")
    units = int((~analyse(blocks(), Example((batches(1)[0][0],))).fixed_units).sum())
    for after, done_batches, begun in ((2, 0, 1), (units, 0, units - 1), (units + 1, 1, 0), (units + 7, 1, 5)):
        stop = stopping(after)
        stop.__qualname__, stop.__module__ = cross_entropy.__qualname__, cross_entropy.__module__  # one name for both
        with pytest.raises(Interrupted) as stopped:
            ranp.score(blocks(), batches(2), criterion="oracle", loss=stop)
        some = stopped.value.scores
        assert (stopped.value.batches, len(some.begun)) == (done_batches, begun)
        some.keep(tmp_path / "some.safetensors")
        on = ranp.score(
            blocks(), batches(2), criterion="oracle", loss=cross_entropy, resume=tmp_path / "some.safetensors"
        )
        assert same(on, whole)
        on.about["loss"] = whole.about["loss"]
        on.save(tmp_path / "on.safetensors")
        assert (tmp_path / "on.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
        if not done_batches:
            with pytest.raises(
                ranp.BadInput, match="units of the first mini-batch and no whole one; finish them with `resume`"
            ):
                ranp.prune(blocks(), scores=tmp_path / "some.safetensors", sparsity=0.5)


def test_nothing_is_there_before_the_first_unit():
    with pytest.raises(KeyboardInterrupt) as stopped:
        ranp.score(blocks(), batches(2), criterion="oracle", loss=stopping(1))
    assert not isinstance(stopped.value, Interrupted)


NET = """
import os, signal, torch
from torch import nn
import torch.nn.functional as F

calls = []

def net():
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1))

def loader():
    g = torch.Generator().manual_seed(0)
    for k in range(3):
        yield torch.rand(2, 1, 6, 6, 6, generator=g), torch.randint(3, (2, 6, 6, 6), generator=g)

def loss(output, target):
    calls.append(1)
    if "SENDS" in os.environ and len(calls) == 25:
        os.kill(os.getpid(), getattr(signal, os.environ["SENDS"]))
    return F.cross_entropy(output, target)
"""
SCORE = [
    "score",
    "net.py:net",
    "--batch",
    "net.py:loader",
    "--loss",
    "net.py:loss",
    "--criterion",
    "oracle",
    "-q",
    "-o",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the scores of a run that nobody stopped."""
    path = tmp_path_factory.mktemp("oracle")
    (path / "net.py").write_text(NET)
    assert in_this_process([*SCORE, "whole.safetensors"], path) == (0, "")
    return path


@pytest.mark.parametrize(
    ("sends", "exit_code"), [("SIGKILL", -signal.SIGKILL), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)]
)
def test_a_kill_within_a_mini_batch_costs_no_more_than_a_unit(sends, exit_code, folder):
    name = f"{sends}.safetensors"
    code, _, err = done(start([*SCORE, name, "--save-every", "0.000001"], folder, SENDS=sends))
    assert code == exit_code, err
    about, tensors = read_document(folder / name, SCORES), read_tensors(folder / name)
    assert about["unfinished"]
    assert (about["batches"], len(tensors["ranp:begun"])) == (1, 6)  # 17 passes a mini-batch, and the 25th was not done
    if sends == "SIGTERM":
        assert "the scores of 1 mini-batches and of 6 units on the next one were written" in err
    assert in_this_process([*SCORE, name, "--resume", name], folder) == (0, "")
    assert (folder / name).read_bytes() == (folder / "whole.safetensors").read_bytes()
    assert not [each for each in os.listdir(folder) if each.startswith(".")]


@pytest.mark.slow
def test_many_processes_give_the_bytes_of_one(folder):
    code, _, err = done(start([*SCORE, "two.safetensors"], folder, 2))
    assert code == 0, err
    assert (folder / "two.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()


# -- bad input


def test_what_does_not_go_together():
    with pytest.raises(ranp.BadInput, match="criterion 'oracle' takes none: give fp32 or bf16"):
        ranp.score(blocks(), batches(), criterion="oracle", precision="auto")

    def infinite(output, target):
        return F.cross_entropy(output, target) / (output.detach().abs().sum() > 1e30)

    with pytest.raises(ranp.BadInput, match="the loss of mini-batch 0 is inf"):
        ranp.score(blocks(), batches(), criterion="oracle", loss=infinite)


def test_a_file_of_more_units_than_there_are(tmp_path):
    with pytest.raises(Interrupted) as stopped:
        ranp.score(blocks(), batches(2), criterion="oracle", loss=stopping(5))
    some = stopped.value.scores
    some.about["loss"] = "cross_entropy"
    some.begun = np.ones(500)
    with pytest.raises(ranp.BadInput, match="have 500 units of a mini-batch, and"):
        ranp.score(blocks(), batches(2), criterion="oracle", resume=some)
