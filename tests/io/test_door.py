"""What a newcomer's model looks like: files with arguments of their own, packages, code as arguments, checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.errors import BadInput
from ranp_cli.io.model import load_model, load_weights, parse_args

NET = "class Net(nn.Sequential):\n    def __init__(s, width=8): super().__init__(nn.Conv3d(1, width, 3), nn.Conv3d(width, 2, 1))\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that we stand in."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def said(spec: str, args: dict[str, Any] | None = None) -> str:
    with pytest.raises(BadInput) as error:
        load_model(spec, args)
    return str(error.value)


# --------------------------------------------------------------------------------------------- arguments of its own

PARSER = "import argparse, sys\nfrom torch import nn\np = argparse.ArgumentParser()\n"
PARSES = {
    "at import": f"{PARSER}p.add_argument('--width', type=int, default=8)\na = p.parse_args()\n{NET}",
    "in the factory": f"{PARSER}p.add_argument('--width', default=8)\n"
    "def Net(): return nn.Sequential(nn.Conv3d(1, p.parse_args().width, 3))\n",
    "by hand": f"{PARSER}assert not sys.argv[1:], sys.argv\n{NET}",
}


@pytest.mark.parametrize("source", PARSES.values(), ids=PARSES)
@pytest.mark.parametrize("spec", ["net.py:Net", "net:Net"])
def test_a_model_file_does_not_see_the_arguments_of_ranp(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, spec: str
) -> None:
    write(folder, {"net.py": source})
    argv = ["ranp", "prune", "net.py:Net", "--sparsity", "0.5"]
    monkeypatch.setattr(sys, "argv", argv)
    assert load_model(spec).module[0].out_channels == 8
    assert sys.argv is argv
    assert sys.argv == ["ranp", "prune", "net.py:Net", "--sparsity", "0.5"]


@pytest.mark.parametrize("place", ["", "def Net(): "])
def test_arguments_that_a_model_file_needs_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    write(folder, {"net.py": f"{PARSER}p.add_argument('--data', required=True)\n{place}p.parse_args()\n"})
    text = said("net.py:Net")
    assert "parses arguments of its own, which are not there in ranp (" in text
    assert "net.py:5): the following arguments are required: --data; give them defaults" in text
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------- packages

PACKAGE = {
    "pkg/net.py": f"from torch import nn\nfrom .blocks import WIDTH\n{NET.replace('width=8', 'width=WIDTH')}",
    "pkg/blocks.py": "WIDTH = 6\n",
    "pkg/deep/net.py": "from ..net import Net as Base\nclass Net(Base): pass\n",
}


@pytest.mark.parametrize("inits", [(), ("pkg/__init__.py", "pkg/deep/__init__.py")])
@pytest.mark.parametrize("spec", ["pkg.net:Net", "pkg/net.py:Net", "pkg/net.py", "pkg/deep/net.py:Net"])
def test_relative_imports(folder: Path, inits: tuple[str, ...], spec: str) -> None:
    write(folder, PACKAGE | dict.fromkeys(inits, ""))
    assert load_model(spec).module[0].out_channels == 6


@pytest.mark.parametrize("spec", ["net:Net", "net.py:Net"])
def test_relative_imports_from_within_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    write(folder, PACKAGE)
    monkeypatch.chdir("pkg")
    assert load_model(spec).module[0].out_channels == 6


def test_a_package_is_one_whoever_imports_it(folder: Path) -> None:
    """The names within and without are the same: classes are not made twice, so isinstance holds."""
    write(folder, PACKAGE | {"pkg/__init__.py": "from pkg.net import Net\n"})
    net = load_model("pkg/net.py:Net").module
    assert type(net) is sys.modules["pkg"].Net


def test_a_package_with_the_name_of_another_one(folder: Path) -> None:
    import json

    write(folder, {name.replace("pkg", "json"): text for name, text in PACKAGE.items()} | {"json/__init__.py": ""})
    assert load_model("json/net.py:Net").module[0].out_channels == 6
    assert sys.modules["json"] is json


def test_a_package_is_read_again_when_a_file_of_it_changes(folder: Path) -> None:
    write(folder, PACKAGE | {"pkg/__init__.py": ""})
    load_model("pkg/net.py:Net")
    (folder / "pkg/blocks.py").write_text("WIDTH = 12345 - 12341\n")
    assert load_model("pkg/net.py:Net").module[0].out_channels == 4


def test_a_file_beside_the_current_folder_finds_both(folder: Path) -> None:
    write(folder, {"nets/net.py": f"from torch import nn\nimport blocks\nfrom tools.wide import WIDTH\n{NET}",
                   "nets/blocks.py": "", "tools/wide.py": "WIDTH = 8\n"})  # fmt: skip
    assert load_model("nets/net.py:Net").module[0].out_channels == 8


MEANT = {
    "pkg.net.Net": "pkg.net:Net",
    "pkg/net:Net": "pkg/net.py:Net",
    "pkg/net.py::Net": "pkg/net.py:Net",
    "pkg/net.Net": "pkg.net:Net",
    "torch.nn.Conv3d": "torch.nn:Conv3d",
}


@pytest.mark.parametrize(("spec", "better"), MEANT.items())
def test_a_spec_without_its_colon_names_the_one_that_was_meant(folder: Path, spec: str, better: str) -> None:
    write(folder, PACKAGE)
    assert said(spec).endswith(f"; give {better}")
    with pytest.raises(BadInput, match=f"give loss='{better}'"):
        ranp.score(nn.Conv3d(1, 2, 1), (torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2)), loss=spec)
    assert "give" not in said("pkg.net.Nothing").replace("give file", "")


# ------------------------------------------------------------------------------------------------ code as arguments

MAKERS = f"""
from typing import Callable, Optional, Type
from torch import nn
def made(conv, act): return nn.Sequential(conv(1, 8, 3), act, conv(8, 2, 1))
def typed(conv: Type[nn.Module], act: Optional[Callable] = None): return made(conv, (act or nn.ReLU)())
def by_default(conv=nn.Conv2d, act=nn.ReLU): return made(conv, act())
def free(conv, act=None): return made(conv, act or nn.ReLU())
def text(conv): return made(getattr(nn, conv.rpartition(".")[2]), nn.ReLU())
def text_too(conv: str = "torch.nn.Conv3d"): return text(conv)
{NET}
"""
CONV = "torch.nn.modules.conv.Conv3d"
# factory, arguments as typed
AS_CODE = [
    ("typed", [f"conv={CONV}", "act=torch.nn.ELU"]),
    ("by_default", ["conv=torch.nn:Conv3d"]),
    ("free", ["conv=code:torch.nn.Conv3d"]),
    ("free", [f"conv=code:{CONV}", "act={_target_: torch.nn.LeakyReLU, negative_slope: 0.2}"]),
    ("free", ["conv={_target_: torch.nn.Conv3d, _mode_: callable}"]),
    ("free", ["conv={_target_: torch.nn.Conv3d, _partial_: true, bias: false}", "act={_target_: torch.nn.ELU, _args_: [0.5]}"]),
    ("free", ["conv={_target_: hydra.utils.get_class, path: torch.nn.Conv3d}"]),
    ("free", [f"conv={CONV}", "_kw_requires_import=[conv]"]),
    ("text", [f"conv={CONV}"]),
    ("text_too", [f"conv={CONV}"]),
]  # fmt: skip


@pytest.mark.parametrize(("factory", "pairs"), AS_CODE)
def test_classes_as_arguments(folder: Path, factory: str, pairs: list[str]) -> None:
    write(folder, {"net.py": MAKERS})
    loaded = load_model(f"net.py:{factory}", parse_args(pairs))
    assert isinstance(loaded.module[0], nn.Conv3d)
    assert loaded.args == parse_args(pairs)  # what is recorded is what was given


def test_classes_given_in_python_are_recorded_by_name(folder: Path) -> None:
    write(folder, {"net.py": MAKERS})
    loaded = load_model("net.py:free", {"conv": nn.Conv3d, "act": None})
    assert loaded.args == {"conv": "code:torch.nn.modules.conv:Conv3d", "act": None}
    assert isinstance(load_model("net.py:free", loaded.args).module[0], nn.Conv3d)


# factory, arguments as typed, what the message says
NOT_CODE = [
    ("free", ["conv=torch.nn.Conv3d"], "conv is text here: for torch.nn.Conv3d itself give model_args={'conv': 'code:torch.nn.Conv3d'}"),
    ("free", ["conv=code:torch.nn.Conv4d"], "argument conv: there is no torch.nn.Conv4d; wants package.module.Name"),
    ("free", ["conv={_target_: torch.nn.Conv3d, _mode_: debug}"], "_mode_ is 'debug'; wants default"),
    ("free", ["conv={_target_: torch.nn.Conv3d, _what_: 1}"], "ranp does not know _what_"),
    ("free", ["conv={_target_: torch.nn.Conv3d, _partial_: true, bias: $False}"], "is an expression of MONAI"),
    ("free", ["conv={_target_: torch.nn.LeakyReLU, slope: 1}"], "torch.nn.LeakyReLU: TypeError"),
]  # fmt: skip


@pytest.mark.parametrize(("factory", "pairs", "says"), NOT_CODE)
def test_arguments_that_name_no_code(folder: Path, factory: str, pairs: list[str], says: str) -> None:
    write(folder, {"net.py": MAKERS})
    assert says in said(f"net.py:{factory}", parse_args(pairs))


def test_arguments_that_a_slim_file_records_name_no_code_unless_it_is_trusted(folder: Path) -> None:
    write(folder, {"net.py": MAKERS, "evil.py": "open('ran', 'w').close()\nfrom torch.nn import Conv3d\n"})
    batch = torch.rand(1, 1, 6, 6, 6), torch.randint(2, (1, 4, 4, 4))
    ranp.prune("net.py:free", batch, sparsity=0.5, model_args={"conv": "code:evil.Conv3d"}).save("slim.safetensors")
    os.unlink("ran")
    sys.modules.pop("evil")
    for given in ({}, {"model": "net.py:free"}):
        with pytest.raises(BadInput):
            ranp.load("slim.safetensors", **given)
        assert not Path("ran").exists()
    assert isinstance(ranp.load("slim.safetensors", trust=True)[0], nn.Conv3d)


# ------------------------------------------------------------------------------------------------------ checkpoints

STATE = nn.Conv3d(1, 2, 1).state_dict()


@pytest.mark.parametrize("prefix", ["model", "net", "model.backbone", "_forward_module.model"])
@pytest.mark.parametrize("rest", [{}, {"loss.weight": torch.ones(2)}])
def test_lightning_checkpoints_name_their_prefix(tmp_path: Path, prefix: str, rest: dict[str, Any]) -> None:
    state = {f"{prefix}.{name}": value for name, value in STATE.items()} | rest
    for content, path, given in (
        ({"state_dict": state, "epoch": 1}, f"state_dict.{prefix}", (None, "state_dict", "model_dict")),
        (state, prefix, (None,)),
    ):
        torch.save(content, tmp_path / "last.ckpt")
        for key in given:
            with pytest.raises(BadInput, match=f"give weights_key='{path}'"):
                load_weights(nn.Conv3d(1, 2, 1), str(tmp_path / "last.ckpt"), key)
        net = nn.Conv3d(1, 2, 1)
        load_weights(net, str(tmp_path / "last.ckpt"), path)
        assert torch.equal(net.weight, STATE["weight"])


class Whole(nn.Conv3d):
    """A module that is pickled whole."""


def test_whole_modules_are_refused_with_advice_that_works(folder: Path) -> None:
    source = nn.Sequential(nn.Conv3d(1, 2, 1))
    for module, name in ((source, "torch.nn.modules.container.Sequential"), (Whole(1, 2, 1), f"{__name__}.Whole")):
        torch.save(module, "whole.pt")
        text = said("whole.pt")
        assert f"holds a pickled object ({name}), not TorchScript" in text
        with pytest.raises(BadInput) as error:
            load_weights(module, "whole.pt")
        for advice in (text, str(error.value)):
            command = advice[advice.index("torch.save(torch.load(") : advice.index(" in Python once")]
            assert "file.py:Name with weights='whole.state.pt'" in advice or "give weights='whole.state.pt'" in advice
            exec(command, {"torch": torch})
            load_weights(module, "whole.state.pt")
            os.unlink("whole.state.pt")


def test_a_state_dict_as_model_is_told_where_it_goes(folder: Path) -> None:
    torch.save(STATE, "state.pt")
    assert said("state.pt").endswith("file.py:Name with weights='state.pt'")


def test_an_axis_that_no_machine_holds_is_refused_before_anything_is_made(folder: Path) -> None:
    """As a damaged file may say it: its labels alone would take 16 GiB."""
    write(folder, {"net.py": f"from torch import nn\n{NET}"})
    with pytest.raises(BadInput, match="has an axis of 2147483648, and at most 67108864 are traced; give `batches` or"):
        ranp.profile("net.py:Net", (1, 1, 2**31, 4, 4))
