"""What an ONNX file costs, counted from the file alone."""

from __future__ import annotations

import numpy as np
import pytest
from exported_nets import SHAPE, example, onnx
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.errors import BadInput
from ranp_cli.io.exchange.onnx_profile import profile_onnx


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
