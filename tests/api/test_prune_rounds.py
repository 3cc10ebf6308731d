"""`prune(rounds=N)`: score, remove, fine-tune, and again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from trained_nets import batches, network

import ranp_cli as ranp
from ranp_cli.cli import run as command
from ranp_cli.core.errors import BadInput, Infeasible


def rounds(net=None, data=None, **options):
    given = {"sparsity": 0.6, "rounds": 3, "min_neurons": 1, **options}
    if "fit" not in given:
        given.setdefault("updates", 3)
    return ranp.prune(network() if net is None else net, batches() if data is None else data, **given)


def bytes_of(pruned):
    return {name: t.clone() for name, t in pruned.model.state_dict().items()}


def same(one, other):
    return set(one) == set(other) and all(torch.equal(t, other[name]) for name, t in one.items())


# -- what is removed, and what it is trained to


def test_the_callers_model_stays_and_the_slim_one_reloads(tmp_path):
    net = network()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = rounds(net)
    assert same(before, net.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(p.grad is None for p in [*net.parameters(), *found.model.parameters()])
    report = found.report.to_dict()
    assert [row["neurons"] for row in report["rounds"]] == [13, 10, 7]  # 18 * (7 / 18) ** (k / 3); int(18 * 0.4) = 7
    assert report["neurons"]["kept"] == 7
    assert report["after"]["macs"] == report["rounds"][-1]["macs"] < report["before"]["macs"]
    assert report["memory"]["after"]["train_peak_bytes"] < report["memory"]["before"]["train_peak_bytes"]
    found.save(tmp_path / "slim.safetensors")
    loaded, x = ranp.load(tmp_path / "slim.safetensors", network()), batches()[0][0]
    assert torch.equal(loaded.eval()(x), found.model.eval()(x))
    refined = ranp.refine(network(), tmp_path / "slim.mask.json")
    assert [p.shape for p in refined.parameters()] == [p.shape for p in found.model.parameters()]


def test_one_round_is_pruning_once_and_then_training_by_hand():
    once = ranp.prune(network(), batches(), sparsity=0.6, min_neurons=1)
    found = rounds(rounds=1, updates=5, optimizer="sgd-momentum", lr=0.02)
    assert found.mask.to_dict()["layers"] == once.mask.to_dict()["layers"]
    optimizer = torch.optim.SGD(once.model.parameters(), lr=0.02, momentum=0.9)
    once.model.train()
    losses = []
    for k in range(5):
        x, y = batches()[k % 4]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(once.model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert same(bytes_of(once), bytes_of(found))
    assert found.report.to_dict()["rounds"][0]["loss"] == pytest.approx(sum(losses) / 5)


def test_what_the_loop_cost():
    report = rounds().report.to_dict()
    macs = [row["macs"] for row in report["rounds"]]
    assert report["loop"]["updates"] == 9
    assert report["loop"]["dense_updates"] == pytest.approx(3 * sum(macs) / report["before"]["macs"])


@pytest.mark.parametrize("budget", [{"macs": "20%"}, ["params=300", "macs=50%"], {"train-mem": "85%"}])
def test_budgets_are_met_round_by_round(budget):
    report = rounds(sparsity=None, budget=budget).report.to_dict()
    assert all(row["after"] <= row["bound"] for row in report["budget"])
    if "macs" in budget:
        whole = report["before"]["macs"]
        assert [row["macs"] <= whole * 0.2 ** ((k + 1) / 3) for k, row in enumerate(report["rounds"])] == [True] * 3
        assert report["rounds"][0]["macs"] > 0.4 * whole  # not all at once


def test_a_budget_out_of_reach():
    with pytest.raises(Infeasible, match=r"no network meets macs=1% "):
        rounds(sparsity=None, budget="macs=1%", min_neurons=4)
    with pytest.raises(Infeasible, match=r"only .* of the neurons could be removed in 3 rounds where 90.0% was asked"):
        rounds(sparsity=0.9, min_neurons=7)
    assert rounds(sparsity=0.9, min_neurons=7, allow_less=True).mask.kept == 16


@pytest.mark.parametrize("method", ["random", "taylor", "vanilla", "weight", "activation", "obd"])
def test_every_method_that_ranks_neurons(method):
    assert rounds(method=method).mask.kept == 7


# -- the user's own training


def tuner(metrics):
    """A fit that makes two updates and returns these metrics, one a call."""
    calls = []

    def fit(model, seed):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for x, y in batches(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        calls.append((sum(p.numel() for p in model.parameters()), seed, model.training))
        return metrics[len(calls) - 1]

    return fit, calls


def test_the_users_function_fine_tunes_and_its_metric_is_told():
    fit, calls = tuner([{"dice": 0.1, "iou": 0.4}, {"dice": 0.2, "iou": 0.3}, {"dice": 0.3, "iou": 0.2}])
    report = rounds(fit=fit, metric="iou", seed=5).report.to_dict()
    assert [row["metric"] for row in report["rounds"]] == [0.4, 0.3, 0.2]
    assert [row["params"] for row in report["rounds"]] == [params for params, _, _ in calls]
    assert {(seed, training) for _, seed, training in calls} == {(5, True)}
    assert report["loop"]["updates"] == 6
    assert report["method"]["metric"] == "iou"


def test_the_best_of_the_networks_that_meet_the_goal_is_kept(tmp_path):
    """Nothing has to go: all rounds meet the goal, and the second has the best metric."""
    fit, _ = tuner([0.5, 0.9, 0.7])
    found = rounds(sparsity=None, budget="macs=100%", fit=fit)
    alone = rounds(sparsity=None, budget="macs=100%", fit=tuner([0.5, 0.9])[0], rounds=2)
    assert same(bytes_of(found), bytes_of(alone))
    assert "the network is that of round 2, the best that meets the goal" in found.report.to_dict()["notes"]


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda model, seed: "high", r"wants a number"),
        (lambda model, seed: 1 / 0, r"round 1: .*division by zero"),
        (lambda model: 1.0, r"cannot be called as fit\(model, seed\)"),
        (3, r"wants a function fit\(model, seed\)"),
    ],
)
def test_a_fit_that_fails(fit, message):
    with pytest.raises(BadInput, match=message):
        rounds(fit=fit)


# -- going on


class Killed(Exception):
    pass


@pytest.mark.parametrize("how", ["updates", "fit"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, how, optimizer):
    file = tmp_path / "run.ckpt"
    metrics = [0.9, 0.5, 0.7, 0.6]

    def options(fit):
        goal = {"sparsity": None, "budget": "macs=100%"} if how == "fit" else {"sparsity": 0.6}
        return {**goal, "rounds": 4, **({"fit": fit} if how == "fit" else {"optimizer": optimizer})}

    def made(metrics):
        fit = tuner(metrics)[0]
        fit.__qualname__ = fit.__name__ = "fit"
        return fit

    whole = rounds(**options(made(metrics)))
    seen = []

    def killing(description, total):
        seen.append(description)
        if description.startswith("round 3"):
            raise Killed
        from contextlib import nullcontext

        return nullcontext(lambda: None)

    with pytest.raises(Killed):
        rounds(**options(made(metrics)), checkpoint=file, progress=killing)
    again = rounds(**options(made(metrics[2:])), checkpoint=file)
    assert same(bytes_of(whole), bytes_of(again))
    one, two = (found.report.to_dict() for found in (whole, again))
    for key in ("rounds", "loop", "after"):
        assert one[key] == two[key]
    assert whole.mask.to_dict()["layers"] == again.mask.to_dict()["layers"]
    assert json.loads(json.dumps(one["method"])) == two["method"]


@pytest.fixture
def checkpoint(tmp_path):
    file = tmp_path / "run.ckpt"
    rounds(rounds=2, checkpoint=file)
    return file


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounds": 3}, r"another goal \(rounds\)"),
        ({"sparsity": 0.5}, r"another goal \(sparsity\)"),
        ({"seed": 1}, r"another (method|goal) \("),
        ({"updates": 4}, r"another fine-tuning \(updates\)"),
        ({"resource": "params"}, r"another method \(resource\)"),
        ({"net": network(1)}, r"another weights"),
    ],
)
def test_other_options_do_not_go_on(checkpoint, changed, message):
    with pytest.raises(BadInput, match=message):
        rounds(**{"rounds": 2, "checkpoint": checkpoint, **changed})


def broken(key, value):
    def change(state):
        state[key] = value
        return state

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"weights": torch.zeros(2)},
        lambda state: [1, 2],
        broken("kept", {"0": torch.zeros(3)}),
        broken("kept", {}),
        broken("kept", {"0": torch.tensor([0, 99]), "3": torch.tensor([1]), "5": torch.tensor([0, 1])}),
        broken("model", {"0.weight": torch.zeros(1)}),
        broken("model", 3),
        broken("optimizers", []),
        broken("optimizers", [{"state": {}, "param_groups": []}]),
        broken("optimizers", [7]),
        broken("rounds", [{"updates": 1}]),
        broken("rounds", [{"updates": 1, "units": 1, "removed": 1, "neurons": 1, "params": 1, "macs": 1, "layers": {}, "path": 1}]),
        broken("best", {"round": 0}),
        broken("best", "good"),
        broken("spent", "much"),
        broken("attributes", {"0": {"forward": 1}}),
        broken("held", {"why": {"0": ["a"]}}),
    ],
)  # fmt: skip
def test_a_broken_checkpoint_is_one_line(checkpoint, change):
    state = change(torch.load(checkpoint, weights_only=True))
    torch.save(state, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(BadInput) as error:
        rounds(rounds=2, checkpoint=checkpoint)
    assert "\n" not in str(error.value)
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    file = tmp_path / "run.ckpt"
    torch.save({"format": "ranp-rounds", "version": 1, "about": network()}, file)
    with pytest.raises(BadInput):
        rounds(checkpoint=file)


# -- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, r"`rounds=0`?|rounds=0: give 1 or more"),
        ({"updates": 0}, r"updates=0"),
        ({"lr": -1.0}, r"lr=-1.0: give a learning rate above 0"),
        ({"metric": "dice"}, r"metric='dice' is of what `fit` returns"),
        ({"sparsity": "max"}, r"sparsity='max' is for pruning at once"),
        ({"method": "snip"}, r"method='snip' is for pruning at once"),
        ({"method": "layerwise"}, r"has no meaning while a network trains"),
        ({"resource": "latency"}, r"has no meaning while a network trains"),
        ({"init": "glorot"}, r"init='glorot' is for pruning at once"),
        ({"score_init": "glorot"}, r"score_init='glorot' is for"),
        ({"probe": 10}, r"probe=10 is for"),
        ({"time": True}, r"time=True is for"),
        ({"round_to": 4}, r"round_to=4 is for"),
        ({"inputs": (2, 1, 9, 9, 9)}, r"inputs=.* is for"),
        ({"sparsity": None, "budget": "latency=50%"}, r"`budget` latency: rounds go by what can be counted"),
        ({"data": iter(batches())}, r"this iterator gives them once"),
        ({"net": network().requires_grad_(False)}, r"requires a gradient"),
        ({"rounds": None}, r"updates=3 belongs to pruning in rounds"),
        ({"rounds": None, "updates": None, "checkpoint": "x"}, r"checkpoint='x' belongs to pruning in rounds"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(BadInput, match=message):
        rounds(**options)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(BadInput, match="a TorchScript model is not pruned in rounds"):
        rounds(torch.jit.trace(network().eval(), batches()[0][0]))


def test_a_loss_that_is_not_finite():
    net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.Conv3d(8, 8, 3), torch.nn.Conv3d(8, 2, 1))
    with pytest.raises(BadInput, match=r"round 1, update \d: the loss is (nan|inf); give a smaller `lr`"):
        rounds(net, rounds=1, updates=8, lr=1e20, optimizer="sgd")


def test_updates_and_fit_exclude_each_other():
    with pytest.raises(BadInput, match="give one of them"):
        rounds(fit=lambda model, seed: 1.0, updates=3)
    with pytest.raises(BadInput, match="is of our own updates"):
        rounds(fit=lambda model, seed: 1.0, lr=0.1)


# -- the command


def test_the_command_shows_a_line_a_round_and_draws_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(batches(), "calib.pt")
    Path("fit.py").write_text("def fit(model, seed):\n    return sum(p.numel() for p in model.parameters()) / 1e4\n")
    Path("net.py").write_text("from trained_nets import network\n")
    line = "prune net.py:network --batch calib.pt --sparsity 0.6 --min-neurons 1 --rounds 3 -o slim.safetensors --plot rounds.png"
    assert command(f"{line} --fit fit.py:fit --checkpoint run.ckpt --json report.json".split()) == 0, (
        capsys.readouterr().err
    )
    page = capsys.readouterr().out
    told = json.loads(Path("report.json").read_text())["rounds"]
    for k, row in enumerate(told):
        shown = next(
            text.split() for text in page.splitlines() if text.split()[:2] == [str(k + 1), str(row["neurons"])]
        )
        assert shown[-1] == f"{row['metric']:.4g}"
    assert "rounds: 0 updates" in page
    assert Path("rounds.png").read_bytes()[:4] == b"\x89PNG"
    assert command(["profile", "slim.safetensors"]) == 0
    assert "(requested: 0.6)" in capsys.readouterr().out
    assert command(f"{line} --updates 2 --checkpoint run.ckpt".split()) == 2
    assert "--checkpoint" in capsys.readouterr().err
