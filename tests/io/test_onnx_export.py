"""ONNX out: a file that says what the module says, or none."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings

import numpy as np
import pytest
import torch
from exported_nets import SHAPE, TwoInputs, example, near, onnx
from paths import SAMPLES
from torch import nn

from ranp_cli.core.errors import BadInput, VerificationFailed
from ranp_cli.core.example import Example
from ranp_cli.io.exchange import onnx_export
from ranp_cli.io.exchange.onnx_export import to_onnx
from ranp_cli.io.exchange.onnx_profile import profile_onnx

onnxruntime = importlib.import_module("onnxruntime")  # in the extra `onnx`, which the extra `test` includes


def run_file(path, *arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True)))


def test_the_file_says_what_the_module_says(parts):
    model, path, result = parts
    x = torch.randn(2, 1, 12, 6, 10)
    want = model.eval()(x)
    got = run_file(path, x.numpy())
    assert near(got[0], want[0])
    assert near(got[1], want[1]["head"])
    assert result["exporter"] == "dynamo"
    assert result["dynamic"] == "batch+spatial"
    assert result["inputs"] == {"x": ["batch", 1, "depth", "height", "width"]}
    assert list(result["outputs"]) == ["output", "output_1"]
    assert result["verified"]["max_rel_error"] < 1e-5
    assert len(result["verified"]["input"]) == 2


def test_a_slim_unet_at_another_size(unet):
    slim, path, result = unet
    assert result["dynamic"] == "batch+spatial"
    x = torch.randn(3, 1, 16, 8, 12)
    assert near(run_file(path, x.numpy())[0], slim.eval()(x))
    assert result["bytes"] == path.stat().st_size
    assert [p.name for p in path.parent.iterdir()] == ["slim.onnx"]


def test_nothing_of_the_machine_is_in_the_file(unet):
    data = unet[1].read_bytes()
    assert str(SAMPLES).encode() not in data
    assert b"stack_trace" not in data
    onnx.checker.check_model(str(unet[1]), full_check=True)


@pytest.mark.slow
def test_the_batch_alone_is_dynamic_where_sizes_are_written_into_the_network(tmp_path, capfd):
    model = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(1024, 3)).train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    result = to_onnx(model, example(), tmp_path / "a.onnx")
    assert (result["dynamic"], result["inputs"]["input"]) == ("batch", ["batch", 1, 8, 8, 8])
    assert capfd.readouterr() == ("", "")  # no chatter
    # and the caller's model is as it was
    assert model.training
    assert model[0].weight.requires_grad
    assert bool((model[0].weight.grad == 1).all())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    again = to_onnx(model, example(), tmp_path / "b.onnx")
    assert again["sha256"] == result["sha256"]


def test_keyword_arguments(tmp_path):
    model = TwoInputs().eval()
    given = Example((torch.empty(SHAPE, device="meta"), True), {"age": torch.empty((1, 3), device="meta")})
    result = to_onnx(model, given, tmp_path / "a.onnx")
    assert {k: v[0] for k, v in result["inputs"].items()} == {"volume": "batch", "age": "batch"}
    x, age = torch.randn(2, 1, 6, 6, 6), torch.randn(2, 3)
    assert near(run_file(tmp_path / "a.onnx", x.numpy(), age.numpy())[0], model(x, age=age))
    macs = profile_onnx(tmp_path / "a.onnx", [SHAPE, (1, 3)])["before"]["macs"]
    assert macs == 4 * 27 * 8**3 + 12


def test_keyword_arguments_in_another_order_than_the_modules(tmp_path):
    given = {"age": torch.empty((1, 3), device="meta"), "volume": torch.empty(SHAPE, device="meta")}
    result = to_onnx(TwoInputs(), Example((), given), tmp_path / "a.onnx")
    assert {k: len(v) for k, v in result["inputs"].items()} == {"volume": 5, "age": 2}
    assert result["verified"]["max_rel_error"] < 1e-5


def test_torchscript(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2, 2))
        scripted = torch.jit.script(module)
    result = to_onnx(scripted, example(), tmp_path / "a.onnx")
    assert (result["exporter"], result["dynamic"]) == ("torchscript", "batch+spatial")
    x = torch.randn(3, 1, 6, 9, 7)
    assert near(run_file(tmp_path / "a.onnx", x.numpy())[0], module.eval()(x))
    assert [row["name"] for row in profile_onnx(tmp_path / "a.onnx", SHAPE)["layers"]] == ["0", "3"]


def without(monkeypatch, *packages):
    """As if the packages were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a))


def test_without_onnxscript_the_older_exporter_serves(tmp_path, monkeypatch, parts):
    without(monkeypatch, "onnxscript")
    result = to_onnx(parts[0], example(), tmp_path / "a.onnx")
    assert (result["exporter"], result["dynamic"]) == ("torchscript", "batch+spatial")
    mine, newer = (profile_onnx(p, SHAPE) for p in (tmp_path / "a.onnx", parts[1]))
    assert mine["before"]["params"] == newer["before"]["params"]
    assert mine["before"]["macs"] == newer["before"]["macs"]
    assert mine["layers"] == newer["layers"]


def test_without_onnxruntime_nothing_untried_is_promised(tmp_path, monkeypatch, parts):
    without(monkeypatch, "onnxscript", "onnxruntime")
    result = to_onnx(parts[0], example(), tmp_path / "a.onnx")
    assert result["dynamic"] == "none"
    assert "onnxruntime is not installed" in result["verified"]["error"]
    assert "max_abs_error" not in result["verified"]


class Doubled(torch.autograd.Function):
    """An op that no exporter knows."""

    @staticmethod
    def forward(ctx, x):
        return torch.ops.aten._cdist_forward(x[:, 0, 0], x[:, 0, 0], 1.5, None)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return Doubled.apply(self.conv(x))


def test_what_cannot_be_exported_leaves_nothing_behind(tmp_path, monkeypatch):
    without(monkeypatch, "onnxscript")
    with pytest.raises(BadInput, match=r"needs onnxscript .*pip install 'ranp-cli\[onnx\]'") as error:
        to_onnx(Unknown(), example(), tmp_path / "a.onnx")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    real = onnx_export._by_torchscript

    def wrong(*args):
        made = real(*args)
        weight = next(t for t in made.graph.initializer if t.name == "0.weight")
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.001).tobytes()
        return made

    without(monkeypatch, "onnxscript")
    monkeypatch.setattr(onnx_export, "_by_torchscript", wrong)
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Conv3d(2, 2, 1))
    (tmp_path / "a.onnx").write_bytes(b"an older file")
    with pytest.raises(VerificationFailed, match=r"differs from the model by .* nothing was written"):
        to_onnx(model, example(), tmp_path / "a.onnx")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an older file"]


def test_too_large_for_one_file(tmp_path, monkeypatch):
    without(monkeypatch, "onnxscript")
    monkeypatch.setattr(onnx_export, "ONE_FILE", 1000)
    model = nn.Sequential(nn.Conv3d(1, 16, 3), nn.ReLU(), nn.Conv3d(16, 8, 3)).eval()
    result = to_onnx(model, example(), tmp_path / "a.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert result["external_data"] == {str(tmp_path / "a.onnx.data"): (tmp_path / "a.onnx.data").stat().st_size}
    x = torch.randn(2, 1, 8, 8, 8)
    assert near(run_file(tmp_path / "a.onnx", x.numpy())[0], model(x))
    assert profile_onnx(tmp_path / "a.onnx", SHAPE)["before"]["params"] == sum(p.numel() for p in model.parameters())


def test_where_it_cannot_be_written(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        to_onnx(nn.Conv3d(1, 1, 1), example(), tmp_path / "no" / "a.onnx")
    with pytest.raises(BadInput, match="the model fails on an input of shape 1x1x2x2x2"):
        to_onnx(nn.Conv3d(1, 1, 3), example((1, 1, 2, 2, 2)), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
