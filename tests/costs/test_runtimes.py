"""Other runtimes than torch: they compute the same network, and are asked for only where something is timed."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from small_nets import CPU, batch, chain, net
from torch import Tensor, nn

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.costs import runtime_names, runtimes, timing
from ranp_cli.costs.onnx_runtimes import OnnxRuntime
from ranp_cli.costs.runtime_names import NEEDS, runtime_of
from ranp_cli.costs.runtimes import EXACT, allowed_error, difference, on_threads, to_tf32
from ranp_cli.graph.analyse import analyse

ON_CPU = ["torch", "torch-channels-last", "torch-bf16", "onnxruntime", "openvino", "openvino-bf16"]
Pair = namedtuple("Pair", "small whole")


class Several(nn.Module):
    """Keyword arguments, tensors that are not of floating point, and outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv3d(1, 4, 3, padding=1, groups=1), nn.ConvTranspose3d(4, 4, 2, 2, groups=2)
        self.embed, self.line = nn.Embedding(5, 4), nn.Linear(4, 3)
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor, *, which: Tensor, flip: bool = False) -> dict[str, object]:
        x = self.norm(self.conv(x).relu()) + self.embed(which)[:, :, None, None, None]
        line = self.line(x.mean((2, 3, 4)))
        return {"pair": Pair(self.up(x), [line]), "class": line.argmax(1), "flip": x.flip(2) if flip else None}


NETS = {
    "unet": (net, Example((torch.randn(1, 1, 8, 8, 8),))),
    "several": (Several, Example((torch.randn(2, 1, 8, 8, 8),), {"which": torch.tensor([1, 3]), "flip": True})),
    "script": (
        lambda: torch.jit.script(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))),
        Example((torch.randn(1, 1, 8, 8),)),
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", ON_CPU)
def test_every_runtime_computes_the_network(name: str, kind: str) -> None:
    make, example = NETS[kind]
    torch.manual_seed(0)
    module, runtime = make().eval(), runtime_of(name)
    before = {key: t.clone() for key, t in module.state_dict().items()}
    stand = timing.Benchmark(example, timing.Ground(CPU, runtime, 1))
    stand.forward(module, sure=False)
    assert stand.error <= (1e-5 if runtime.exact else 0.05)
    assert all(torch.equal(t, before[key]) for key, t in module.state_dict().items())
    assert not module.training


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "onnxruntime" else pytest.mark.slow) for name in ON_CPU]
)
def test_the_report_names_the_runtime_and_the_threads(name: str) -> None:
    report = ranp.prune(net(), batch(), sparsity=0.5, time=True, runtime=name, threads=1).report.to_dict()
    speed = report["speed"]
    assert (speed["runtime"], speed["threads"]) == (name, 1)
    assert speed["runtime_version"]
    assert ("max_rel_error" in speed) == (name != "torch")
    assert speed["before_s"] > 0 < speed["after_s"]
    seen = ranp.profile(net(), (1, 1, 8, 8, 8), time=True, runtime=name).to_dict()["speed"]
    assert seen["runtime"] == name


@pytest.mark.parametrize("name", ON_CPU)
def test_layers_are_timed_in_the_runtime_that_is_asked_for(name: str) -> None:
    """Convolutions of all kinds and linear layers; the mask says in which runtime the times were taken."""
    graph = analyse(Several(), NETS["several"][1])
    timing.time_layers(graph.layers, timing.Ground(CPU, runtime_of(name), 1), lambda *_: _Silent())
    assert all(layer.seconds > 0 for layer in graph.layers)
    info = ranp.prune(chain(), batch(), sparsity=0.5, resource="latency", runtime=name, threads=1).mask.method[
        "latency"
    ]
    assert info["threads"] == 1
    assert info.get("runtime", "torch") == name


class _Silent:
    def __enter__(self):
        return lambda: None

    def __exit__(self, *exc):
        return None


def test_a_runtime_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = OnnxRuntime("onnxruntime")
    monkeypatch.setattr(OnnxRuntime, "prepare", lambda *_: lambda: [torch.zeros(1, 3, 8, 8, 8)])
    with pytest.raises(ranp.VerificationFailed, match="runtime='onnxruntime' computes something else"):
        timing.Benchmark(NETS["unet"][1], timing.Ground(CPU, wrong)).forward(net())
    monkeypatch.setattr(OnnxRuntime, "prepare", lambda *_: lambda: [torch.zeros(1, 3, 8, 8)])
    assert difference(net().eval(), NETS["unet"][1], [torch.zeros(1, 3, 8, 8)]) == float("inf")


def test_tf32_keeps_ten_bits_after_the_point() -> None:
    numbers = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12, 0.0, 2.0**100])
    kept = [1.0, 1 + 2**-10, 1 + 2**-10, 1 + 2**-9, -1.0, 0.0, 2.0**100]  # halves go away from zero
    assert to_tf32(numbers).tolist() == kept
    assert to_tf32(torch.arange(3)).tolist() == [0, 1, 2]


def test_the_error_that_tf32_may_make_is_the_networks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep network without skips moves by more than a shallow one; a wrong output is still found."""
    example = NETS["unet"][1]
    assert allowed_error(net().eval(), example, CPU) == EXACT
    monkeypatch.setattr(runtimes, "in_tf32", lambda device: True)
    assert EXACT <= allowed_error(net().eval(), example, CPU) < 0.1
    torch.manual_seed(0)
    deep = nn.Sequential(*(layer for _ in range(40) for layer in (nn.Conv3d(8, 8, 1), nn.InstanceNorm3d(8), nn.Tanh())))
    deep_example = Example((torch.randn(1, 8, 8, 8, 8),))
    assert allowed_error(deep, deep_example, CPU) > EXACT
    monkeypatch.setattr(OnnxRuntime, "prepare", lambda *_: lambda: [torch.zeros(1, 3, 8, 8, 8)])
    with pytest.raises(ranp.VerificationFailed, match="computes something else"):
        timing.Benchmark(example, timing.Ground(CPU, OnnxRuntime("onnxruntime"))).forward(net())


@pytest.mark.parametrize("name", NEEDS)
def test_what_is_not_installed_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_names, "_is_installed", lambda package: False)
    with pytest.raises(ranp.BadInput, match=rf"runtime='{name}': .*pip install 'ranp-cli\[{NEEDS[name][1]}\]'"):
        ranp.profile(net(), (1, 1, 8, 8, 8), time=True, runtime=name)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"runtime": "onnx", "time": True}, "there is no such runtime.*onnxruntime"),
        ({"runtime": "tensorrt", "time": True}, "runs on a GPU, and the device is cpu"),
        ({"runtime": "cuda-graph", "time": True}, "runs on a GPU, and the device is cpu"),
        ({"runtime": "onnxruntime"}, "is of what is timed, and nothing is; give"),
        ({"threads": 2}, "threads=2 is of what is timed, and nothing is; give"),
        ({"threads": 0, "time": True}, "threads=0: give 1 or more"),
    ],
)
def test_what_does_not_go_together(given: dict, says: str) -> None:
    for call in (lambda: ranp.profile(net(), (1, 1, 8, 8, 8), device="cpu", **given), lambda: ranp.prune(net(), batch(), sparsity=0.5, device="cpu", **given)):  # fmt: skip
        with pytest.raises(ranp.BadInput, match=says):
            call()


def test_a_network_that_cannot_be_exported_is_named() -> None:

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(self.conv(x))

    with pytest.raises(ranp.BadInput, match=r"runtime='onnxruntime': torch\.onnx cannot export this network"):
        ranp.profile(Odd(), (1, 1, 8, 8), time=True, runtime="onnxruntime")


def test_the_number_of_threads_is_as_before_afterwards() -> None:
    usual = torch.get_num_threads()
    with on_threads(usual + 1) as inside:
        assert inside == torch.get_num_threads() == usual + 1
    assert torch.get_num_threads() == usual
    with on_threads(None) as inside:
        assert inside == usual
