"""Scales and weights that are initialised to zero, and layers that no gradient reaches."""

from __future__ import annotations

import laws
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from zero_nets import (
    HERE,
    SCALED,
    batches,
    conv,
    encoded,
    residual,
    scaled,
    two_parts,
    under_no_grad,
    with_ones,
    without_b,
    zero,
    zeroed,
)
from zoo import Net

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput, Infeasible
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.scoring import activation_gradients, scorer
from ranp_cli.scoring.zero_scores import ALL_ZERO, NO_ACTIVATION, NO_GRADIENT, ZERO_WEIGHTS, Zeros, find_zeros, glorot

GRADIENTS = ("mpmg-sum", "mpmg-max", "mnmg-sum", "neuron", "taylor", "snip")


def zeros_of(model: nn.Module, x: torch.Tensor | None = None) -> Zeros:
    return find_zeros(model, analyse(model, Example((batches(1)[0][0] if x is None else x,))))


@pytest.mark.parametrize("kind", SCALED)
def test_a_zero_scale_is_scored_at_one(kind):
    name, make = SCALED[kind]
    model = make()
    before = laws.snapshot(model)
    pruned = ranp.prune(model, batches(), sparsity=0.5, min_neurons=1)
    laws.unchanged(model, before)
    report = pruned.report.to_dict()
    assert report["scoring"] == {"scales_at_one": [name]}
    assert any(f"1 scale ({name}) initialised to zero: scored at one" in note for note in report["notes"])
    assert pruned.mask.layers == ranp.prune(with_ones(model, name), batches(), sparsity=0.5, min_neurons=1).mask.layers
    assert not dict(pruned.model.named_parameters())[name].any()  # the slim network starts as the user's did


@pytest.mark.parametrize("criterion", GRADIENTS)
@pytest.mark.parametrize("kind", ["batch norm", "layer scale"])
def test_by_every_criterion_the_scores_are_those_at_one(criterion, kind):
    name, make = SCALED[kind]
    got = ranp.score(make(), batches(), criterion=criterion).layers
    for layer, wanted in ranp.score(with_ones(make(), name), batches(), criterion=criterion).layers.items():
        assert np.array_equal(got[layer], wanted)
        assert wanted.any()


def test_without_the_mechanism_the_branch_scores_zero(monkeypatch):
    monkeypatch.setattr(scorer, "find_zeros", lambda *_: Zeros())
    scores = ranp.score(SCALED["batch norm"][1](), batches()).layers
    assert not scores["a"].any()
    assert not scores["b"].any()
    assert scores["stem"].any()


NO_SCALES = {
    "one plus gamma": lambda: residual(lambda m, y: y * (1 + m.g), g=zero(1)),
    "exp": lambda: residual(lambda m, y: y * m.g.exp(), g=zero(1)),
    "sigmoid": lambda: residual(lambda m, y: y * torch.sigmoid(m.g), g=zero(8, 1, 1)),
    "a bias with a multiplier": lambda: residual(lambda m, y: y + 0.01 * m.g, g=zero(8, 1, 1)),
    "prelu": lambda: residual(lambda m, y: F.prelu(y, m.g), g=zero(8)),
    "a mix": lambda: residual(lambda m, y: y * torch.softmax(m.g, 0)[0], g=zero(2)),
    "partly zero": lambda: residual(lambda m, y: y * m.g, g=nn.Parameter(torch.eye(8)[0].view(8, 1, 1).clone())),
    "a norm's bias": lambda: residual(norm=nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize("kind", NO_SCALES)
def test_what_is_no_zero_scale_stays_as_it_is(kind):
    assert zeros_of(NO_SCALES[kind]()) == Zeros()
    assert "scoring" not in ranp.score(NO_SCALES[kind](), batches()).report.to_dict()


def test_a_weight_norm_whose_gain_is_zero():
    model = residual()
    weight_norm(model.b)
    nn.init.zeros_(model.b.parametrizations.weight.original0)
    assert zeros_of(model).scales == ("b.parametrizations.weight.original0",)
    assert ranp.score(model, batches()).layers["a"].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # of torch.jit as a whole
def test_a_scale_in_a_scripted_network():
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.a, self.norm, self.head = conv(1, 8), conv(8, 8), zeroed(nn.BatchNorm2d(8)), conv(8, 3)
            self.g = zero(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            x = x + self.norm(self.a(x))
            return self.head(x + self.g * x.relu())

    for model in (torch.jit.script(Scripted()), torch.jit.trace(Scripted(), batches()[0][0])):
        scores = ranp.score(model, batches())
        assert scores.about["scales_at_one"] == ["g", "norm.weight"]
        assert scores.layers["a"].any()
        assert not model.norm.weight.any()


def test_low_memory_and_precisions_score_at_one_too():
    _, make = SCALED["batch norm"]
    wanted = ranp.score(make(), batches()).layers["a"]
    assert np.allclose(ranp.score(make(), batches(), low_memory=True).layers["a"], wanted, rtol=1e-4)
    assert np.allclose(ranp.score(make(), batches(), precision="fp64").layers["a"], wanted, rtol=1e-3)


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_a_zero_layer_in_the_middle_is_scored_with_drawn_weights(criterion):
    model, by_hand = without_b(residual()), without_b(residual())
    by_hand.b.weight.data.copy_(glorot((8, 8, 3, 3), 5 * 1_000_003))  # seed 5, the first that is drawn
    before = laws.snapshot(model)
    scores = ranp.score(model, batches(), criterion=criterion, seed=5)
    laws.unchanged(model, before)
    assert scores.report.to_dict()["scoring"] == {"weights_drawn": ["b"]}
    assert scores.about["weights_drawn"] == ["b"]
    for layer, wanted in ranp.score(by_hand, batches(), criterion=criterion, seed=5).layers.items():
        assert np.array_equal(scores.layers[layer], wanted)
        assert wanted.any()


def test_the_slim_network_starts_with_the_users_zeros():
    pruned = ranp.prune(without_b(residual()), batches(), sparsity=0.5)
    assert not pruned.model.b.weight.any()
    assert len(pruned.mask.layers["a"]["kept"]) > 1


def test_a_drawn_weight_depends_on_the_seed_alone_and_has_glorots_bound():
    bound = (6 / (8 * 9 + 8 * 9)) ** 0.5  # fan-in and fan-out are 8 channels of 3 x 3
    one = glorot((8, 8, 3, 3), 3)
    assert torch.equal(one, glorot((8, 8, 3, 3), 3))
    assert not torch.equal(one, glorot((8, 8, 3, 3), 4))
    assert 0.9 * bound < one.abs().max() <= bound


def test_a_zero_last_layer_is_an_error_that_names_the_cure(tmp_path, capsys):
    model = residual()
    nn.init.zeros_(model.head.weight)
    before = laws.snapshot(model)
    for call in (ranp.score, lambda *a: ranp.prune(*a, sparsity=0.5), lambda *a: ranp.compare(*a, sparsity=0.5)):
        with pytest.raises(BadInput, match=r"layer head are all zero.*score_init='glorot', which"):
            call(model, batches())
    laws.unchanged(model, before)
    for criterion in GRADIENTS:
        with pytest.raises(BadInput, match="layer head are all zero"):
            ranp.score(model, batches(), criterion=criterion)
    scores = ranp.score(model, batches(), score_init="glorot")
    assert all(values.any() for values in scores.layers.values())
    torch.save(batches()[0], tmp_path / "b.pt")
    arguments = ["prune", f"{HERE}:last_zero", "--batch", str(tmp_path / "b.pt"), "--sparsity", "0.5"]
    assert run([*arguments, "-o", str(tmp_path / "slim.safetensors")]) == 2
    assert "layer head are all zero" in capsys.readouterr().err
    assert run([*arguments, "--score-init", "glorot", "-o", str(tmp_path / "slim.safetensors"), "-q"]) == 0


def test_a_zero_layer_before_the_output_that_others_reach_is_drawn():
    torch.manual_seed(0)
    model = Net(lambda m, x: m.stem(x) + m.b(m.a(x).relu()), stem=conv(1, 3), a=conv(1, 8), b=conv(8, 3))
    nn.init.zeros_(model.b.weight)
    assert zeros_of(model).last == {"b.weight"}
    scores = ranp.score(model, batches())
    assert scores.about["weights_drawn"] == ["b"]
    assert scores.layers["a"].any()


BEHIND = {
    "no_grad": under_no_grad,
    "detach": lambda m, x: encoded(m, x).detach(),
    "data": lambda m, x: encoded(m, x).data,
}


@pytest.mark.parametrize("criterion", GRADIENTS)
@pytest.mark.parametrize("kind", BEHIND)
def test_layers_that_no_gradient_reaches_stay_whole_and_say_why(kind, criterion):
    method = {"snip": "snip", "taylor": "taylor"}.get(criterion, "ranp")
    pruned = ranp.prune(
        two_parts(BEHIND[kind]), batches(), sparsity=0.5, criterion=criterion, method=method, allow_less=True
    )
    report = pruned.report.to_dict()
    reasons = {"e0": NO_GRADIENT, "e1": NO_GRADIENT}
    if criterion in ("neuron", "taylor") and kind != "no_grad":
        del reasons["e1"]  # its mask multiplies what comes out of `detach`: how the loss depends on that is known
    assert report["scoring"]["not_ranked"] == reasons
    assert {name: pruned.mask.fixed[name] for name in reasons} == reasons
    assert {"layer": "e0", "reason": NO_GRADIENT} in report["not_pruned"]
    start = "2 layers (e0, e1)" if len(reasons) == 2 else "1 layer (e0)"
    assert f"{start} not ranked, and kept whole where no ranked one is tied to it: {NO_GRADIENT}" in report["notes"]
    assert all(len(pruned.mask.layers[name]["kept"]) == 8 for name in reasons)


def test_the_sparsity_is_of_the_neurons_that_are_ranked():
    pruned = ranp.prune(two_parts(under_no_grad), batches(), sparsity=0.5)
    kept = {name: len(layer["kept"]) for name, layer in pruned.mask.layers.items()}
    scores = ranp.score(two_parts(under_no_grad), batches()).layers
    by_mean = {name: scores[name] / scores[name].mean() for name in ("b", "head")}  # eq. 9
    costs = np.array(
        [16 * 8 * 9 * 36 + 16 * 36, 3 * 16 * 36 + 3 * 36]
    )  # eq. 10: multiply-adds, bias adds; softmax over
    largest = max(8 * 8 * 9 * 36 + 8 * 36, *costs)  # all four layers
    tau = np.exp(-np.array([8 * 9 * 36 + 8 * 36, 8 * 8 * 9 * 36 + 8 * 36, *costs]) / largest)
    weights = 1 + 11 * (tau / tau.sum())[2:]
    order = np.sort(np.concatenate([by_mean["b"] * weights[0], by_mean["head"] * weights[1]]))[::-1]
    stay = int((by_mean["b"] * weights[0] >= order[9 - 1]).sum())  # int(0.5 * (16 + 3)) = 9 are ranked in
    assert kept == {"e0": 8, "e1": 8, "b": stay, "head": 3}


@pytest.mark.parametrize("method", ["ranp", "layerwise", "flat", "snip"])
def test_what_is_tied_to_ranked_neurons_goes_by_their_scores(method):
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(m.a(x).relu() * m.g(x).sigmoid().detach()), a=conv(1, 8), g=conv(1, 8), b=conv(8, 3))
    pruned = ranp.prune(model, batches(), sparsity=0.95 if method == "snip" else 0.6, method=method)
    scores = ranp.score(model, batches()).layers
    assert pruned.report.parts["scoring"]["not_ranked"] == {"g": NO_GRADIENT}
    assert "g" not in pruned.mask.fixed
    kept = pruned.mask.layers["a"]["kept"]
    assert pruned.mask.layers["g"]["kept"] == kept
    assert 0 < len(kept) < 8
    if method != "snip":  # the unit of a and g is worth what a is
        assert kept == sorted(np.argsort(-scores["a"])[: len(kept)].tolist())


def test_without_the_mechanism_they_are_emptied(monkeypatch):
    monkeypatch.setattr("ranp_cli.api.prune.keep_whole", lambda *_: None)
    mask = ranp.prune(two_parts(under_no_grad), batches(), sparsity=0.5, min_neurons=1).mask
    assert [len(mask.layers[name]["kept"]) for name in ("e0", "e1")] == [1, 1]


def test_an_auxiliary_head_that_the_loss_does_not_use():
    torch.manual_seed(0)
    model = Net(lambda m, x: {"out": m.head(m.b(x).relu()), "aux": m.aux(m.side(m.b(x)).relu())}, b=conv(1, 16), head=conv(16, 3),
                side=conv(16, 8), aux=conv(8, 3))  # fmt: skip
    pruned = ranp.prune(model, batches(), sparsity=0.3, loss=lambda y, t: F.cross_entropy(y["out"], t))
    assert pruned.mask.fixed["side"] == NO_GRADIENT
    assert pruned.mask.fixed["aux"] == "network output"
    assert len(pruned.mask.layers["side"]["kept"]) == 8
    assert 1 < len(pruned.mask.layers["b"]["kept"]) < 16


def test_dead_neurons_are_another_reason():
    model = two_parts(encoded)
    nn.init.constant_(model.e1.bias, -1e4)
    pruned = ranp.prune(model, batches(), sparsity=0.3, allow_less=True)
    assert pruned.mask.fixed["e1"] == pruned.mask.fixed["e0"] == ALL_ZERO
    assert len(pruned.mask.layers["e1"]["kept"]) == 8


def test_some_dead_neurons_are_ranked_last():
    model = two_parts(encoded)
    nn.init.constant_(model.e1.bias[:2].detach(), -1e4)
    pruned = ranp.prune(model, batches(), sparsity=0.3)
    assert "scoring" not in pruned.report.to_dict()
    assert not {0, 1} & set(pruned.mask.layers["e1"]["kept"])


def test_activations_that_no_call_shows(monkeypatch):
    """The mask criteria multiply the results of torch's own calls; a layer of which they find none is not ranked either."""
    found = activation_gradients.post_activations
    monkeypatch.setattr(
        activation_gradients, "post_activations", lambda *a: {k: v for k, v in found(*a).items() if v[0][0] != 1}
    )
    pruned = ranp.prune(residual(), batches(), sparsity=0.3, criterion="neuron", allow_less=True)
    assert pruned.mask.fixed == {"a": NO_ACTIVATION, "head": "network output"}


def test_frozen_parameters_are_scored_as_others_are():
    frozen = residual()
    for p in (*frozen.stem.parameters(), *frozen.a.parameters()):
        p.requires_grad_(False)
    for layer, wanted in ranp.score(residual(), batches()).layers.items():
        assert np.array_equal(ranp.score(frozen, batches()).layers[layer], wanted)


def test_nothing_with_a_gradient_is_the_error_of_before():
    model = two_parts(encoded)
    with pytest.raises(BadInput, match="the loss has no gradient: it is zero in every layer from e0 on"):
        ranp.score(model, batches(), loss=lambda y, t: 0 * y.sum())
    with pytest.raises(BadInput, match="has no gradient: it depends on no layer"):
        ranp.score(model, batches(), loss=lambda y, t: t.float().mean())


def test_weights_of_zeros_rank_nothing_by_their_norms_either():
    pruned = ranp.prune(
        without_b(residual(lambda m, y: m.c(y), c=conv(8, 8))), batches(), sparsity=0.3, method="magnitude"
    )
    assert pruned.mask.fixed["b"] == ZERO_WEIGHTS
    assert len(pruned.mask.layers["b"]["kept"]) == 8


def test_unranked_layers_can_be_too_many():
    model = two_parts(under_no_grad)
    with pytest.raises(Infeasible, match=r"16 neurons of e0, e1: no gradient reaches it"):
        ranp.prune(model, batches(), sparsity=0.9, keep=["b"])


@pytest.mark.parametrize("make", [lambda: two_parts(under_no_grad), scaled], ids=["no gradient", "scale"])
def test_compare_cuts_as_prune_does(make):
    names = ("layerwise", "flat", "vanilla", "ranp-flops", "snip", "taylor", "random")
    table = ranp.compare(make(), batches(), sparsity=0.4, methods=names)
    for row, name in zip(table.rows, names, strict=True):
        method, _, resource = name.partition("-")
        pruned = ranp.prune(
            make(), batches(), sparsity=0.4, method=method, resource=resource or "none", allow_less=True
        )
        assert row["layers_kept"] == [len(layer["kept"]) for layer in pruned.mask.layers.values()], name
    parts = table.report.to_dict()
    assert any("no gradient" in note for note in parts["notes"])
    assert parts["scoring"]
