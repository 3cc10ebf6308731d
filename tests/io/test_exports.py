"""ONNX out: the file says what the module says, at other sizes too; and what the profile of a file counts."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import json
import warnings
import zipfile

import numpy as np
import pytest
import torch
from paths import SAMPLES
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput, VerificationFailed
from ranp_cli.core.example import Example
from ranp_cli.io.exchange import onnx_export, pt2_export
from ranp_cli.io.exchange.onnx_export import to_onnx
from ranp_cli.io.exchange.onnx_profile import profile_onnx
from ranp_cli.io.exchange.pt2_export import to_pt2
from ranp_cli.io.model import load_model

onnx = importlib.import_module("onnx")
onnxruntime = importlib.import_module("onnxruntime")  # in the extra `onnx`, which the extra `test` includes

SHAPE = (1, 1, 8, 8, 8)


class Parts(nn.Module):
    """One of each, without batch norm; its outputs lie in a list and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.instance = nn.InstanceNorm3d(4, affine=True)
        self.group = nn.GroupNorm(2, 4)
        self.plain = nn.InstanceNorm3d(4)
        self.up = nn.ConvTranspose3d(4, 3, 2, stride=2)
        self.slope = nn.PReLU()
        self.grouped = nn.Conv3d(3, 6, 3, groups=3, padding=1, bias=False)
        self.scale = nn.Parameter(torch.full((1,), 0.7))
        self.voxel = nn.Linear(9, 2)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        a = self.plain(torch.relu(self.group(self.instance(self.conv(x)))))
        up = self.slope(self.up(a))
        both = torch.cat([up, self.grouped(up) * self.scale], 1)
        return [self.voxel(both.permute(0, 2, 3, 4, 1)), {"head": self.head(up.mean((2, 3, 4))), "none": None}]


def example(shape=SHAPE):
    return Example((torch.empty(shape, device="meta"),))


def run_file(path, *arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True)))


def near(a, b):
    b = b.detach()
    scale = float(b.abs().max())
    assert scale > 0
    return float(np.abs(a - b.numpy()).max()) <= 1e-5 * scale


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    torch.manual_seed(0)
    model = Parts()
    path = tmp_path_factory.mktemp("onnx") / "parts.onnx"
    return model, path, to_onnx(model, example(), path)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """The sample UNet, slim, with statistics and affine parameters as training leaves them."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    model = load_model(f"{SAMPLES / 'model.py'}:UNet3D", {"width": 4, "levels": 2}).module
    for m in model.modules():
        if isinstance(m, nn.BatchNorm3d):
            for t in (m.weight, m.bias, m.running_mean, m.running_var):
                nn.init.uniform_(t, 0.5, 1.5)
    x = torch.randn(2, 1, 8, 8, 8)
    slim = ranp.prune(model, (x, torch.randint(6, (2, 8, 8, 8))), sparsity=0.4).model
    return slim, folder / "slim.onnx", to_onnx(slim, example(), folder / "slim.onnx")


# -- writing


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


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv3d(1, 4, 3, padding=1), nn.Linear(3, 4)

    def forward(self, volume, flag=True, *, age=None):
        return self.conv(volume) * self.gate(age)[:, :, None, None, None] if flag else volume


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


# -- torch.export's programs


def read_back(path):
    return torch.export.load(str(path)).module()


def test_a_program_says_what_the_module_says(parts, tmp_path):
    model, path = parts[0], tmp_path / "slim.pt2"
    result = to_pt2(model, example(), path)
    x = torch.randn(2, 1, 12, 6, 10)
    want, got = model.eval()(x), read_back(path)(x)
    assert near(got[0].numpy(), want[0])
    assert near(got[1]["head"].numpy(), want[1]["head"])
    assert result["dynamic"] == "batch+spatial"
    assert result["inputs"] == {"x": ["batch", 1, "depth", "height", "width"]}
    assert result["outputs"]["output"] == ["batch", "2*depth", "2*height", "2*width", 2]
    assert result["verified"]["max_rel_error"] < 1e-5
    assert result["verified"]["input"] == ["1x1x8x8x8", "3x1x4x4x4"]
    assert (result["bytes"], result["sha256"]) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_holds_nothing_of_the_machine(unet, tmp_path):
    slim = unet[0]
    assert type(slim).__module__.startswith("_ranp_model_")  # with a digest of where the file lies
    first, second = (to_pt2(slim, example(), tmp_path / name)["sha256"] for name in ("a.pt2", "b.pt2"))
    assert first == second
    with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
        found = b"".join(archive.read(name) for name in archive.namelist())
    for word in (b"stack_trace", b".py", b"_ranp_", str(SAMPLES).encode()):
        assert word not in found
    assert b"torch.nn.modules.conv.Conv3d" in found
    x = torch.randn(3, 1, 16, 8, 12)
    assert near(read_back(tmp_path / "a.pt2")(x).numpy(), slim.eval()(x))


def test_the_batch_of_a_program_alone_is_dynamic_where_sizes_are_written_into_the_network(tmp_path, capfd):
    model = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(1024, 3)).train()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    result = to_pt2(model, example(), tmp_path / "a.pt2")
    assert (result["dynamic"], result["inputs"]["input"]) == ("batch", ["batch", 1, 8, 8, 8])
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert model[0].weight.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_a_program_with_keyword_arguments(tmp_path):
    given = {"age": torch.empty((1, 3), device="meta"), "volume": torch.empty(SHAPE, device="meta")}
    result = to_pt2(TwoInputs(), Example((), given), tmp_path / "a.pt2")
    assert {k: v[0] for k, v in result["inputs"].items()} == {"volume": "batch", "age": "batch"}


class ByValue(nn.Module):
    """What it does depends on the numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        return y if y.mean() > 0 else -y


def test_what_torch_export_refuses_leaves_nothing_behind(tmp_path):
    scripted = load_model(str(script(tmp_path / "net.pt"))).module
    cases = ((ByValue(), "torch.export refuses this model"), (scripted, "takes no TorchScript model.* give a .pt name"))
    (tmp_path / "a.pt2").write_bytes(b"an older file")
    for model, message in cases:
        with pytest.raises(BadInput, match=message) as error:
            to_pt2(model, example(), tmp_path / "a.pt2")
        assert "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == {"net.pt", "a.pt2"}
    assert (tmp_path / "a.pt2").read_bytes() == b"an older file"


def test_a_program_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    def wrong(made):
        made.state_dict["0.weight"] = nn.Parameter(made.state_dict["0.weight"] * 1.001, requires_grad=False)

    monkeypatch.setattr(pt2_export, "_tidy", wrong)
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Conv3d(2, 2, 1))
    with pytest.raises(VerificationFailed, match=r"the .pt2 file differs from the model by .* nothing was written"):
        to_pt2(model, example(), tmp_path / "a.pt2")
    monkeypatch.setattr(pt2_export, "_tidy", lambda made: None)
    monkeypatch.setattr(torch.export, "save", lambda made, file: file.write(b"PK"))
    with pytest.raises(VerificationFailed, match=r"torch.export.load does not read the file: .* nothing was written"):
        to_pt2(model, example(), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU(), nn.Conv3d(4, 3, 1))).save(str(path))
    return path


def test_a_program_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script(tmp_path / "net.pt")
    torch.save((torch.randn(1, *SHAPE[1:]), torch.randint(3, (1, 8, 8, 8))), "calib.pt")
    unet3d = "ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=4 --model-arg num_classes=3"
    rest = "--batch calib.pt --sparsity 0.3"
    assert run(f"prune {unet3d} {rest} -o slim.pt2 -o slim.safetensors --mask mask.json --json -".split()) == 0
    written = json.loads(capsys.readouterr().out)["outputs"]["slim.pt2"]
    assert written["bytes"] == (tmp_path / "slim.pt2").stat().st_size
    x = torch.randn(2, 1, 8, 8, 8)
    assert near(read_back("slim.pt2")(x).numpy(), ranp.load("slim.safetensors", trust=True).eval()(x))
    assert run(f"refine {unet3d} --mask mask.json -o again.pt2".split()) == 0
    assert (tmp_path / "again.pt2").read_bytes() == (tmp_path / "slim.pt2").read_bytes()
    refused = {
        f"prune net.pt {rest} -o slim.pt2": "-o slim.pt2: torch.export takes no TorchScript MODEL; give a .pt name",
        f"prune slim.pt2 {rest}": "model slim.pt2: ranp writes .pt2 files, but reads none",
        "profile slim.pt2": "give the source, file.py:Name, or, to profile it, the slim .safetensors",
    }
    capsys.readouterr()
    for words, message in refused.items():
        assert run(words.split()) == 2
        assert message in capsys.readouterr().err


# -- counting


def test_the_counts_are_those_of_the_module(parts):
    model, path, _ = parts
    mine, theirs = profile_onnx(path, SHAPE), ranp.profile(model, SHAPE).to_dict()
    for key in ("params", "params_bytes", "macs", "flops"):
        assert mine["before"][key] == theirs["before"][key], key
    same = ("name", "op", "kernel", "neurons", "macs", "output_elements", "output_bytes")
    assert [[row[k] for k in same] for row in mine["layers"]] == [[row[k] for k in same] for row in theirs["layers"]]
    assert mine["neurons"] == theirs["neurons"]
    assert mine["uncounted_ops"] == []
    assert profile_onnx(path, (4, *SHAPE[1:]))["before"] == mine["before"]  # of one sample


def test_a_folded_batch_norm_leaves_one_bias(unet):
    slim, path, _ = unet
    mine, theirs = profile_onnx(path, SHAPE)["before"], ranp.profile(slim, SHAPE).to_dict()["before"]
    folded = sum(m.num_features for m in slim.modules() if isinstance(m, nn.BatchNorm3d))
    assert mine["params"] == theirs["params"] - folded
    assert mine["macs"] == theirs["macs"]
    assert "buffers" not in mine


def save(path, nodes, inputs, outputs, weights=(), opset=20):
    """A file put together by hand; inputs and outputs are name=shape, weights arrays."""
    make = onnx.helper
    info = [make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (*inputs.items(), *outputs.items())]
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in dict(weights).items()]
    graph = make.make_graph(nodes, "g", info[: len(inputs)], info[len(inputs) :], tensors)
    onnx.save_model(make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=9), str(path))
    return path


def test_costs_by_hand(tmp_path):
    node = onnx.helper.make_node
    ones = np.ones(4, np.float32)
    rng = np.random.default_rng(0)
    weights = {
        "c.weight": rng.random((4, 2, 3, 3)).astype(np.float32),
        "gamma": ones * 2, "beta": ones, "mean": ones * 3, "var": ones * 4,
        "up.weight": rng.random((4, 5, 2, 2)).astype(np.float32),
        "to": np.array([0, 5, -1], np.int64),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "c.weight"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"]),
        node("ConvTranspose", ["b", "up.weight"], ["u"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["u", "to"], ["r"]),
        node("Einsum", ["r", "r"], ["e"], name="/mix/Einsum", equation="ncp,ndp->ncd"),
        node("Det", ["e"], ["y"], name="/mix/Det"),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"x": ["n", 2, 8, 8]}, {"y": ["n"]}, weights)
    found = profile_onnx(path)
    conv, up = 4 * 16 * 18, 4 * 16 * 5 * 4  # a transposed convolution costs per input position
    macs = conv + up + 5 * 5 * 64  # the einsum: every pair of 5 maps, over 64 positions
    activations = 4 * (64 + 64 + 320 + 25 + 1)  # the reshape is a view
    held = sum(v.nbytes for v in weights.values())
    assert found["before"] == {
        "params": 72 + 8 + 80, "params_bytes": 4 * 160, "buffers": 8, "macs": macs, "flops": 2 * macs,
        "activation_bytes": activations, "peak_forward_bytes": held + 4 * (128 + 64 + 320),
    }  # fmt: skip
    assert found["layers"] == [
        {"name": "c", "op": "conv2d", "kernel": [3, 3], "neurons": 4, "params": 72, "macs": conv, "output_elements": 64,
         "output_bytes": 256},
        {"name": "up", "op": "conv_transpose2d", "kernel": [2, 2], "neurons": 5, "params": 80, "macs": up, "output_elements": 320,
         "output_bytes": 1280},
    ]  # fmt: skip
    assert found["uncounted_ops"] == [{"op": "Det", "module": "mix", "count": 1}]


@pytest.mark.parametrize(
    ("inputs", "heads", "macs"),
    [  # 2 heads of 8 channels look from 6 places at 5: scores, and their product with values of 4 channels
        ({"q": [1, 2, 6, 8], "k": [1, 2, 5, 8], "v": [1, 2, 5, 4]}, {}, 2 * 6 * 5 * (8 + 4)),
        ({"q": [1, 6, 16], "k": [1, 5, 16], "v": [1, 5, 8]}, {"q_num_heads": 2, "kv_num_heads": 2}, 2 * 6 * 5 * (8 + 4)),
        ({"q": [1, 6, 32], "k": [1, 5, 16], "v": [1, 5, 8]}, {"q_num_heads": 4, "kv_num_heads": 2}, 4 * 6 * 5 * (8 + 4)),
        (  # 3 places of before are looked at too
            {"q": [1, 2, 6, 8], "k": [1, 2, 5, 8], "v": [1, 2, 5, 4], "pk": [1, 2, 3, 8], "pv": [1, 2, 3, 4]}, {},
            2 * 6 * (5 + 3) * (8 + 4),
        ),
    ],
)  # fmt: skip
def test_attention_by_hand(inputs, heads, macs, tmp_path):
    """The op that torch writes from opset 23 on."""
    names = [*list(inputs)[:3], "", *list(inputs)[3:]] if len(inputs) > 3 else list(inputs)
    results = ["y", "nk", "nv"] if len(inputs) > 3 else ["y"]
    node = onnx.helper.make_node("Attention", names, results, **heads)
    found = profile_onnx(save(tmp_path / "a.onnx", [node], inputs, {"y": list("abcd")[: len(inputs["q"])]}, opset=23))
    assert found["before"]["macs"] == macs
    assert found["uncounted_ops"] == []


def test_a_sampling_is_listed_as_in_torch(tmp_path):
    node = onnx.helper.make_node("GridSample", ["x", "grid"], ["y"], name="/warp/GridSample")
    path = save(tmp_path / "a.onnx", [node], {"x": [1, 2, 4, 4], "grid": [1, 4, 4, 2]}, {"y": [1, 2, 4, 4]})
    assert profile_onnx(path)["uncounted_ops"] == [{"op": "GridSample", "module": "warp", "count": 1}]


def test_shapes_that_the_graph_computes(tmp_path):
    """A reshape to a shape worked out from another tensor's, as exporters write it."""
    node = onnx.helper.make_node
    weights = {"w": np.ones((32, 3), np.float32), "two": np.array([2]), "less": np.array([-1])}
    nodes = [
        node("Shape", ["x"], ["s"], end=1),
        node("Mul", ["s", "two"], ["t"]),
        node("Concat", ["t", "less"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["r"]),
        node("MatMul", ["r", "w"], ["y"]),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"x": ["n", 4, 4, 4]}, {"y": ["m", 3]}, weights)
    assert profile_onnx(path)["before"]["macs"] == 2 * 32 * 3


def test_recurrent_layers(tmp_path):
    node = onnx.helper.make_node
    rng = np.random.default_rng(0)
    weights = {"W": rng.random((1, 18, 5)).astype(np.float32), "R": rng.random((1, 18, 6)).astype(np.float32)}
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("GRU", ["t", "W", "R"], ["y"], hidden_size=6)]
    path = save(tmp_path / "a.onnx", nodes, {"x": ["n", 7, 5]}, {"y": [7, 1, "n", 6]}, weights)  # fmt: skip
    found = profile_onnx(path, (1, 7, 5))["before"]
    assert found["params"] == 18 * 11
    assert found["macs"] == 7 * 18 * 11


ERRORS = {
    "missing": (None, "cannot read .*No such file"),
    "empty": (b"", "is not an ONNX file"),
    "text": (b"solver: 3\n" * 50, "is not an ONNX file|no sound ONNX"),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_no_onnx_file(tmp_path, case):
    data, message = ERRORS[case]
    if data is not None:
        (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(BadInput, match=message) as error:
        profile_onnx(tmp_path / "a.onnx")
    assert "\n" not in str(error.value)


def test_truncated_anywhere(tmp_path, parts):
    data = parts[1].read_bytes()
    for length in range(1, len(data) - 1, max(1, len(data) // 40)):
        (tmp_path / "a.onnx").write_bytes(data[:length])
        with pytest.raises(BadInput, match="truncated"):
            profile_onnx(tmp_path / "a.onnx", SHAPE)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "axes depth, height, width of input 'x' are dynamic; give `inputs`, as in inputs='1x1x64x64x64'"),
        ((1, 1, 8, 8), "input 'x' is batchx1xdepthxheightxwidth, the shape given is 1x1x8x8; give one that fits"),
        ((1, 2, 8, 8, 8), "the shape given is 1x2x8x8x8"),
        ([SHAPE, SHAPE], r"has 1 inputs \(x\), 2 shapes were given"),
    ],
)
def test_shapes_that_do_not_fit(parts, shapes, message):
    with pytest.raises(BadInput, match=message):
        profile_onnx(parts[1], shapes)


def test_the_signature_of_a_report_is_a_shape_too(parts):
    signature = example().signature
    found = profile_onnx(parts[1], signature)
    assert found == profile_onnx(parts[1], SHAPE)
    assert found["model"]["input"] == {"args": [{"shape": list(SHAPE), "dtype": "float32"}], "kwargs": {}}
