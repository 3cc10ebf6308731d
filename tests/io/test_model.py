"""Models, weights, mini-batches and losses from files, names and Python objects; every error is one telling line."""

from __future__ import annotations

import json
import math
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from safetensors.torch import save_file, save_model
from torch import nn
from torch.nn import functional

from ranp_cli.cli.flags import FlagSpelling
from ranp_cli.core import errors
from ranp_cli.core.errors import BadInput
from ranp_cli.core.spelling import spelling
from ranp_cli.io.batches import Batch, Batches, load_batches
from ranp_cli.io.losses import load_loss
from ranp_cli.io.model import load_model, load_weights, parse_args

MODEL = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, classes=2, *, bias=True):
        super().__init__(nn.Conv3d(1, classes, 1, bias=bias))
class Needs(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
def make(classes=3): return Net(classes)
def open_ended(**options): return Net(**options)
def by_place(classes, /): return Net(classes)
def nothing(): return 5
def fails(): raise ValueError("two\\nlines")
def leaves(): raise SystemExit(3)
ready = Net(4)
number = 7
_private = Net
"""

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

# --model-arg, the keyword arguments; or what the message says
MODEL_ARGS = [
    (["classes=4", "name=unet", "flag=true"], {"classes": 4, "name": "unet", "flag": True}),
    (["widths=[8, 16]", "nothing=", "formula=a=b"], {"widths": [8, 16], "nothing": None, "formula": "a=b"}),
    (["eps=1e-5", "quoted='1e-5'"], {"eps": 1e-5, "quoted": "1e-5"}),
    (["classes"], "--model-arg classes: wants name=value, for example --model-arg classes=4"),
    (["=4"], "--model-arg =4: wants name=value, for example --model-arg classes=4"),
    (["a=1", "a=2"], "--model-arg a=2: 'a' is given twice; leave one out"),
    (["a=[1"], "--model-arg a=[1: the value is not YAML ("),
]


def message(function: Callable[..., Any], *args: Any) -> str:
    """The one line that `function` refuses `args` with."""
    with pytest.raises(BadInput) as caught:
        function(*args)
    text = str(caught.value)
    assert text.splitlines() == [text]
    assert len(text) < 600
    return text


def drain(source: Any, limit: int | None = None) -> list[Batch]:
    return list(load_batches(source, limit))


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


# -------------------------------------------------------------------------------------------------------------- model


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


# ------------------------------------------------------------------------------------------------------------ weights


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


# ------------------------------------------------------------------------------------------------------- mini-batches

X, Y = torch.ones(2, 1, 3), torch.tensor([0, 1])
NAN, INF = torch.tensor([[1.0], [torch.nan]]), torch.tensor([[torch.inf], [1.0]])


class Stream(torch.utils.data.IterableDataset):
    """Three mini-batches, of unknown number beforehand."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X, Y)] * 3)


# source, and for each mini-batch (args, names of kwargs)
BATCHES = [
    ((X, Y), [(1, [])]),
    ([X, Y], [(1, [])]),
    ({"input": X, "target": Y}, [(1, [])]),
    ({"x": X, "y": Y, "spacing": 3}, [(1, [])]),
    ([(X, Y)], [(1, [])]),
    ([(X, Y), [X, Y]], [(1, []), (1, [])]),
    ([{"x": X, "y": Y}, (X, Y), {"input": X, "target": Y}], [(1, [])] * 3),
    (((X, X), Y), [(2, [])]),
    (([X, X], Y), [(1, [])]),
    (({"left": X, "right": X, "scale": 2}, Y), [(0, ["left", "right", "scale"])]),
    (({"x": X}, Y), [(0, ["x"])]),
    ((X, {"boxes": Y}), [(1, [])]),
    ([((X, X), Y), ({"left": X}, Y)], [(2, []), (0, ["left"])]),
    ((X.numpy(), Y.numpy()), [(1, [])]),
    (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=1), [(1, [])] * 2),
    (torch.utils.data.DataLoader(Stream(), batch_size=None), [(1, [])] * 3),
    (lambda: (X, Y), [(1, [])]),
    (lambda: iter([(X, Y)] * 2), [(1, [])] * 2),
    (Batch((X,), {}, Y), [(1, [])]),
]

# source, what the message says after "batch"
BAD_BATCHES = [
    ([], ": is an empty list; wants (input, target), {'input': ..., 'target': ...} or a list of them"),
    ((X,), ": is a tuple of 1 Tensor; wants (input, target)"),
    ([(X,)], ", mini-batch 0: has no target; wants (input, target)"),
    ([(X, Y), (X,)], ", mini-batch 1: has no target; wants (input, target)"),
    ((X, None), ", mini-batch 0: has no target; wants (input, target)"),
    ({"x": X}, ", mini-batch 0: has no target; wants (input, target)"),
    ({"image": X, "label": Y}, ", mini-batch 0: is a dict with the keys 'image', 'label'; wants {'input': ..."),
    (["a", "b", "c"], ": is a list of 3 str; wants (input, target)"),
    ((X, Y, Y), ": is a tuple of 3 Tensor; wants (input, target)"),
    ([(X, Y), (X, Y, Y)], ", mini-batch 1: is a tuple of 3 Tensor; wants (input, target)"),
    ([(X, Y), "c", (X, Y)], ", mini-batch 1: is an object of type str; wants (input, target)"),
    (X, ": is a tensor of shape (2, 1, 3); wants (input, target)"),
    (5, ": is an object of type int; wants (input, target)"),
    (
        ("a", Y),
        ", mini-batch 0: the input is an object of type str; wants a tensor, or a tuple, list or dict with tensors",
    ),
    (([[1.0, 2.0]], Y), ", mini-batch 0: the input is a list of 1 list; wants a tensor"),
    (((X, object()), Y), ", mini-batch 0: the input is an object of type object; wants a tensor"),
    ((np.array(["a", "b"]), Y), ", mini-batch 0: the input is an array of <U1; wants numbers"),
    ((X[:0], Y[:0]), ", mini-batch 0: the input is empty: its shape is (0, 1, 3); give at least one sample"),
    ((X, Y[:0]), ", mini-batch 0: the target is empty: its shape is (0,)"),
    ((NAN, Y), ", mini-batch 0: the input has 1 NaN or infinite values of 2; clean the data"),
    ([(X, Y), ((X, INF), Y)], ", mini-batch 1: the input has 1 NaN or infinite values of 2"),
    ((X.to_sparse(), Y), ", mini-batch 0: the input is a torch.sparse_coo tensor; make it dense: tensor.to_dense()"),
    ({"x": None, "y": Y}, ", mini-batch 0: the input is None; wants a tensor"),
    ((X, INF), ", mini-batch 0: the target has 1 NaN or infinite values of 2"),
    ((X, Y[:1]), ", mini-batch 0: 2 samples in the input, 1 in the target; make axis 0 agree"),
    (torch.utils.data.TensorDataset(X, Y), ": is a Dataset of single samples; wrap it: DataLoader("),
    (lambda: None, ": is None; wants (input, target)"),
    (lambda: 1 / 0, f": ZeroDivisionError: division by zero ({__file__}:"),
    (lambda: (1 / n for n in (1, 0)), ", mini-batch 0: is an object of type float; wants (input, target)"),
    (lambda: ((X, Y) for n in (1, 0) if 1 / n), f", mini-batch 1: ZeroDivisionError: division by zero ({__file__}:"),
    (lambda: iter(()), ": gives no mini-batch at all; wants at least one (input, target)"),
]


@pytest.mark.parametrize(("source", "shapes"), BATCHES)
def test_batches(source: Any, shapes: list[Any]) -> None:
    batches = load_batches(source)
    assert [(len(batch.args), list(batch.kwargs)) for batch in batches] == shapes
    assert [(len(batch.args), list(batch.kwargs)) for batch in batches] == shapes, "iterable again"
    assert batches.length in (len(shapes), None)
    assert len(drain(source, 1)) == 1
    assert load_batches(source, 1).length in (1, None)


@pytest.mark.parametrize(("source", "says"), BAD_BATCHES)
def test_bad_batches(source: Any, says: str) -> None:
    assert message(drain, source).startswith(f"batch{says}")


@pytest.mark.parametrize("limit", [0, -1])
def test_bad_limit(limit: int) -> None:
    assert message(load_batches, (X, Y), limit) == f"batch_limit={limit}: wants at least 1; leave it out to use all"


def test_a_generator_is_streamed_once() -> None:
    made: list[int] = []

    def stream() -> Iterator[Any]:
        for index in range(5):
            made.append(index)
            yield X * index, Y

    batches = load_batches(stream(), limit=3)
    assert (batches.length, made) == (None, [])
    assert batches.first.args[0].max() == 0
    assert batches.first is batches.first
    assert made == [0]
    iterator = iter(batches)
    next(iterator), next(iterator)
    assert made == [0, 1]
    assert len(list(iterator)) == 1
    assert made == [0, 1, 2]
    assert "this iterator is used up; give a list, or a function" in message(list, batches)
    assert batches.first.args[0].max() == 0
    assert load_batches(batches) is batches


# numpy dtype -> torch dtype as input, as target
DTYPES = [
    ("float64", torch.float32, torch.float32),
    (">f8", torch.float32, torch.float32),
    (">f4", torch.float32, torch.float32),
    ("float16", torch.float16, torch.float16),
    ("uint8", torch.uint8, torch.int64),
    (">i2", torch.int16, torch.int64),
    ("uint16", torch.uint16, torch.int64),
    ("int64", torch.int64, torch.int64),
    ("bool", torch.bool, torch.bool),
]


@pytest.mark.parametrize(("dtype", "as_input", "as_target"), DTYPES)
def test_dtypes(dtype: str, as_input: torch.dtype, as_target: torch.dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)[:, ::-1]
    array.flags.writeable = False
    batch = load_batches((array, array)).first
    assert (batch.args[0].dtype, batch.target.dtype) == (as_input, as_target)
    assert batch.target[0].tolist() == array[0].tolist()


def test_float64_tensors_and_structures_stay() -> None:
    batch = load_batches({"x": (X.double(), None), "y": {"map": Y.int(), "name": "a"}}).first.to("cpu")
    assert batch.args[0].dtype == torch.float64
    assert batch.args[1] is None
    assert batch.target["map"].dtype == torch.int64
    assert batch.target["name"] == "a"


# file, what is in it (see `write`), number of mini-batches, or what the message says
BATCH_FILES = [
    ("b.pt", (X, Y), 1),
    ("b.pt", [(X, Y), {"x": X, "y": Y}], 2),
    ("b.pt", X, ": holds a tensor of shape (2, 1, 3); wants (input, target)"),
    ("b.pt", {"x": X}, ", mini-batch 0: has no target"),
    ("b.pt", nn.ReLU(), ": is a pickle that wants to run code (torch.nn.modules.activation.ReLU) and is refused"),
    ("b.pt", b"PK\3\4and so on", ": is empty or cut off in the middle"),
    ("b.pt", b"\x80\2and so on", ": is damaged ("),
    ("b.npz", {"x": X, "y": Y}, 1),
    ("b.npz", {"input.1": X, "target.1": Y, "input.0": X, "target.0": Y, "affine": X}, 2),
    ("b.npz", {"input.0": X, "target.0": Y, "input.1": X}, ", mini-batch 1: has no target"),
    ("b.npz", {"input.0": X, "target": Y}, ": has keys with and without numbers; number all"),
    (
        "b.npz",
        {"image": X, "label": Y},
        ": wants the keys input and target, or input.0, target.0, input.1, ...; it has image, label",
    ),
    ("b.npz", {"x": np.array([None, None]), "y": Y}, ": holds Python objects, which are pickles; save arrays"),
    ("b.npz", b"PK\3\4and so on", ": is damaged or cut off ("),
    ("b.npz", b"hello", ": is not an .npz file; write it with numpy.savez"),
    ("b.safetensors", {"input": X, "target": Y}, 1),
    ("b.safetensors", {f"{name}.{i}": X for i in range(11) for name in "xy"}, 11),
    ("b.safetensors", {"input": X}, ", mini-batch 0: has no target"),
    ("b.safetensors", b"hello, hello", ": is not safetensors, or cut off ("),
    ("b.py:batches", "batches = [(1., 2)]", ", mini-batch 0: the input is an object of type float"),
    ("b.py:batches", "import torch\ndef batches(): yield torch.ones(1), torch.ones(1)", 1),
    ("b.py:batches", "import torch\nbatches = [torch.ones(1)] * 2", 1),
    (
        "b.py:batches",
        "def batches(n): yield",
        ": TypeError: batches() missing 1 required positional argument: 'n'; check",
    ),
    ("b.py:batches", "batches = 5", ": is an object of type int; wants (input, target)"),
    ("b.py:batch", "def batches(): pass", ": there is no 'batch' in it; did you mean 'batches'? (known: batches)"),
    ("b.py", "def batches(): pass", ": which name in that file? Say b.py:NAME (it offers: batches)"),
    ("absent.npz", None, ": no such file (looked in "),
    ("absent.txt", None, ": no such file (looked in "),
    ("b.txt", b"", ": wants a .pt, .safetensors or .npz file, or file.py:Name"),
]


def write(path: Path, content: Any) -> None:
    """Bytes and text as they are, everything else in the way of the suffix."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".pt":
        torch.save(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: np.asarray(value) for key, value in content.items()})
    elif content is not None:
        save_file({key: value.clone() for key, value in content.items()}, path)


@pytest.mark.parametrize(("spec", "content", "result"), BATCH_FILES)
def test_batch_files(folder: Path, spec: str, content: Any, result: int | str) -> None:
    if content is not None:
        write(folder / spec.split(":")[0], content)
    if isinstance(result, int):
        assert len(drain(spec)) == result
        assert len(drain(folder / spec)) == result
        assert len(drain(spec, 1)) == 1
    else:
        assert message(drain, spec).startswith(f"batch {spec}{result}")


def test_numbered_batches_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "b.npz", {f"{name}.{index}": X * index for index in (10, 2, 0, 1) for name in "xy"})
    assert [int(batch.args[0].max()) for batch in load_batches(tmp_path / "b.npz")] == [0, 1, 2, 10]


def test_batches_has_a_readable_length_before_anything_is_made() -> None:
    assert Batches("batch", [1, 2, 3], 2).length == 2


# --------------------------------------------------------------------------------------------------------------- loss

torch.manual_seed(0)
LOGITS, ONE = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
LABELS = torch.randint(0, 3, (2, 4, 4, 4))
BINARY = LABELS.clamp(max=1)
FLOAT = BINARY.unsqueeze(1).float()
HOLES = LABELS.clone()
HOLES[0, :2] = 255
KNOWN = HOLES != 255
ONE_HOT = functional.one_hot(LABELS, 3).movedim(-1, 1).float()
SMALL = LOGITS[:, :, ::2, ::2, ::2]
CE, BCE, L1 = functional.cross_entropy, functional.binary_cross_entropy_with_logits, functional.l1_loss

# name, ignore_index, output, target, value
LOSSES: list[tuple[str | None, int | None, Any, Any, Any]] = [
    (None, None, LOGITS, LABELS, CE(LOGITS, LABELS)),
    (None, None, LOGITS, LABELS.to(torch.uint8), CE(LOGITS, LABELS)),
    (None, None, LOGITS, LABELS.unsqueeze(1), CE(LOGITS, LABELS)),
    (None, None, LOGITS[:, :, 0, 0, 0], LABELS[:, :1, 0, 0], CE(LOGITS[:, :, 0, 0, 0], LABELS[:, 0, 0, 0])),
    (None, None, LOGITS, HOLES, CE(LOGITS, HOLES, ignore_index=255)),
    (None, None, LOGITS, HOLES.where(KNOWN, -100), CE(LOGITS, HOLES, ignore_index=255)),
    (None, 1, LOGITS, LABELS, CE(LOGITS, LABELS, ignore_index=1)),
    (None, 255, LOGITS, HOLES, CE(LOGITS, HOLES, ignore_index=255)),
    ("cross_entropy", None, LOGITS, ONE_HOT, CE(LOGITS, LABELS)),
    ("cross_entropy", None, {"out": LOGITS, "aux": LOGITS}, LABELS, CE(LOGITS, LABELS)),
    ("cross_entropy", None, {"seg": LOGITS, "name": "a"}, LABELS, CE(LOGITS, LABELS)),
    ("cross_entropy", None, [LOGITS, None], LABELS, CE(LOGITS, LABELS)),
    ("cross_entropy", None, (LOGITS, SMALL), LABELS, CE(LOGITS, LABELS) + CE(SMALL, LABELS[:, ::2, ::2, ::2])),
    ("mse", None, LOGITS, ONE_HOT, functional.mse_loss(LOGITS, ONE_HOT)),
    ("mse", None, ONE, BINARY, functional.mse_loss(ONE, FLOAT)),
    ("mse", None, ONE[:, 0], BINARY.unsqueeze(1), functional.mse_loss(ONE[:, 0], BINARY.float())),
    ("l1", None, LOGITS, ONE_HOT, L1(LOGITS, ONE_HOT)),
    ("l1", 0, LOGITS, ONE_HOT, L1(LOGITS[ONE_HOT == 1], torch.ones(128))),
    ("l1", None, [ONE, SMALL[:, :1]], BINARY, L1(ONE, FLOAT) + L1(SMALL[:, :1], FLOAT[:, :, ::2, ::2, ::2])),
    ("smooth_l1", None, LOGITS, ONE_HOT, functional.smooth_l1_loss(LOGITS, ONE_HOT)),
    ("bce", None, ONE, BINARY, BCE(ONE, FLOAT)),
    ("bce", None, ONE, BINARY.bool(), BCE(ONE, FLOAT)),
    ("bce", None, ONE, BINARY.where(KNOWN, 255), BCE(ONE[:, 0][KNOWN], FLOAT[:, 0][KNOWN])),
    ("bce", None, LOGITS, ONE_HOT.long(), BCE(LOGITS, ONE_HOT)),
    ("dice", None, (ONE_HOT * 2 - 1) * 99, LABELS, torch.tensor(0.0)),
    ("dice", None, (ONE_HOT * 2 - 1) * 99, HOLES, torch.tensor(0.0)),
    ("dice", None, (1 - ONE_HOT) * 99, LABELS, torch.tensor(1.0)),
    ("dice", None, LOGITS * 0, LABELS, 1 - sum(2 * n / 3 / (128 / 3 + n) for n in LABELS.flatten().bincount()) / 3),
    ("dice", None, ONE * 0, BINARY, 1 - BINARY.sum() / (64 + BINARY.sum())),
    ("dice_ce", None, LOGITS * 0, LABELS, load_loss("dice")(LOGITS * 0, LABELS) + math.log(3)),
    ("dice", None, (FLOAT * 2 - 1) * 99, BINARY, torch.tensor(0.0)),
    ("dice_ce", None, (FLOAT * 2 - 1) * 99, BINARY, torch.tensor(0.0)),
    ("dice_ce", None, (ONE_HOT * 2 - 1) * 99, ONE_HOT, torch.tensor(0.0)),
]  # fmt: skip

MISFIT = "a target of shape {} does not fit an output of shape (2, 3, 4, 4, 4)"

# name, ignore_index, output, target, what the message says
BAD_LOSSES: list[tuple[Any, int | None, Any, Any, str]] = [
    (None, None, LOGITS, ONE_HOT, "a torch.float32 target has no default loss; give `loss`: cross_entropy, mse, l1, "),
    (None, None, LOGITS, LABELS + 1, "the target has class 3, but there are 3 classes, 0 to 2; mend the labels"),
    (None, None, LOGITS, LABELS - 1, "the target has class -1, but there are 3 classes"),
    (None, 7, LOGITS, HOLES, "the target has class 255, but there are 3 classes"),
    (None, None, LOGITS, LABELS * 0 + 255, "every place of the target is ignored; check the labels and `ignore_index`"),
    (None, None, LOGITS, LABELS[:, :2], f"{MISFIT.format((2, 2, 4, 4))}; wants (2, 4, 4, 4), so mend the batch"),
    (None, None, [LOGITS, LOGITS], LABELS[:1], MISFIT.format((1, 4, 4, 4))),
    (None, None, ONE, BINARY, "cross_entropy wants two or more channels, and the output's shape is (2, 1, "),
    (None, None, LOGITS, [0, 1], "the target is a list of 2 int; wants a tensor, or a loss of your own"),
    (None, None, "text", LABELS, "the model returned an object of type str; wants a tensor, or a loss of your own"),
    (None, None, {"a": LOGITS, "b": LOGITS}, LABELS, "the model returned a dict with the keys 'a', 'b'; name one of"),
    ("mse", None, LOGITS, LABELS, f"{MISFIT.format((2, 4, 4, 4))}; wants (2, 3, 4, 4, 4)"),
    ("mse", 1, ONE, BINARY * 0 + 1, "every place of the target is ignored"),
    ("bce", None, ONE, LABELS, "the target has class 2, but there are 2 classes, 0 to 1"),
    ("bce", None, ONE, ONE_HOT[:, :1] * 2, "bce wants targets in [0, 1], and this one has others; scale it"),
    ("dice", None, ONE, LABELS, "the target has class 2, but there are 2 classes, 0 to 1"),
    ("dice", None, ONE[:, 0, 0, 0, 0], Y, "dice wants an output of shape (N, C, ...), not (2,); give another `loss`"),
    (lambda o, t: 1 / 0, None, ONE, BINARY, f"loss=<lambda>: ZeroDivisionError: division by zero ({__file__}:"),
    (lambda o, t: o, None, ONE, BINARY, "loss=<lambda>: returned a tensor of shape (2, 1, 4, 4, 4); wants a scalar"),
    (lambda o, t: 3, None, ONE, BINARY, "loss=<lambda>: returned an object of type int; wants a scalar"),
]  # fmt: skip

LOSS_FILE = """
from torch import nn
def good(output, target): return output.mean()
class Good(nn.Module):
    def forward(self, output, target): return output.mean().reshape(1)
class Needs:
    def __init__(self, weight): pass
number = 5
"""

# spec, ignore_index, what the message says; None where it is fine
LOSS_SPECS: list[tuple[Any, int | None, str | None]] = [
    ("dice", None, None),
    ("dise", None, "loss='dise': no such loss; did you mean 'dice'? (known: cross_entropy, mse, l1, "),
    ("loss.py:good", None, None),
    ("loss.py:Good", None, None),
    ("torch.nn:MSELoss", None, None),
    ("torch.nn.functional:mse_loss", None, None),
    (nn.L1Loss(), None, None),
    ("loss.py:good", 3, "loss='loss.py:good': `ignore_index` is for the named losses; leave it out, "),
    ("loss.py:god", None, "loss='loss.py:god': there is no 'god' in it; did you mean 'good'?"),
    ("loss.py:number", None, "loss='loss.py:number': is an object of type int; wants a function loss(output, target)"),
    ("loss.py:Needs", None, "loss='loss.py:Needs': needs the argument weight; give loss_args={'weight': VALUE}"),
    ("loss.py", None, "loss='loss.py': which name in that file? Say loss.py:NAME (it offers: Good, Needs, good)"),
    ("absent.py:good", None, "loss='absent.py:good': no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ignore_index", "output", "target", "value"), LOSSES)
def test_losses(name: str | None, ignore_index: int | None, output: Any, target: Any, value: torch.Tensor) -> None:
    before = target.clone()
    loss = load_loss(name, ignore_index)(output, target)
    assert loss.shape == ()
    torch.testing.assert_close(loss, value, atol=1e-4, rtol=1e-5)
    assert torch.equal(before, target)


@pytest.mark.parametrize(("name", "ignore_index", "output", "target", "says"), BAD_LOSSES)
def test_bad_losses(name: Any, ignore_index: int | None, output: Any, target: Any, says: str) -> None:
    assert message(load_loss(name, ignore_index), output, target).startswith(says)


@pytest.mark.parametrize(("spec", "ignore_index", "says"), LOSS_SPECS)
def test_loss_specs(folder: Path, spec: Any, ignore_index: int | None, says: str | None) -> None:
    (folder / "loss.py").write_text(LOSS_FILE)
    if says is None:
        assert load_loss(spec, ignore_index)(ONE, BINARY.unsqueeze(1).float()).shape == ()
    else:
        assert message(load_loss, spec, ignore_index).startswith(says)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce", "mse", "bce"])
def test_ignored_places_have_no_gradient(name: str) -> None:
    output = (LOGITS if name in ("cross_entropy", "dice", "dice_ce") else ONE).clone().requires_grad_()
    target = BINARY.where(KNOWN, 255)
    load_loss(name, 255)(output, target).backward()
    ignored = (HOLES == 255).unsqueeze(1).expand_as(output)
    assert output.grad is not None
    assert not output.grad[ignored].any()
    assert output.grad[~ignored].all()


def test_an_output_too_coarse_for_any_label_adds_nothing() -> None:
    target = torch.full((2, 4, 4, 4), 255)
    target[:, 1, 1, 1] = 1
    coarse = SMALL.clone().requires_grad_()
    loss = load_loss(None)([LOGITS, coarse], target)
    torch.testing.assert_close(loss, CE(LOGITS, target, ignore_index=255))
    loss.backward()
    assert coarse.grad is not None
    assert not coarse.grad.any()


def test_importing_it_does_not_import_torch() -> None:
    import subprocess

    code = "import sys, ranp_cli.io.model, ranp_cli.io.batches, ranp_cli.io.losses, ranp_cli.cli.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_users_line_is_told_and_not_the_librarys_below_it():
    def reads(text: str) -> object:
        return json.loads(text)

    with pytest.raises(ValueError, match="Expecting value") as caught:
        reads("no json")
    line = reads.__code__.co_firstlineno + 1
    assert errors.user_line(caught.value) == f"{__file__}:{line}"
    assert errors.in_words(caught.value).endswith(f"(char 0) (at test_model.py:{line})")
