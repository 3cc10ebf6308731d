"""The probe: its numbers and its verdict."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from probed_nets import clouds, through
from torch import nn
from torch.nn import functional as F

from ranp_cli.api.class_losses import Tally
from ranp_cli.api.probe import Plan, lag_of, probe
from ranp_cli.reporting.probe_text import notes_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_weight_by_hand():
    """Loss (w x - y)^2 with x = 1, y = 0: a step of rate 0.25 halves w, so the loss is 1, 1/4, 1/16, 1/64."""

    def one(weight: float) -> nn.Module:
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, weight)
        return model

    data = torch.ones(1, 1), torch.zeros(1, 1)
    part = probe(one(1.0), one(2.0), data, steps=3, loss="mse", optimizer="sgd", lr=0.25)
    assert part["dense"] == {"first": 1.0, "last": 1 / 64, "curve": [1.0, 1 / 4, 1 / 16]}
    assert part["slim"] == {"first": 4.0, "last": 4 / 64, "curve": [4.0, 1.0, 1 / 4]}
    assert part["lag"] == (4 / 64 - 1 / 64) / (4 - 1 / 64)
    assert (part["steps"], part["optimizer"], part["lr"], part["batches"]) == (3, "sgd", 0.25, 1)
    assert part["seconds"].keys() == {"dense", "slim"}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, 0.05)),
        ("sgd-momentum", lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, 3e-3)),
        ("adamw", lambda p: torch.optim.AdamW(p, 3e-3)),
    ],
)
def test_it_is_a_plain_loop(name, make):
    """Two mini-batches in turn, default rates; `first` and `last` are means over both, without a step between."""
    data, dense, slim = clouds(), through(8), through(4)
    part = probe(dense, slim, data, steps=5, optimizer=name)
    for side, given in (("dense", dense), ("slim", slim)):
        model = through(given[0].out_features)
        optimizer = make(model.parameters())
        first = sum(F.cross_entropy(model(x), y).item() for x, y in data) / 2
        curve = []
        for step in range(5):
            x, y = data[step % 2]
            loss = F.cross_entropy(model(x), y)
            curve.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = sum(F.cross_entropy(model(x), y).item() for x, y in data) / 2
        assert [part[side]["first"], part[side]["last"], *part[side]["curve"]] == pytest.approx([first, last, *curve])
    assert Plan.of(5).optimizer == "adam"


@pytest.mark.parametrize(
    ("dense", "slim", "lag"),
    [
        ((2.0, 1.0), (2.0, 1.0), 0.0),
        ((2.0, 1.0), (2.0, 2.0), 1.0),
        ((2.0, 1.0), (2.0, 0.5), -0.5),
        ((0.1, 0.1), (2.1, 0.6), 0.25),  # a trained network: only the slim one has a way to go
        ((1.0, 1.0), (1.0, 1.0), None),
        ((1.0, 1.5), (1.0, 0.5), None),
        ((2.0, None), (2.0, 1.0), None),
    ],
)
def test_lag(dense, slim, lag):
    sides = [dict(zip(("first", "last"), ends, strict=True)) for ends in (dense, slim)]
    assert lag_of(*sides) == (None if lag is None else pytest.approx(lag))


def test_classes_by_hand():
    """Logits (0, log 3) give probabilities 1/4 and 3/4; the place of the ignored target counts for nothing."""
    output = torch.tensor([[0.0, math.log(3)]]).repeat(4, 1)
    tally = Tally()
    tally.add(output[:2], torch.tensor([0, 1]))
    tally.add([output[2:]], torch.tensor([1, -100]))  # a list of outputs
    zero, one = tally.by_class()
    assert zero == {"class": 0, "loss": pytest.approx(math.log(4)), "right": 0.0}
    assert one == {"class": 1, "loss": pytest.approx(math.log(4 / 3)), "right": 1.0}
    assert tally.worst() == zero
    ignoring = Tally(0)
    ignoring.add(output[:2], torch.tensor([0, 1]))
    assert [row["class"] for row in ignoring.by_class()] == [1]
    assert ignoring.worst() is None


def test_classes_of_volumes_and_of_one_channel():
    """255 marks nothing where there are fewer classes; an axis of one channel of the target is left out."""
    output = torch.zeros(1, 3, 2, 1, 1)
    tally = Tally()
    tally.add(output, torch.tensor([2, 255]).view(1, 1, 2, 1, 1))
    assert tally.by_class() == [{"class": 2, "loss": pytest.approx(math.log(3)), "right": 0.0}]
    binary = Tally()
    binary.add(torch.tensor([[math.log(3)], [math.log(3)]]), torch.tensor([0, 1]))
    assert [row["loss"] for row in binary.by_class()] == pytest.approx([math.log(4), math.log(4 / 3)])
    none = Tally()
    none.add(torch.zeros(2, 3), torch.zeros(2, 3))  # probabilities
    none.add(torch.zeros(2, 3), torch.zeros(5, dtype=torch.int64))
    assert none.worst() is None


def test_a_network_that_cannot_learn_is_warned_about_and_a_good_one_is_not():
    data = clouds()
    narrow = probe(through(32), through(1), data, steps=50, lr=0.03)
    good = probe(through(32), through(24), data, steps=50, lr=0.03)
    assert good["dense"] == narrow["dense"]
    assert good["lag"] < 0.1 < 0.6 < narrow["lag"]
    assert narrow["slim"]["worst_class"]["right"] == 0 < 0.9 < good["slim"]["worst_class"]["right"]
    assert notes_of(good) == []
    note = " ".join(notes_of(narrow))
    for word in ("more slowly", f"{narrow['lag']:.0%} of the way", "`min_neurons`", "`sparsity`", "method='flat'"):
        assert word in note


def outcome(steps: int, lag: float, right: float, dense_right: float = 0.9) -> dict[str, Any]:
    """The report of a probe in which class 2 is the worst."""
    sides = {
        name: {"first": 1.0, "last": 0.5, "curve": [], "worst_class": {"class": 2, "loss": 1.0, "right": share}}
        for name, share in (("dense", dense_right), ("slim", right))
    }
    return {"steps": steps, "optimizer": "adam", "lr": 3e-3, "lag": lag, **sides}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (outcome(200, 0.3, 0.5), []),
        (outcome(200, 0.4, 0.5), ["40% of the way to go (a warning above 33%)"]),
        (outcome(100, 0.4, 0.5), []),  # early, good networks lag too
        (outcome(100, 0.6, 0.5), ["probe=200 would say it more surely"]),
        (outcome(200, 0.3, 0.0), ["not begun to learn class 2: after 200 steps 0% of its places"]),
        (outcome(100, 0.3, 0.0), []),  # early, good networks have unlearned classes too
        (outcome(200, 0.3, 0.0, 0.05), []),  # the dense one has not learned it either
        (outcome(200, 0.4, 0.0), ["of the way to go", "not begun to learn class 2"]),
    ],
)
def test_what_is_warned_of(part, says):
    notes = notes_of(part)
    assert len(notes) == len(says)
    for note, words in zip(notes, says, strict=True):
        assert words in note
        assert "`min_neurons`" in note


def test_a_loss_that_is_not_finite_is_said_and_no_error():
    data = torch.ones(1, 1), torch.zeros(1, 1)
    part = probe(nn.Linear(1, 1), nn.Linear(1, 1), data, steps=80, loss="mse", optimizer="sgd", lr=1e4)
    for side in ("dense", "slim"):
        assert 0 < part[side]["diverged"] < 80
        assert len(part[side]["curve"]) == part[side]["diverged"]
        assert part[side]["last"] is None
    assert part["lag"] is None
    assert "`probe_lr` below 10000" in notes_of(part)[0]
    json.dumps(part, allow_nan=False)
    only_slim = {**part, "dense": {"first": 1.0, "last": 0.5, "curve": [1.0]}}
    assert "that of the dense one was" in notes_of(only_slim)[0]


def test_a_loss_that_does_not_fall_says_nothing():
    part = probe(nn.Linear(1, 1), nn.Linear(1, 1), (torch.zeros(1, 1), torch.ones(1, 1)), steps=1, loss="mse", lr=1e-30)
    assert part["lag"] is None or part["lag"] != 0
    same = nn.Linear(1, 1, bias=False)
    part = probe(same, same, (torch.zeros(1, 1), torch.ones(1, 1)), steps=2, loss="mse")
    assert part["lag"] is None
    assert "says nothing" in notes_of(part)[0]
