"""State dicts that go into a model, and those that do not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from io_folder import message
from safetensors.torch import save_file, save_model
from torch import nn

from ranp_cli.io.model import load_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        self.norm = nn.BatchNorm3d(2)
        self.tied = nn.Conv3d(1, 2, 1)
        self.tied.weight = self.conv.weight


STATE = Tied().state_dict()


CHECKPOINT = {
    "epoch": 3,
    "optimizer": {"state": {0: torch.zeros(1)}},
    "ema": {"model": {f"module.{k}": v for k, v in STATE.items()}},
    "state_dict": {f"net.{k}": v for k, v in STATE.items()} | {"loss.weight": torch.ones(2)},
}


# what is in the file, --weights-key
WEIGHTS = [
    (STATE, None),
    ({f"module.{k}": v for k, v in STATE.items()}, None),
    ({f"_orig_mod.module.{k}": v for k, v in STATE.items()}, None),
    ({k: v for k, v in STATE.items() if k != "tied.weight"}, None),
    ({k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")}, None),
    (CHECKPOINT, "ema.model"),
    (CHECKPOINT, "state_dict.net"),
]


# what is in the file, --weights-key, what the message says
BAD_WEIGHTS = [
    ({}, None, "holds an empty dict, not a state dict; save model.state_dict() in it"),
    (
        {k: v for k, v in STATE.items() if not k.startswith("norm.")},
        None,
        "4 missing: norm.bias, norm.running_mean, norm.running_var, ...; check `model_args` and `weights_key`",
    ),
    (STATE | {"extra": torch.zeros(1)}, None, "does not fit the model; 1 unexpected: extra; check"),
    (
        STATE | {"conv.bias": torch.zeros(3), "extra": torch.zeros(1)},
        None,
        "1 unexpected: extra; 1 of another shape: conv.bias ((3,) in the file, (2,) in the model); check",
    ),
    ({"a": STATE}, None, "holds a dict with the keys 'a', not a state dict; give weights_key='a'"),
    (CHECKPOINT, None, "not a state dict; give weights_key='ema.model' or weights_key='state_dict.net'"),
    (CHECKPOINT, "ema", "nothing that is a state dict under 'ema'; give weights_key='ema.model' or"),
    ({"a": {"b": {"c": torch.zeros(1)}}}, "b", "it holds state dicts under a.b, give one as `weights_key`"),
    (
        STATE,
        "state_dict",
        "nothing that is a state dict under 'state_dict'; the file is a state dict itself, leave out",
    ),
    ([1, 2], None, "holds a list of 2 int, not a state dict"),
    (nn.Conv3d(1, 1, 1), None, "is a pickle that wants to run code (torch.nn.modules.conv.Conv3d) and is refused"),
]


@pytest.mark.parametrize(("content", "key"), WEIGHTS)
def test_weights(tmp_path: Path, content: Any, key: str | None) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    paths = [tmp_path / "w.ckpt", tmp_path / "w.pt"]
    if content is not CHECKPOINT:  # safetensors files are flat
        paths.append(tmp_path / "w.safetensors")
        save_file({name: tensor.clone() for name, tensor in content.items()}, paths[-1])
    for path in paths:
        net = Tied()
        load_weights(net, str(path), key)
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in net.state_dict().items())


def test_weights_of_save_model_and_below_a_prefix(tmp_path: Path) -> None:
    whole, net = nn.ModuleDict({"net": Tied()}), Tied()
    save_model(whole, str(tmp_path / "w.safetensors"))
    load_weights(net, str(tmp_path / "w.safetensors"), "net")
    assert torch.equal(net.conv.weight, whole["net"].conv.weight)


@pytest.mark.parametrize(("content", "key", "says"), BAD_WEIGHTS)
def test_bad_weights(tmp_path: Path, content: Any, key: str | None, says: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    text = message(load_weights, Tied(), str(path), key)
    assert text.startswith(f"weights {path}: ")
    assert says in text


def test_bad_weights_files(folder: Path) -> None:
    save_file({"a": torch.zeros(9)}, folder / "good.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-4])
    (folder / "text.safetensors").write_text("hello, hello")
    (folder / "w.h5").touch()
    (folder / "w.bin").write_bytes(pickle.dumps(torch.zeros(1).numpy()))
    for name, says in {
        "absent.pt": "no such file",
        "cut.pt": "cut off in the middle; write or copy it again",
        "cut.safetensors": "is not safetensors, or cut off (",
        "text.safetensors": "is not safetensors, or cut off (",
        "net.ts": "wants a .safetensors, .pt, .pth or .ckpt file",
        "w.h5": "wants a .safetensors, .pt, .pth or .ckpt file",
        "w.bin": "is a plain pickle, which may run code, and is refused; write it with torch.save",
    }.items():
        assert says in message(load_weights, nn.Conv3d(1, 1, 1), name)
    (folder / "net.ts").rename("net.pt")
    assert "is a TorchScript model; give it as the model" in message(load_weights, nn.Conv3d(1, 1, 1), "net.pt")
