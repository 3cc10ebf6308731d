"""`Pruner` in the user's own loop: its schedule and goals, its scores, averages, scalers, compilers, and going on later."""

from __future__ import annotations

import copy
import io
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch._C import _len_torch_function_stack
from trained_nets import batches, made, network, train

import ranp_cli as ranp
from ranp_cli.api.pruner import Pruner
from ranp_cli.core.errors import BadInput

# -- schedule and goals


def test_units_go_on_schedule_until_the_sparsity_is_reached_and_then_nothing_is_looked_at():
    net, optimizer, pruner = made(every=3, units=2)
    train(net, optimizer, pruner, 40)
    assert [r.updates for r in pruner.removals] == [3, 6, 9, 12, 15]
    assert [r.units for r in pruner.removals] == [2, 2, 2, 2, 1]  # int(18 * 0.5) = 9 neurons stay
    assert pruner.sparsity == 0.5
    assert pruner.finished
    assert not net._forward_hooks
    assert not net._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert all(r.loss is not None and r.macs > 0 for r in pruner.removals)


def test_a_share_of_the_neurons_goes_each_time():
    net, optimizer, pruner = made(units=0.2)
    train(net, optimizer, pruner, 4)
    assert [r.removed for r in pruner.removals] == [4, 4]  # round(18 * 0.2)


@pytest.mark.parametrize("until", [{"macs": "25%"}, ["params=600"], "train-mem=70%"])
def test_budgets_end_it(until):
    net, optimizer, pruner = made(until=until)
    whole = ranp.profile(net, batches()[0][0]).to_dict()
    train(net, optimizer, pruner, 60)
    after = ranp.profile(net, batches()[0][0]).to_dict()
    assert pruner.finished
    if "macs" in until:
        assert after["before"]["macs"] <= 0.25 * whole["before"]["macs"] < pruner.removals[-2].macs
    elif "params" in until[0]:
        assert after["before"]["params"] <= 600 < pruner.removals[-2].params
    else:
        assert after["memory"]["before"]["train_peak_bytes"] <= 0.7 * whole["memory"]["before"]["train_peak_bytes"]


def test_floors_end_it_and_it_says_so():
    net, optimizer, pruner = made(until=0.9, min_neurons=4, units=100)
    with pytest.warns(
        UserWarning,
        match="pruning ended at a sparsity of 44.4%: the floors of their layers hold 8 units; a lower min_neurons",
    ):
        train(net, optimizer, pruner, 20)
    assert pruner.finished
    assert (net[0].out_channels, net[3].out_channels) == (4, 4)
    assert any("lower min_neurons" in note for note in pruner.report.to_dict()["notes"])


class Residual(nn.Module):
    """The channels of a, b and c are tied: a unit of three neurons."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 10, 1), nn.Conv3d(10, 10, 1), nn.Conv3d(10, 10, 1)
        self.out = nn.Conv3d(10, 2, 1)

    def forward(self, x):
        y = self.a(x)
        y = y + self.b(y.relu())
        return self.out(y + self.c(y.relu()))


def test_a_unit_that_is_larger_than_the_share_goes_alone_and_the_goal_is_not_overshot():
    torch.manual_seed(0)
    data = [(torch.randn(2, 1, 3, 3, 3), torch.randint(2, (2, 3, 3, 3)))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as near as whole units come to it is no shortfall
        net, optimizer, pruner = made(Residual(), example=data[0][0], every=1, units=0.05, until=0.3)
        train(net, optimizer, pruner, 9, data)
    assert [r.removed for r in pruner.removals] == [
        3,
        3,
        3,
    ]  # of 32 neurons 22 are to stay: a fourth unit of 3 would be too many
    assert pruner.finished


def test_layers_without_scores_stay_whole_and_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.rnn, self.f = nn.Conv3d(1, 6, 3), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.f(self.rnn(self.c(x).relu().mean((3, 4)).transpose(1, 2))[0][:, -1])

    torch.manual_seed(0)
    data = [(torch.randn(2, 1, 7, 7, 7), torch.randint(2, (2,)))]
    net, optimizer, pruner = made(Net(), example=data[0][0], every=1, units=9, until=0.9)
    with pytest.warns(UserWarning, match=r"layers without scores stay whole: rnn.*"):
        train(net, optimizer, pruner, 3, data)
    assert net.rnn.hidden_size == 8
    assert net.c.out_channels == 1


def test_layers_that_are_kept_lose_nothing():
    net, optimizer, pruner = made(keep="3", until=0.3)
    train(net, optimizer, pruner, 30)
    assert net[3].out_channels == 8
    assert net[0].out_channels == 5  # of the 10 neurons of the other two layers, int(10 * 0.7) stay; outputs may not go


# -- scores


@pytest.mark.parametrize(
    "criterion",
    [
        "taylor",
        "neuron",
        "mpmg-sum",
        "mpmg-max",
        "mnmg-mean",
        "activation-mean",
        "activation-std",
        "activation-zeros",
        "l1",
        "l2",
    ],
)
def test_the_scores_of_training_steps_are_those_of_ranp_score(criterion):
    data = batches(3)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # the weights stay those that are scored
    method = {"taylor": "taylor", "l1": "magnitude", "l2": "weight"}.get(
        criterion, "activation" if criterion.startswith("a") else "weighted"
    )
    pruner = Pruner(net, optimizer, example=data[0][0], method=method, criterion=criterion, every=100)
    want = ranp.score(copy.deepcopy(net), data, criterion=criterion).layers
    train(net, optimizer, pruner, 3, data)
    for layer, got in zip(pruner.shrinking.graph.layers, pruner.seen.values(net), strict=True):
        np.testing.assert_allclose(got, want[layer.name], rtol=2e-5, atol=1e-9)


def test_looking_on_changes_no_byte_of_the_training():
    plain = network()
    optimizer = torch.optim.Adam(plain.parameters())
    train(plain, optimizer, type("Nobody", (), {"step": lambda self, loss: None})(), 5)
    watched, optimizer, pruner = made(optimizer=None, every=100)
    optimizer.param_groups[0]["lr"] = 1e-3
    train(watched, optimizer, pruner, 5)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_accumulated_gradients_are_one_mini_batch():
    net, optimizer, pruner = made(every=2)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        for x, y in batches(3):
            nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        seen.append(pruner.seen.batches)
        pruner.step()
    assert seen == [1, 2]
    assert len(pruner.removals) == 1


def test_a_step_that_the_scaler_leaves_out_is_no_score():
    net, optimizer, _ = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    pruner = Pruner(net, optimizer, example=batches()[0][0], every=100, scaler=scaler)
    for k, (x, y) in enumerate(batches(4)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x).float(), y)
        scaler.scale(loss * (float("inf") if k == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        pruner.step(loss)
    assert (pruner.updates, pruner.seen.batches) == (4, 3)
    assert all(np.isfinite(s).all() for s in pruner.seen.values(net))


# -- what follows the network


def test_an_average_of_the_weights_and_a_dict_are_cut_too():
    net = network()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    shadow = {name: p.detach().clone() for name, p in net.named_parameters()}
    net, optimizer, pruner = made(net, also=[average, shadow])
    train(net, optimizer, pruner, 20, after=lambda: average.update_parameters(net))
    assert pruner.finished
    shapes = {name: p.shape for name, p in net.named_parameters()}
    assert {name: p.shape for name, p in average.module.named_parameters()} == shapes
    assert {name: t.shape for name, t in shadow.items()} == shapes
    assert average.module[0].out_channels == net[0].out_channels
    assert average(batches()[0][0]).shape == (2, 2, 3, 3, 3)


def test_a_schedule_of_the_learning_rate_goes_on():
    net = network()
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[3:].parameters()}], lr=0.01, momentum=0.9
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    net, optimizer, pruner = made(net, optimizer)
    train(net, optimizer, pruner, 20, after=schedule.step)
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 4]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("fresh_loss", [True, False])
def test_a_loss_that_is_still_alive_is_no_hindrance(fresh_loss):
    net, optimizer, pruner = made(every=1)
    held = []
    for x, y in batches(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        held += [] if fresh_loss else [loss]
        pruner.step(loss)
    assert len(pruner.removals) == 4


def test_copies_of_the_network_do_not_look_on():
    net, optimizer, pruner = made(every=100)
    twin = copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        other.train()(batches()[0][0]).sum().backward()
    assert all(not masks for masks in pruner.seen.collector.masks)
    train(net, optimizer, pruner, 1)
    assert pruner.seen.batches == 1


class Fragile(nn.Module):
    """Raises when it is told to, and changes its own mode on the way."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.fails = nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 3), False

    def forward(self, x):
        y = self.first(x).relu()
        if self.fails:
            raise ValueError("out of cheese")
        self.eval()
        y = self.last(y)
        self.train()
        return y.mean((2, 3, 4)) if self.training else y


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_goes_on_looking_after_a_pass(fails):
    """Also of one that raises, or ends in another mode than it began in."""
    torch.manual_seed(0)
    net, _, pruner = made(Fragile(), every=100)
    net.fails = fails
    before = _len_torch_function_stack()
    with pytest.raises(ValueError, match="out of cheese") if fails else nullcontext():
        net(batches()[0][0])
    assert _len_torch_function_stack() == before
    net.fails = False
    net.eval()(batches()[0][0])
    assert not pruner.seen.collector.modes


# -- compiled


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_network_is_cut_and_the_recompilations_are_said(whole):
    net = network()
    fast = torch.compile(net, backend="eager") if whole else net
    if not whole:
        net.compile(backend="eager")
    optimizer = torch.optim.Adam(net.parameters())
    pruner = Pruner(
        fast, optimizer, example=batches()[0][0], method="weighted", every=2, units=3, until=0.5, min_neurons=1
    )
    with pytest.warns(UserWarning, match="compiles the network anew after every removal"):
        train(fast, optimizer, pruner, 10)
    assert pruner.finished
    assert fast(batches()[0][0]).shape == (2, 2, 3, 3, 3)
    torch.compiler.reset()


def test_activations_of_a_compiled_network_are_not_seen_and_that_is_said():
    net = network()
    fast = torch.compile(net, backend="eager")
    optimizer = torch.optim.Adam(net.parameters())
    pruner = Pruner(fast, optimizer, example=batches()[0][0], method="taylor")
    with pytest.raises(BadInput, match="looks at activations, and in this training step none was seen"):
        train(fast, optimizer, pruner, 1)
    torch.compiler.reset()


# -- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"units": 0}, "units=0"),
        ({"units": 1.5}, "units=1.5"),
        ({"until": 1.5}, "sparsity"),
        ({"until": {"macz": "10%"}}, "macs"),
        ({"method": "layerwise"}, "no meaning while a network trains"),
        ({"method": "tailor"}, "taylor"),
        ({"method": "obd"}, "not to be had from the gradients of a training step"),
        ({"method": "snip"}, "not to be had from the gradients of a training step"),
        ({"resource": "latency", "method": "ranp"}, "no meaning while a network trains"),
        ({"verify": "sometimes"}, "verify"),
        ({"keep": "nothing"}, "no layer matches"),
        ({"example": torch.zeros(1, 3, 4, 4, 4)}, "the model fails"),
        ({"also": [3]}, "also: a int is no copy"),
    ],
)
def test_bad_options_are_refused(options, message):
    def use():
        train(*made(**options), 2)

    with pytest.raises(BadInput, match=message):
        use()


def test_what_is_no_optimizer_or_sees_no_gradient_is_said():
    net = network()
    with pytest.raises(BadInput, match=r"optimizer: is a list; give a torch\.optim\.Optimizer"):
        Pruner(net, [], example=batches()[0][0])
    net, optimizer, pruner = made(method="ranp")
    with pytest.raises(BadInput, match="no gradient reached a layer"):
        optimizer.step()
    with warnings.catch_warnings(), pytest.raises(BadInput, match="no training step was seen"):
        pruner.remove()


def test_a_resource_without_effect_is_refused():
    with pytest.raises(BadInput, match="resource='flops' has no effect with method='taylor'"):
        made(method="taylor", resource="flops")
    for options in ({"method": "ranp"}, {"method": "taylor", "resource_term": "unit"}):
        assert made(resource="flops", **options)[2].shrinking.ranking.resource == "flops"
