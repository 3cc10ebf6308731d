"""Why layers take their time, beside the machine's peaks. Times are given by hand."""

from __future__ import annotations

import pytest
import torch
from small_nets import CPU, chain
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.example import Example
from ranp_cli.core.progress import silent
from ranp_cli.costs import peaks, timing
from ranp_cli.costs.peaks import Peaks, best_op, bytes_of, channels_of, kind_of, why_slow
from ranp_cli.graph.analyse import analyse

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
    ("width", "size", "rate", "copy", "says"),
    [
        (64, 16, 0.9, 1e12, ""),
        (64, 16, 0.2, 1e12, "reason unknown"),
        (64, 16, 0.2, 1e3, "memory-bound"),
        (4, 64, 0.2, 1e12, "few channels (4)"),
        (64, 1, 0.2, 1e12, "small"),
    ],
)
def test_what_is_slow_is_named(width, size, rate, copy, says):
    layer = layers_of(
        nn.Sequential(nn.Conv3d(width, width, 3, padding=1), nn.Conv3d(width, 1, 1)), 1, width, size, size, size
    )["0"]
    machine = Peaks({"convolution": 1e10}, copy)
    layer.seconds = layer.macs / (rate * 1e10)
    assert why_slow(layer, machine) == says


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
    rows = peaks.explained(layers, timing.Ground(CPU), silent)
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
    assert "macs_per_s" not in pair["layers"][0]


def test_it_is_shown(clock, capsys):
    clock(lambda work: 0.001)
    words = "profile ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --input 1x1x8x8x8 --time --device cpu"
    assert run(words.split()) == 0
    out = capsys.readouterr().out
    assert "multiply-adds/s" in out
    assert "of 453.0: " in out  # 64 channels to 64, 27 weights, 16^3 positions, in a millisecond


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
