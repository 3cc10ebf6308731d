"""`compare --oracle`: rank correlations by hand, of criteria that are what they should be, as table, CSV, Markdown and picture."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.comparison.oracle import mean_ranks, spearman
from ranp_cli.cli import run
from ranp_cli.core.errors import Interrupted
from ranp_cli.scoring.criteria import CRITERIA


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6 * 4 / (5 * 24)
        ([1, 2, 2, 4], [1, 2, 3, 4], 0.9486832980505138),  # ranks 1, 2.5, 2.5, 4: 4.5 / sqrt(4.5 * 5)
        ([0, 0, 0, 0], [1, 2, 3, 4], 0.0),  # ranks nothing
        ([1, 2, 3, 4], [7, 7, 7, 7], None),
        ([1, 2], [1, 2], None),
    ],
)
def test_spearman_by_hand(a, b, wanted):
    found = spearman(np.array(a, dtype=float), np.array(b, dtype=float))
    assert found == (None if wanted is None else pytest.approx(wanted, abs=1e-12))


def test_ties_have_mean_ranks():
    assert mean_ranks(np.array([5.0, 1.0, 5.0, 5.0, 0.0])).tolist() == [4, 2, 4, 4, 1]


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
        )


def batch(n: int = 2) -> list:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 1, 8, 8, generator=g), torch.randint(4, (4,), generator=g)) for _ in range(n)]


@pytest.fixture(scope="module")
def table():
    return ranp.compare(net(), batch(), sparsity=0.5, methods=["vanilla"], oracle=True)


def test_the_numbers_are_those_of_the_scores(table):
    """Of every criterion but snip, which scores weights: by layer, over layers, over all units, raw and with equal l2 norms."""
    about = table.report.to_dict()["oracle"]
    assert {row["criterion"] for row in about["criteria"]} == set(CRITERIA) - {"snip", "oracle"}
    assert (about["units"], about["fixed"], about["batches"], about["layers"]) == (14, 4, 2, ["0", "2", "5"])
    truth = ranp.score(net(), batch(), criterion="oracle").layers
    for row in about["criteria"]:
        mine = ranp.score(net(), batch(), criterion=row["criterion"]).layers
        by_layer = [spearman(mine[name], truth[name]) for name in ("0", "2")]
        assert row["layers"] == [pytest.approx(by_layer[0]), pytest.approx(by_layer[1]), None]
        assert row["mean"] == pytest.approx(np.mean(by_layer))
        both = [np.concatenate([t["0"], t["2"]]) for t in (mine, truth)]
        assert row["all"] == pytest.approx(spearman(*both))
        equal = np.concatenate([mine[name] / np.linalg.norm(mine[name]) for name in ("0", "2")])
        assert row["all_equal_l2"] == pytest.approx(spearman(equal, both[1]))
    means = [row["mean"] for row in about["criteria"]]
    assert means == sorted(means, reverse=True)


def test_csv_markdown_and_picture(table, tmp_path):
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    about = table.report.parts["oracle"]
    assert [row["criterion"] for row in rows] == [row["criterion"] for row in about["criteria"]]
    assert float(rows[0]["mean"]) == about["criteria"][0]["mean"]
    assert (float(rows[0]["0"]), rows[0]["5"]) == (about["criteria"][0]["layers"][0], "")
    text = table.markdown()
    assert "| vanilla |" in text
    assert f"| {rows[0]['criterion']} | {float(rows[0]['mean']):.2f} |" in text
    assert "over 14 units (4 fixed ones were not tried) and 2 mini-batches" in text
    for name in ("o.png", "o.svg"):
        table.plot(tmp_path / name)
    drawn = (tmp_path / "o.svg").read_text()
    assert all(row["criterion"] in drawn for row in about["criteria"])


def test_scores_of_an_earlier_run_serve(table, tmp_path):
    scores = ranp.score(net(), batch(), criterion="oracle")
    scores.save(tmp_path / "o.safetensors")
    for given in (scores, tmp_path / "o.safetensors"):
        again = ranp.compare(net(), batch(), sparsity=0.5, methods=["vanilla"], oracle_scores=given)
        assert again.report.parts["oracle"] == table.report.parts["oracle"]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.jit as a whole
def test_what_the_network_does_not_allow_is_left_out_with_a_note():
    class Cdist(nn.Module):
        def forward(self, x):
            return torch.cdist(x, torch.eye(4, 128, dtype=x.dtype))

    model = net()
    model[5] = nn.Sequential(nn.Linear(128, 128), Cdist())
    report = ranp.compare(model, batch(), sparsity=0.5, methods=["vanilla"], oracle=True).report.to_dict()
    assert "obd" not in {row["criterion"] for row in report["oracle"]["criteria"]}
    assert any(
        "obd left out beside the oracle: criterion 'obd' takes second derivatives" in note for note in report["notes"]
    )
    script = torch.jit.script(net())
    report = ranp.compare(script, batch(), sparsity=0.5, methods=["vanilla"], oracle=True).report.to_dict()
    found = {row["criterion"] for row in report["oracle"]["criteria"]}
    assert {"mpmg-sum", "l2"} <= found
    assert "taylor" not in found


def test_bad_input(tmp_path):
    with pytest.raises(ranp.BadInput, match="oracle=True ranks units before anything is trained"):
        ranp.compare(net, batch(), sparsity=0.5, methods=["vanilla"], oracle=True, fit=lambda model, seed: 1.0, seeds=1)
    with pytest.raises(ranp.BadInput, match="criterion 'oracle' was asked, the scores are of 'mpmg-sum'"):
        ranp.compare(net(), batch(), sparsity=0.5, oracle_scores=ranp.score(net(), batch()))
    calls = []

    def stop(output, target):
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target)

    with pytest.raises(Interrupted) as stopped:
        ranp.score(net(), batch(), criterion="oracle", loss=stop)
    with pytest.raises(ranp.BadInput, match="these scores by the oracle are unfinished"):
        ranp.compare(net(), batch(), sparsity=0.5, oracle_scores=stopped.value.scores)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(batch(), "calib.pt")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), "
        "nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))\n"
    )
    words = ["compare", "net.py:net", "--batch", "calib.pt", "--sparsity", "0.5", "--methods", "vanilla"]
    assert run([*words, "--oracle", "--csv", "o.csv", "--json", "o.json"]) == 0
    out = capsys.readouterr().out
    assert "Spearman's rank correlation with the change of the loss without a unit" in " ".join(out.split())
    assert "activation-zeros" in out
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 15
    about = json.loads((tmp_path / "o.json").read_text())["oracle"]
    assert (
        run(["score", "net.py:net", "--batch", "calib.pt", "--criterion", "oracle", "-o", "o.safetensors", "-q"]) == 0
    )
    assert run([*words, "--oracle-scores", "o.safetensors", "--json", "p.json", "-q"]) == 0
    assert json.loads((tmp_path / "p.json").read_text())["oracle"] == about
    assert run([*words, "--oracle-scores", "o.safetensors", "--json", "o.safetensors"]) == 2
    assert "--oracle-scores" in capsys.readouterr().err
