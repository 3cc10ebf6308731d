"""Why layers take their time, beside the machine's peaks. Times are given by hand."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from small_nets import CPU, chain
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.example import Example
from ranp_cli.core.progress import silent
from ranp_cli.costs import peaks, timing
from ranp_cli.costs.op_insides import Inside, inside_of
from ranp_cli.costs.peaks import Peaks, best_op, bytes_of, channels_of, is_slow, kind_of, why_slow
from ranp_cli.costs.runtime_names import runtime_of
from ranp_cli.graph.analyse import analyse
from ranp_cli.reporting import show
from ranp_cli.reporting.speed import achieved_text, slow_sentences

pytestmark = pytest.mark.usefixtures("one_thread")


class Kinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.depthwise = (
            nn.Conv3d(2, 8, 3, padding=1, bias=False),
            nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=False),
        )
        self.grouped, self.up = nn.Conv3d(8, 8, 1, groups=2, bias=False), nn.ConvTranspose3d(8, 4, 2, 2, bias=False)
        self.line = nn.Linear(4, 3)

    def forward(self, x):
        return self.line(self.up(self.grouped(self.depthwise(self.dense(x)))).mean((2, 3, 4)))


def layers_of(model: nn.Module, *shape: int) -> dict:
    return {layer.name: layer for layer in analyse(model, Example((torch.zeros(shape),))).layers}


def test_kinds_channels_and_bytes():
    layers = layers_of(Kinds(), 1, 2, 8, 8, 8)
    assert {name: kind_of(layer) for name, layer in layers.items()} == {
        "dense": "convolution", "depthwise": "depthwise", "grouped": "convolution", "up": "convolution", "line": "matrix product",
    }  # fmt: skip
    assert {name: min(channels_of(layer)) for name, layer in layers.items()} == {
        "dense": 2, "depthwise": 8, "grouped": 4, "up": 4, "line": 3,
    }  # fmt: skip
    assert bytes_of(layers["dense"]) == 4 * (2 * 8**3 + 2 * 8 * 27 + 8 * 8**3)


@pytest.mark.parametrize(
    ("width", "size", "rate", "copy", "inside", "says"),
    [
        (64, 16, 0.9, 1e12, None, ""),
        (64, 16, 0.2, 1e12, None, "reason unknown"),
        (64, 16, 0.2, 1e12, Inside(0.1, False), "reason unknown"),
        (64, 16, 0.2, 1e12, Inside(0.1, True), "plain kernel"),
        (64, 16, 0.2, 1e3, Inside(0.1, True), "memory-bound"),
        (64, 16, 0.2, 1e3, Inside(0.3, True), "layout copies (30%)"),
        (4, 64, 0.2, 1e12, Inside(0.1, True), "few channels (4)"),
        (64, 1, 0.2, 1e12, None, "small"),
    ],
)
def test_what_is_slow_is_named(width, size, rate, copy, inside, says):
    layer = layers_of(
        nn.Sequential(nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, 1, 1)), 1, width, size, size, size
    )["0"]
    machine = Peaks({"convolution": 1e10}, copy)
    layer.seconds = layer.macs / (rate * 1e10)
    assert is_slow(layer, machine) == bool(says)
    if says:
        assert why_slow(layer, machine, inside) == says


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("convolution", 1),
        ("convolution", 2),
        ("convolution", 3),
        ("depthwise", 2),
        ("depthwise", 3),
        ("matrix product", 0),
    ],
)
def test_the_op_of_a_peak_runs_and_is_counted(kind, axes):
    from torch.utils.flop_counter import FlopCounterMode

    op, macs = best_op(kind, axes)
    with FlopCounterMode(display=False) as counter:
        op.on(CPU)()
    assert counter.get_total_flops() == 2 * macs


def test_rates_are_multiply_adds_by_the_clock(clock):
    """Every op takes a millisecond."""
    clock(lambda op: 0.001)
    layers = list(layers_of(Kinds(), 1, 2, 8, 8, 8).values())
    (rows,) = peaks.explained([layers], timing.Ground(CPU), silent)
    for layer in layers:
        row = rows[layer.name]
        assert row["macs_per_s"] == pytest.approx(layer.macs * 1000)
        assert row["peak_macs_per_s"] == best_op(kind_of(layer), len(layer.kernel))[1] * 1000
        assert row["bytes_per_s"] == pytest.approx(bytes_of(layer) * 1000)
        assert row["copy_bytes_per_s"] == 8 * peaks.COPIED * 1000


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_profile_explains_each_layer(runtime, clock):
    clock(lambda work: 0.001)
    report = ranp.profile(chain(), (1, 1, 8, 8, 8), time=True, runtime=runtime, device="cpu").to_dict()
    assert all({"latency_ms", "macs_per_s", "peak_macs_per_s", "bytes_per_s"} <= set(row) for row in report["layers"])
    assert "macs_per_s" not in ranp.profile(chain(), (1, 1, 8, 8, 8)).to_dict()["layers"][0]
    pair = ranp.profile(chain(), (1, 1, 8, 8, 8), other=chain(), time=True, device="cpu").to_dict()
    assert all(row["macs_per_s"] == row["macs_per_s_after"] for row in pair["layers"])
    assert all({"latency_ms_after", "bytes_per_s_after"} <= set(row) for row in pair["layers"])


def test_two_networks_have_one_peak_that_a_layer_can_raise(clock):
    """The slim network's layers take a thousandth of the time: no kind of op is slower than its fastest layer."""
    dense, slim = ([*layers_of(net, 1, 1, 8, 8, 8).values()] for net in (chain(), chain()))
    keys = {timing.LayerOp("", call).key for layer in slim for call, _ in layer.calls}
    clock(lambda op: 1e-9 if op.key in keys else 1e-3)
    for rows in peaks.explained([dense, slim], timing.Ground(CPU), silent):
        for row in rows.values():
            assert row["peak_macs_per_s"] == pytest.approx(1e9 * max(layer.macs for layer in slim))


def conv(channels: int) -> timing.LayerOp:
    """A convolution of a single sample that ATen computes itself on one thread, as the sample's last layer is."""
    layers = layers_of(
        nn.Sequential(nn.Conv3d(channels, channels, 1), nn.Conv3d(channels, 6, 1)), 1, channels, 12, 12, 12
    )
    return timing.LayerOp("1", layers["1"].calls[0][0])


def test_copies_are_seen_where_the_layout_is_not_the_kernels():
    plain, last = (
        inside_of(conv(64), timing.Ground(CPU, runtime_of(name), 1)) for name in ("torch", "torch-channels-last")
    )
    assert plain.is_plain
    assert last.is_plain
    assert last.copies > plain.copies
    assert inside_of(conv(64), timing.Ground(CPU, runtime_of("onnxruntime"), 1)) is None


def test_a_layer_runs_in_16_bits_where_the_network_does():
    work = conv(16).inside(timing.Ground(CPU, runtime_of("torch-bf16"), 1))
    with torch.no_grad():
        assert [t.dtype for t in work()] == [torch.bfloat16]


def test_it_is_shown(clock, capsys):
    clock(lambda work: 0.001)
    words = "profile ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --input 1x1x8x8x8 --time --device cpu"
    assert run(words.split()) == 0
    out = capsys.readouterr().out
    assert "multiply-adds/s" in out
    assert "of 453.0: " in out  # 64 channels to 64, 27 weights, 16^3 positions, in a millisecond


def test_the_slim_network_is_explained_and_reasons_are_told():
    row = {
        "name": "a",
        "op": "conv3d",
        "neurons": 8,
        "kept": 4,
        "macs_per_s": 5e10,
        "macs_per_s_after": 1e10,
        "peak_macs_per_s": 6e10,
    }
    assert (
        achieved_text({**row, "slow": "small", "slow_after": "few channels (4)"}, "->")
        == "50.0 -> 10.0 of 60.0: few channels (4)"
    )
    assert achieved_text({**row, "slow": "small"}, "->") == "50.0 -> 10.0 of 60.0"
    assert achieved_text({"name": "a"}, "->") == ""
    assert [label for label, _, _ in slow_sentences({"layers": [{**row, "slow_after": "layout copies (30%)"}]})] == [
        "layout copies:"
    ]
    assert [*slow_sentences({"layers": [{**row, "slow": "plain kernel"}]})] == []


def test_a_line_to_paste_is_printed_whole():
    line = "with torch.autocast('cpu', torch.bfloat16): " + "y = model(x)  # " * 8
    entry = {"of": "forward pass", "way": "bf16", "gain": 2.0, "max_rel_error": 0.01, "line": line}
    speed = {"device": "cpu", "threads": 1, "samples": 1, "repeats": 5, "before_s": 1.0, "recommended": [entry]}
    out = io.StringIO()
    show.show_report({"command": "profile", "speed": speed}, Console(file=out, width=60))
    assert line.rstrip() in out.getvalue()


def test_a_layer_that_does_not_run_by_itself_costs_the_explanation_alone(clock):
    def seconds(work) -> float:
        if isinstance(work, timing.LayerOp):
            raise RuntimeError("no kernel")
        return 0.001

    clock(seconds)
    report = ranp.profile(chain(), (1, 1, 8, 8, 8), time=True, device="cpu").to_dict()
    assert report["speed"]["before_s"] == 0.001
    assert "macs_per_s" not in report["layers"][0]
    said = "why layers take their time is not shown: layer 0 cannot be timed on cpu: RuntimeError: no kernel"
    assert any(note == said for note in report["notes"])
