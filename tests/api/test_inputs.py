"""`prune --input`: scored at the size of the batch, counted, budgeted and estimated at another."""

from __future__ import annotations

import json

import pytest
import small_nets
import torch

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.example import as_example
from ranp_cli.costs.memory import training_memory

LARGE = (1, 1, 24, 24, 24)


def net() -> torch.nn.Module:
    return small_nets.net(8)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x, target = small_nets.batch(16)
    return x[:, :, ::2, ::2, ::2], target[:, ::2, ::2, ::2]


@pytest.fixture(scope="module")
def large():
    return ranp.prune(net(), batch(), sparsity=0.5, inputs=LARGE)


def test_what_is_kept_does_not_depend_on_it(large):
    assert large.mask.layers == ranp.prune(net(), batch(), sparsity=0.5).mask.layers


def test_every_number_is_of_that_size(large):
    report = large.report.to_dict()
    for side, model in (("before", net()), ("after", large.model)):
        alone = ranp.profile(model, LARGE).to_dict()
        assert report[side] == alone["before"]
        assert report["memory"][side] == alone["memory"]["before"]
        later = "" if side == "before" else "_after"
        for row, other in zip(report["layers"], alone["layers"], strict=True):
            assert [row[f"{k}{later}"] for k in ("params", "macs", "output_elements")] == [
                other[k] for k in ("params", "macs", "output_elements")
            ]
    assert report["memory"]["before"]["samples"] == 1
    assert report["model"]["profiled_input"]["args"]["list"][0]["shape"] == list(LARGE)
    assert report["model"]["input"]["args"]["list"][0]["shape"] == list(batch()[0].shape)


def test_a_layer_of_the_training_mode_alone_is_counted_at_that_size_too():
    class Auxiliary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.aux = (torch.nn.Conv3d(a, b, 1) for a, b in ((1, 6), (6, 3), (6, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
            y = self.first(x)
            return [self.head(y), self.aux(y)] if self.training else self.head(y)

    torch.manual_seed(0)
    rows = ranp.prune(Auxiliary(), batch(), sparsity=0.5, inputs=LARGE, allow_less=True).report.to_dict()["layers"]
    assert [row["macs"] for row in rows] == [24**3 * n for n in (6, 18, 18)]


def test_a_budget_is_met_at_that_size():
    found = ranp.prune(
        net(), batch(), budget=["train-mem=40%", "macs=30%"], inputs=LARGE, optimizer="adam", batch_size=2
    )
    lines = {line["kind"]: line for line in found.report.to_dict()["budget"]}
    example = as_example(LARGE).with_batch(2)
    assert lines["train-mem"]["before"] == training_memory(net(), example, "adam").peak
    assert lines["train-mem"]["after"] == training_memory(found.model, example, "adam").peak
    assert all(line["after"] <= line["bound"] for line in lines.values())
    assert max(line["after"] / line["bound"] for line in lines.values()) > 0.9


def test_on_the_command_line_and_from_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(batch(), "calib.pt")
    words = "prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3"
    more = "--batch calib.pt --sparsity 0.5 --input 1x1x32x32x32 --json - -o slim.safetensors"
    assert run([*words.split(), *more.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    kept = ranp.profile("slim.safetensors").to_dict()
    assert kept["after"] == told["after"]
    assert kept["model"]["profiled_input"] == told["model"]["profiled_input"]
    anew = ranp.profile("slim.safetensors", (1, 1, 32, 32, 32), trust=True).to_dict()
    assert anew["before"] == told["after"]
    small = ranp.profile("slim.safetensors", (1, 1, 16, 16, 16), trust=True).to_dict()
    assert small["before"]["macs"] == anew["before"]["macs"] // 8
    assert "profiled_input" not in small["model"]
    assert ranp.profile("slim.safetensors", batch_size=1, trust=True).to_dict()["before"] == told["after"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("1x3x32x32x32", "on an input of shape 1x3x32x32x32"),
        ("1x1xa", "give sizes joined by x"),
        ("1x1x1x1x1", "shape"),
    ],
)
def test_a_shape_that_the_model_does_not_take_is_told_before_scoring(given, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(batch(), "calib.pt")
    monkeypatch.setattr("ranp_cli.api.prune.take_scores", None)  # is not reached
    words = f"prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --batch calib.pt --sparsity 0.5 --input {given}"
    assert run(words.split()) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_guessed_input_is_said_to_be_one(large):
    guessed, given = (ranp.profile(net(), shape).to_dict()["model"] for shape in (None, LARGE))
    assert guessed["input_guessed"]
    assert "input_guessed" not in given
    mask = large.mask.to_dict()
    assert "input_guessed" not in ranp.refine(net(), mask, full=True).report.to_dict()["model"]
    del mask["model"]["input"]
    blind = ranp.refine(net(), mask, full=True)
    assert blind.report.to_dict()["model"]["input_guessed"]
    assert "input_guessed" not in blind.mask.to_dict()["model"]


def test_compare_says_which_input_its_rows_are_of():
    told = ranp.compare(net(), batch(), sparsity=0.5, methods=["random"], inputs=LARGE).report.to_dict()["model"]
    assert told["profiled_input"]["args"]["list"][0]["shape"] == list(LARGE)
