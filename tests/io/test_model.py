"""The model that the user names: from files and modules, with arguments, or one line that says what is wrong."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from io_folder import MODEL, message

from ranp_cli.cli.flags import FlagSpelling
from ranp_cli.core.spelling import spelling
from ranp_cli.io.model import load_model, parse_args

# spec, arguments, channels of the result
MODELS = [
    ("model.py:Net", {}, 2),
    ("model.py:Net", {"classes": 5, "bias": False}, 5),
    ("model.py:make", {}, 3),
    ("model.py:open_ended", {"classes": 6}, 6),
    ("model.py:ready", {}, 4),
    ("one.py", {}, 1),
    ("folder.inner:Net", {}, 8),
    ("net.ts", {}, 2),
]


# spec, arguments, what the message says
BAD_MODELS = [
    ("absent.py:Net", {}, "no such file (looked in "),
    (
        "model.py:Nett",
        {},
        "there is no 'Nett' in it; did you mean 'Net'? (known: ",
    ),
    ("model.py:number", {}, "is an object of type int; wants a class or function that returns an nn.Module"),
    (
        "model.py:Needs",
        {},
        "needs the arguments channels, classes; give model_args={{'channels': VALUE, 'classes': VALUE}}",
    ),
    ("model.py:Needs", {"channels": 1}, "needs the argument classes; give model_args={{'classes': VALUE}}"),
    ("model.py:Net", {"clases": 5}, "takes no argument 'clases'; did you mean 'classes'? (known: classes, bias)"),
    ("model.py:nothing", {"classes": 5}, "takes no argument 'classes'; it takes none"),
    ("model.py:by_place", {}, "needs an argument that cannot be given by name; wrap it"),
    ("model.py:ready", {"classes": 5}, "is a ready module and takes no arguments; name its class"),
    ("model.py:nothing", {}, "returned an object of type int"),
    ("model.py:fails", {}, "ValueError: two lines ({folder}/model.py:13); mend it there"),
    ("model.py:leaves", {}, "SystemExit: 3 ({folder}/model.py:14)"),
    ("model.py", {}, "the file defines 2 nn.Module classes; say model.py:NAME (it offers: Needs, Net)"),
    ("none.py", {}, "the file defines no nn.Module class; say none.py:NAME (it offers: make)"),
    ("empty.py:Net", {}, "there is no 'Net' in it; define it there"),
    ("syntax.py:Net", {}, "SyntaxError: '(' was never closed ({folder}/syntax.py:2)"),
    ("imports.py:Net", {}, "ModuleNotFoundError: No module named 'nowhere' ({folder}/imports.py:1); install nowhere"),
    ("nowhere.at_all:Net", {}, "no module 'nowhere' is installed or in {folder}; install it, or name a file"),
    ("folder.absent:Net", {}, "no module 'folder.absent' is installed or in {folder}"),
    ("folder.broken:Net", {}, "ZeroDivisionError: division by zero ({folder}/folder/broken.py:2); mend it there"),
    ("Net", {}, "wants file.py:Name, package.module:Name or a TorchScript file (.pt, .ts, .pth)"),
    ("folder", {}, "wants file.py:Name, package.module:Name or a TorchScript file (.pt, .ts, .pth)"),
    ("folder.py:Net", {}, "cannot be read (Is a directory); give a readable file"),
    (
        "slim.safetensors",
        {},
        "can only be profiled; here give the source, file.py:Name with weights='slim.safetensors'",
    ),
    ("net.onnx", {}, "can only be profiled; here give the source, file.py:Name"),
    ("slim.pt2", {}, "ranp writes .pt2 files, but reads none (pickle may run code); give the source, file.py:Name, or"),
    ("net.ts", {"classes": 2}, "a TorchScript file takes no arguments; leave out `model_args`"),
    ("absent.ts", {}, "no such file"),
    (
        "module.pt",
        {},
        "holds a pickled object (torch.nn.modules.container.Sequential), not TorchScript; pickled modules run code",
    ),
    ("state.pt", {}, "not TorchScript; "),
    ("cut.pt", {}, "is empty or cut off in the middle"),
    ("void.pt", {}, "is empty or cut off in the middle"),
    ("text.pt", {}, "is not a file that torch.save wrote"),
]


MODEL_ARGS = [
    (["classes=4", "name=unet", "flag=true"], {"classes": 4, "name": "unet", "flag": True}),
    (["widths=[8, 16]", "nothing=", "formula=a=b"], {"widths": [8, 16], "nothing": None, "formula": "a=b"}),
    (["eps=1e-5", "quoted='1e-5'"], {"eps": 1e-5, "quoted": "1e-5"}),
    (["classes"], "--model-arg classes: wants name=value, for example --model-arg classes=4"),
    (["=4"], "--model-arg =4: wants name=value, for example --model-arg classes=4"),
    (["a=1", "a=2"], "--model-arg a=2: 'a' is given twice; leave one out"),
    (["a=[1"], "--model-arg a=[1: the value is not YAML ("),
]


@pytest.mark.parametrize(("spec", "args", "channels"), MODELS)
def test_model(folder: Path, spec: str, args: dict[str, Any], channels: int) -> None:
    loaded = load_model(spec, args)
    assert next(loaded.module.parameters()).shape[0] == channels
    assert (loaded.spec, loaded.args) == (spec, args)
    assert loaded.kind == ("torchscript" if spec.endswith(".ts") else "factory")


@pytest.mark.parametrize(("spec", "args", "says"), BAD_MODELS)
def test_bad_model(folder: Path, spec: str, args: dict[str, Any], says: str) -> None:
    text = message(load_model, spec, args)
    assert text.startswith(f"model {spec}: ")
    assert says.format(folder=folder) in text


@pytest.mark.parametrize(("pairs", "result"), MODEL_ARGS)
def test_model_args(pairs: list[str], result: Any) -> None:
    if isinstance(result, dict):
        assert parse_args(pairs) == result
    else:
        with spelling(FlagSpelling()):  # only the command line has pairs
            assert message(parse_args, pairs).startswith(result)


def test_a_file_is_run_once_and_again_when_it_changes(folder: Path) -> None:
    first = load_model("model.py:Net").module
    assert type(load_model(str(folder / "model.py") + ":Net").module) is type(first)
    (folder / "model.py").write_text(MODEL.replace("classes=2", "classes=9"))
    assert load_model("model.py:Net").module[0].out_channels == 9
    assert not (folder / "__pycache__").exists()


def test_siblings(folder: Path) -> None:
    """Each folder has its own `blocks.py`; a change in it is seen; two files of one folder share it."""
    source = "import blocks\ndef make():\n    import late\n    return blocks.Net()\ndef kind(o, t): return blocks.Net"
    block = "from torch import nn\nclass Net(nn.Conv3d):\n    def __init__(self): super().__init__(1, {}, 1)\n"
    for name, channels in (("a", 3), ("b", 5)):
        (folder / name).mkdir()
        (folder / name / "net.py").write_text(source)
        (folder / name / "other.py").write_text(source)
        (folder / name / "late.py").write_text("")
        (folder / name / "blocks.py").write_text(block.format(channels))
    assert load_model("a/net.py:make").module.out_channels == 3
    assert load_model("b/net.py:make").module.out_channels == 5
    assert type(load_model("b/other.py:make").module) is type(load_model("b/net.py:make").module)
    (folder / "b" / "blocks.py").write_text(block.format(700))
    assert load_model("b/net.py:make").module.out_channels == 700
    assert load_model("a/net.py:make").module.out_channels == 3


def test_a_module_from_a_file_can_be_pickled(folder: Path) -> None:
    net = load_model("model.py:Net").module
    assert type(pickle.loads(pickle.dumps(net))) is type(net)


def test_the_first_and_the_second_time_draw_the_same_weights(folder: Path) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        weights.append(next(load_model("model.py:Net").module.parameters()))
    assert torch.equal(*weights)


def test_a_broken_file_leaves_nothing_behind(folder: Path) -> None:
    before = set(sys.modules)
    message(load_model, "syntax.py:Net")
    assert set(sys.modules) == before
