"""Criteria of post-activations against plain torch: their sizes, gradients of masks, and second derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scored_nets import same
from torch import nn

import ranp_cli as ranp
from ranp_cli.scoring import activation_scores
from ranp_cli.scoring.activation_scores import DRAWS, Moments, mask_gradients, neuron_scores, sign_draws, taylor_scores

ACTIVATIONS = ("activation-mean", "activation-std", "activation-zeros")


def tiny(first: int = 5, second: int = 6) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, first, 3), nn.Tanh(), nn.Conv2d(first, second, 3), nn.ReLU(), nn.Flatten(),
                             nn.Linear(second * 16, 4))  # fmt: skip


def batches(n: int = 2) -> list:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 1, 8, 8, generator=g), torch.randint(4, (3,), generator=g)) for _ in range(n)]


def activations(net: nn.Sequential, x: torch.Tensor) -> list:
    """The post-activations of the three layers, with gradients."""
    a = torch.tanh(net[0](x))
    b = F.relu(net[2](a))
    return [a, b, net[5](b.flatten(1))]


# -- of values alone


@pytest.mark.parametrize(
    ("criterion", "by_hand"),
    [
        ("activation-mean", lambda a: a.abs().mean(1)),
        ("activation-std", lambda a: a.std(1, correction=0)),
        ("activation-zeros", lambda a: 1 - (a == 0).double().mean(1)),
    ],
)
def test_activations_by_hand(criterion, by_hand):
    found = ranp.score(tiny(), batches(), criterion=criterion).layers
    per_batch = [[by_hand(a.detach().double().transpose(0, 1).flatten(1)) for a in activations(tiny(), x)]
                 for x, _ in batches()]  # fmt: skip
    for name, values in zip(("0", "2", "5"), zip(*per_batch, strict=True), strict=True):
        np.testing.assert_allclose(found[name], torch.stack(values).mean(0).numpy(), rtol=1e-6)


@pytest.mark.parametrize("criterion", ACTIVATIONS)
def test_activations_need_no_loss(criterion):
    def never(output, target):
        raise AssertionError("the loss was computed")

    model = tiny()
    ranp.score(model, batches(), criterion=criterion, loss=never)
    assert all(p.grad is None for p in model.parameters())


class Twice(nn.Module):
    """One layer that is called twice, at two sizes."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x):
        x = F.relu(self.shared(x))
        return self.head(F.relu(self.shared(F.max_pool2d(x, 2)))).mean((2, 3))


@pytest.mark.parametrize("criterion", ACTIVATIONS)
def test_calls_of_one_layer_count_by_their_values(criterion):
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 2, 8, 8)
    first = F.relu(model.shared(x))
    second = F.relu(model.shared(F.max_pool2d(first, 2)))
    a = torch.cat([t.detach().double().transpose(0, 1).flatten(1) for t in (first, second)], 1)
    want = {"mean": a.mean(1), "std": a.std(1, correction=0), "zeros": (a != 0).double().mean(1)}
    found = ranp.score(model, (x, torch.tensor([0, 1, 2])), criterion=criterion).layers["shared"]
    np.testing.assert_allclose(found, want[criterion.rpartition("-")[2]].numpy(), rtol=1e-6)


def test_moments_of_slices_are_those_of_the_whole():
    a = torch.randn(4, 6, 5, dtype=torch.complex64)
    index = torch.tensor([4, 1, 3])
    parts = Moments.of(a[:2, index], 1).among(6, index) + Moments.of(a[2:, index], 1).among(6, index)
    for reduce in ("mean size", "deviation", "share of others than zero"):
        want = Moments.of(a, 1).score(reduce)[index]
        torch.testing.assert_close(parts.score(reduce)[index], want)
        assert not parts.score(reduce)[[0, 2, 5]].any()


def test_a_constant_activation_does_not_deviate():
    assert Moments.of(torch.full((4, 2, 1000), 1e4 / 3), 1).score("deviation").max() < 1e-9


# -- of gradients that a training step makes anyway


@pytest.mark.parametrize("criterion", ["neuron", "taylor"])
def test_hooks_in_a_training_step_give_the_scorers_numbers(criterion):
    """The plain functions take a and dL/da; the scorer multiplies masks in."""
    net, data = tiny(), batches(1)
    seen = activations(net, data[0][0])
    for a in seen:
        a.retain_grad()
    F.cross_entropy(seen[2], data[0][1]).backward()
    found = ranp.score(tiny(), data, criterion=criterion).layers
    for values, a in zip(found.values(), seen, strict=True):
        g, positions = mask_gradients(a.detach(), a.grad, 1), a[0, 0].numel()
        mine = neuron_scores([g]) if criterion == "neuron" else taylor_scores([g], [positions])
        np.testing.assert_allclose(values, mine.numpy(), rtol=2e-4, atol=1e-9)


# -- second derivatives


def gated(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, *gates: torch.Tensor) -> torch.Tensor:
    a = torch.tanh(net[0](x)) * gates[0][:, None, None]
    b = F.relu(net[2](a)) * gates[1][:, None, None]
    return F.cross_entropy(net[5](b.flatten(1)) * gates[2], y)


def exact(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor, sizes: tuple[int, ...]) -> np.ndarray:
    """Half the diagonal of the Hessian by the gates."""
    gates = tuple(torch.ones(n) for n in sizes)
    whole = torch.autograd.functional.hessian(lambda *c: gated(net, x, y, *c), gates)
    return np.concatenate([whole[k][k].diagonal().double().numpy() / 2 for k in range(len(sizes))])


def test_obd_of_as_many_neurons_as_draws_is_exact():
    assert DRAWS >= 5 + 6 + 4
    found = ranp.score(tiny(), batches(), criterion="obd").layers
    want = np.mean([exact(tiny(), x, y, (5, 6, 4)) for x, y in batches()], axis=0)
    np.testing.assert_allclose(np.concatenate(list(found.values())), np.abs(want), rtol=1e-3, atol=1e-8)


def test_obd_of_more_neurons_is_without_bias(monkeypatch):
    """The mean over seeds comes to the exact value; one draw alone does not."""
    net, data = tiny(12, 16), batches(1)
    want = exact(net, *data[0], (12, 16, 4))
    monkeypatch.setattr("ranp_cli.scoring.weight_gradients.Tensor.abs", lambda t: t, raising=False)  # keep the sign
    each = np.array([
        np.concatenate(list(ranp.score(net, data, criterion="obd", seed=s).layers.values())) for s in range(60)
    ])  # fmt: skip
    spread = each.std(0, ddof=1) / np.sqrt(len(each))
    assert np.all(np.abs(each.mean(0) - want) < 5 * spread + 1e-7)
    assert spread.max() > 1e-5  # 32 neurons are too many for DRAWS to be exact


def test_each_draw_is_of_signs_and_neighbours_are_orthogonal():
    draws = torch.stack([torch.cat(signs) for signs in sign_draws((20, 30), seed=7)])
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    coupled = draws.T @ draws / DRAWS
    number = torch.arange(50)
    apart = (number[:, None] - number[None]) % DRAWS != 0
    assert not coupled[apart].any()
    assert torch.equal(coupled[~apart].abs(), torch.ones_like(coupled[~apart]))
    other = torch.stack([torch.cat(signs) for signs in sign_draws((20, 30), seed=8)])
    assert not torch.equal(draws, other)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 2


class Doubling(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_an_op_without_second_derivative_is_named():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Doubling(), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )
    ranp.score(net, batches(), criterion="taylor")
    with pytest.raises(
        ranp.BadInput, match=r"runs an autograd.Function that is marked once_differentiable; use taylor"
    ):
        ranp.score(net, batches(), criterion="obd")


class Distances(nn.Module):
    """Distances to prototypes, by an op that has no formula for its second derivative."""

    def __init__(self):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return torch.cdist(x, self.prototypes)


def test_an_op_without_a_formula_is_named():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), Distances())
    ranp.score(net, batches(), criterion="taylor")
    with pytest.raises(
        ranp.BadInput, match=r"takes second derivatives, and one fails on mini-batch 0.*_cdist_backward"
    ):
        ranp.score(net, batches(), criterion="obd")


def test_obd_needs_all_activations_and_a_curved_loss():
    with pytest.raises(
        ranp.BadInput, match="second derivatives, which need all activations kept; leave out low_memory=True"
    ):
        ranp.score(tiny(), batches(), criterion="obd", low_memory=True)
    flat = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten())
    with pytest.raises(ranp.BadInput, match="the loss has no second derivative"):
        ranp.score(flat, [(x, torch.zeros(3, 108)) for x, _ in batches()], criterion="obd", loss="l1")
    dead = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.Flatten())
    with pytest.raises(ranp.BadInput, match="criterion 'activation-mean' is zero for every neuron"):
        ranp.score(dead, [(torch.zeros_like(x), y) for x, y in batches()], criterion="activation-mean")


# -- one pass serves all


def test_one_pass_gives_each_criterion_what_its_own_pass_gives():
    """`compare` scores by all criteria at once: masks, values, second derivatives and weights do not disturb each other."""
    names = ["mpmg-sum", "neuron", "taylor", "obd", *ACTIVATIONS]
    table = ranp.compare(tiny(), batches(), sparsity=0.4, methods=[f"vanilla:{name}" for name in names], min_neurons=1)
    for row, name in zip(table.rows, names, strict=True):
        alone = ranp.compare(tiny(), batches(), sparsity=0.4, methods=[f"vanilla:{name}"], min_neurons=1).rows[0]
        assert alone["layers_kept"] == row["layers_kept"], name


@pytest.mark.parametrize("precision", ["fp64", "bf16", "fp16"])
@pytest.mark.parametrize("criterion", ["obd", "activation-std"])
def test_precisions_agree(criterion, precision):
    full = ranp.score(tiny(), batches(), criterion=criterion)
    other = ranp.score(tiny(), batches(), criterion=criterion, precision=precision)
    tolerance = 1e-4 if precision == "fp64" else 0.1
    for name, values in full.layers.items():
        np.testing.assert_allclose(other.layers[name], values, rtol=tolerance, atol=tolerance * values.max())


@pytest.mark.parametrize("criterion", ["obd", "activation-std"])
def test_going_on_gives_what_one_run_gives(criterion, tmp_path):
    whole = ranp.score(tiny(8, 12), batches(4), criterion=criterion)
    ranp.score(tiny(8, 12), batches(4), criterion=criterion, batch_limit=2).save(tmp_path / "some.safetensors")
    assert same(ranp.score(tiny(8, 12), batches(4), criterion=criterion, resume=tmp_path / "some.safetensors"), whole)


def test_draws_are_a_power_of_two():
    assert activation_scores.DRAWS & (activation_scores.DRAWS - 1) == 0
