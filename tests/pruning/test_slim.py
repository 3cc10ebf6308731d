"""Channel counts written into code, ops without a rule, and what the report says of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import Net, conv, loss

import ranp_cli as ranp
from ranp_cli import rules
from ranp_cli.core.errors import BadInput, Infeasible
from ranp_cli.core.example import Example
from ranp_cli.graph.analyse import analyse
from ranp_cli.pruning.slim import slim_model

X = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.zeros(2))


def viewed(m, x):
    y = F.relu(m.b(F.relu(m.a(x))))
    y = y.view(len(y), 12, -1).view(len(y), 12, *x.shape[2:])  # 12 is written here
    return m.d(F.relu(m.c(y)))


def hidden(m, x):
    y = F.relu(m.b(F.relu(m.a(x)))).mean((2, 3, 4))
    return m.d(m.gru(y, y.new_zeros(len(y), 6)))  # 6 is written here


def sliced(m, x):
    y = F.relu(m.b(F.relu(m.a(x))))
    return m.d(F.relu(m.c(y[:, :10:2])))


def padded(m, x):
    y = F.relu(m.a(x))
    y = F.pad(y, (0, 0, 0, 0, 0, 0, 0, 12 - y.shape[1]))  # 12 is written here
    return m.d(F.relu(y + m.b(y[:, :4] * 1.0)))


def reduced(m, x):
    y = F.relu(m.b(F.relu(m.a(x))))
    return m.d(F.relu(m.c(y * torch.sigmoid(y.logsumexp(1, keepdim=True)))))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


CASES = {  # name: network, layers that must stay whole, word of the reason
    "view": (lambda: Net(viewed, a=conv(2, 8), b=conv(8, 12), c=conv(12, 8), d=conv(8, 3)), {"b"}, "in the code"),
    "hidden": (
        lambda: Net(hidden, a=conv(2, 8), b=conv(8, 12), gru=nn.GRUCell(12, 6), d=nn.Linear(6, 3)),
        {"gru.weight_hh", "gru.weight_ih"},
        "in the code",
    ),
    "slice with a step": (
        lambda: Net(sliced, a=conv(2, 8), b=conv(8, 12), c=conv(5, 8), d=conv(8, 3)),
        {"b"},
        "a step",
    ),
    "reduction": (
        lambda: Net(reduced, a=conv(2, 8), b=conv(8, 12), c=conv(12, 8), d=conv(8, 3)),
        {"b"},
        "logsumexp over channels",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_code_insists_on_stays_and_the_rest_goes(name):
    make, whole, word = CASES[name]
    pruned = ranp.prune(seeded(make), BATCH, loss=loss, sparsity=0.6, allow_less=True)
    assert pruned.model(X).shape == seeded(make)(X).shape
    rows = {row["layer"]: row["reason"] for row in pruned.report.to_dict()["not_pruned"]}
    for layer in whole:
        assert word in rows[layer]
        assert "test_slim.py:" in rows[layer], "the line of the user's code is named"
    others = [n for n, row in pruned.mask.layers.items() if n not in whole and n != "d"]
    assert any(len(pruned.mask.layers[n]["kept"]) < pruned.mask.layers[n]["neurons"] for n in others)


def test_padding_to_a_written_count_never_breaks():
    net = seeded(lambda: Net(padded, a=conv(2, 8), b=conv(4, 12), d=conv(12, 3)))
    pruned = ranp.prune(net, BATCH, loss=loss, sparsity=0.6, allow_less=True)
    assert pruned.report.to_dict()["verified"]["max_rel_error_fp64"] < 1e-10


def test_much_less_than_asked_is_said():
    net = seeded(lambda: Net(viewed, a=conv(2, 8), b=conv(8, 12), c=conv(12, 8), d=conv(8, 3)))
    with pytest.raises(
        Infeasible, match=r"only 0\.0% of the neurons could be removed where 50\.0% was asked.*allow_less=True"
    ):
        ranp.prune(net, BATCH, loss=loss, sparsity=0.5, keep=["*"])


@pytest.fixture(scope="module")
def library():
    lib = torch.library.Library("ranptest", "DEF")
    lib.define("twice(Tensor x) -> Tensor")
    lib.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    lib.impl("twice", lambda x: 2 * x, "Meta")
    yield lib
    lib._destroy()


def custom():
    return Net(
        lambda m, x: m.c(F.relu(torch.ops.ranptest.twice(m.b(F.relu(m.a(x)))))),
        a=conv(2, 8),
        b=conv(8, 12),
        c=conv(12, 3),
    )


def test_an_unknown_op_is_never_guessed(library):
    graph = analyse(custom(), Example((X,)))
    reasons = {
        layer.name: {str(graph.reasons[u]) for u in units}
        for layer, units in zip(graph.layers, graph.by_layer(graph.unit), strict=True)
    }
    assert reasons["a"] == {"None"}
    (why,) = reasons["b"]
    assert why.startswith("ranptest.twice has no rule at test_slim.py:")
    assert graph.eval_run.tracer.unruled[0][0] == "ranptest.twice"
    assert ("ranptest.twice", "") in graph.eval_run.tracer.uncounted


def test_strict_makes_it_an_error(library):
    with pytest.raises(
        BadInput, match=r"strict=True: ranptest.twice in the model \(test_slim.py:\d+\) has no rule; register one"
    ):
        ranp.prune(custom(), BATCH, loss=lambda o, t: o.mean(), sparsity=0.5, strict=True)


def test_a_rule_of_the_user_s_own(library, monkeypatch):
    monkeypatch.setattr(rules, "_rules", dict(rules._rules))

    @rules.rule("ranptest.twice")
    def twice(ties, x, *, out):
        """Element-wise."""
        return x.planes

    graph = analyse(custom(), Example((X,)))
    assert len(graph.unit_roots) == 8 + 12 + 3
    assert not graph.eval_run.tracer.unruled


def test_the_bug_of_a_rule_is_not_blamed_on_the_user(library, monkeypatch):
    monkeypatch.setattr(rules, "_rules", dict(rules._rules))
    rules.rule("ranptest.twice")(lambda ties, x, *, out: x.no_such_thing)
    with pytest.raises(ranp.RanpError, match=r"the rule of ranptest.twice.default raised AttributeError") as caught:
        analyse(custom(), Example((X,)))
    assert caught.value.exit_code == 1


def test_a_model_that_needs_numbers_runs_on_real_tensors():
    net = Net(lambda m, x: m.b(F.relu(m.a(x)) * (1.0 if float(x.sum()) > -1e9 else 0.0)), a=conv(2, 8), b=conv(8, 3))
    graph = analyse(net, Example((X,)))
    assert graph.eval_run.real
    assert len(graph.unit_roots) == 8 + 3


def test_attributes_follow_and_kept_weights_are_the_slices():
    net = nn.Sequential(
        conv(2, 8), nn.GroupNorm(8, 8), nn.PReLU(8), nn.ConvTranspose3d(8, 6, 2, 2), nn.InstanceNorm3d(6), conv(6, 3)
    )
    graph = analyse(net, Example((X,)))
    keep = graph.fixed_units.copy()
    units = graph.by_layer(graph.unit)
    keep[units[0][[1, 4, 6]]] = keep[units[1][[0, 5]]] = True
    slim, changed = slim_model(net, graph, graph.flags(keep))
    assert torch.equal(slim[3].weight, net[3].weight[[1, 4, 6]][:, [0, 5]])
    assert (slim[1].num_groups, slim[1].num_channels, slim[2].num_parameters, slim[4].num_features) == (3, 3, 3, 2)
    assert (slim[3].in_channels, slim[3].out_channels, slim[5].in_channels, slim[5].out_channels) == (3, 2, 2, 3)
    assert changed["4"] == {"num_features": 2}
    assert (net[1].num_groups, net[4].num_features) == (8, 6)


@pytest.mark.parametrize("init", ["factory", "glorot", "orthogonal"])
def test_init_draws_anew_from_the_seed(init):
    net = seeded(lambda: nn.Sequential(conv(2, 8), nn.BatchNorm3d(8), nn.ReLU(), conv(8, 3)))
    masks = ranp.prune(net, BATCH, loss=loss, sparsity=0.5)
    a, b, c = (ranp.refine(net, masks.mask, init=init, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert a[0].weight.shape == masks.model[0].weight.shape
    if init == "orthogonal":
        rows = a[0].weight.flatten(1)
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
    if init != "factory":
        assert not a[0].bias.any()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.jit as a whole
@pytest.mark.parametrize("way", ["scripted", "traced"])
def test_torchscript_inside_of_a_python_model_is_pruned_as_python_is(way):
    def compiled(part):
        return torch.jit.script(part) if way == "scripted" else torch.jit.trace(part, torch.zeros(1, 2, 4, 4, 4))

    def make(wrap):
        norm = nn.BatchNorm3d(8) if way == "scripted" else nn.Identity()  # torch warns of a traced norm
        inner = seeded(lambda: nn.Sequential(conv(2, 8), norm, nn.ReLU(), conv(8, 8)))
        return Net(lambda m, x: m.d(F.relu(m.a(x))), a=wrap(inner), d=seeded(lambda: conv(8, 3)))

    eager, mixed = make(lambda part: part), make(compiled)
    state = {name: t.clone() for name, t in mixed.state_dict().items()}
    want, got = (ranp.prune(net, BATCH, loss=loss, sparsity=0.5) for net in (eager, mixed))
    assert got.mask.layers == want.mask.layers
    slim = ranp.refine(mixed, got.mask)
    assert torch.allclose(slim.eval()(X), want.model.eval()(X), atol=1e-6)
    slim.train()(X).sum().backward()
    assert all(p.grad is not None for p in slim.parameters())
    scored = ranp.score(mixed, BATCH, loss=loss, low_memory=True)
    assert all(
        (scored.layers[name] == values).all() for name, values in ranp.score(mixed, BATCH, loss=loss).layers.items()
    )
    for amp in (False, True):
        told = [ranp.profile(net, X, amp=amp).to_dict() for net in (mixed, eager)]
        assert told[0]["before"]["macs"] == told[1]["before"]["macs"]
        assert told[0]["memory"]["before"]["train_peak_bytes"] == told[1]["memory"]["before"]["train_peak_bytes"]
    with pytest.raises(BadInput, match="TorchScript hides"):
        ranp.score(mixed, BATCH, loss=loss, criterion="neuron")
    assert all(torch.equal(t, state[name]) for name, t in mixed.state_dict().items())
    assert all(p.requires_grad for p in mixed.parameters())
