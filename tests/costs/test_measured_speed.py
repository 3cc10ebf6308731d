"""Measured speed of whole networks, `compare` by latency, and the command line. Times are given by hand."""

from __future__ import annotations

import io
import json
import re
import statistics
from typing import Any

import laws
import pytest
import torch
from rich.console import Console
from small_nets import CPU, batch, chain, net, weights
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput
from ranp_cli.core.example import Example
from ranp_cli.costs import timing
from ranp_cli.reporting import show

pytestmark = pytest.mark.usefixtures("one_thread")


# -- speed


def test_networks_are_timed_turn_by_turn_and_the_median_counts(monkeypatch):
    """What is slow for a while is slow for both; each goes first in every other round."""
    dense, slim = net(8), net(4)
    order = []

    def once(work, device):
        order.append("dense" if weights(work) > 0.01 else "slim")
        return len(order) * weights(work)

    assert weights(timing.Forward(dense, Example())) > 0.01 > weights(timing.Forward(slim, Example()))
    monkeypatch.setattr(timing, "once", once)
    monkeypatch.setattr(timing, "WARM", 1)
    found = timing.Benchmark(Example((torch.zeros(1, 1, 8, 8, 8),)), CPU).forward(dense, slim)
    counted = order[2:]
    pairs = [counted[k : k + 2] for k in range(0, len(counted), 2)]
    assert all(sorted(pair) == ["dense", "slim"] for pair in pairs)
    assert pairs[0] == pairs[2] != pairs[1]
    assert len(pairs) == found.repeats >= 5
    for name, seconds, model in (("dense", found.seconds[0], dense), ("slim", found.seconds[1], slim)):
        ticks = [k + 1 for k, who in enumerate(order) if who == name and k > 1]
        assert seconds == pytest.approx(statistics.median(ticks) * sum(p.numel() for p in model.parameters()) * 1e-6)


def test_speed_is_reported_with_what_it_was_measured_on(clock):
    clock(lambda work: weights(work) * (3 if isinstance(work, timing.Step) else 1))
    report = ranp.prune(net(), batch(), sparsity=0.5, time=True, batch_size=3).report.to_dict()
    speed, before, after = report["speed"], report["before"]["params"], report["after"]["params"]
    assert set(speed) == {"device", "threads", "runtime", "runtime_version", "samples", "repeats", "before_s", "after_s", "speedup", "theoretical_speedup",
                          "train_repeats", "train_before_s", "train_after_s", "train_speedup"}  # fmt: skip
    assert (speed["device"], speed["threads"], speed["samples"]) == ("cpu", torch.get_num_threads(), 3)
    assert (speed["before_s"], speed["after_s"]) == pytest.approx((before * 1e-6, after * 1e-6))
    assert (speed["train_before_s"], speed["train_after_s"]) == pytest.approx((before * 3e-6, after * 3e-6))
    assert speed["speedup"] == pytest.approx(before / after) == speed["train_speedup"]
    assert speed["theoretical_speedup"] == report["before"]["macs"] / report["after"]["macs"]
    assert "speed" not in ranp.prune(net(), batch(), sparsity=0.5).report.to_dict()


def test_what_is_run_is_a_forward_pass_and_a_training_step(monkeypatch):
    """In inference nothing is recorded and running statistics are used; a step gives every parameter a gradient."""
    seen: dict[type, list[tuple]] = {timing.Forward: [], timing.Step: []}

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

    monkeypatch.setattr(timing, "once", once)
    ranp.prune(net(), batch(), sparsity=0.5, time=True)
    assert set(seen[timing.Forward]) == {(False, False, False, (2, 1, 8, 8, 8))}
    assert set(seen[timing.Step]) == {(True, True, True, (2, 1, 8, 8, 8))}


def test_nothing_of_the_callers_is_changed(clock):
    """Everything is really run; only the times are given."""
    clock(lambda work: (work(), 0.1 if isinstance(work, timing.LayerOp) else 100 * weights(work))[1])
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

    monkeypatch.setattr(timing, "once", once)
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


def test_compare_times_each_row_beside_the_dense_network(clock):
    clock(weights)
    how = {"time": True, "runtime": "onnxruntime", "threads": 1, "batch_size": 1}
    table = ranp.compare(net(), batch(), sparsity=[0.25, 0.5], methods=["full", "ranp-f"], **how)
    dense = table.report.to_dict()["before"]["params"]
    for row in table.rows:
        speed = row["speed"]
        assert (speed["seconds"], speed["dense_s"]) == pytest.approx((row["after"]["params"] * 1e-6, dense * 1e-6))
        assert speed["speedup"] == pytest.approx(dense / row["after"]["params"])
    speed = table.report.to_dict()["speed"]
    assert (speed["runtime"], speed["threads"], speed["samples"]) == ("onnxruntime", 1, 1)
    assert 0 < speed["max_rel_error"] < 1e-5  # it did run there
    lines = table.csv().splitlines()
    assert lines[0].endswith("forward_seconds,forward_dense_s,forward_speedup")
    assert float(lines[-1].split(",")[-1]) == table.rows[-1]["speed"]["speedup"]
    assert f"{table.rows[-1]['speed']['speedup']:.2f} x" in table.markdown()
    assert "turn by turn with the dense one; onnxruntime" in table.markdown()


def test_compare_ranks_by_latency_in_the_runtime_that_is_asked_for(clock, monkeypatch):
    seen = set()

    def seconds(op):
        seen.add(type(op.run).__name__)
        return 0.001

    clock(seconds)
    ranp.compare(chain(), batch(), sparsity=0.5, methods=["ranp-l"], runtime="onnxruntime")
    assert seen
    assert "NoneType" not in seen


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtime": "onnxruntime"}, "runtime='onnxruntime' is of what is timed, and nothing is; give time=True or"),
        ({"threads": 2}, "threads=2 is of what is timed"),
        ({"batch_size": 2}, "batch_size=2 is of what `time` measures"),
        ({"time": True, "fit": lambda model, seed: 0.0}, "training changes no time"),
    ],
)
def test_compare_refuses_what_would_time_nothing(options, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        ranp.compare(net(), batch(), sparsity=0.5, methods=["ranp-f"], **options)


# -- the command line

UNET = "ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3"


@pytest.fixture
def folder(tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    torch.save(batch(), "calib.pt")
    clock(lambda work: 0.001 if isinstance(work, timing.LayerOp) else weights(work))
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

    slim = document(f"profile slim.safetensors --time --model {UNET}", capsys)
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
    again = words.replace("mask.json", "other.mask.json")  # an output is never an input
    assert run([*again.split(), "--sparsity", "0.5", "--latencies", "mask.json"]) == 0
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
        ("profile net.onnx --time", "net.onnx is an .onnx file"),
        (f"profile {UNET} net.onnx --input 1x1x8x8x8 --time", "net.onnx is an .onnx file"),
        (f"profile {UNET} --input 1x1x8x8x8 --time --device tpu", "device 'tpu' is not available here"),
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
