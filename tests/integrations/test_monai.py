"""A bundle of MONAI's with a slim network: its own commands run it, verify it and export it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ranp_cli as ranp
from ranp_cli.cli import run as command_line

pytestmark = pytest.mark.skipif(
    find_spec("monai") is None, reason="MONAI is not installed: pip install 'ranp-cli[monai]'"
)
TRAIN = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "ckpt_dir": "$@bundle_root + '/models'",
    "width": 8,
    "network_def": {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
        "channels": ["@width", 16, 24], "strides": [2, 2], "num_res_units": 1,
    },
    "network": "$@network_def.to('cpu')",
    "data": "$[{'image': torch.randn(1, 16, 16, 16), 'label': (torch.rand(1, 16, 16, 16) > 0.5).float()} for _ in range(6)]",
    "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.001},
    "train": {
        "dataset": {"_target_": "Dataset", "data": "@data"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": 2, "shuffle": True, "num_workers": 0},
        "saver": {
            "_target_": "CheckpointSaver", "save_dir": "@ckpt_dir", "save_dict": {"model": "@network"}, "save_final": True,
            "final_filename": "model.pt",
        },
        "trainer": {
            "_target_": "SupervisedTrainer", "max_epochs": 1, "device": "cpu", "train_data_loader": "@train::dataloader",
            "network": "@network", "loss_function": "@loss", "optimizer": "@optimizer", "train_handlers": ["@train::saver"],
        },
    },
    "validate": {"dataloader": {"_target_": "DataLoader", "dataset": "@train::dataset", "batch_size": 1}},
    "run": ["$@train::trainer.run()"],
}  # fmt: skip
INFER = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "network_def": TRAIN["network_def"],
    "width": 8,
    "network": "$@network_def.to('cpu').eval()",
    "run": [
        "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt', weights_only=True))",
        "$torch.save(@network(torch.zeros(1, 1, 16, 16, 16)), @bundle_root + '/out.pt')",
    ],
}
TENSOR = {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16], "dtype": "float32", "value_range": [0, 1]}
META = {
    "version": "0.1", "network_data_format": {
        "inputs": {"image": {**TENSOR, "is_patch_data": False, "channel_def": {"0": "image"}}},
        "outputs": {"pred": {**TENSOR, "num_channels": 2, "is_patch_data": False, "channel_def": {"0": "a", "1": "b"}}},
    },
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "bundle"
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    for name, content in {"train": TRAIN, "inference": INFER, "metadata": META}.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    return folder


PRUNE = ("--sparsity", "0.5", "--min-neurons", "1", "-o", "models/slim.safetensors", "-o", "configs/slim.json", "-q")


def prune(*words: str) -> int:
    return command_line(["prune", *words])


def test_the_override_puts_the_slim_network_in_its_place(bundle, monkeypatch, capsys):
    before = torch.get_rng_state()
    assert prune("configs/train.json", *PRUNE, "--json", "report.json") == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""
    written = json.loads(Path("configs/slim.json").read_text())
    assert written["network_def"] == {
        "_target_": "ranp_cli.load",
        "path": "$str(@bundle_root) + '/models/slim.safetensors'",
        "model": TRAIN["network_def"],
    }
    report = json.loads(Path("report.json").read_text())
    assert report["notes"][0] == "train.json holds 6 $ expressions: these are code, and run"
    assert report["outputs"]["configs/slim.json"]["next"].startswith("python -m monai.bundle run --config_file")
    from monai.bundle import ConfigParser

    monkeypatch.chdir(bundle.parent)  # elsewhere, with the root said
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.json", "slim.json")])
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network")
    assert network.state_dict()["model.0.conv.unit0.conv.weight"].shape[0] < 8
    # the folder, from elsewhere, gives the same mask
    assert prune("bundle", *PRUNE[:4], "-o", "slim.safetensors", "--mask", "mask.json", "-q") == 0
    layers = [json.loads(Path(p).read_text())["layers"] for p in ("mask.json", bundle / "models" / "slim.mask.json")]
    assert layers[0] == layers[1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("fire") is None, reason="fire is not installed: pip install 'ranp-cli[monai]'")
@pytest.mark.skipif(find_spec("ignite") is None, reason="MONAI's trainers need pytorch-ignite, which is not installed")
@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_monais_own_commands_take_it(bundle):
    assert prune("configs/train.json", *PRUNE) == 0

    def monai(command: str, *words: str) -> None:
        path = os.pathsep.join([str(Path(ranp.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "monai.bundle", *command.split(), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr[-3000:]

    monai("run", "--config_file", "['configs/train.json','configs/slim.json']")
    trained = torch.load("models/model.pt", weights_only=True)
    assert trained["model.0.conv.unit0.conv.weight"].shape[0] < 8
    both = ("--config_file", "['configs/inference.json','configs/slim.json']")
    monai("run", *both)
    assert torch.load("out.pt", weights_only=True).shape == (1, 2, 16, 16, 16)
    meta = ("--meta_file", "configs/metadata.json")
    monai("verify_net_in_out network_def", *meta, *both, "--device", "cpu")
    export = ("--ckpt_file", "models/model.pt", *meta, *both)
    monai("ckpt_export network_def", "--filepath", "models/model.ts", *export)
    assert torch.jit.load("models/model.ts")(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
    monai("onnx_export network_def", "--filepath", "models/model.onnx", *export)
    assert Path("models/model.onnx").stat().st_size > 1000


def test_a_loader_is_named_and_another_network_too(bundle):
    config = {**TRAIN, "nets": {"small": TRAIN["network_def"]}}
    Path("configs/train.json").write_text(json.dumps(config))
    assert (
        prune(
            "configs/train.json#nets#small",
            *PRUNE,
            "--batch",
            "configs/train.json#validate#dataloader",
            "--batches",
            "1",
        )
        == 0
    )
    assert list(json.loads(Path("configs/slim.json").read_text())) == ["nets::small"]


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({"loss": None}, (), "no loss in it; it has"),
        ({"train": {}, "validate": {}, "run": []}, (), "no data loader in it"),
        ({"network_def": None, "net": TRAIN["network_def"]}, (), "has no 'network_def'"),
        ({}, ("--batch", "configs/train.json#no"), "has no 'no' (known: train::dataloader, validate::dataloader)"),
        ({}, ("--fold", "1"), "leave it out"),
        ({}, ("--model-arg", "a=1"), "leave out --model-arg"),
        ({"width": "$1 / 0"}, (), "network_def"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(bundle, capsys, change, words, says):
    config = {key: value for key, value in {**TRAIN, **change}.items() if value is not None}
    Path("configs/train.json").write_text(json.dumps(config))
    assert prune("configs/train.json", *PRUNE, *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_override_needs_a_slim_file(bundle, capsys):
    assert prune("configs/train.json", "--sparsity", "0.5", "-o", "configs/slim.json", "-q") == 2
    assert "slim.safetensors too" in capsys.readouterr().err


def test_without_monai_one_line_says_how_to_install_it(bundle, monkeypatch, capsys):
    monkeypatch.setattr("ranp_cli.integrations.common.find_spec", lambda name: None)
    assert prune("configs/train.json", *PRUNE) == 2
    assert "pip install 'ranp-cli[monai]'" in capsys.readouterr().err


def test_a_target_in_a_yaml(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mapping = "_target_: ranp_cli.models.unet3d.unet3d\nlayers: 15\nwidth: 8\nnum_classes: 2\nin_channels: 1\n"
    Path("net.yaml").write_text(mapping)
    nested = "model:\n" + "".join(f"  {line}\n" for line in mapping.splitlines())
    Path("conf.yaml").write_text(nested)
    torch.save((torch.randn(1, 1, 16, 16, 16), torch.randint(2, (1, 16, 16, 16))), "b.pt")
    for spec in ("net.yaml", "conf.yaml#model"):
        assert prune(spec, "--batch", "b.pt", "--sparsity", "0.5", "-q", "-o", "slim.safetensors") == 0
    assert prune("net.yaml", "--sparsity", "0.5", "-q") == 2
    assert "has no mini-batches of its own; give --batch B" in capsys.readouterr().err
