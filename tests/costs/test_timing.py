"""Latency as a resource and as a budget. No test looks at a real clock: times are given by hand."""

from __future__ import annotations

import random
import warnings

import laws
import numpy as np
import pytest
import torch
import zoo
from small_nets import CPU, batch, chain, net, weights
from torch import nn

import ranp_cli as ranp
from ranp_cli.api import budget_search
from ranp_cli.core.example import Example
from ranp_cli.core.numbers import shown
from ranp_cli.core.progress import silent
from ranp_cli.costs import timing
from ranp_cli.costs.budget import limit
from ranp_cli.graph.analyse import analyse
from ranp_cli.pruning.mask import to_json
from ranp_cli.reporting.speed import duration

pytestmark = pytest.mark.usefixtures("one_thread")


# -- the time of each layer


def test_tau_is_a_layers_share_of_the_longest_time(clock):
    times = {"0": 0.001, "2": 0.004, "4": 0.002}
    clock(lambda op: times[op.name])
    found = ranp.prune(chain(), batch(), sparsity=0.3, resource="latency")
    rows = {row["name"]: row for row in found.report.to_dict()["layers"]}
    assert {name: row["latency_ms"] for name, row in rows.items()} == pytest.approx({"0": 1, "2": 4, "4": 2})
    assert {name: row["tau"] for name, row in rows.items()} == pytest.approx({"0": 0.25, "2": 1, "4": 0.5})
    e = np.exp([-0.25, -1, -0.5])
    assert [row["reweighting"] for row in rows.values()] == pytest.approx(list(1 + 11 * e / e.sum()))
    assert found.mask.method["latency"] == {"device": "cpu", "threads": torch.get_num_threads(), "seconds": times}


def test_what_takes_long_loses_more(clock):
    """Between two equal layers the scores decide alone, until the time of one is said to be a thousand times the other's."""
    kept = {}
    for slow in ("0", "2"):
        clock(lambda op, slow=slow: 1.0 if op.name == slow else 0.001)
        layers = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", lambda_=100).mask.layers
        kept[slow] = [len(layers[name]["kept"]) for name in ("0", "2")]
    assert kept["0"][0] < kept["2"][0]
    assert kept["0"][1] > kept["2"][1]


def test_the_uses_of_a_layer_add_up_and_equal_calls_share_a_time(clock):
    """A convolution at full and at half size, and a twin of its first call."""
    model = zoo.Net(lambda m, x: m.twin(x) + m.conv(x) + m.up(m.conv(m.pool(x))),
                    conv=zoo.conv(2, 2), twin=zoo.conv(2, 2), pool=nn.MaxPool3d(2), up=nn.Upsample(scale_factor=2))  # fmt: skip
    timed = []

    def seconds(op):
        timed.append(op.call[1][0].shape[-1])
        return {8: 5.0, 4: 0.5}[timed[-1]]

    clock(seconds)
    graph = analyse(model, Example((torch.zeros(3, 2, 8, 8, 8),)))
    timing.time_layers(graph.layers, CPU, silent)
    assert {layer.name: layer.seconds for layer in graph.layers} == {"twin": 5.0, "conv": 5.5}
    assert timed.count(8) == timed.count(4) == 2 * timing.ROUNDS  # one that warms, one that counts


def test_the_best_round_counts_and_the_median_in_it(monkeypatch):
    """Five rounds of a slow machine, a run that warms (100) and four that count; the fourth round is quiet."""
    runs = [[100, 9, 9, 9, 9]] * 3 + [[100, 1, 3, 2, 90]] + [[100, 9, 9, 9, 9]]
    given = iter([seconds for turn in runs for seconds in turn])
    monkeypatch.setattr(timing, "once", lambda op, device: next(given))
    monkeypatch.setattr(timing, "BURST_SECONDS", 1e9)
    monkeypatch.setattr(timing, "BURST", 4)
    graph = analyse(nn.Conv3d(1, 2, 1), Example((torch.zeros(1, 1, 4, 4, 4),)))
    timing.time_layers(graph.layers, CPU, silent)
    assert graph.layers[0].seconds == 2.5
    assert next(given, None) is None


EVERY = [(case, False) for case in zoo.CASES]
EVERY += [(case, True) for case in zoo.CASES if case.name in ("chain", "grouped", "transposed", "flatten_linear")]


@pytest.mark.parametrize(("case", "script"), EVERY, ids=lambda v: v.name if isinstance(v, zoo.Case) else "")
def test_every_layer_of_any_network_is_timed_by_its_own_op(case, script, monkeypatch):
    """What is run has the layer's own shapes: its outputs are as many as the trace counted. TorchScript is no exception."""
    model, (x, _) = zoo.build(case), zoo.batches(case)[0]
    if script:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.jit.trace(model.eval(), x)
    graph = analyse(model, laws.example(x))
    real = timing.once
    outputs: dict[str, int] = {}

    def once(op, device):
        out = op()
        assert out.device == device
        outputs[op.key] = out.numel()
        return real(op, device)

    monkeypatch.setattr(timing, "once", once)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "BURST", 1)
    timing.time_layers(graph.layers, CPU, silent)
    for layer in graph.layers:
        assert layer.seconds > 0
        assert sum(outputs[timing.LayerOp("", call).key] * share for call, share in layer.calls) == pytest.approx(
            layer.output_elements, abs=len(layer.calls)
        )


def test_the_models_own_dtype_and_memory_format_are_timed(monkeypatch):
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 2, 1)).to(
        torch.float64, memory_format=torch.channels_last_3d
    )
    met = []
    monkeypatch.setattr(timing, "once", lambda op, device: met.append(op.call[1][:2]) or 1.0)
    x = torch.zeros(1, 2, 8, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    timing.time_layers(analyse(model, Example((x,))).layers, CPU, silent)
    for data, weight in met:
        assert data.dtype == weight.dtype == torch.float64
        assert weight.shape[2:] == (1, 1, 1) or weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert data.std() > 0.5  # numbers, no zeros: those may be faster


def test_an_op_that_does_not_run_is_named(monkeypatch):
    def once(op, device):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(timing, "once", once)
    with pytest.raises(
        ranp.BadInput, match=r"layer 0 cannot be timed on cpu: RuntimeError: out of memory; give another"
    ):
        ranp.prune(chain(), batch(), sparsity=0.5, resource="latency")


def test_the_clock_on_cuda_waits_for_the_device(monkeypatch):
    did = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            did.append("record")

        def elapsed_time(self, other):
            assert other is not self
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: did.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "device", lambda d: torch.no_grad())
    assert timing.once(lambda: did.append("work"), torch.device("cuda:1")) == 0.25
    assert did == ["synchronize", "record", "work", "record", "synchronize"]


# -- times that are used again


def test_times_from_a_mask_give_the_same_bytes(tmp_path, clock):
    rng = random.Random(0)
    clock(lambda op: rng.expovariate(1000))
    first = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency")
    measured = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency").mask
    assert to_json(measured.to_dict()) != to_json(first.mask.to_dict())  # as the README says
    first.mask.save(tmp_path / "mask.json")
    for given in (first.mask, tmp_path / "mask.json", first.mask.to_dict()):
        again = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", latencies=given)
        assert to_json(again.mask.to_dict()) == to_json(first.mask.to_dict())
    seconds = first.mask.method["latency"]["seconds"]
    plain = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", latencies=seconds)
    assert plain.mask.layers == first.mask.layers
    slim = ranp.refine(chain(), first.mask)
    assert [p.shape for p in slim.parameters()] == [p.shape for p in first.model.parameters()]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"0": 1.0, "2": 1.0}, "layer 4 wants the seconds that it takes, it is missing"),
        ({"0": 1.0, "2": 0, "4": 1.0}, "layer 2 wants the seconds that it takes, it is 0"),
        ({"0": True, "2": 1.0, "4": 1.0}, "layer 0 wants the seconds that it takes, it is True"),
        ({"0": float("inf"), "2": 1.0, "4": 1.0}, "layer 0 wants the seconds"),
    ],
)
def test_times_that_do_not_fit(given, says):
    with pytest.raises(ranp.BadInput, match=says):
        ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", latencies=given)


def test_masks_without_times_and_times_without_a_use():
    by_flops = ranp.prune(chain(), batch(), sparsity=0.5).mask
    assert "latency" not in by_flops.method
    with pytest.raises(ranp.BadInput, match="the mask records no times"):
        ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", latencies=by_flops)
    for options in ({"resource": "flops"}, {"resource": "latency", "method": "vanilla"}):
        with pytest.raises(ranp.BadInput, match="`latencies` goes with resource='latency'"):
            ranp.prune(chain(), batch(), sparsity=0.5, latencies={"0": 1.0}, **options)


# -- the largest network that is fast enough


@pytest.mark.parametrize("share", [20, *(pytest.param(share, marks=pytest.mark.slow) for share in (50, 90))])
def test_on_a_machine_that_counts_weights_the_two_budgets_agree(share, clock, monkeypatch, by_sparsity_alone):
    """Time as a function of the parameters: the latency budget must find what the exact search for parameters finds.

    What still fits beside that, a budget of time does not look for: each look is a race.
    """
    monkeypatch.setattr(budget_search.GreedyFill, "candidate", lambda *args: None)
    clock(weights)
    by_time = ranp.prune(net(), batch(), budget=f"latency={share}%")
    by_count = ranp.prune(net(), batch(), budget=f"params={share}%")
    assert by_time.mask.layers == by_count.mask.layers
    line = by_time.report.to_dict()["budget"][0]
    assert line["after"] == pytest.approx(by_count.report.to_dict()["after"]["params"] * 1e-6)
    assert line["bound"] == pytest.approx(share / 100 * sum(p.numel() for p in net().parameters()) * 1e-6)


@pytest.mark.parametrize(
    ("budget", "seed"),
    [
        ("latency=50%", 0),
        ("latency=8ms", 1),
        *(pytest.param("latency=50%", seed, marks=pytest.mark.slow) for seed in (1, 2, 3)),
        *(pytest.param("latency=8ms", seed, marks=pytest.mark.slow) for seed in (0, 2, 3)),
    ],
)
def test_never_over_however_noisy_the_machine(seed, budget, clock):
    """A fifth more or less at random, and every tenth run ten times as long."""
    rng = random.Random(seed)
    clock(lambda work: weights(work) * rng.uniform(0.8, 1.2) * (10 if rng.random() < 0.1 else 1))
    found = ranp.prune(net(), batch(), budget=budget).report.to_dict()
    line = found["budget"][0]
    assert 0.6 * line["bound"] < line["after"] <= line["bound"]
    assert (line["before"], line["after"]) == (found["speed"]["before_s"], found["speed"]["after_s"])
    exact = (
        found["after"]["params"] / found["before"]["params"]
        if "%" in budget
        else found["after"]["params"] * 1e-6 / 0.008 / 2
    )
    assert exact == pytest.approx(0.5, abs=0.12)  # and it is about the right network


@pytest.mark.slow
def test_other_budgets_are_kept_exactly(clock):
    clock(weights)
    alone = ranp.prune(net(), batch(), budget="macs=20%").report.to_dict()
    both = ranp.prune(net(), batch(), budget=["macs=20%", "latency=99%"]).report.to_dict()
    assert both["after"]["macs"] == alone["after"]["macs"]
    tight = ranp.prune(net(4), batch(), budget=["macs=90%", "latency=40%", "train-mem=90%"]).report.to_dict()
    assert all(line["after"] <= line["bound"] for line in tight["budget"])
    assert [line["kind"] for line in tight["budget"]] == ["macs", "latency", "train-mem"]
    assert tight["budget"][1]["after"] > 0.9 * tight["budget"][1]["bound"]


def test_a_network_that_is_fast_enough_is_left_alone(clock):
    rng = random.Random(0)
    clock(lambda work: weights(work) * rng.uniform(0.5, 2))
    found = ranp.prune(net(), batch(), budget="latency=100%")
    assert found.mask.kept == found.mask.total
    assert found.report.to_dict()["speed"]["speedup"] == 1


def test_what_cannot_be_met_names_the_closest(clock):
    clock(lambda work: 0.002 + weights(work))
    with pytest.raises(ranp.Infeasible) as error:
        ranp.prune(net(), batch(), budget=["latency=1ms", "macs=90%"])
    assert error.value.exit_code == 3
    assert "no network meets latency=1ms (1 ms): the smallest, with every layer at its floor, has latency 2." in str(
        error.value
    )
    assert "macs" not in str(error.value)


def test_the_search_times_few_networks_and_takes_none_twice_for_granted(clock):
    """Over 10000 sizes: a dozen to find, one to make sure; then steps down while the last word is no."""
    timed: list[tuple[int, bool]] = []

    def race(size, sure):
        timed.append((size, sure))
        return {"latency": timing.Timings((10000.0, size), 5)}

    found, last = budget_search.largest_within([limit("latency", "30%")], 10000, lambda n: n, race, lambda: None)
    assert 3000 - 10000 / 2**timing.STEPS <= found <= 3000
    assert last["latency"].seconds == (10000, found)
    assert timed[-1] == (found, True)
    assert len({size for size, _ in timed}) <= timing.STEPS + 1

    def moody(size, sure):  # its last word is stricter
        return {"latency": timing.Timings((10000.0, size * (1.5 if sure else 1)), 5)}

    found, last = budget_search.largest_within([limit("latency", "30%")], 10000, lambda n: n, moody, lambda: None)
    assert last["latency"].seconds[1] <= 3000
    assert found == last["latency"].seconds[1] / 1.5


def test_a_slow_moment_is_made_good_for():
    """The first looks are all wrong: a hundred times too slow. The longer ones are right."""

    def race(size, sure):
        return {"latency": timing.Timings((10000.0, size * (1 if sure else 100)), 5)}

    found, _ = budget_search.largest_within([limit("latency", "50%")], 10000, lambda n: n, race, lambda: None)
    assert 4300 <= found <= 5000


def test_what_other_budgets_forbid_is_not_taken():
    found, _ = budget_search.largest_within(
        [limit("latency", "90%")],
        1000,
        lambda n: None if n > 500 else n,
        lambda n, _: {"latency": timing.Timings((1000.0, n), 5)},
        lambda: None,
    )
    assert 498 <= found <= 500


# -- times as text


@pytest.mark.parametrize(
    ("text", "value"),
    [("20ms", 0.02), ("0.5s", 0.5), ("300us", 3e-4), (" 1.5 MS ", 0.0015), ("2e3us", 0.002), ("1e-1s", 0.1)],
)
def test_times_are_read(text, value):
    assert limit("latency", text).of(7) == pytest.approx(value)


def test_a_share_is_of_the_dense_network():
    assert limit("latency", "50%").of(0.3) == pytest.approx(0.15)


@pytest.mark.parametrize("text", ["20", "0ms", "-1ms", "150%", "fast", "20mb", "1m", "20ms%", ""])
def test_times_that_are_none(text):
    with pytest.raises(ranp.BadInput, match=f"latency={text}': give a time such as 20ms, 0.5s or 300us, or a share"):
        limit("latency", text)


def test_times_are_written():
    assert [shown("latency", s) for s in (1.25, 0.0203, 0.000312)] == ["1.25 s", "20.3 ms", "312 us"]
    assert [duration(s) for s in (12.5, 1.25, 0.9999, 0.0203, 0.000312, 1e-6, 0.1)] == [
        "12.5 s ", "1.25 s ", "1.00 s ", "20.3 ms", "312 us", "1.00 us", "100 ms"]  # fmt: skip
