"""`compare --fit`: rows trained under several seeds, and the numbers over them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import laws
import numpy as np
import pytest
import torch
from compared_nets import ARGS, UNET, WORDS, batch, net, parameters

import ranp_cli as ranp
from ranp_cli.api.comparison.over_seeds import joined, mark_best, mean_of, summary
from ranp_cli.api.comparison.training import metrics_of
from ranp_cli.cli import run
from ranp_cli.models.unet3d import unet3d


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
