"""`compare --fit`: rows trained under several seeds, cells on file, tables cut to one size, and the controls."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import laws
import numpy as np
import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.comparison.over_seeds import joined, mark_best, mean_of, summary
from ranp_cli.api.comparison.rows import shuffled
from ranp_cli.api.comparison.training import HIDDEN, alone, metrics_of
from ranp_cli.cli import run
from ranp_cli.core.errors import FitsInterrupted
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.models.unet3d import unet3d
from ranp_cli.pruning.select import select

FIT = """
import os, torch, torch.nn.functional as F

def size(model, seed):
    return sum(p.numel() for p in model.parameters()) + 10 * seed

def two(model, seed):
    return {"dice": 0.5 + seed / 10, "size": size(model, seed)}

def steps(model, seed):
    x, y = torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 8, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return -loss.item()

def so_far():
    with open("calls.txt") as file:
        return len(file.readlines())

def counted(model, seed):
    with open("calls.txt", "a") as file:
        file.write(f"{os.environ.get('WORLD_SIZE')}\\n")
    return size(model, seed)

def stops_at_3(model, seed):
    counted(model, seed)
    if so_far() == 3:
        raise KeyboardInterrupt
    return size(model, seed)

def breaks_at_3(model, seed):
    counted(model, seed)
    if so_far() == 3:
        raise ValueError("no data")
    return size(model, seed)

def text(model, seed): return "good"
def nothing(model, seed): return None
def empty(model, seed): return {}
def other(model, seed): return {"a": 1.0} if seed == 0 else {"b": 1.0}
def nan(model, seed): return float("nan") if seed == 1 else 0.25
def one(model): return 1.0
value = 3
"""
UNET = "ranp_cli.models.unet3d:unet3d"
ARGS = {"layers": 7, "width": 4, "num_classes": 3}
WORDS = ["compare", UNET, "--batch", "calib.pt", *(w for k, v in ARGS.items() for w in ("--model-arg", f"{k}={v}"))]


def net(width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(**{**ARGS, "width": width})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, 8, 8, 8, generator=g), torch.randint(3, (2, 8, 8, 8), generator=g)


def parameters(model: nn.Module, seed: int) -> float:
    return float(sum(p.numel() for p in model.parameters()) + 10 * seed)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "fit.py").write_text(FIT)
    torch.save(batch(), tmp_path / "calib.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table_of(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(name).read_text())))


def calls() -> int:
    return len(Path("calls.txt").read_text().splitlines())


# -- numbers


def test_mean_deviation_and_worst_by_hand():
    assert summary([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": math.sqrt(7), "worst": 1.0, "values": [1.0, 2.0, 6.0]}
    assert summary([2.0])["std"] is None
    unknown = summary([math.nan, 1.0])
    assert all(math.isnan(unknown[key]) for key in ("mean", "std", "worst"))


def test_the_mean_of_rows_keeps_whole_numbers_whole():
    rows = [{"kept": 3, "x": 0.1, "ok": True, "floored": ["a"], "name": "n", "layers": [1, 5]},
            {"kept": 6, "x": 0.4, "ok": False, "floored": ["b", "a"], "name": "n", "layers": [3, 5]}]  # fmt: skip
    assert mean_of(rows) == {"kept": 4, "x": 0.25, "ok": False, "floored": ["a", "b"], "name": "n", "layers": [2, 5]}


def test_nan_and_the_full_network_are_never_the_best():
    def row(method, mean, level=0.5):
        return {"method": method, "sparsity": {"requested": level}, "accuracy": {"mean": mean}}

    rows = [row("full", 9.0, 0.0), row("a", math.nan), row("b", 0.1), row("c", 0.2), row("a", 5.0, 0.9)]
    mark_best(rows)
    assert [r["accuracy"]["best"] for r in rows] == [False, False, False, True, False]  # alone at 0.9: no contest


def test_rows_are_the_cells_of_all_seeds():
    cells = [{"row": {"method": "a", "kept": k}, "metrics": {"m": v}, "seed": s, "seconds": 1.0} for s, k, v in ((0, 4, 1.0), (1, 6, None))]  # fmt: skip
    row = joined(cells, "m")
    assert row["kept"] == 5
    assert [each["kept"] for each in row["seeds"]] == [4, 6]
    assert row["accuracy"]["values"][0] == 1.0
    assert math.isnan(row["accuracy"]["mean"])


@pytest.mark.parametrize("value", [1, 1.5, np.float32(1.5), torch.tensor(1.5), torch.tensor([1.5]), {"a": 1}, math.nan])
def test_what_fit_may_return(value):
    assert all(isinstance(v, float) for v in metrics_of(value).values())


@pytest.mark.parametrize("value", ["1", None, True, [1.0], {}, {1: 1.0}, {"a": "x"}, np.ones(2), torch.ones(2), 1j])
def test_what_fit_may_not_return(value):
    with pytest.raises(ranp.BadInput, match="fit returned"):
        metrics_of(value)


# -- training


def test_every_row_is_trained_for_every_seed_and_the_caller_sees_nothing():
    seen = []

    def fit(model, seed):
        assert model.training
        assert torch.is_grad_enabled()
        seen.append((seed, float(torch.rand(1)), id(model)))
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        return parameters(model, seed)

    model = net().eval()
    before = laws.snapshot(model)
    with torch.no_grad():
        table = ranp.compare(model, batch(), sparsity=0.5, methods=["full", "ranp-f"], fit=fit, seeds=3, seed=4)
    laws.unchanged(model, before)
    assert [s for s, _, _ in seen] == [4, 4, 5, 5, 6, 6]
    assert all(
        a[1] == b[1] for a, b in zip(seen[::2], seen[1::2], strict=True)
    )  # drawn from the seed, whatever came before
    assert id(model) not in {i for *_, i in seen}
    dense = sum(p.numel() for p in model.parameters())
    full, slim = table.rows
    assert full["accuracy"]["values"] == [dense + 40.0, dense + 50.0, dense + 60.0]
    assert (full["accuracy"]["mean"], full["accuracy"]["std"], full["accuracy"]["worst"]) == (
        dense + 50,
        10,
        dense + 40,
    )
    assert slim["accuracy"]["values"] == [each["after"]["params"] + 10.0 * each["seed"] for each in slim["seeds"]]
    assert len({tuple(each["layers_kept"]) for each in slim["seeds"]}) == 1  # one object: one set of weights, one cut


def test_a_factory_is_built_scored_and_cut_anew_under_each_seed():
    first = {}

    def fit(model, seed):
        first.setdefault(seed, []).append(next(model.parameters()).flatten()[0].item())
        return 0.0

    for model in (UNET, unet3d):
        first.clear()
        table = ranp.compare(
            model, batch(), sparsity=0.6, methods=["full", "ranp-f"], model_args=ARGS, fit=fit, seeds=3
        )
        assert len({values[0] for values in first.values()}) == 3
        assert len({tuple(each["layers_kept"]) for each in table.rows[1]["seeds"]}) > 1
        cut = ranp.prune(UNET, batch(), sparsity=0.6, model_args=ARGS, seed=2, allow_less=True).mask
        assert table.rows[1]["seeds"][2]["layers_kept"] == [len(v["kept"]) for v in cut.layers.values()]


@pytest.mark.parametrize("init", ["keep", "glorot"])
def test_weights_that_rows_are_trained_from(init):
    seen = []

    def fit(model, seed):
        seen.append(model.head.weight.detach().clone())
        return 0.0

    ranp.compare(net(), batch(), sparsity=0.5, methods=["full"], fit=fit, seeds=1, init=init)
    assert torch.equal(seen[0], net().head.weight) == (init == "keep")


def test_metrics_of_a_dict(here):
    table = ranp.compare(
        net(), batch(), sparsity=0.5, methods=["full", "ranp-f", "random"], fit="fit.py:two", seeds=2, metric="size"
    )
    assert table.rows[0]["accuracy"]["metric"] == "size"
    assert table.rows[0]["accuracy"]["all"]["dice"] == summary([0.5, 0.6])
    lines = list(csv.DictReader(io.StringIO(table.csv())))
    assert float(lines[0]["dice_mean"]) == 0.55
    assert float(lines[1]["mean"]) == table.rows[1]["accuracy"]["mean"]
    assert sum(line["best"] == "True" for line in lines) == 1
    assert table.markdown().count("**") == 2
    assert "| size |" in table.markdown()
    first = ranp.compare(net(), batch(), sparsity=0.5, methods=["full"], fit="fit.py:two", seeds=1)
    assert first.rows[0]["accuracy"]["metric"] == "dice"
    with pytest.raises(ranp.BadInput, match="metric='sise': fit returns no such number; did you mean 'size'"):
        ranp.compare(net(), batch(), sparsity=0.5, methods=["full"], fit="fit.py:two", seeds=1, metric="sise")


def test_a_real_training_on_the_command_line(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f,random", "--fit", "fit.py:steps", "--seeds", "2"]
    assert run([*words, "--json", "-", "--csv", "t.csv", "--markdown", "t.md", "--plot", "p.svg"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)["rows"]
    assert all(len(row["accuracy"]["values"]) == 2 for row in rows)
    assert "over 2 seeds" in err
    assert len(Path("unet3d.cells.jsonl").read_text().splitlines()) == 1 + 3 * 2  # the default name: the module's
    picture = Path("p.svg").read_text()
    assert all(word in picture for word in ("multiply-adds (G)", "neuron sparsity", "ranp-flops", "2 seeds"))
    assert run([*words, "--resume", "unet3d.cells.jsonl", "--csv", "again.csv", "-q"]) == 0
    assert Path("t.csv").read_text() == Path("again.csv").read_text()


def test_nan_is_shown_and_json_stays_strict(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--fit", "fit.py:nan", "--seeds", "2"]
    assert run([*words, "--json", "-", "--csv", "t.csv"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["rows"]
    assert rows[0]["accuracy"]["values"] == [0.25, None]
    assert "nan" in err
    assert run([*words, "--resume", "unet3d.cells.jsonl", "--csv", "again.csv", "-q"]) == 0
    assert Path("t.csv").read_text() == Path("again.csv").read_text()


# -- cells on file


def test_ctrl_c_keeps_the_cells_and_a_resumed_run_trains_the_rest(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--seeds", "2", "-q"]
    assert run([*words, "--fit", "fit.py:stops_at_3", "-o", "c.jsonl"]) == 130
    line = "ranp: error: stopped by Ctrl-C; 2 of 4 cells are kept in c.jsonl: go on with --resume c.jsonl\n"
    assert capsys.readouterr().err == line
    assert calls() == 3
    assert run([*words, "--fit", "fit.py:stops_at_3", "--resume", "c.jsonl", "--csv", "t.csv"]) == 0
    assert calls() == 3 + 2
    assert run([*words, "--fit", "fit.py:size", "-o", "whole.jsonl", "--csv", "whole.csv"]) == 0
    means = [
        [(line["method"], line["mean"], line["macs"]) for line in table_of(name)] for name in ("t.csv", "whole.csv")
    ]
    assert means[0] == means[1]


def test_ctrl_c_in_python(here):
    with pytest.raises(KeyboardInterrupt) as stopped:
        ranp.compare(net(), batch(), sparsity=0.5, methods=["full"], fit="fit.py:stops_at_3", cells="c.jsonl")
    assert isinstance(stopped.value, FitsInterrupted)
    assert (stopped.value.kept, stopped.value.total) == (2, 3)


def test_an_error_of_fit_names_the_cell_and_the_line(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--seeds", "2", "-o", "c.jsonl"]
    assert run([*words, "--fit", "fit.py:breaks_at_3"]) == 2
    err = capsys.readouterr().err
    assert "full at sparsity 0.0, seed 1: ValueError: no data (at fit.py:38); 2 of 4 cells are kept" in err
    assert "go on with --resume c.jsonl" in err
    assert err.count("\n") == 1


def test_a_torn_last_line_is_dropped_and_trained_again(here):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f", "--fit", "fit.py:counted", "--seeds", "2", "-q"]
    assert run([*words, "-o", "c.jsonl", "--csv", "a.csv"]) == 0
    whole = Path("c.jsonl").read_bytes()
    Path("c.jsonl").write_bytes(whole[:-20])
    assert run([*words, "--resume", "c.jsonl", "--csv", "b.csv"]) == 0
    assert calls() == 4 + 1
    assert len(Path("c.jsonl").read_bytes().splitlines()) == 5
    assert [json.loads(line).get("seed") for line in Path("c.jsonl").read_text().splitlines()] == [None, 0, 0, 1, 1]


def test_more_seeds_methods_and_sparsities_may_follow(here):
    words = [*WORDS, "--fit", "fit.py:counted", "-q"]
    assert run([*words, "--sparsity", "0.5", "--methods", "ranp-f", "--seeds", "1", "-o", "c.jsonl"]) == 0
    assert (
        run([*words, "--sparsity", "0.5,0.7", "--methods", "ranp-f,full", "--seeds", "2", "--resume", "c.jsonl"]) == 0
    )
    assert calls() == 1 + 5


@pytest.fixture
def trained(here):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "ranp-f", "--fit", "fit.py:size", "--seeds", "1", "-q"]
    assert run([*words, "-o", "c.jsonl"]) == 0
    return words


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["-o", "c.jsonl"], "c.jsonl exists, and hours of work are not overwritten; go on with --resume c.jsonl"),
        (["-o", "d.jsonl", "--resume", "c.jsonl"], "--resume goes on in the file that it names; leave out -o"),
        (["--resume", "none.jsonl"], "--resume none.jsonl: no such file"),
        (["--resume", "fit.py"], "fit.py, line 1: is no header of ranp compare with --fit"),
        (["--resume", "c.jsonl", "--lambda", "5"], "its cells were trained with --lambda 11.0, not with --lambda 5.0"),
        (["--resume", "c.jsonl", "--init", "glorot"], "trained with --init keep, not with --init glorot"),
        (["--resume", "c.jsonl", "--model-arg", "in_channels=1"], "trained with --model-arg"),
        (["--resume", "c.jsonl", "--fit", "fit.py:two"], "trained with --fit fit.py:size, not with --fit fit.py:two"),
        (["-o", "c.json"], "-o c.json: ranp compare writes .jsonl"),
        (["-o", "a.jsonl", "-o", "b.jsonl"], "-o: the cells lie in one file"),
    ],
)  # fmt: skip
def test_files_that_do_not_go(trained, more, says, capsys):
    before = Path("c.jsonl").read_bytes()
    assert run([*trained, *more]) == 2
    assert says in capsys.readouterr().err
    assert Path("c.jsonl").read_bytes() == before
    assert run([*trained, "--resume", "c.jsonl"]) == 0  # the valid neighbour


def test_cells_of_other_weights_or_another_network_are_not_gone_on_with(here):
    same = {"sparsity": 0.5, "methods": ["ranp-f"], "fit": "fit.py:size", "seeds": 1}
    ranp.compare(net(), batch(), cells="c.jsonl", **same)
    ranp.compare(net(), batch(), resume="c.jsonl", **same)
    shaken = net()
    with torch.no_grad():
        shaken.head.weight.add_(1)
    with pytest.raises(ranp.BadInput, match="cut from other weights"):
        ranp.compare(shaken, batch(), resume="c.jsonl", **same)
    with pytest.raises(ranp.BadInput, match="of another network"):
        ranp.compare(net(8), batch(), resume="c.jsonl", **same)


def test_a_line_that_is_no_cell_is_named(trained, capsys):
    with open("c.jsonl", "a") as file:
        file.write('{"method": "full"}\n')
    assert run([*trained, "--resume", "c.jsonl"]) == 2
    assert "c.jsonl, line 3: is no cell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--fit", "fit.py:text"], "fit returned an object of type str; wants a number (higher is better)"),
        (["--fit", "fit.py:nothing"], "fit returned None"),
        (["--fit", "fit.py:empty"], "fit returned an empty dict"),
        (["--fit", "fit.py:other"], "seed 1: fit returned a dict with the keys 'b', and a dict with the keys 'a' before"),
        (["--fit", "fit.py:one"], "cannot be called as fit(model, seed)"),
        (["--fit", "fit.py:value"], "wants a function fit(model, seed)"),
        (["--fit", "fit.py:sise"], "there is no 'sise' in it; did you mean 'size'"),
        (["--fit", "dice"], "--fit dice: wants file.py:fit"),
        (["--fit", "fit.py:size", "--seeds", "0"], "--seeds 0: give 1 or more"),
        (["--fit", "fit.py:size", "--init", "xavier"], "unknown init 'xavier'"),
        (["--fit", "fit.py:size", "--methods", "ranp-f,ranp"], "method 'ranp-flops' is named twice"),
        (["--seeds", "2"], "--seeds has no effect without --fit"),
        (["-o", "c.jsonl"], "-o has no effect without --fit"),
        (["--match", "flops"], "unknown match 'flops'"),
        (["--methods", "ranp-f,width"], "method 'width' needs --width-arg NAME"),
        (["--width-arg", "width"], "--width-arg names the argument of method 'width'"),
        (["--methods", "width", "--width-arg", "width"], "is cut to the size of the first one"),
        (["--methods", "ranp-f,width", "--width-arg", "widht"], "takes no argument 'widht'; did you mean 'width'"),
        (["--methods", "ranp-f,width", "--width-arg", "softmax"], "--width-arg softmax: is False; wants a whole number"),
        (["--methods", "layerwise,ranp-f", "--match", "macs", "--sparsity", "max"], "has no sparsity max"),
        (["--methods", "shuffle:full"], "only what ranks neurons can be shuffled"),
        (["--methods", "shuffle:rnap-f"], "did you mean 'ranp-f'"),
    ],
)  # fmt: skip
def test_bad_input(here, more, says, capsys):
    words = [*WORDS, *([] if "--methods" in more else ["--methods", "ranp-f"]), "--sparsity", "0.5", "-q"]
    assert run([*words, *more]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_options_of_a_fit_in_a_config_file(here):
    (here / "config").mkdir()
    (here / "config" / "fit.py").write_text(FIT)
    text = f"model: {UNET}\nmodel-arg: {json.dumps(ARGS)}\nbatch: ../calib.pt\nsparsity: 0.5\nmethods: ranp-f\nfit: fit.py:size\nseeds: 1\n"
    (here / "config" / "c.yaml").write_text(text)
    assert (
        run(["compare", "--config", "config/c.yaml", "-o", "c.jsonl", "-q"]) == 0
    )  # inputs from the file's folder, outputs here
    assert Path("c.jsonl").exists()


# -- cut to one size


@pytest.mark.parametrize(("match", "key"), [("macs", "macs"), ("mem", "activation_bytes"), ("params", "params")])
def test_matched_rows_have_the_most_that_is_not_above_the_first(match, key):
    methods = ["full", "ranp-m", "random", "layerwise", "flat", "snip", "shuffle:random"]
    table = ranp.compare(net(4), batch(), sparsity=0.6, methods=methods, match=match)
    bound = table.rows[1]["after"][key]
    n = table.report.parts["neurons"]["total"]
    levels = [1 - (k + 0.5) / n for k in range(n)]
    every = ranp.compare(net(4), batch(), sparsity=levels, methods=["random", "layerwise", "flat"]).rows
    for row in table.rows[2:]:
        assert row["matched"] == {"to": "ranp-mem", "resource": match, "bound": bound}
        assert row["after"][key] <= bound
        rivals = [r["after"][key] for r in every if r["method"] == row["method"] and r["after"][key] <= bound]
        assert not rivals or row["after"][key] == max(rivals)
    assert "matched" not in table.rows[1]
    assert "of ranp-mem" in table.markdown()
    assert table.csv().splitlines()[2].split(",")[-3:] == ["", "", ""]
    assert table.csv().splitlines()[3].split(",")[-3:] == ["ranp-mem", match, str(bound)]
    plain = ranp.compare(net(4), batch(), sparsity=0.6, methods=methods)
    assert any(row["after"][key] > bound for row in plain.rows[2:])  # without it they are not


def test_matched_per_seed():
    table = ranp.compare(
        UNET,
        batch(),
        model_args=ARGS,
        sparsity=0.5,
        methods=["ranp-f", "random"],
        match="macs",
        fit=parameters,
        seeds=2,
        min_neurons=1,
    )
    for first, second in zip(*(row["seeds"] for row in table.rows), strict=True):
        assert second["matched"]["bound"] == first["after"]["macs"] >= second["after"]["macs"]
    assert len({each["matched"]["bound"] for each in table.rows[1]["seeds"]}) == 2


def macs_of(width: int) -> int:
    return ranp.profile(unet3d(**{**ARGS, "width": width}), (1, 1, 8, 8, 8)).to_dict()["before"]["macs"]


@pytest.mark.parametrize("model", [UNET, unet3d])
def test_width_is_the_widest_that_is_not_above(model):
    table = ranp.compare(
        model, batch(), model_args={**ARGS, "width": 8}, sparsity=0.5, methods=["ranp-f", "width"], width_arg="width"
    )
    first, row = table.rows
    value = row["width"]["value"]
    assert row["width"] == {"argument": "width", "value": value, "of": 8}
    assert row["after"]["macs"] == macs_of(value) <= first["after"]["macs"] < macs_of(value + 1)
    assert row["kept"] == sum(row["layers_kept"])


def even(width: int = 8) -> nn.Module:
    if width % 2:
        raise ValueError("an even width is wanted")
    return unet3d(**{**ARGS, "width": width})


def test_widths_that_the_factory_does_not_take_are_passed_over():
    table = ranp.compare(
        even, batch(), sparsity=0.3, methods=["ranp-f", "width"], width_arg="width", fit=parameters, seeds=1
    )
    first, row = table.rows
    assert row["width"]["value"] % 2 == 0
    assert macs_of(row["width"]["value"]) <= first["after"]["macs"] < macs_of(row["width"]["value"] + 2)
    assert row["accuracy"]["mean"] == row["after"]["params"]


def test_width_wants_a_factory(tmp_path):
    with pytest.raises(ranp.BadInput, match="builds narrower networks; give MODEL as file"):
        ranp.compare(net(), batch(), sparsity=0.5, methods=["ranp-f", "width"], width_arg="width")
    torch.save(net().state_dict(), tmp_path / "w.pt")
    same = {"model_args": ARGS, "weights": str(tmp_path / "w.pt"), "sparsity": 0.5, "methods": ["ranp-f", "width"], "width_arg": "width", "seeds": 1}  # fmt: skip
    with pytest.raises(ranp.BadInput, match="would start from others than the rest"):
        ranp.compare(UNET, batch(), fit=parameters, **same)
    assert len(ranp.compare(UNET, batch(), fit=parameters, init="glorot", **same).rows) == 2


# -- the same counts, other neurons


class Tied(nn.Module):
    """Two layers whose neurons are tied by a sum, one alone, and a fixed output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 12, 1), nn.Conv3d(12, 12, 1)
        self.c, self.head = nn.Conv3d(12, 20, 1), nn.Conv3d(20, 2, 1)

    def forward(self, x):
        y = self.a(x)
        return self.head(self.c(y + self.b(y)))


@pytest.mark.parametrize("model", [Tied, lambda: net(8)])
def test_a_shuffle_has_the_same_counts_and_other_neurons(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = analyse(model(), Example((torch.zeros(1, 1, 8, 8, 8),)))
    scores = [np.random.default_rng(k).random(n) for k, n in enumerate(graph.sizes)]
    chosen = select(graph, scores, 0.5)
    other, third = shuffled(graph, chosen, 0), shuffled(graph, chosen, 1)
    counts = [[int(k.sum()) for k in graph.by_layer(c.keep[graph.unit])] for c in (chosen, other, third)]
    assert counts[0] == counts[1] == counts[2]
    assert not np.array_equal(chosen.keep, other.keep)
    assert not np.array_equal(other.keep, third.keep)
    assert np.array_equal(other.keep, shuffled(graph, chosen, 0).keep)
    assert all((c.keep & graph.fixed_units).sum() == graph.fixed_units.sum() for c in (other, third))


def test_a_shuffled_row_costs_the_same():
    table = ranp.compare(net(8), batch(), sparsity=[0.5, "max"], methods=["ranp-m", "shuffle:ranp-m"])
    assert [row["method"] for row in table.rows] == ["ranp-mem", "ranp-mem", "shuffle:ranp-mem", "shuffle:ranp-mem"]
    for own, other in zip(table.rows[:2], table.rows[2:], strict=True):
        assert own["layers_kept"] == other["layers_kept"]
        assert own["after"] == other["after"]


# -- many processes


def test_fit_sees_nothing_of_torchrun(monkeypatch):
    for name in (*HIDDEN, "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    with alone():
        assert not {*HIDDEN, "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    assert {*HIDDEN, "TORCHELASTIC_RUN_ID"} <= os.environ.keys()


def start(arguments, folder, processes):
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    known = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([sys.executable, *many, "-m", "ranp_cli", *arguments], cwd=folder, text=True, capture_output=True,
                          timeout=300, check=False, env={**known, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_the_cells(here, capsys):
    words = [*WORDS, "--sparsity", "0.5", "--methods", "full,ranp-f,random", "--fit", "fit.py:counted", "--seeds", "2"]
    ran = start([*words, "-o", "c.jsonl", "--csv", "two.csv"], here, 2)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("ranp compare") == 1
    assert Path("calls.txt").read_text().split() == ["None"] * 6  # none twice, and none sees the other process
    lines = [json.loads(line) for line in Path("c.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 6
    assert run([*words, "-o", "one.jsonl", "--csv", "one.csv", "-q"]) == 0
    same = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in table_of(name)]
        for name in ("one.csv", "two.csv")
    ]
    assert same[0] == same[1]
    again = start([*words, "-o", "c.jsonl", "-q"], here, 2)
    assert again.returncode != 0
    assert sum("c.jsonl exists" in line for line in again.stderr.splitlines() if line.startswith("ranp:")) == 1
    broken = start([*words[:-4], "--fit", "fit.py:text", "--seeds", "2", "-o", "d.jsonl", "-q"], here, 2)
    assert broken.returncode != 0
    assert "fit returned an object of type str" in broken.stderr


def test_compare_without_fit_is_the_work_of_one_process(here, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run([*WORDS, "--sparsity", "0.5"]) == 2
    assert "ranp compare is the work of one process" in capsys.readouterr().err
