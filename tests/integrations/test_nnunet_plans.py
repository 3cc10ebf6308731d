"""`slim`, which nnU-Net calls with slim plans, and the plans themselves; without nnU-Net, but with its architectures."""

from __future__ import annotations

import json
import sys
from copy import deepcopy

import pytest
import torch
from package_imports import declare_torchvision_ops, quietly
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run as command_line
from ranp_cli.integrations.nnunet import SLIM, class_named, slim
from ranp_cli.integrations.nnunet_plans import slim_plans

declare_torchvision_ops()
UNET = "dynamic_network_architectures.architectures.unet"
DENSE = {
    "n_stages": 3, "features_per_stage": [8, 16, 24], "conv_op": nn.Conv3d, "kernel_sizes": [3, 3, 3], "strides": [1, 2, 2],
    "n_conv_per_stage_decoder": [1, 1], "conv_bias": True, "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
NETS = {
    "PlainConvUNet": {**DENSE, "n_conv_per_stage": [1, 1, 1]},
    "ResidualEncoderUNet": {**DENSE, "n_blocks_per_stage": [1, 1, 1]},
}
ENDS = {"input_channels": 1, "num_classes": 3, "deep_supervision": True}


@pytest.fixture(scope="module", params=NETS)
def pruned(request):
    """(arch_kwargs of slim plans, result)"""
    with quietly():
        net = class_named(f"{UNET}.{request.param}")(**NETS[request.param], **ENDS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 16, 16, 16, generator=generator)
    y = [torch.randint(3, (2, n, n, n), generator=generator) for n in (16, 8)]
    result = ranp.prune(net.apply(net.initialize), (x, y), loss="dice_ce", sparsity=0.5, min_neurons=1)
    record = {**result.header, "network_class_name": f"{UNET}.{request.param}"}
    return {**NETS[request.param], "ranp": json.loads(json.dumps(record))}, result


def test_it_is_the_slim_network_without_its_weights(pruned):
    kwargs, result = pruned
    network = slim(**kwargs, **ENDS)
    assert type(network) is type(result.model)
    assert network.encoder.output_channels == result.model.encoder.output_channels
    assert list(network.encoder.output_channels) != DENSE["features_per_stage"]
    network.apply(network.initialize)  # as nnU-Net does
    network(torch.randn(2, 1, 16, 16, 16))[0].sum().backward()
    network.load_state_dict(result.model.state_dict())
    x = torch.randn(1, 1, 16, 16, 16)
    for a, b in zip(network.eval()(x), result.model.eval()(x), strict=True):
        assert torch.equal(a, b)
    network.decoder.deep_supervision = False
    assert network(x).shape == (1, 3, 16, 16, 16)
    assert type(slim(**kwargs, **{**ENDS, "deep_supervision": False})) is type(network)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_channels": 4}, "of a network with 1 input channels, and the data set has 4"),
        ({"num_classes": 2}, "of a network with 3 classes, and the data set has 2"),
        ({"features_per_stage": [8, 16, 32]}, "of another network"),
    ],
)
def test_other_ends_are_an_error(pruned, change, says):
    with pytest.raises(ranp.BadInput, match=says):
        slim(**{**pruned[0], **ENDS, **change})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network_class_name": "os.system"}, "wants a network class of"),
        ({"network_class_name": "nnunetv2.paths.os.system"}, "wants a network class of"),
        ({"network_class_name": f"{UNET}.nn.Module"}, "wants a network class of"),
        ({"network_class_name": f"{UNET}.NoSuchNet"}, "wants a network class of"),
        ({"network_class_name": f"{UNET}.get_matching_convtransp"}, "wants a network class of"),
        ({"network_class_name": "dynamic_network_architectures_evil.Net"}, "wants a network class of"),
        ({"network_class_name": 3}, "'network_class_name' is 3, wants text"),
        ({"shapes": {}}, "lacks the tensors"),
        ({"attributes": {"encoder": {"forward": 1}}}, "is not one that refining sets"),
        ({"version": 7}, "version 7, not 1"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line_and_runs_nothing(pruned, change, says):
    kwargs = deepcopy(pruned[0])
    kwargs["ranp"].update(change)
    before = set(sys.modules)
    with pytest.raises(ranp.BadInput, match=says):
        slim(**kwargs, **ENDS)
    assert not any(name.startswith("dynamic_network_architectures_evil") for name in set(sys.modules) - before)


def test_configurations_that_inherit_keep_the_dense_architecture():
    dense = {"network_class_name": "a.Net", "arch_kwargs": {"n": 1}, "_kw_requires_import": []}
    plans = {
        "plans_name": "nnUNetPlans",
        "configurations": {
            "3d_fullres": {"architecture": dense, "data_identifier": "x"},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
            "below": {"inherits_from": "3d_cascade_fullres"},
            "other": {"inherits_from": "3d_fullres", "architecture": {"network_class_name": "b.Net"}},
        },
    }
    header = {"version": 1, "fingerprint": "f", "shapes": {}, "attributes": {}, "mask_sha256": "s"}
    slim = slim_plans(plans, "3d_fullres", dense, header, "nnUNetPlansSlim")
    own = slim["configurations"]
    assert slim["plans_name"] == "nnUNetPlansSlim"
    assert own["3d_fullres"]["architecture"]["network_class_name"] == SLIM
    assert own["3d_fullres"]["architecture"]["arch_kwargs"]["n"] == 1
    assert own["3d_cascade_fullres"]["architecture"] == own["below"]["architecture"] == dense
    assert own["other"] == plans["configurations"]["other"]
    inherited = slim_plans(plans, "3d_cascade_fullres", dense, header, "Slim")["configurations"]
    assert inherited["3d_fullres"] == plans["configurations"]["3d_fullres"]
    assert inherited["3d_cascade_fullres"]["architecture"]["network_class_name"] == SLIM


@pytest.mark.parametrize("words", [["nnUNetPlans.json"], ["501:3d_fullres"], ["Dataset501_Balls:3d_fullres"]])
def test_without_the_package_one_line_says_how_to_install_it(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr("ranp_cli.integrations.common.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nnUNetPlans.json").write_text(
        json.dumps(
            {"plans_name": "nnUNetPlans", "dataset_name": "Dataset501_Balls", "configurations": {"3d_fullres": {}}}
        )
    )
    assert command_line(["prune", *words, "--sparsity", "0.5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'ranp-cli[nnunet]'" in error


def test_options_of_plans_beside_another_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.json").write_text('{"a": 1}')
    for words, says in (
        (["model.py:Net", "--fold", "1"], "--fold is of nnU-Net's plans, and MODEL is none; leave it out"),
        (["some.json"], "holds no plans of nnU-Net's"),
        (["none.json"], "none.json"),
    ):
        assert command_line(["prune", *words, "--batch", "calib.pt", "--sparsity", "0.5"]) == 2
        assert says in capsys.readouterr().err
