"""The methods beside RANP, against plain torch and by hand; `compare`; scores of other weights; masks that move."""

from __future__ import annotations

import csv
import io
import json

import laws
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

import ranp_cli as ranp
from ranp_cli.api.comparison.rows import sparsities
from ranp_cli.cli import run
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.models.unet3d import unet3d
from ranp_cli.pruning.initial_weights import initialise
from ranp_cli.pruning.methods import weigh
from ranp_cli.pruning.select import select
from ranp_cli.pruning.snip import links_of, live_units

METHODS = [
    "ranp",
    "weighted",
    "vanilla",
    "random",
    "layerwise",
    "flat",
    "snip",
    "taylor",
    "magnitude",
    "activation",
    "weight",
    "obd",
]


def net(width: int = 8, channels: int = 1, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(layers=7, width=width, in_channels=channels, num_classes=classes)


def batches(channels: int = 1, classes: int = 3, size: int = 8) -> list:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(2, channels, size, size, size, generator=g),
             torch.randint(classes, (2, size, size, size), generator=g)) for _ in range(2)]  # fmt: skip


# -- what a method ranks by


def test_taylor_is_the_mean_over_examples_of_activation_times_gradient():
    """Molchanov et al., eq. 8: |mean over positions of a * dL/da| of each example, and the mean over those."""
    model = nn.Sequential(nn.Conv3d(1, 5, 3), nn.ReLU(), nn.Conv3d(5, 3, 1))
    data = [(x, y[:, 1:-1, 1:-1, 1:-1]) for x, y in batches()]
    found = ranp.score(model, data, criterion="taylor").layers
    want = np.zeros(5)
    for x, y in data:
        a = F.relu(model[0](x)).detach().requires_grad_()
        F.cross_entropy(model[2](a), y).backward()
        want += (a * a.grad).mean((2, 3, 4)).abs().mean(0).detach().double().numpy() / len(data)
    np.testing.assert_allclose(found["0"], want, rtol=1e-5)


@pytest.mark.parametrize("method", ["taylor", "activation", "weight", "obd"])
def test_the_talks_methods_give_layers_equal_l2_norms(method):
    scores = [np.array([3.0, 4.0]), np.array([0.6, 0.8, 0.0]), np.zeros(2)]
    first, second, third = weigh(scores, method, None, 11.0, 0)
    np.testing.assert_allclose(first, [3, 4])
    np.testing.assert_allclose(second, [3, 4, 0])
    assert not third.any()


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_a_neurons_weights(criterion, order):
    model = zoo.build(next(c for c in zoo.CASES if c.name == "transposed"))
    found = ranp.score(model, zoo.batches(zoo.Case(zoo.transposed, 0)), loss=zoo.loss, criterion=criterion)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            rows = module.weight.transpose(0, 1) if module.transposed else module.weight
            want = rows.flatten(1).double().norm(order, dim=1).detach().numpy()
            np.testing.assert_allclose(found.layers[name], want)
    assert found.about["batches"] == 0  # no gradient was taken


def test_snip_scores_every_weight():
    model, data = net(), batches()
    found = ranp.score(model, data, criterion="snip").layers
    want = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in data:
        twin = net().train()
        F.cross_entropy(twin(x), y).backward()
        for name, p in twin.named_parameters():
            want[name] += (p * p.grad).abs().detach() / len(data)
    for name, g in found.items():
        np.testing.assert_allclose(g, want[f"{name}.weight"], rtol=1e-4, atol=1e-9)


def test_a_neuron_without_live_weights_takes_its_neighbours_along():
    """A chain 1 -> 3 -> 2 -> 2 -> 2, by hand: 1 dies for want of an input, then what only it fed, then what only fed that."""
    model = nn.Sequential(*(nn.Conv3d(i, o, 1) for i, o in ((1, 3), (3, 2), (2, 2), (2, 2))))
    graph = analyse(model, Example((torch.zeros(1, 1, 2, 2, 2),)))
    g = [
        np.array([[9.0], [0.0], [9.0]]),  # the second neuron gets nothing
        np.array([[9.0, 9.0, 0.0], [0.0, 9.0, 0.0]]),  # the second reads only it; nobody reads the third
        np.array([[9.0, 0.0], [0.0, 9.0]]),  # the second reads only what died
        np.array([[9.0, 9.0], [9.0, 9.0]]),
    ]
    links = [links_of(graph, k, a.reshape(*a.shape, 1, 1, 1)) for k, a in enumerate(g)]
    live = [k.tolist() for k in graph.by_layer(live_units(graph, links, 1.0)[graph.unit])]
    assert live == [[True, False, False], [True, False], [True, False], [True, True]]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for name in ("residual", "grouped", "grouped_transposed", "depthwise_multiplier", "squeeze_excite")
        for method in ("snip", "taylor", "magnitude", "activation", "weight", "obd")
        # `analyse` finds no layer in a grouped transposed convolution from 4 to 2 channels, which obd leaves there
        if (name, method) != ("grouped_transposed", "obd")
    ],
)
def test_the_laws_hold_for_every_method(name, method, tmp_path):
    case = next(c for c in zoo.CASES if c.name == name)
    model, x = zoo.build(case), torch.randn(case.shape)
    pruned = ranp.prune(model, zoo.batches(case), loss=zoo.loss, sparsity=0.6, method=method, allow_less=True)
    laws.slim_is_masked(model, pruned, x)
    laws.same_behaviour(model, pruned, x)
    laws.counts_agree(pruned, x)
    laws.survives_a_file(model, pruned, x, tmp_path / "slim.safetensors")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m in ("ranp", "random", "snip") else pytest.mark.slow)
        for m in METHODS
        if m not in ("layerwise", "flat")
    ],
)
def test_max_is_the_largest_without_a_floor(method):
    """Among all sparsities that keep another number of neurons (of weights for SNIP: every seventh of the last)."""
    model, data = net(4), batches()
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 5)
    n = weights if method == "snip" else sum(p.shape[0] for p in model.parameters() if p.ndim == 5)
    levels = [(n - k) / n for k in (range(1, 300, 7) if method == "snip" else range(1, n))]
    rows = ranp.compare(model, data, sparsity=["max", *levels], methods=[method], min_neurons=1).rows
    assert rows[0]["feasible"]
    assert not rows[1]["feasible"]
    assert rows[0]["kept"] <= min(row["kept"] for row in rows if row["feasible"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "snip", "criterion": "mpmg-sum"}, "method='snip' goes by snip, not by 'mpmg-sum'"),
        ({"method": "ranp", "criterion": "snip"}, "criterion 'snip' scores weights, not neurons"),
        ({"method": "magnitude", "criterion": "taylor"}, "method='magnitude' goes by l1 or l2, not by 'taylor'"),
        ({"method": "weight", "criterion": "l1"}, "method='weight' goes by l2, not by 'l1'"),
        (
            {"method": "activation", "criterion": "obd"},
            "goes by activation-mean or activation-std or activation-zeros, not by 'obd'",
        ),
        ({"criterion": "activation"}, "unknown criterion 'activation'; did you mean 'activation-"),
        ({"method": "tailor"}, "did you mean 'taylor'?"),
        ({"score_init": "xavier"}, "unknown score_init 'xavier'"),
    ],
)
def test_what_does_not_go_together(options, says):
    with pytest.raises(ranp.BadInput) as error:
        ranp.prune(net(4), batches(), sparsity=0.5, **options)
    assert says in str(error.value)


# -- compare


def of_a_forward(counts):
    """Without those of a training step, which compare does not take."""
    return {key: value for key, value in counts.items() if not key.startswith("train_")}


def test_compare_cuts_as_prune_does():
    model, data = net(), batches()
    before = laws.snapshot(model)
    table = ranp.compare(model, data, sparsity=[0.3, 0.6], methods=["full", *METHODS, "ranp-m", "vanilla:mnmg-max"])
    laws.unchanged(model, before)
    rows = {(r["method"], r["sparsity"]["requested"]): r for r in table.rows}
    assert len(rows) == 1 + 2 * 14
    for name, resource in (("ranp-flops", "flops"), ("ranp-mem", "mem"), *((m, "flops") for m in METHODS[1:])):
        method = name.partition("-")[0]
        pruned = ranp.prune(model, data, sparsity=0.6, method=method, resource=resource, allow_less=True)
        row, report = rows[name, 0.6], pruned.report.to_dict()
        assert row["after"] == of_a_forward(report["after"])
        assert row["reduction"] == of_a_forward(report["reduction"])
        assert row["floored"] == pruned.mask.floored
        assert row["feasible"] == (not pruned.mask.floored)
        assert row["layers_kept"] == [len(layer["kept"]) for layer in pruned.mask.layers.values()]


def test_compare_counts_at_another_size():
    small = ranp.compare(net(), batches(), sparsity=0.5, methods=["ranp-m"])
    large = ranp.compare(net(), batches(), sparsity=0.5, methods=["full", "ranp-m"], inputs=(1, 1, 16, 16, 16))
    assert large.rows[1]["layers_kept"] == small.rows[0]["layers_kept"]
    assert large.rows[1]["after"]["macs"] == 8 * small.rows[0]["after"]["macs"]
    assert large.rows[0]["after"] == of_a_forward(ranp.profile(net(), (1, 1, 16, 16, 16)).to_dict()["before"])


def test_compare_as_csv_and_markdown():
    table = ranp.compare(net(4), batches(), sparsity=0.5, methods=["full", "random"])
    lines = list(csv.DictReader(io.StringIO(table.csv())))
    assert [line["method"] for line in lines] == ["full", "random"]
    assert int(lines[1]["params"]) == table.rows[1]["after"]["params"]
    assert float(lines[1]["macs_reduction"]) == table.rows[1]["reduction"]["macs"]
    assert table.markdown().splitlines()[2].startswith("| full | 0.0% |")


@pytest.mark.parametrize(
    ("given", "levels"),
    [
        (0.5, [0.5]),
        ("max", ["max"]),
        ("0.1:0.5:0.2", [0.1, 0.3, 0.5]),
        ("0.1:0.9:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (["0.5,max", 0.5], [0.5, "max"]),
    ],
)
def test_sparsities(given, levels):
    assert sparsities(given) == levels


@pytest.mark.parametrize("given", [[], "1", "0.5:0.1:0.1", "0.1:0.5:0", "0.1:0.5", "a:b:c", "-0.1"])
def test_bad_sparsities(given):
    with pytest.raises(ranp.BadInput):
        sparsities(given)


def test_compare_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(batches(), "calib.pt")
    words = ["compare", "ranp_cli.models.unet3d:unet3d", "--batch", "calib.pt", "--model-arg", "layers=7", "--model-arg", "width=4",
             "--model-arg", "num_classes=3", "--sparsity", "0.5", "--sparsity", "max"]  # fmt: skip
    assert run([*words, "--methods", "full,ranp-f,snip", "--csv", "t.csv", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 5
    assert "ranp-flops" in err
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 6
    assert run([*words, "--csv", "-", "--json", "-"]) == 2
    assert run([*words, "--methods", "ranp-x"]) == 2
    assert "did you mean" in capsys.readouterr().err


# -- initialisation


@pytest.mark.parametrize("init", ["glorot", "orthogonal", "factory"])
def test_scores_are_of_the_drawn_weights(init, tmp_path):
    model, data = net(), batches()
    before = laws.snapshot(model)
    found = ranp.score(model, data, score_init=init, seed=3)
    laws.unchanged(model, before)
    twin = net()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        initialise(twin, init, [f"{name}.weight" for name in found.layers])
    want = ranp.score(twin, data, seed=3).layers
    assert all(np.array_equal(found.layers[name], want[name]) for name in want)
    assert any(not np.array_equal(found.layers[name], v) for name, v in ranp.score(model, data, seed=3).layers.items())
    found.save(tmp_path / "s.safetensors")
    a = ranp.prune(model, data, sparsity=0.5, score_init=init, seed=3)
    b = ranp.prune(model, scores=tmp_path / "s.safetensors", sparsity=0.5, seed=3)
    assert a.mask.layers == b.mask.layers
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q)
    again = ranp.refine(net(), a.mask, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), again.parameters(), strict=True))


def test_score_reports_the_balance_of_the_layers():
    report = ranp.score(net(), batches(), sparsity=0.5).report.to_dict()
    assert abs(sum(row["importance_share"] for row in report["layers"]) - 1) < 1e-9
    pruned = ranp.prune(net(), batches(), sparsity=0.5, method="vanilla", min_neurons=1)
    kept = pruned.report.to_dict()["layers"]
    assert [row["kept"] for row in report["layers"]] == [row["kept"] for row in kept]


def test_signed_sums_behind_a_norm_are_said_to_be_noise():
    notes = ranp.score(net(), batches(), criterion="mnmg-sum").report.to_dict()["notes"]
    assert "mnmg-sum is rounding noise in 6 of 7 layers (encoders.0.conv1" in notes[0]
    assert "notes" not in ranp.score(net(), batches()).report.to_dict()
    plain = nn.Sequential(nn.Conv3d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, 3, 1))
    assert "notes" not in ranp.score(plain, batches(), criterion="mnmg-sum").report.to_dict()


# -- transfer


def test_a_mask_moves_to_other_inputs_and_classes(tmp_path):
    made = ranp.prune(net(8, 1, 3), batches(), sparsity=0.5)
    other = net(8, 4, 5)
    moved = ranp.refine(other, made.mask, transfer=True, full=True)
    parts = moved.report.to_dict()["transfer"]
    assert parts["left"] == [{"layer": "head", "reason": "5 neurons, 3 in the mask"}]
    assert len(parts["matched"]) == 6
    assert {n: v["kept"] for n, v in moved.mask.layers.items() if n != "head"} == {
        n: v["kept"] for n, v in made.mask.layers.items() if n != "head"
    }
    laws.slim_is_masked(other, moved, torch.randn(2, 4, 8, 8, 8))
    back = ranp.refine(net(8, 1, 3), moved.mask, transfer=True, full=True)
    assert {n: v["kept"] for n, v in back.mask.layers.items()} == {n: v["kept"] for n, v in made.mask.layers.items()}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: net(4), "layer encoders.0.conv1 has 2 neurons, 4 in the mask, and it may be pruned"),
        (lambda: nn.Sequential(nn.Conv3d(1, 3, 1)), "no layer of the model has the name and size"),
    ],
)
def test_what_cannot_move(other, says):
    made = ranp.prune(net(8), batches(), sparsity=0.5)
    with pytest.raises(ranp.BadInput) as error:
        ranp.refine(other(), made.mask, inputs=(1, 1, 8, 8, 8), transfer=True)
    assert says in str(error.value)


def test_without_transfer_the_way_is_named():
    made = ranp.prune(net(8), batches(), sparsity=0.5)
    with pytest.raises(ranp.BadInput, match="transfer=True"):
        ranp.refine(net(8, 4, 5), made.mask)


def test_flat_keeps_as_many_neurons_in_every_layer():
    """Levels of 8, 16 and 4 neurons beside a fixed output of 2; kappa = 15: 4 in each, and one more in the best layer."""
    net = nn.Sequential(nn.Conv3d(1, 8, 1), nn.Conv3d(8, 16, 1), nn.Conv3d(16, 4, 1), nn.Conv3d(4, 2, 1))
    graph = analyse(net, Example((torch.zeros(1, 1, 2, 2, 2),)))
    scores = [np.arange(8) + 1.0, np.arange(16) + 1.0, np.arange(4) + 1.0, np.ones(2)]
    chosen = select(graph, scores, 0.5, method="flat")
    kept = [np.flatnonzero(k).tolist() for k in graph.by_layer(chosen.keep[graph.unit])]
    assert kept == [[4, 5, 6, 7], [11, 12, 13, 14, 15], [0, 1, 2, 3], [0, 1]]
    assert not chosen.floored
