"""The equations of the paper against a plain reference, and by hand."""

from __future__ import annotations

import copy
import runpy
from fnmatch import fnmatch
from functools import cache
from math import ceil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paper_reference import CLASSES, IGNORE, LAMBDA, prune
from paths import SAMPLES
from torch import nn

import ranp_cli as ranp
from ranp_cli.models.unet3d import unet3d

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = SAMPLES / "model.py"


LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


NETS = {
    "unet3d": lambda: unet3d(layers=7, width=6, num_classes=CLASSES),
    "sample": lambda: runpy.run_path(str(MODEL))["UNet3D"](num_classes=CLASSES, width=4, levels=3),
    "no norm": lambda: without(nn.BatchNorm3d, unet3d(layers=7, width=6, num_classes=CLASSES)),
}


SEEDS = (0, pytest.param(1, marks=pytest.mark.slow))


SPARSITIES = (0.3, 0.78, 0.95)


METHODS = {
    "vanilla": {"method": "vanilla"},
    "weighted": {"method": "weighted"},
    "ranp-flops": {"method": "ranp", "resource": "flops"},
    "ranp-mem": {"method": "ranp", "resource": "mem"},
    "ranp-params": {"method": "ranp", "resource": "params"},
}


CRITERIA = [f"{kind}-{reduce}" for kind in ("mpmg", "mnmg") for reduce in ("sum", "mean", "max")]


def without(kind, model):
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, nn.Identity())
    return model


@cache
def case(net, seed):
    """A network and three mini-batches; some voxels are to be ignored."""
    torch.manual_seed(seed)
    model = NETS[net]()
    batches = [(torch.randn(2, 1, 8, 8, 8), torch.randint(CLASSES, (2, 8, 8, 8))) for _ in range(3)]
    for _, target in batches:
        target[torch.rand(target.shape) < 0.1] = IGNORE
    return model, batches


@cache
def saved(net, seed):
    """The scores of the case by `ranp.score`."""
    return ranp.score(*case(net, seed), ignore_index=IGNORE)


def kept(result):
    return {name: layer["kept"] for name, layer in result.mask.to_dict()["layers"].items()}


def costs(model, x):
    """Of each layer in forward order, for one sample: multiply-adds and bias adds, output elements, parameters."""
    found = {}

    def hook(name, layer, given, out):
        positions = (given[0] if isinstance(layer, nn.ConvTranspose3d) else out)[0, 0].numel()
        bias = out[0].numel() if layer.bias is not None else 0
        params = sum(p.numel() for p in layer.parameters())
        found[name] = {"flops": layer.weight.numel() * positions + bias, "mem": out[0].numel(), "params": params}

    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_hook(lambda m, i, o, name=name: hook(name, m, i, o))
    model(x)
    return found


def importance(model, batches, criterion):
    """Eq. 6-8: the gradient of a mask on every weight, averaged over the mini-batches, reduced to neurons."""
    kind, reduce = criterion.split("-")
    model = copy.deepcopy(model).double().train()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    mean = dict.fromkeys(layers, 0)
    for x, y in batches:
        masks = {name: torch.ones_like(m.weight, requires_grad=True) for name, m in layers.items()}
        masked = {f"{name}.weight": m.weight * masks[name] for name, m in layers.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, masked, x.double()), y, ignore_index=IGNORE)
        for name, g in zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True):
            mean[name] = mean[name] + (g.abs() if kind == "mpmg" else g) / len(batches)
    scores = {}
    for name, m in layers.items():
        g = mean[name].movedim(1 if isinstance(m, nn.ConvTranspose3d) else 0, 0).flatten(1)
        scores[name] = (g.amax(1) if reduce == "max" else getattr(g, reduce)(1)).abs().numpy()
    return {name: scores[name] for name in costs(model, batches[0][0].double())}


def weigh(scores, method, resource=None, cost=None):
    """Eq. 9 and 10."""
    if method == "vanilla":
        return scores
    top = max(s.mean() for s in scores.values())
    factor = {name: top / s.mean() for name, s in scores.items()}
    if resource:
        most = max(c[resource] for c in cost.values())
        e = {name: np.exp(-c[resource] / most) for name, c in cost.items()}
        factor = {name: f * (1 + LAMBDA * e[name] / sum(e.values())) for name, f in factor.items()}
    return {name: s * factor[name] for name, s in scores.items()}


def select(scores, kappa, floor=1, output=None):
    """Eq. 11, ties kept, the output layer kept, the best `floor` neurons of a layer that would have fewer."""
    flat = sorted(np.concatenate(list(scores.values())), reverse=True)
    least = flat[kappa - 1] if kappa else np.inf
    out, floored, output = {}, [], output or list(scores)[-1]
    for name, s in scores.items():
        out[name] = [i for i, v in enumerate(s) if v >= least or name == output]
        if len(out[name]) < min(floor, len(s)):
            out[name] = sorted(np.argsort(-s, kind="stable")[:floor].tolist())
            floored.append(name)
    return out, floored


@cache
def expected(net, seed, criterion="mpmg-sum"):
    return importance(*case(net, seed), criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("net", NETS)
def test_scores_are_those_of_mask_parameters(net, seed, criterion):
    got = ranp.score(*case(net, seed), criterion=criterion, ignore_index=IGNORE).layers
    want = expected(net, seed, criterion)
    assert list(got) == list(want)
    for name, s in want.items():
        # a signed sum cancels (behind a batch norm to nothing), so its error is measured against the unsigned one
        size = expected(net, seed, criterion.replace("mnmg", "mpmg"))[name].max() if "mnmg" in criterion else 0
        np.testing.assert_allclose(got[name], s, rtol=1e-5, atol=1e-5 * size, err_msg=name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("net", "sparsity"),
    [
        *(("unet3d", sparsity) for sparsity in SPARSITIES),
        ("sample", 0.78),
        *(pytest.param("sample", sparsity, marks=pytest.mark.slow) for sparsity in SPARSITIES if sparsity != 0.78),
    ],
)
def test_masks_are_the_papers_index_for_index(net, seed, method, sparsity):
    model, batches = case(net, seed)
    result = prune(model, batches, sparsity=sparsity, lambda_=LAMBDA, ignore_index=IGNORE, **METHODS[method])
    scores = weigh(expected(net, seed), cost=costs(model, batches[0][0]), **METHODS[method])
    want, floored = select(scores, int(sum(map(len, scores.values())) * (1 - sparsity)))
    assert kept(result) == want
    assert result.mask.floored == floored
    assert list(result.mask.fixed) == [list(want)[-1]]


@pytest.mark.parametrize("floor", [1, 2, 3])
@pytest.mark.parametrize("net", ["unet3d", "sample"])
def test_max_is_the_largest_sparsity_that_needs_no_floor(net, floor):
    scores = weigh(saved(net, 0).layers, "weighted")
    n = sum(map(len, scores.values()))
    masks = [select(scores, kappa, floor) for kappa in range(n + 1)]
    sparsest = next(mask for mask, floored in masks if not floored)
    result = prune(
        case(net, 0)[0], scores=saved(net, 0), sparsity="max", method="weighted", min_neurons=floor, allow_less=True
    )
    assert kept(result) == sparsest
    assert result.mask.floored == []


@pytest.mark.parametrize("floor", [2, 3, 100])
def test_min_neurons_is_the_floor_of_every_layer(floor):
    scores = saved("unet3d", 0)
    want, floored = select(scores.layers, int(sum(map(len, scores.layers.values())) * 0.2), floor)
    result = prune(
        case("unet3d", 0)[0], scores=scores, sparsity=0.8, method="vanilla", min_neurons=floor, allow_less=True
    )
    assert kept(result) == want
    assert result.mask.floored == floored


@pytest.mark.parametrize("options", [{"keep": ["encoders.*"]}, {"only": ["decoders.*", "encoders.1.conv?"]}], ids=str)
def test_keep_and_only_keep_whole_layers_and_take_the_share_from_the_rest(options):
    model, scores = case("unet3d", 0)[0], saved("unet3d", 0)
    got = kept(prune(model, scores=scores, sparsity=0.3, method="vanilla", min_neurons=1, allow_less=True, **options))
    whole = {
        name
        for name in scores.layers
        if any(fnmatch(name, glob) for globs in options.values() for glob in globs) == ("keep" in options)
    }
    assert all(got[name] == list(range(len(scores.layers[name]))) for name in whole)
    n, taken = sum(map(len, scores.layers.values())), sum(len(scores.layers[name]) for name in whole)
    rest = {name: s for name, s in scores.layers.items() if name not in whole}
    want, _ = select(rest, max(0, int(n * 0.7) - taken), 1, output="head")
    assert {name: got[name] for name in rest} == {name: want[name] for name in rest}


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_layerwise_keeps_the_best_share_of_every_layer(sparsity):
    scores = saved("sample", 0)
    result = prune(case("sample", 0)[0], scores=scores, sparsity=sparsity, method="layerwise")
    for name, s in scores.layers.items():
        share = len(s) if name == "head" else ceil(round(len(s) * (1 - sparsity), 9))
        assert kept(result)[name] == sorted(np.argsort(-s)[:share].tolist()), name


def test_layerwise_share_is_not_rounded_up_by_float_noise():
    model, scores = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 2)), {}
    batch = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    for sparsity in (0.1, 0.3, 0.7, 0.9):  # 10 * (1 - 0.7) is 3.0000000000000004
        scores[sparsity] = kept(prune(model, batch, sparsity=sparsity, method="layerwise", allow_less=True))["0"]
    assert {sparsity: len(some) for sparsity, some in scores.items()} == {0.1: 9, 0.3: 7, 0.7: 3, 0.9: 1}


def test_random_is_seeded():
    model, batches = case("unet3d", 0)
    masks = [kept(prune(model, batches, sparsity=0.5, method="random", seed=s)) for s in (0, 0, 1, 2)]
    assert masks[0] == masks[1]
    assert masks[0] != masks[2] != masks[3] != masks[0]


@pytest.mark.parametrize("method", ["vanilla", "ranp-mem"])
def test_saved_scores_give_the_mask_of_the_batches(tmp_path, method):
    model, batches = case("unet3d", 0)
    saved("unet3d", 0).save(tmp_path / "scores.safetensors")
    for sparsity in SPARSITIES:
        options = {"sparsity": sparsity, **METHODS[method]}
        direct = prune(model, batches, ignore_index=IGNORE, **options).mask
        assert prune(model, scores=tmp_path / "scores.safetensors", **options).mask.to_dict() == direct.to_dict()


def plain_net(inplace):
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(inplace)),
        *(nn.ConvTranspose3d(4, 5, 2, stride=2, bias=False), nn.ReLU(inplace)),
        *(nn.Conv3d(5, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.SiLU(inplace)),
        nn.Conv3d(4, CLASSES, 1),
    )


def unet(inplace):
    model = unet3d(layers=7, width=6, num_classes=CLASSES)
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = inplace
    return model


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    ("build", "after", "size"),
    [
        (plain_net, lambda name: {"0": "2", "3": "4", "5": "7", "8": "8"}[name], 6),
        (unet, lambda name: name.replace("conv", "relu"), 8),
    ],
    ids=["plain", "unet3d"],
)
def test_neuron_is_the_gradient_of_a_mask_on_the_post_activation(build, after, size, inplace):
    torch.manual_seed(0)
    model, seen, total = build(inplace), {}, {}
    batches = [(torch.randn(2, 1, size, size, size), torch.randint(CLASSES, (2, 8, 8, 8))) for _ in range(2)]
    got = ranp.score(model, batches, criterion="neuron").layers
    at = {after(name): name for name, m in model.named_modules() if isinstance(m, LAYERS)}
    for name, m in model.double().train().named_modules():
        if name in at:
            m.register_forward_hook(lambda m, i, out, name=at[name]: seen.update({name: out}))
    for x, y in batches:
        loss = F.cross_entropy(model(x.double()), y)
        gradients = torch.autograd.grad(loss, list(seen.values()))
        for (name, a), g in zip(seen.items(), gradients, strict=True):
            s = (a * g).detach().sum((0, 2, 3, 4)).abs() / len(batches)
            total[name] = total.get(name, 0) + s
    assert list(got) == list(total)
    for name, s in total.items():
        np.testing.assert_allclose(got[name], s, rtol=1e-4, atol=1e-5 * float(s.max()), err_msg=name)


#
# x = (1, 1), h = W1 x = (1, 2, 1), o = W2 h = (8, 4), L = o1 + o2, so dL/dh = (3, 3, 3) and
# eq. 6:   |W1 * dL/dW1| = (3 0; 3 3; 0 3), |W2 * dL/dW2| = (2 4 2; 1 2 1): scores (3, 6, 3) and (8, 4)
# eq. 9:   means 4 and 6, so factors 6/4 and 1:                              scores (4.5, 9, 4.5) and (8, 4)
# eq. 10:  flops 2 * 6 and 2 * 6, so tau = (1, 1), softmax = (1/2, 1/2), both factors 1 + 11 / 2: the order is eq. 9's
#          mem 3 and 2, so tau = (1, 2/3), softmax(-tau) = (0.417430, 0.582570), factors 5.591728 and 7.408272:
#                                                                  scores (25.16, 50.33, 25.16) and (59.27, 29.63)
#          params 6 and 6, like flops
# eq. 11:  n = 5, kappa = int(5 (1 - sparsity)); the second layer is the output and stays whole

HAND = [  # sparsity (kappa), kept of the first layer, floored?
    ("vanilla", "none", 0.4, [1], False),  # 3: 8 6 4
    ("vanilla", "none", 0.2, [0, 1, 2], False),  # 4: 8 6 4 3, and 3 again
    ("vanilla", "none", 0.79, [1], True),  # 1: 8 alone
    ("weighted", "none", 0.79, [1], False),  # 1: 9
    ("weighted", "none", 0.59, [1], False),  # 2: 9 8
    ("weighted", "none", 0.4, [0, 1, 2], False),  # 3: 9 8 4.5, and 4.5 again
    ("weighted", "none", 0.9, [1], True),  # 0: nothing
    ("weighted", "none", 0, [0, 1, 2], False),  # 5
    ("ranp", "none", 0.4, [0, 1, 2], False),  # as weighted
    ("ranp", "flops", 0.4, [0, 1, 2], False),
    ("ranp", "params", 0.4, [0, 1, 2], False),
    ("ranp", "mem", 0.4, [1], False),  # 3: 59.27 50.33 29.63
    ("ranp", "mem", 0.2, [0, 1, 2], False),  # 4: and 25.16, twice
    ("ranp", "mem", 0.79, [1], True),  # 1: 59.27 alone
    ("weighted", "none", "max", [1], False),  # 9: the next threshold would empty the layer
    ("layerwise", "none", 0.4, [0, 1], False),  # ceil(1.8), the first of equals
    ("layerwise", "none", 0.9, [1], False),  # ceil(0.3)
]


def by_hand():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    model[1].weight.data = torch.tensor([[2.0, 2, 2], [1, 1, 1]])
    return model, (torch.ones(1, 2), torch.ones(1, 2)), lambda out, target: (out * target).sum()


def test_scores_by_hand():
    model, batch, loss = by_hand()
    scores = ranp.score(model, batch, loss=loss).layers
    assert {name: s.tolist() for name, s in scores.items()} == {"0": [3, 6, 3], "1": [8, 4]}
    mean = ranp.score(model, batch, loss=loss, criterion="mpmg-mean").layers
    assert mean["0"].tolist() == [1.5, 3, 1.5]
    # a second mini-batch with x = (-1, -1) has the same |g| and the opposite g
    both = [batch, (-batch[0], batch[1])]
    assert ranp.score(model, [*both, batch], loss=loss).layers["0"].tolist() == [3, 6, 3]
    signed = ranp.score(model, [*both, batch], loss=loss, criterion="mnmg-sum").layers
    np.testing.assert_allclose(signed["0"], [1, 2, 1], rtol=1e-6)


@pytest.mark.parametrize(("method", "resource", "sparsity", "first", "floored"), HAND)
def test_masks_by_hand(method, resource, sparsity, first, floored):
    model, batch, loss = by_hand()
    result = prune(
        model, batch, loss=loss, method=method, resource=resource, sparsity=sparsity, lambda_=11, allow_less=True
    )
    assert kept(result) == {"0": first, "1": [0, 1]}
    assert result.mask.floored == (["0"] if floored else [])


def test_resource_weights_by_hand():
    model, batch, loss = by_hand()
    rows = prune(model, batch, loss=loss, sparsity=0.4, resource="mem").report.to_dict()["layers"]
    assert [row["tau"] for row in rows] == pytest.approx([1, 2 / 3])
    assert [row["reweighting"] for row in rows] == pytest.approx([5.591728, 7.408272], abs=1e-6)


@pytest.mark.parametrize(
    ("resource", "cost"),
    [
        # the convolution makes 2 maps of 2^3 from 1 of 4^3: 2 * 27 * 8 multiply-adds, 16 biases added
        # the transposed one makes 3 maps of 4^3 from those: 2 * 3 * 8 at each of 8 *inputs*, 192 biases added
        ("flops", (432 + 16, 384 + 192)),
        ("mem", (2 * 8, 3 * 64)),
        ("params", (54 + 2, 48 + 3)),
    ],
)
def test_costs_by_hand(resource, cost):
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.ConvTranspose3d(2, 3, 2, stride=2))
    batch = torch.randn(5, 1, 4, 4, 4), torch.randint(3, (5, 4, 4, 4))  # the cost is that of one sample
    rows = prune(model, batch, sparsity=0.2, resource=resource, allow_less=True).report.to_dict()["layers"]
    assert [row["tau"] for row in rows] == pytest.approx([c / max(cost) for c in cost])
    assert [row["macs"] for row in rows] == [432, 384]
