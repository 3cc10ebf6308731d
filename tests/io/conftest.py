"""Fixtures that several files of this folder share."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from exported_nets import Parts, example
from io_folder import MODEL
from paths import SAMPLES
from torch import nn

import ranp_cli as ranp
from ranp_cli.io.exchange.onnx_export import to_onnx
from ranp_cli.io.model import load_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which is the current directory."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "one.py").write_text(
        "from torch import nn\nclass Only(nn.Conv3d):\n    def __init__(self): super().__init__(1, 1, 1)"
    )
    (tmp_path / "none.py").write_text("def make(): return None\nnumber = 3\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "syntax.py").write_text("a = 1\nb = (\n")
    (tmp_path / "imports.py").write_text("import nowhere\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "folder" / "__init__.py").write_text("")
    (tmp_path / "folder" / "inner.py").write_text(MODEL.replace("classes=2", "classes=8"))
    (tmp_path / "folder" / "broken.py").write_text("\n1 / 0\n")
    net = nn.Sequential(nn.Conv3d(1, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(tmp_path / "net.ts"))
    torch.save(net, tmp_path / "module.pt")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:-99])
    (tmp_path / "void.pt").touch()
    (tmp_path / "text.pt").write_text("hello\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] in ("folder", "blocks")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


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
