"""Latency as a resource and as a budget, and measured speed. No test looks at a real clock: times are given by hand."""

from __future__ import annotations

import io
import json
import random
import statistics
import warnings
from typing import Any

import laws
import numpy as np
import pytest
import torch
import zoo
from rich.console import Console
from torch import nn

import ranp_cli as ranp
from ranp_cli import latency, show
from ranp_cli.budget import limit, shown
from ranp_cli.cli import run
from ranp_cli.example import Example
from ranp_cli.mask import to_json
from ranp_cli.models.unet3d import unet3d
from ranp_cli.speed import duration
from ranp_cli.steps import silent
from ranp_cli.units import analyse

CPU = torch.device("cpu")


def net(width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet3d(layers=7, width=width, num_classes=3)


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, size, size, size, generator=g), torch.randint(3, (2, size, size, size), generator=g)


def chain() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 1), nn.ReLU(), nn.Conv3d(8, 3, 1)
        )


def weights(work: Any) -> float:
    """A machine on which a network takes a microsecond for each weight."""
    return sum(p.numel() for p in work.module.parameters()) * 1e-6


@pytest.fixture(autouse=True)
def one_thread():
    """Many small networks on a shared machine: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clock(monkeypatch):
    """Give `latency.once` times made by a function of the work."""

    def use(seconds):
        monkeypatch.setattr(latency, "once", lambda work, device: seconds(work))

    return use


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
    latency.time_layers(graph.layers, CPU, silent)
    assert {layer.name: layer.seconds for layer in graph.layers} == {"twin": 5.0, "conv": 5.5}
    assert timed.count(8) == timed.count(4) == 2 * latency.ROUNDS  # one that warms, one that counts


def test_the_best_round_counts_and_the_median_in_it(monkeypatch):
    """Five rounds of a slow machine, a run that warms (100) and four that count; the fourth round is quiet."""
    runs = [[100, 9, 9, 9, 9]] * 3 + [[100, 1, 3, 2, 90]] + [[100, 9, 9, 9, 9]]
    given = iter([seconds for turn in runs for seconds in turn])
    monkeypatch.setattr(latency, "once", lambda op, device: next(given))
    monkeypatch.setattr(latency, "BURST_SECONDS", 1e9)
    monkeypatch.setattr(latency, "BURST", 4)
    graph = analyse(nn.Conv3d(1, 2, 1), Example((torch.zeros(1, 1, 4, 4, 4),)))
    latency.time_layers(graph.layers, CPU, silent)
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
    real = latency.once
    outputs: dict[str, int] = {}

    def once(op, device):
        out = op()
        assert out.device == device
        outputs[op.key] = out.numel()
        return real(op, device)

    monkeypatch.setattr(latency, "once", once)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "BURST", 1)
    latency.time_layers(graph.layers, CPU, silent)
    for layer in graph.layers:
        assert layer.seconds > 0
        assert sum(outputs[latency.LayerOp("", call).key] * share for call, share in layer.calls) == pytest.approx(
            layer.output_elements, abs=len(layer.calls)
        )


def test_the_models_own_dtype_and_memory_format_are_timed(monkeypatch):
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 2, 1)).to(
        torch.float64, memory_format=torch.channels_last_3d
    )
    met = []
    monkeypatch.setattr(latency, "once", lambda op, device: met.append(op.call[1][:2]) or 1.0)
    x = torch.zeros(1, 2, 8, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    latency.time_layers(analyse(model, Example((x,))).layers, CPU, silent)
    for data, weight in met:
        assert data.dtype == weight.dtype == torch.float64
        assert weight.shape[2:] == (1, 1, 1) or weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert data.std() > 0.5  # numbers, no zeros: those may be faster


def test_an_op_that_does_not_run_is_named(monkeypatch):
    def once(op, device):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(latency, "once", once)
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
    assert latency.once(lambda: did.append("work"), torch.device("cuda:1")) == 0.25
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
        with pytest.raises(ranp.BadInput, match="--latencies goes with --resource latency"):
            ranp.prune(chain(), batch(), sparsity=0.5, latencies={"0": 1.0}, **options)


# -- the largest network that is fast enough


@pytest.mark.parametrize("share", [20, 50, 90])
def test_on_a_machine_that_counts_weights_the_two_budgets_agree(share, clock):
    """Time as a function of the parameters: the latency budget must find what the exact search for parameters finds."""
    clock(weights)
    by_time = ranp.prune(net(), batch(), budget=f"latency={share}%")
    by_count = ranp.prune(net(), batch(), budget=f"params={share}%")
    assert by_time.mask.layers == by_count.mask.layers
    line = by_time.report.to_dict()["budget"][0]
    assert line["after"] == pytest.approx(by_count.report.to_dict()["after"]["params"] * 1e-6)
    assert line["bound"] == pytest.approx(share / 100 * sum(p.numel() for p in net().parameters()) * 1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", ["latency=50%", "latency=8ms"])
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


def test_other_budgets_are_kept_exactly(clock):
    clock(weights)
    alone = ranp.prune(net(), batch(), budget="macs=20%").report.to_dict()
    both = ranp.prune(net(), batch(), budget=["macs=20%", "latency=99%"]).report.to_dict()
    assert both["after"]["macs"] == alone["after"]["macs"]
    tight = ranp.prune(net(), batch(), budget=["macs=90%", "latency=40%", "train-mem=90%"]).report.to_dict()
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
        return latency.Race((10000.0, size), 5)

    found, last = latency.largest_within(limit("latency", "30%"), 10000, lambda n: n, race, lambda: None)
    assert 3000 - 10000 / 2**latency.STEPS <= found <= 3000
    assert last.seconds == (10000, found)
    assert timed[-1] == (found, True)
    assert len({size for size, _ in timed}) <= latency.STEPS + 1

    def moody(size, sure):  # its last word is stricter
        return latency.Race((10000.0, size * (1.5 if sure else 1)), 5)

    found, last = latency.largest_within(limit("latency", "30%"), 10000, lambda n: n, moody, lambda: None)
    assert last.seconds[1] <= 3000
    assert found == last.seconds[1] / 1.5


def test_a_slow_moment_is_made_good_for():
    """The first looks are all wrong: a hundred times too slow. The longer ones are right."""

    def race(size, sure):
        return latency.Race((10000.0, size * (1 if sure else 100)), 5)

    found, _ = latency.largest_within(limit("latency", "50%"), 10000, lambda n: n, race, lambda: None)
    assert 4300 <= found <= 5000


def test_what_other_budgets_forbid_is_not_taken():
    found, _ = latency.largest_within(
        limit("latency", "90%"),
        1000,
        lambda n: None if n > 500 else n,
        lambda n, _: latency.Race((1000.0, n), 5),
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
    with pytest.raises(ranp.BadInput, match=f"latency={text}: give a time such as 20ms, 0.5s or 300us, or a share"):
        limit("latency", text)


def test_times_are_written():
    assert [shown("latency", s) for s in (1.25, 0.0203, 0.000312)] == ["1.25 s", "20.3 ms", "312 us"]
    assert [duration(s) for s in (12.5, 1.25, 0.9999, 0.0203, 0.000312, 1e-6, 0.1)] == [
        "12.5 s ", "1.25 s ", "1.00 s ", "20.3 ms", "312 us", "1.00 us", "100 ms"]  # fmt: skip


# -- speed


def test_networks_are_timed_turn_by_turn_and_the_median_counts(monkeypatch):
    """What is slow for a while is slow for both; each goes first in every other round."""
    dense, slim = net(8), net(4)
    order = []

    def once(work, device):
        order.append("dense" if weights(work) > 0.01 else "slim")
        return len(order) * weights(work)

    assert weights(latency.Forward(dense, Example())) > 0.01 > weights(latency.Forward(slim, Example()))
    monkeypatch.setattr(latency, "once", once)
    monkeypatch.setattr(latency, "WARM", 1)
    found = latency.Stand(Example((torch.zeros(1, 1, 8, 8, 8),)), CPU).forward(dense, slim)
    counted = order[2:]
    pairs = [counted[k : k + 2] for k in range(0, len(counted), 2)]
    assert all(sorted(pair) == ["dense", "slim"] for pair in pairs)
    assert pairs[0] == pairs[2] != pairs[1]
    assert len(pairs) == found.repeats >= 5
    for name, seconds, model in (("dense", found.seconds[0], dense), ("slim", found.seconds[1], slim)):
        ticks = [k + 1 for k, who in enumerate(order) if who == name and k > 1]
        assert seconds == pytest.approx(statistics.median(ticks) * sum(p.numel() for p in model.parameters()) * 1e-6)


def test_speed_is_reported_with_what_it_was_measured_on(clock):
    clock(lambda work: weights(work) * (3 if isinstance(work, latency.Step) else 1))
    report = ranp.prune(net(), batch(), sparsity=0.5, time=True, batch_size=3).report.to_dict()
    speed, before, after = report["speed"], report["before"]["params"], report["after"]["params"]
    assert set(speed) == {"device", "threads", "samples", "repeats", "before_s", "after_s", "speedup", "theoretical_speedup",
                          "train_repeats", "train_before_s", "train_after_s", "train_speedup"}  # fmt: skip
    assert (speed["device"], speed["threads"], speed["samples"]) == ("cpu", torch.get_num_threads(), 3)
    assert (speed["before_s"], speed["after_s"]) == pytest.approx((before * 1e-6, after * 1e-6))
    assert (speed["train_before_s"], speed["train_after_s"]) == pytest.approx((before * 3e-6, after * 3e-6))
    assert speed["speedup"] == pytest.approx(before / after) == speed["train_speedup"]
    assert speed["theoretical_speedup"] == report["before"]["macs"] / report["after"]["macs"]
    assert "speed" not in ranp.prune(net(), batch(), sparsity=0.5).report.to_dict()


def test_what_is_run_is_a_forward_pass_and_a_training_step(monkeypatch):
    """In inference nothing is recorded and running statistics are used; a step gives every parameter a gradient."""
    seen: dict[type, list[tuple]] = {latency.Forward: [], latency.Step: []}

    def once(work, device):
        module = work.module
        state = [module.training, False]
        handle = module.register_forward_hook(lambda m, a, out: state.__setitem__(1, out.requires_grad))
        grads = []
        hooks = [p.register_post_accumulate_grad_hook(grads.append) for p in module.parameters()]
        work()
        for each in (handle, *hooks):
            each.remove()
        assert all(p.grad is None for p in module.parameters())
        seen[type(work)].append(
            (*state, len(grads) == len(list(module.parameters())), tuple(work.example.args[0].shape))
        )
        return 1.0

    monkeypatch.setattr(latency, "once", once)
    ranp.prune(net(), batch(), sparsity=0.5, time=True)
    assert set(seen[latency.Forward]) == {(False, False, False, (2, 1, 8, 8, 8))}
    assert set(seen[latency.Step]) == {(True, True, True, (2, 1, 8, 8, 8))}


def test_nothing_of_the_callers_is_changed(clock):
    """Everything is really run; only the times are given."""
    clock(lambda work: (work(), 0.1 if isinstance(work, latency.LayerOp) else 100 * weights(work))[1])
    model = net()
    model.train()
    before, state, threads = laws.snapshot(model), torch.get_rng_state(), torch.get_num_threads()
    with torch.enable_grad():
        ranp.prune(model, batch(), budget="latency=70%", resource="latency", time=True)
        assert torch.is_grad_enabled()
    laws.unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    with torch.no_grad():
        ranp.profile(model, (2, 1, 8, 8, 8), time=True, device="cpu")
        assert not torch.is_grad_enabled()
    laws.unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_cannot_train_is_timed_in_inference():
    model = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 3, 1)).requires_grad_(False)
    data = torch.randn(1, 1, 8, 8, 8), torch.randint(3, (1, 6, 6, 6))
    found = ranp.prune(model, data, sparsity=0.5, time=True).report.to_dict()["speed"]
    assert found["after_s"] > 0
    assert "no output of the model needs a gradient" in found["train_error"]
    assert "train_speedup" not in found


def test_a_network_that_does_not_run_is_said_to(monkeypatch):
    def once(work, device):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(latency, "once", once)
    with pytest.raises(
        ranp.BadInput, match=r"a forward pass on 2x1x8x8x8 cannot be measured on cpu: RuntimeError: out of"
    ):
        ranp.prune(net(), batch(), sparsity=0.5, time=True)


# -- compare


def test_compare_has_a_row_by_latency(clock):
    times = {name: 0.001 * (k + 1) for k, name in enumerate(("0", "2", "4"))}
    clock(lambda op: times[op.name])
    table = ranp.compare(chain(), batch(), sparsity=0.5, methods=["ranp-latency", "ranp-l", "ranp-flops"])
    row = table.rows[0]
    assert (row["method"], row["resource"]) == ("ranp-latency", "latency")
    assert [r["method"] for r in table.rows].count("ranp-latency") == 2
    pruned = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", latencies=times, allow_less=True)
    assert row["layers_kept"] == [len(layer["kept"]) for layer in pruned.mask.layers.values()]
    assert [r["latency_ms"] for r in table.report.to_dict()["layers"]] == pytest.approx([1, 2, 3])
    assert (
        "latency_ms"
        not in ranp.compare(chain(), batch(), sparsity=0.5, methods=["ranp-f"]).report.to_dict()["layers"][0]
    )


# -- the command line

UNET = "ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3"


@pytest.fixture
def folder(tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    torch.save(batch(), "calib.pt")
    clock(lambda work: 0.001 if isinstance(work, latency.LayerOp) else weights(work))
    return tmp_path


def document(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([*words.split(), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_time_on_the_command_line(folder, capsys):
    pruned = document(f"prune {UNET} --batch calib.pt --sparsity 0.5 --time -o slim.safetensors", capsys)
    assert {"before_s", "after_s", "speedup", "train_speedup", "theoretical_speedup"} <= set(pruned["speed"])

    one = document(f"profile {UNET} --input 1x1x8x8x8 --batch-size 5 --time", capsys)["speed"]
    assert one["samples"] == 5
    assert one["before_s"] == pytest.approx(pruned["speed"]["before_s"])
    assert not {"after_s", "speedup", "train_before_s", "theoretical_speedup"} & set(one)

    slim = document("profile slim.safetensors --time", capsys)
    assert slim["speed"]["after_s"] == pytest.approx(pruned["speed"]["after_s"])
    assert "before_s" not in slim["speed"]
    assert slim["speed"]["samples"] == 2

    both = document(f"profile {UNET} slim.safetensors --time", capsys)["speed"]
    assert both["speedup"] == pytest.approx(pruned["speed"]["speedup"])
    assert both["theoretical_speedup"] == pytest.approx(pruned["speed"]["theoretical_speedup"])
    assert "speed" not in document("profile slim.safetensors", capsys)


def test_the_printed_block(folder, capsys):
    assert run(f"prune {UNET} --batch calib.pt --sparsity 0.5 --time -o slim.safetensors".split()) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no bar in a pipe
    lines = out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("measured time"))
    assert lines[head].split() == ["measured", "time", "before", "after", "speed-up", "by", "multiply-adds"]
    assert [line.split("  ")[0] for line in lines[head + 2 : head + 4]] == ["forward pass", "training step"]
    assert "ms" in lines[head + 2]
    assert lines[head + 4].startswith(f"on cpu, {torch.get_num_threads()} thread")
    assert "batch of 2, medians of" in lines[head + 4]


def test_the_layers_times_are_a_column_of_a_wide_page():
    layers = [
        {"name": "a", "op": "conv3d", "neurons": 4, "latency_ms": 1.25},
        {"name": "b", "neurons": 4, "latency_ms": 0.5},
    ]
    out = io.StringIO()
    show.show_report({"layers": layers}, Console(file=out, width=160))
    rows = {line.split()[0]: line.split() for line in out.getvalue().splitlines() if line}
    assert "latency" in out.getvalue()
    assert rows["a"][-1] == "1.25"
    assert rows["b"][-1] == "0.5"


def test_a_budget_on_the_command_line(folder, capsys):
    words = f"prune {UNET} --batch calib.pt --resource latency -o slim.safetensors --mask mask.json"
    assert run([*words.split(), "--budget", "latency=40%"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "budget: latency=40%: " in out
    assert "measured time" in out
    assert "resource latency" in out
    assert run([*words.split(), "--sparsity", "0.5", "--latencies", "mask.json"]) == 0
    assert run([*words.split(), "--budget", "latency=1us"]) == 3
    assert "no network meets latency=1us (1 us)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (f"prune {UNET} --batch calib.pt --budget latency=20 -o s.safetensors", "give a time such as 20ms"),
        (f"prune {UNET} --batch calib.pt --sparsity 0.5 --resource latancy -o s.safetensors", "did you mean 'latency'"),
        (
            f"prune {UNET} --batch calib.pt --sparsity 0.5 --latencies no.json --resource latency -o s.safetensors",
            "no.json",
        ),
        ("profile net.onnx --time", "--time: net.onnx is an .onnx file"),
        (f"profile {UNET} net.onnx --input 1x1x8x8x8 --time", "--time: net.onnx is an .onnx file"),
        (f"profile {UNET} --input 1x1x8x8x8 --time --device tpu", "device 'tpu' is not to be had here"),
        (f"compare {UNET} --batch calib.pt --sparsity 0.5 --methods ranp-latancy", "did you mean 'ranp-latency'"),
    ],
)
def test_bad_usage(words, says, folder, capsys):
    assert run(words.split()) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_time_from_a_config_file(folder, capsys):
    (folder / "c.yaml").write_text(
        "model: ranp_cli.models.unet3d:unet3d\nmodel-arg: {layers: 7, width: 8, num_classes: 3}\nbatch: calib.pt\n"
        "sparsity: 0.5\ntime: true\n"
    )
    assert "speed" in document("prune --config c.yaml", capsys)
    (folder / "c.yaml").write_text("time: often\n")
    assert run("prune --config c.yaml".split()) == 2
    assert "'time' is 'often'; wants true or false" in capsys.readouterr().err
