"""`--round-to auto`: which rounding a race chooses. Times are given by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_nets import batch, chain, net, weights

import ranp_cli as ranp
from ranp_cli.api.round_to import MULTIPLES
from ranp_cli.cli import run
from ranp_cli.costs import timing
from ranp_cli.costs.step_time import Step
from ranp_cli.pruning.mask import to_json

pytestmark = pytest.mark.usefixtures("one_thread")


def widths(work) -> list[int]:
    """Of the convolutions whose output is another's input."""
    return [p.shape[0] for p in work.module.parameters() if p.ndim == 5 and p.shape[2] == 3]


def likes(multiple: int, gain: float = 2.0):
    """A machine that runs a network `gain` times as fast where all its layers are multiples of a number."""
    return lambda work: 0.01 / (gain if all(n % multiple == 0 for n in widths(work)) else 1)


@pytest.mark.parametrize("multiple", MULTIPLES[1:])
def test_the_rounding_that_the_machine_likes_is_taken(multiple, clock):
    def seconds(work) -> float:
        """The least multiple that all layers have in common decides, so that no larger one is as good."""
        return 0.005 if np.gcd.reduce(widths(work)) == multiple else 0.01

    clock(seconds)
    options = {"sparsity": 0.5, "min_neurons": 1}
    found = ranp.prune(net(32), batch(), round_to="auto", **options)
    report = found.report.to_dict()["rounding"]
    assert (report["chosen"], report["by"], report["of"], report["runtime"]) == (
        multiple,
        "time",
        "forward pass",
        "torch",
    )
    by_hand = ranp.prune(net(32), batch(), round_to=multiple, **options)
    assert to_json(found.mask.to_dict()) == to_json(by_hand.mask.to_dict())
    assert found.mask.method["round_to"] == multiple
    rows = {row["round_to"]: row for row in report["raced"]}
    assert rows[multiple]["gain"] == 2
    assert rows[multiple]["kept"] == found.mask.kept
    assert rows[multiple]["macs"] == found.report.to_dict()["after"]["macs"]


@pytest.mark.parametrize("seconds", [lambda work: 0.01, weights], ids=["all alike", "the smallest is fastest"])
def test_without_a_gain_nothing_is_rounded(seconds, clock):
    """Where no rounding is as fast as any, or faster."""
    clock(lambda work: seconds(work) * (0.5 if np.gcd.reduce(widths(work)) == 1 else 1))
    found = ranp.prune(net(32), batch(), round_to="auto", sparsity=0.5)
    assert found.report.to_dict()["rounding"]["chosen"] == 1
    assert to_json(found.mask.to_dict()) == to_json(ranp.prune(net(32), batch(), sparsity=0.5).mask.to_dict())


def test_a_gain_within_the_noise_is_none(clock):
    """Multiples of 8 are twice as fast in most turns, and slower in every third."""
    turns = [0]

    def seconds(work) -> float:
        turns[0] += 1
        if np.gcd.reduce(widths(work)) < 8:
            return 0.01
        return 0.02 if turns[0] % 3 == 0 else 0.005

    clock(seconds)
    assert ranp.prune(net(32), batch(), round_to="auto", sparsity=0.5).report.to_dict()["rounding"]["chosen"] == 1


@pytest.mark.slow
def test_under_a_limit_of_time_importance_decides(clock, by_sparsity_alone):
    """The machine likes multiples of 8: within the same time they keep more."""
    clock(lambda work: weights(work) / (4 if np.gcd.reduce(widths(work)) % 8 == 0 else 1))
    found = ranp.prune(net(32), batch(), round_to="auto", budget="latency=20%").report.to_dict()
    rows = {row["round_to"]: row for row in found["rounding"]["raced"]}
    best = max(rows.values(), key=lambda row: row["importance"])
    assert (found["rounding"]["by"], found["rounding"]["chosen"]) == ("importance", best["round_to"])
    assert best["importance"] > rows[1]["importance"]
    assert found["budget"][0]["after"] <= found["budget"][0]["bound"]
    assert all(0 < row["importance"] < 1 for row in rows.values())


def test_what_is_raced_is_what_is_limited(clock):
    seen: set[type] = set()
    clock(lambda work: (seen.add(type(work)), weights(work))[1])
    found = ranp.prune(net(), batch(), round_to="auto", budget="step-time=50%", runtime="onnxruntime").report.to_dict()
    assert (found["rounding"]["of"], found["rounding"]["runtime"]) == ("training step", "torch")
    assert seen >= {Step, timing.Forward}


def test_in_another_runtime(clock):
    clock(likes(4))
    found = ranp.prune(net(16), batch(), round_to="auto", sparsity=0.5, runtime="onnxruntime", threads=1, min_neurons=1)
    report = found.report.to_dict()
    assert report["rounding"]["runtime"] == report["speed"]["runtime"] == "onnxruntime"
    assert report["rounding"]["chosen"] > 1


def test_only_what_fits_is_raced(clock):
    """Of layers of 8 neurons no multiple of 16 can stay; a rounding that changes nothing is not raced again."""
    clock(weights)
    raced = ranp.prune(chain(), batch(), round_to="auto", sparsity=0.3).report.to_dict()["rounding"]["raced"]
    assert {row["round_to"] for row in raced} <= {1, 4, 8}
    alone = ranp.prune(chain(), batch(), round_to="auto", sparsity=0.0).report.to_dict()["rounding"]["raced"]
    assert [row["round_to"] for row in alone] == [1]


def test_a_rounding_that_cannot_meet_the_budget_is_left_out(clock):
    clock(weights)
    with pytest.raises(ranp.Infeasible):
        ranp.prune(net(32), batch(), round_to=16, budget="macs=2%", min_neurons=1)
    raced = ranp.prune(net(32), batch(), round_to="auto", budget="macs=2%", min_neurons=1).report.to_dict()["rounding"][
        "raced"
    ]
    assert 1 in {row["round_to"] for row in raced}
    assert 16 not in {row["round_to"] for row in raced}
    with pytest.raises(ranp.Infeasible):
        ranp.prune(net(32), batch(), round_to="auto", budget="macs=0.01%")


@pytest.mark.parametrize("given", [0, -4, "most", 2.5, True, ""])
def test_what_is_no_rounding(given):
    with pytest.raises(ranp.BadInput, match=r"round_to=.*: give 1 or more, or auto"):
        ranp.prune(net(), batch(), sparsity=0.5, round_to=given)


def test_on_the_command_line(tmp_path, monkeypatch, clock, capsys):
    monkeypatch.chdir(tmp_path)
    clock(likes(8))
    torch.save(batch(), "calib.pt")
    words = "prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=32 --model-arg num_classes=3 --batch calib.pt --sparsity 0.5 -o slim.safetensors"
    assert run([*words.split(), "--round-to", "auto"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "rounding: multiples of 8, 2.00 times as fast as without; a forward pass in torch" in shown
    assert json.loads((tmp_path / "slim.mask.json").read_text())["method"]["round_to"] == 8
    (tmp_path / "same.yaml").write_text("round-to: auto\n")
    assert run([*words.split(), "--config", "same.yaml", "--runtime", "torch-channels-last"]) == 0
    assert "in torch-channels-last" in " ".join(capsys.readouterr().out.split())
    assert run([*words.split(), "--round-to", "8"]) == 0
    assert "rounding:" not in capsys.readouterr().out
    assert run([*words.split(), "--round-to", "some"]) == 2
    assert "--round-to some: give 1 or more, or auto" in capsys.readouterr().err
