"""Networks that fit a budget, gates that say by how much, counts that hardware likes."""

from __future__ import annotations

import json

import laws
import pytest
import torch
import zoo
from small_nets import batch, net
from torch import nn

import ranp_cli as ranp
from ranp_cli.api import budget_search
from ranp_cli.cli import run
from ranp_cli.core.numbers import shown
from ranp_cli.costs.budget import limit


@pytest.mark.parametrize(
    "method", ["ranp", *(pytest.param(m, marks=pytest.mark.slow) for m in ("random", "layerwise", "snip"))]
)
@pytest.mark.parametrize(
    "budget",
    [
        ["macs=20%"],
        pytest.param(["params=30K"], marks=pytest.mark.slow),
        ["train-mem=50%"],
        ["forward-mem=60%", "macs=50%"],
    ],
)
def test_never_over_and_close_under(budget, method):
    found = ranp.prune(net(16), batch(16), budget=budget, method=method)
    lines = found.report.to_dict()["budget"]
    assert all(line["after"] <= line["bound"] for line in lines)
    if method != "layerwise":  # that takes a neuron of every layer at once
        assert max(line["after"] / line["bound"] for line in lines) > 0.98


def test_a_slightly_larger_network_is_over():
    found = ranp.prune(net(16), batch(16), budget="macs=20%", min_neurons=1)
    line = found.report.to_dict()["budget"][0]
    n = found.mask.total
    more = ranp.prune(net(16), batch(16), sparsity=1 - (round((1 - found.mask.requested) * n) + 1) / n, min_neurons=1)
    assert more.report.to_dict()["after"]["macs"] > line["bound"]


class Uneven(nn.Module):
    """Neurons at full resolution cost as much memory as many below; the scores want those above."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.top, self.pool = nn.Conv3d(1, 6, 3, padding=1), nn.AvgPool3d(4)
            self.deep, self.deeper = nn.Conv3d(6, 40, 3, padding=1), nn.Conv3d(40, 40, 3, padding=1)
            self.head = nn.Conv3d(40, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deeper(self.deep(self.pool(self.top(x).relu())).relu()).relu()
        return nn.functional.interpolate(self.head(x), scale_factor=4.0)


@pytest.mark.parametrize("method", ["vanilla", pytest.param("random", marks=pytest.mark.slow)])
@pytest.mark.parametrize("budget", [pytest.param("params=12%", marks=pytest.mark.slow), "macs=25%", "forward-mem=70%"])
def test_no_neuron_that_stays_out_would_fit(budget, method):
    """By trying each: the budget is full, or every single one of them is too much."""
    model = Uneven()
    found = ranp.prune(model, batch(16), budget=budget, method=method)
    line = found.report.to_dict()["budget"][0]
    assert line["after"] <= line["bound"]
    if line["after"] > 0.995 * line["bound"]:
        return
    mask, out = found.mask.to_dict(), 0
    for name, layer in mask["layers"].items():
        for neuron in sorted(set(range(layer["neurons"])) - set(layer["kept"])):
            more = mask | {"layers": mask["layers"] | {name: layer | {"kept": sorted([*layer["kept"], neuron])}}}
            report = ranp.profile(ranp.refine(model, more), batch(16)[0].shape).to_dict()
            costs = report["before"] | {"forward-mem": report["memory"]["before"]["forward_peak_bytes"]}
            assert costs[line["kind"]] > line["bound"], (name, neuron)
            out += 1
    assert out


def test_the_search_is_not_ended_by_one_neuron(monkeypatch):
    """A control: with the threshold alone, far less of the budget is used."""
    full = [ranp.prune(Uneven(), batch(16), budget="train-mem=60%").mask.kept]
    monkeypatch.setattr(budget_search.GreedyFill, "candidate", lambda *args: None)
    full.append(ranp.prune(Uneven(), batch(16), budget="train-mem=60%").mask.kept)
    assert full[0] > full[1] + 5


def test_what_costs_enough_is_left_alone():
    found = ranp.prune(net(16), batch(16), budget={"macs": "100%"})
    assert found.mask.kept == found.mask.total


def test_what_cannot_be_met_names_the_closest():
    with pytest.raises(ranp.Infeasible) as error:
        ranp.prune(net(16), batch(16), budget=["macs=0.001%", "params=50%"])
    assert "no network meets macs=0.001%" in str(error.value)
    assert "params" not in str(error.value).partition("has")[0]
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("budget", "given", "advice"),
    [
        ("macs=0.001%", {}, "raise the budget"),
        ("macs=0.5%", {"round_to": 8}, "raise the budget, or lower `round_to`"),
        ("params=0.1%", {"min_neurons": 4, "batch_size": 8}, "raise the budget, or lower `min_neurons`"),
        ("macs=1%", {"keep": "encoders.1.*"}, "raise the budget, or leave out `keep`"),
        ("forward-mem=1KiB", {"optimizer": "adam"}, "raise the budget, or lower `batch_size`"),
        (
            ["macs=1%", "train-mem=1KiB"],
            {"optimizer": "adam", "min_neurons": 2},
            "raise the budget, lower `min_neurons`, lower `batch_size`, or give optimizer='sgd'",
        ),
        ("train-mem=1KiB", {"batch_size": 1}, "raise the budget"),
    ],
)
def test_what_cannot_be_met_names_what_can_help(budget, given, advice):
    with pytest.raises(ranp.Infeasible) as error:
        ranp.prune(net(16), batch(16), budget=budget, method="random", **given)
    assert str(error.value).endswith(f"; {advice}")


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("macs=many", "give a size such as 40G or 1.5M"),
        ("macs=8GiB", "give a size such as 40G or 1.5M"),
        ("train-mem=-1", "give a size such as 8GiB"),
        ("params=120%", "give a size"),
        ("memory=1G", "no budget 'memory'"),
        (["macs=1G", "macs=2G"], "given twice"),
    ],
)
def test_bad_budgets(budget, says):
    with pytest.raises(ranp.BadInput) as error:
        ranp.prune(net(16), batch(16), budget=budget)
    assert says in str(error.value)
    with pytest.raises(ranp.BadInput, match="give either"):
        ranp.prune(net(16), batch(16), budget="macs=50%", sparsity=0.5)


@pytest.mark.parametrize(
    ("text", "value"), [("40G", 40e9), ("1.5m", 1.5e6), ("1e9", 1e9), ("8GiB", 8 * 2**30), ("300 MB", 3e8), ("12", 12)]
)
def test_sizes(text, value):
    assert limit("train-mem", text).of(1) == value
    assert limit("macs", "25%").of(400) == 100


def test_shown():
    assert shown("macs", 41.24e9) == "41.24 G"
    assert shown("train-mem", 3 * 2**29) == "1.5 GiB"


# -- rounding


@pytest.mark.parametrize("name", ["chain", "unet_skip", "residual", "grouped", "squeeze_excite", "channel_shuffle"])
@pytest.mark.parametrize("multiple", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_layers_keep_multiples(name, multiple, tmp_path):
    case = next(c for c in zoo.CASES if c.name == name)
    model, x = zoo.build(case), torch.randn(case.shape)
    options = {"loss": zoo.loss, "sparsity": 0.5, "allow_less": True}
    found = ranp.prune(model, zoo.batches(case), round_to=multiple, **options)
    plain = ranp.prune(model, zoo.batches(case), **options)
    for layer in found.mask.layers:
        kept, whole = len(found.mask.layers[layer]["kept"]), found.mask.layers[layer]["neurons"]
        if whole >= multiple and layer not in found.mask.fixed and whole % multiple == 0:
            assert kept % multiple == 0
    assert abs(found.mask.kept - plain.mask.kept) <= multiple * len(found.mask.layers)
    laws.slim_is_masked(model, found, x)
    laws.counts_agree(found, x)


def test_the_best_are_added_and_the_worst_dropped():
    """A layer of 8 with scores 8..1: 3 kept become 4, or 5 become 4, by its own order."""
    model = nn.Sequential(nn.Conv3d(1, 8, 1, bias=False), nn.Conv3d(8, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(8.0, 0, -1).view(8, 1, 1, 1, 1))
    for sparsity in (0.56, 0.45):
        mask = ranp.prune(model, batch(16), loss=lambda y, t: y.square().mean(),
                          sparsity=sparsity, method="magnitude", round_to=4, allow_less=True).mask  # fmt: skip
        assert mask.layers["0"]["kept"] == [0, 1, 2, 3]


def test_rounding_does_not_break_a_budget():
    found = ranp.prune(net(16), batch(16), budget="train-mem=80%", round_to=8)
    line = found.report.to_dict()["budget"][0]
    assert line["after"] <= line["bound"]
    assert {len(v["kept"]) % 8 for k, v in found.mask.layers.items() if k != "head" and v["neurons"] >= 8} == {0}


# -- gates


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    torch.save(batch(16), folder / "calib.pt")
    words = "prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3"
    files = ["--batch", str(folder / "calib.pt"), "-o", str(folder / "slim.safetensors"), "-q"]
    assert run([*words.split(), "--budget", "macs=20%", *files]) == 0
    return str(folder / "slim.safetensors")


DENSE = (
    "--model ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3".split()
)


def test_gates(slim, capsys):
    report = ranp.profile(slim).to_dict()
    macs, peak = report["after"]["macs"], report["memory"]["after"]["train_peak_bytes"]
    assert run(["profile", slim, "--max-macs", str(macs), "--max-train-mem", str(peak)]) == 0
    capsys.readouterr()
    assert run(["profile", slim, "--max-macs", str(macs // 2), "--max-params", "1", "--max-train-mem", f"{peak}B"]) == 5
    out, err = capsys.readouterr()
    assert "multiply-adds" in out
    lines = err.splitlines()
    assert [line.split()[2] for line in lines] == ["macs", "params"]
    assert "(100.0%)" in lines[0]


def test_gates_of_another_step(slim, capsys):
    words = [
        "profile",
        slim,
        *DENSE,
        "--optimizer",
        "adam",
        "--batch-size",
        "8",
        "--json",
        "-",
        "--max-train-mem",
        "1KiB",
    ]
    assert run(words) == 5
    document = json.loads(capsys.readouterr().out)
    assert document["memory"]["before"]["optimizer"] == "adam"
    assert document["memory"]["before"]["samples"] == 8


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--max-macs 50%", "--max-macs 50%: give a size such as 40G or 1.5M"),
        ("--max-train-mem abc", "--max-train-mem abc: give a size such as 8GiB"),
        ("--optimizer lbfgs", "unknown optimizer 'lbfgs'"),
        ("--batch-size 0", "--batch-size 0: give 1 or more samples"),
        ("--html page.txt", "--html page.txt: writes a page; give a .html name"),
    ],
)
def test_bad_gates(given, says, slim, capsys):
    assert run(["profile", slim, *given.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ranp: error: {says}")
