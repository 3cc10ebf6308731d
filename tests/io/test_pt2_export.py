"""The programs of torch.export: what the module says, or none."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
import zipfile

import pytest
import torch
from exported_nets import SHAPE, TwoInputs, example, near
from paths import SAMPLES
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput, VerificationFailed
from ranp_cli.core.example import Example
from ranp_cli.io.exchange import pt2_export
from ranp_cli.io.exchange.pt2_export import to_pt2
from ranp_cli.io.model import load_model


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


@pytest.mark.slow
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


@pytest.mark.slow
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
